"""The world of topics: what the files hold, how creators write, and what the catalogue says of it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from platform_hand import (
    ATTENTION,
    ELECTRIC,
    FIG,
    HUM,
    MODEL,
    WATERING,
    WINDING,
    hand_heads,
    hand_intents,
    hand_world,
    within,
)
from scipy import stats

from crops.errors import CropsError
from crops.platform import topics
from crops.platform.topics import Uploads, build_intents, build_topics_world, load_topics, write_texts
from crops.platform.world import HEAD_LEVEL, NEED_LEVEL, SENSE_LEVEL, SIZES, Size, split_shares
from crops.text import terms

Raw = dict[str, Any]
HEADS = 120
FIRST_24 = ("transformer", "cushion foundation", "jaguar", "ficus", "mercury", "sourdough", "python",
            "guitar chords", "bat", "home workout", "squash", "camping", "orange", "hair braids", "bow",
            "small bathroom", "amazon", "anchor", "apple", "aquarium", "bass", "bike repair", "block",
            "board")  # fmt: skip
"""Worlds of `demo` have the first 16 heads, of `small` 24: another order is another benchmark."""


@pytest.fixture(scope="module", params=["en", "zh"])
def files(request) -> dict[str, Raw]:
    return {
        path.name.removesuffix(".toml"): tomllib.loads(path.read_text("utf-8"))
        for path in sorted(topics._folder(request.param).iterdir(), key=lambda one: one.name)
        if path.name.endswith(".toml") and not path.name.startswith("_")
    }


def senses(files: dict[str, Raw]) -> Iterator[tuple[str, Raw]]:
    for name, head in files.items():
        for sense in head["senses"]:
            yield f"{name}: {sense['name']}", sense


def needs(files: dict[str, Raw]) -> Iterator[tuple[str, Raw, Raw]]:
    for name, head in files.items():
        for sense in head["senses"]:
            for need in sense["needs"]:
                yield f"{name}: {need['name']}", head, need


HAN = "\u4e00-\u9fff"


def length(text: str) -> int:
    """Words of English; characters of Chinese, two to a word."""
    return (len(text) + 1) // 2 if re.search(f"[{HAN}]", text) else len(text.split())


def content(texts: list[str]) -> set[str]:
    """What is looked for in titles: words of more than three letters, pairs of Chinese characters."""
    return {word for text in texts for word in topics._content(text.lower())}


def test_every_head_keeps_the_rules_of_length_and_spelling(files):
    chinese = "pingguo" in files
    assert len(files) == (12 if chinese else HEADS)
    sizes_of_sense = {"needs": (4, 8), "search": (2, 3), "creator": (4, 6), "details": (8, 8)}
    sizes_of_need = {"search": (4, 6), "titles": (5, 5), "captions": (5, 5), "tags": (4, 5)}
    for name, head in files.items():
        assert set(head) == {"head", "kind", "reviewed", "senses"}, name
        assert head["head"] == name.replace("_", " ") or chinese
        assert head["kind"] in ("ambiguous", "broad"), name
        assert dt.date.fromisoformat(head["reviewed"]) >= dt.date(2026, 1, 1), name
        assert 2 <= len(head["senses"]) <= 4, name
    for where, sense in senses(files):
        assert all(low <= len(sense[key]) <= high for key, (low, high) in sizes_of_sense.items()), where
        assert {sense["demand"], sense["supply"]} <= set(range(1, 6)), where
        assert re.fullmatch(f"[a-z ]+|[{HAN}]+", sense["category"]), where
        assert all(2 <= length(text) <= 6 for text in sense["details"]), where
        assert all(length(text) <= 6 for text in sense["search"]), where
    for where, _, need in needs(files):
        assert all(low <= len(need[key]) <= high for key, (low, high) in sizes_of_need.items()), where
        assert need["name"].strip(), where
        assert all(re.fullmatch(f"[a-z0-9{HAN}]+", tag) for tag in need["tags"]), where
    searches = [text for _, sense in senses(files) for text in sense["search"]]
    searches += [text for _, _, need in needs(files) for text in need["search"]]
    assert [text for text in searches if text != " ".join(text.lower().split())] == []
    # no search means two things in the package
    twice = Counter([*searches, *(head["head"] for head in files.values())])
    assert [text for text, count in twice.items() if count > 1] == []


@pytest.mark.parametrize("kind", ["titles", "captions"])
def test_most_creators_do_not_use_the_searchers_words(files, kind):
    few = [
        where
        for where, _, need in needs(files)
        if sum(not content([text]) & content(need["search"]) for text in need[kind]) < 3
    ]
    assert few == []


def test_no_text_is_twice_in_a_file(files):
    twice = []
    for name, head in files.items():
        texts: Counter[str] = Counter()
        for sense in head["senses"]:
            texts.update(text.lower() for key in ("search", "creator", "details") for text in sense[key])
            for need in sense["needs"]:
                texts.update(text.lower() for key in ("search", "titles", "captions") for text in need[key])
                assert len(set(need["tags"])) == len(need["tags"]), (name, need["name"])
        twice += [(name, text) for text, count in texts.items() if count > 1]
    assert twice == []


def test_heads_are_vaguer_than_needs(files):
    for where, head, need in needs(files):
        assert length(head["head"]) < max(length(text) for text in need["search"]), where
        assert not all(set(terms(head["head"])) <= set(terms(text)) for text in need["search"]), where


def test_the_first_heads_keep_their_order_and_more_than_there_are_is_refused():
    assert tuple(head.name for head in load_topics(24)) == FIRST_24
    heads = load_topics(HEADS)
    assert len({head.name for head in heads}) == HEADS
    assert sum(len(sense.needs) for head in heads for sense in head.senses) == 1848
    with pytest.raises(CropsError, match="'heads' = 121: the package has 120 topics"):
        load_topics(HEADS + 1)


N = 6_000


def write(uploads, authors=200, seed=0, heads=None):
    return write_texts(heads or hand_heads(), uploads, authors, np.random.default_rng(seed))


def about_hum(n=N, *, partial=False, authors=200):
    return Uploads(np.full(n, HUM), np.arange(n) % authors, np.full(n, partial))


@pytest.fixture
def undisturbed(monkeypatch):
    """Switch off what would blur a share: reposts, silence, losses, broken letters and strangers' tags."""
    for name in ("REPOST", "SPEECHLESS", "MISSING", "OCR_ERROR", "OFF_TOPIC_TAG"):
        monkeypatch.setattr(topics, name, 0.0)


