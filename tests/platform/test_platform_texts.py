"""How creators write: style, obvious tags, silence, missing fields, reposts."""

from collections import Counter

import numpy as np
import pytest
from platform_hand import HUM, hand_heads, within

from crops.platform import topics
from crops.platform.topics import (
    ASKED,
    BAIT,
    DETAIL,
    GENERIC_TAGS,
    MISSING,
    MOODS,
    OBVIOUS_TAG,
    OFF_TOPIC_TAG,
    PLAIN_AUTHORS,
    REPOST,
    SIGNATURE,
    SPEECHLESS,
    STYLE_PURITY,
    Need,
    Uploads,
    _break_letter,
    _split_by_style,
    build_intents,
    load_topics,
    write_texts,
)

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


def test_plain_phrases_are_the_two_that_share_most_words_with_the_searches():
    titles = ("Quiet strings", "Tune a guitar fast", "Your guitar, in tune", "Pegs", "Ear work")
    one = Need("n", ("how to tune a guitar",), titles, (), ())
    # "tune" and "guitar" are the words of more than three letters
    assert _split_by_style(one, titles) == (
        ["Tune a guitar fast", "Your guitar, in tune"],
        ["Ear work", "Pegs", "Quiet strings"],
    )


def test_authors_keep_to_their_style(undisturbed):
    titles, _, _ = write(about_hum(authors=400), authors=400)
    plain = np.array(["hum" in title for title in titles])
    # a plain title is told by 85 % of what plain authors post and by 15 % of what the others post
    mean = PLAIN_AUTHORS * STYLE_PURITY + (1 - PLAIN_AUTHORS) * (1 - STYLE_PURITY)
    assert abs(plain.mean() - mean) < 0.08
    by_author = np.array([plain[author::400].mean() for author in range(400)])
    # nobody speaks half one way and half the other: of 15 posts at 85 % or 15 %, hardly ever 7 or 8
    assert np.mean((by_author > 0.4) & (by_author < 0.6)) < 0.03
    assert within(int((by_author > 0.5).sum()), 400, PLAIN_AUTHORS)


def test_tags_details_questions_and_signatures_have_their_shares(undisturbed):
    titles, captions, tags = write(about_hum())
    words = [set(tag.split()) for tag in tags]
    assert within(sum("transformer" in own for own in words), N, OBVIOUS_TAG)
    assert all(own & set(GENERIC_TAGS) and own & {"humtag", "humlife"} for own in words)
    assert within(sum(title.endswith("at home") for title in titles), N, DETAIL)
    asked = [caption.split(". ")[1:] for caption in captions]
    assert within(sum(bool({"why does it hum", "loud hum"} & set(parts)) for parts in asked), N, ASKED)
    signatures = {f"{adjective} {place}" for adjective in topics._ADJECTIVES for place in topics._PLACES}
    assert within(sum(bool(signatures & set(parts)) for parts in asked), N, SIGNATURE)


def test_promises_stand_on_partial_answers_only(undisturbed):
    baited, honest = (write(about_hum(200, partial=partial))[0] for partial in (True, False))
    assert all(title.startswith(BAIT) for title in baited)
    assert not any(title.startswith(BAIT) for title in honest)


def test_speechless_uploads_say_nothing_of_the_need(monkeypatch):
    monkeypatch.setattr(topics, "SPEECHLESS", 1.0)
    heads = load_topics(4)
    intents = build_intents(heads, np.random.default_rng(0))
    need = np.random.default_rng(1).integers(0, len(intents.need_sense), 1_500)
    titles, captions, tags = write(
        Uploads(need, np.arange(1_500) % 150, np.zeros(1_500, dtype=bool)), authors=150, heads=heads
    )
    assert set(titles) <= {None, *MOODS}
    assert within(sum(title is None for title in titles), 1_500, 0.5)
    assert set(tags) == set(GENERIC_TAGS)
    own = dict(enumerate(captions))
    assert all(own[row] == own[row + 150] for row in range(1_350))
    searches = intents.phrases.text
    said = {" ".join(filter(None, text)) for text in zip(titles, captions, tags, strict=True)}
    assert not [search for search in searches if any(search in text for text in said)]


def test_silence_reposts_and_losses_have_their_shares(monkeypatch):
    monkeypatch.setattr(topics, "OCR_ERROR", 0.0)
    titles, captions, tags = write(about_hum())
    speechless = sum(tag in GENERIC_TAGS for tag in tags)
    spoken = [tag not in GENERIC_TAGS for tag in tags]
    # a repost copies the last text that speaks, so silence is among the rest only
    assert within(speechless, N, (1 - REPOST) * SPEECHLESS)
    told = sum(spoken)
    lost_title = sum(title is None for title, said in zip(titles, spoken, strict=True) if said)
    lost_caption = sum(caption is None for caption, said in zip(captions, spoken, strict=True) if said)
    assert within(lost_title, told, MISSING / 2, sigmas=6)
    assert within(lost_caption, told, MISSING / 2, sigmas=6)
    assert not any(a is None and b is None for a, b, s in zip(titles, captions, spoken, strict=True) if s)


def test_reposts_copy_the_whole_text(monkeypatch):
    monkeypatch.setattr(topics, "REPOST", 1.0)
    monkeypatch.setattr(topics, "SPEECHLESS", 0.0)
    rows = set(zip(*write(about_hum(50)), strict=True))
    assert len(rows) == 1


def test_strangers_tags_are_rare(monkeypatch):
    for name in ("REPOST", "SPEECHLESS"):
        monkeypatch.setattr(topics, name, 0.0)
    _, _, tags = write(about_hum())
    foreign = {"windingtag", "windinglife", "attentiontag", "attentionlife", "wateringtag", "wateringlife"}
    # six of the eight tags of this world belong to others
    assert within(sum(bool(foreign & set(tag.split())) for tag in tags), N, OFF_TOPIC_TAG * 6 / 8)


def test_a_broken_letter_changes_one_place_at_most():
    rng = np.random.default_rng(0)
    broken = [_break_letter("watering", rng) for _ in range(300)]
    differences = Counter(sum(a != b for a, b in zip("watering", text, strict=True)) for text in broken)
    assert set(differences) <= {0, 1}
    assert differences[1] > 250


def test_no_item_is_without_any_text(run_days):
    platform, _ = run_days()
    corpus = platform.world.corpus
    assert all(a or b or c for a, b, c in zip(corpus.title, corpus.caption, corpus.tags, strict=True))
