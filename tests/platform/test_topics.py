"""What a machine can check of docs/topics.md, for every topic of the package."""

from __future__ import annotations

import datetime as dt
import importlib.resources
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from crops.errors import CropsError
from crops.platform.topics import load_topics

Raw = dict[str, Any]
HEADS = 120
FIRST_24 = (
    "transformer", "cushion foundation", "jaguar", "ficus", "mercury", "sourdough", "python", "guitar chords",
    "bat", "home workout", "squash", "camping", "orange", "hair braids", "bow", "small bathroom",
    "amazon", "anchor", "apple", "aquarium", "bass", "bike repair", "block", "board",
)  # fmt: skip
"""Worlds of `demo` have the first 16 heads, of `small` 24: another order is another benchmark."""


@pytest.fixture(scope="module")
def files() -> dict[str, Raw]:
    folder = importlib.resources.files("crops.platform") / "topics"
    return {
        path.name.removesuffix(".toml"): tomllib.loads(path.read_text())
        for path in sorted(folder.iterdir(), key=lambda one: one.name)
        if path.name.endswith(".toml")
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


def length(text: str) -> int:
    return len(text.split())


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9']+", text.lower()))


def content(texts: list[str]) -> set[str]:
    return {word for text in texts for word in words(text) if len(word) > 3}


def counts_outside(one: Raw, allowed: dict[str, range]) -> list[str]:
    return [f"{key}: {len(one[key])}" for key, sizes in allowed.items() if len(one[key]) not in sizes]


def test_the_package_has_every_head_reviewed(files):
    assert len(files) == HEADS
    for name, head in files.items():
        assert set(head) == {"head", "kind", "reviewed", "senses"}, name
        assert head["head"] == name.replace("_", " ")
        assert head["kind"] in ("ambiguous", "broad"), name
        assert dt.date.fromisoformat(head["reviewed"]) >= dt.date(2026, 1, 1), name


def test_rule_2_senses(files):
    assert [name for name, head in files.items() if len(head["senses"]) not in range(2, 5)] == []
    for where, sense in senses(files):
        assert (
            counts_outside(sense, {"search": range(2, 4), "creator": range(4, 7), "details": range(8, 9)})
            == []
        ), where
        assert sense["demand"] in range(1, 6), where
        assert sense["supply"] in range(1, 6), where
        assert re.fullmatch("[a-z ]+", sense["category"]), where


def test_rule_3_needs(files):
    assert [where for where, sense in senses(files) if len(sense["needs"]) not in range(4, 9)] == []
    sizes = {"search": range(4, 7), "titles": range(5, 6), "captions": range(5, 6), "tags": range(4, 6)}
    assert [
        (where, faults) for where, _, need in needs(files) if (faults := counts_outside(need, sizes))
    ] == []
    assert all(need["name"].strip() for _, _, need in needs(files))


@pytest.mark.parametrize("kind", ["titles", "captions"])
def test_rule_4_most_creators_do_not_use_the_searchers_words(files, kind):
    few = []
    for where, _, need in needs(files):
        asked = content(need["search"])
        if sum(not content([text]) & asked for text in need[kind]) < 3:
            few.append(where)
    assert few == []


def test_rule_5_no_text_twice_in_a_file(files):
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


def test_rule_5_no_search_means_two_things_in_the_package(files):
    owners: Counter[str] = Counter(head["head"] for head in files.values())
    owners.update(text for _, sense in senses(files) for text in sense["search"])
    owners.update(text for _, _, need in needs(files) for text in need["search"])
    assert [text for text, count in owners.items() if count > 1] == []


def test_rule_6_heads_are_vaguer_than_needs(files):
    longest = max(length(text) for _, sense in senses(files) for text in sense["search"])
    assert longest <= 6
    vague = [
        where
        for where, head, need in needs(files)
        if length(head["head"]) >= max(length(text) for text in need["search"])
    ]
    assert vague == []
    lexical = [
        where
        for where, head, need in needs(files)
        if all(words(head["head"]) <= words(text) for text in need["search"])
    ]
    assert lexical == []


def test_searches_and_hashtags_are_typed_in_lower_case(files):
    searches = [text for _, sense in senses(files) for text in sense["search"]]
    searches += [text for _, _, need in needs(files) for text in need["search"]]
    assert [text for text in searches if text != " ".join(text.lower().split())] == []
    tags = [tag for _, _, need in needs(files) for tag in need["tags"]]
    assert [tag for tag in tags if not re.fullmatch("[a-z0-9]+", tag)] == []


def test_rule_12_details_are_short_phrases(files):
    odd = [text for _, sense in senses(files) for text in sense["details"] if length(text) not in range(2, 7)]
    assert odd == []


def test_the_first_heads_keep_their_order():
    assert tuple(head.name for head in load_topics(24)) == FIRST_24
    assert [head.name for head in load_topics(16)] == list(FIRST_24[:16])


def test_all_heads_load_and_more_are_refused():
    heads = load_topics(HEADS)
    assert len({head.name for head in heads}) == HEADS
    assert sum(len(sense.needs) for head in heads for sense in head.senses) == 1848
    with pytest.raises(CropsError, match="'heads' = 121: the package has 120 topics"):
        load_topics(HEADS + 1)