def test_authors_keep_to_their_style(undisturbed):
    titles, _, _ = write(about_hum(authors=400), authors=400)
    plain = np.array(["hum" in title for title in titles])
    # a plain title is told by 85 % of what plain authors post and by 15 % of what the others post
    mean = topics.PLAIN_AUTHORS * topics.STYLE_PURITY + (1 - topics.PLAIN_AUTHORS) * (1 - topics.STYLE_PURITY)
    assert abs(plain.mean() - mean) < 0.08
    by_author = np.array([plain[author::400].mean() for author in range(400)])
    # nobody speaks half one way and half the other: of 15 posts at 85 % or 15 %, hardly ever 7 or 8
    assert np.mean((by_author > 0.4) & (by_author < 0.6)) < 0.03
    assert within(int((by_author > 0.5).sum()), 400, topics.PLAIN_AUTHORS)


def test_tags_details_questions_and_signatures_have_their_shares(undisturbed):
    titles, captions, tags = write(about_hum())
    words = [set(tag.split()) for tag in tags]
    assert within(sum("transformer" in own for own in words), N, topics.OBVIOUS_TAG)
    assert all(own & set(topics.GENERIC_TAGS) and own & {"humtag", "humlife"} for own in words)
    assert within(sum(title.endswith("at home") for title in titles), N, topics.DETAIL)
    asked = [caption.split(". ")[1:] for caption in captions]
    assert within(sum(bool({"why does it hum", "loud hum"} & set(parts)) for parts in asked), N, topics.ASKED)
    signatures = {f"{adjective} {place}" for adjective in topics._ADJECTIVES for place in topics._PLACES}
    assert within(sum(bool(signatures & set(parts)) for parts in asked), N, topics.SIGNATURE)


def test_promises_stand_on_partial_answers_only(undisturbed):
    baited, honest = (write(about_hum(200, partial=partial))[0] for partial in (True, False))
    assert all(title.startswith(topics.BAIT) for title in baited)
    assert not any(title.startswith(topics.BAIT) for title in honest)


def test_speechless_uploads_say_nothing_of_the_need(monkeypatch):
    monkeypatch.setattr(topics, "SPEECHLESS", 1.0)
    heads = load_topics(4)
    intents = build_intents(heads, np.random.default_rng(0))
    need = np.random.default_rng(1).integers(0, len(intents.need_sense), 1_500)
    titles, captions, tags = write(
        Uploads(need, np.arange(1_500) % 150, np.zeros(1_500, dtype=bool)), authors=150, heads=heads
    )
    assert set(titles) <= {None, *topics.MOODS}
    assert within(sum(title is None for title in titles), 1_500, 0.5)
    assert set(tags) == set(topics.GENERIC_TAGS)
    own = dict(enumerate(captions))
    assert all(own[row] == own[row + 150] for row in range(1_350))
    searches = intents.phrases.text
    said = {" ".join(filter(None, text)) for text in zip(titles, captions, tags, strict=True)}
    assert not [search for search in searches if any(search in text for text in said)]


def test_silence_reposts_and_losses_have_their_shares(monkeypatch):
    monkeypatch.setattr(topics, "OCR_ERROR", 0.0)
    titles, captions, tags = write(about_hum())
    speechless = sum(tag in topics.GENERIC_TAGS for tag in tags)
    spoken = [tag not in topics.GENERIC_TAGS for tag in tags]
    # a repost copies the last text that speaks, so silence is among the rest only
    assert within(speechless, N, (1 - topics.REPOST) * topics.SPEECHLESS)
    told = sum(spoken)
    lost_title = sum(title is None for title, said in zip(titles, spoken, strict=True) if said)
    lost_caption = sum(caption is None for caption, said in zip(captions, spoken, strict=True) if said)
    assert within(lost_title, told, topics.MISSING / 2, sigmas=6)
    assert within(lost_caption, told, topics.MISSING / 2, sigmas=6)
    assert not any(a is None and b is None for a, b, s in zip(titles, captions, spoken, strict=True) if s)


def test_strangers_tags_are_rare(monkeypatch):
    for name in ("REPOST", "SPEECHLESS"):
        monkeypatch.setattr(topics, name, 0.0)
    _, _, tags = write(about_hum())
    foreign = {"windingtag", "windinglife", "attentiontag", "attentionlife", "wateringtag", "wateringlife"}
    # six of the eight tags of this world belong to others
    assert within(sum(bool(foreign & set(tag.split())) for tag in tags), N, topics.OFF_TOPIC_TAG * 6 / 8)


def test_grades_by_definition():
    needs = [HUM, HUM, WINDING, WINDING, ATTENTION, ATTENTION, WATERING]
    second = [-1, -1, -1, HUM, -1, HUM, -1]
    partial = [False, True, False, False, False, False, False]
    world = hand_world(needs, second, partial=partial)
    # the need; in part; another need; in passing; another sense; in passing from there; another head
    assert world.relevance(np.array(HUM), np.arange(7)).tolist() == [3, 2, 1, 2, 0, 2, 0]
    lists = np.array([[0, 2, 4], [4, 2, 0]])
    assert world.relevance(np.array([[HUM], [ATTENTION]]), lists).tolist() == [[3, 1, 0], [3, 0, 0]]
    # a partial answer in passing stays in passing
    world = hand_world([WINDING], [HUM], partial=[True])
    assert world.relevance(np.array([HUM, WINDING]), np.array([0, 0])).tolist() == [2, 2]


def test_phrases_know_what_they_give_away():
    phrases = hand_intents().phrases
    columns = (column.tolist() for column in (phrases.level, phrases.head, phrases.sense, phrases.need))
    by_text = dict(zip(phrases.text, zip(*columns, strict=True), strict=True))
    assert by_text["transformer"] == (HEAD_LEVEL, 0, -1, -1)
    assert by_text["transformer ai"] == (SENSE_LEVEL, 0, MODEL, -1)
    assert by_text["loud hum"] == (NEED_LEVEL, 0, ELECTRIC, HUM)
    assert by_text["watering a ficus"] == (NEED_LEVEL, 1, FIG, WATERING)
    assert len(by_text) == 2 + 3 + 5


def test_heads_have_zipf_shares_split_by_weight():
    shares = split_shares(np.array([0, 0, 1]), np.array([1.0, 3.0, 5.0]), np.random.default_rng(0))
    heads = sorted([shares[0] + shares[1], shares[2]])
    assert heads == pytest.approx([2**-0.6 / (1 + 2**-0.6), 1 / (1 + 2**-0.6)])
    assert shares[1] / shares[0] == pytest.approx(3)


def test_demand_and_supply_come_from_the_topics():
    intents = hand_intents()
    assert intents.sense_demand.sum() == pytest.approx(1)
    assert intents.sense_supply.sum() == pytest.approx(1)
    assert intents.sense_demand[MODEL] / intents.sense_demand[ELECTRIC] == pytest.approx(3)
    assert intents.sense_supply[ELECTRIC] / intents.sense_supply[MODEL] == pytest.approx(3)
    assert np.bincount(intents.need_sense, weights=intents.need_share) == pytest.approx([1, 1, 1])


def test_demand_and_supply_rank_the_heads_differently():
    world = build_topics_world(SIZES["small"], 4, np.random.default_rng(0))
    intents = world.intents
    demand, supply = (
        np.bincount(intents.sense_head, weights=share)
        for share in (intents.sense_demand, intents.sense_supply)
    )
    assert np.sort(demand) == pytest.approx(np.sort(supply))
    assert abs(stats.spearmanr(demand, supply).statistic) < 0.6


def test_needs_are_drawn_by_their_share_within_their_sense():
    intents = hand_intents()
    n = 20_000
    drawn = intents.draw_needs(np.full(n, ELECTRIC), np.random.default_rng(1))
    counts = np.bincount(drawn, minlength=4)
    assert counts[[ATTENTION, WATERING]].tolist() == [0, 0]
    # two needs of a sense: Zipf 0.7, so 1 : 2^-0.7 in some order
    assert within(counts[:2].max(), n, 1 / (1 + 2**-0.7))
    assert intents.draw_needs(np.array([FIG, MODEL]), np.random.default_rng(2)).tolist() == [
        WATERING,
        ATTENTION,
    ]


def test_the_catalogue_follows_supply_and_every_need_has_an_item():
    rng = np.random.default_rng(3)
    world = build_topics_world(SIZES["tiny"], 4, rng)
    corpus, intents = world.corpus, world.intents
    n = SIZES["tiny"].items
    assert len(corpus) == n
    assert (intents.need_sense[corpus.need] == corpus.sense).all()
    biggest = intents.sense_supply.argmax()
    forced = len(intents.need_sense)
    assert abs((corpus.sense == biggest).sum() - n * intents.sense_supply[biggest]) < forced + 4 * np.sqrt(n)
    assert within(corpus.partial.sum(), n, topics.PARTIAL)
    touched = world.second >= 0
    assert (intents.need_sense[world.second[touched]] == corpus.sense[touched]).all()
    assert (world.second != corpus.need).all()
    own = np.bincount(corpus.sense, minlength=len(intents.sense_head)) / n
    miss = float((own * (1 - np.bincount(intents.need_sense, weights=intents.need_share**2))).sum())
    assert within(touched.sum(), n, topics.SECOND_NEED * miss)


def test_somebody_posts_about_every_need_and_more_needs_than_items_are_refused():
    needs = len(build_topics_world(SIZES["tiny"], 4, np.random.default_rng(0)).intents.need_sense)
    just_enough = Size(heads=4, items=needs, authors=9, users=2, sessions=1)
    world = build_topics_world(just_enough, 4, np.random.default_rng(0))
    assert sorted(world.corpus.need) == list(range(needs))
    with pytest.raises(CropsError, match="size: 10 items are fewer than the .* needs of 4 heads"):
        build_topics_world(dataclasses.replace(just_enough, items=10), 4, np.random.default_rng(0))
