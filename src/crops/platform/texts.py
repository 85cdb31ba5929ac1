"""How creators write about a need: in their own style, with details, signatures and the noise of uploads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crops.platform.topics import Head, Need, Sense
from crops.platform.world import Flags, Ints

PLAIN_AUTHORS = 0.55
"""Share of creators who speak as searchers do; the others use the jargon of their scene."""
STYLE_PURITY = 0.85
"""How often a creator keeps to the own style for a phrase."""
DETAIL, SCENE, SIGNATURE, OBVIOUS_TAG, ASKED = 0.6, 0.5, 0.35, 0.55, 0.35
"""Chances per item: a detail in the title, words of the scene in the caption, the creator's signature, the
plain word for the topic among the hashtags, and a popular search for the need spelt out in the caption."""
SPEECHLESS = 0.38
"""Share of uploads whose text says nothing of what they show: a mood, a generic hashtag, no caption."""
REPOST, MISSING, OCR_ERROR, OFF_TOPIC_TAG = 0.04, 0.08, 0.06, 0.10
"""Chances per item: copies an earlier item's text, lacks a text field, has a broken letter on the cover,
carries a tag of another topic."""
GENERIC_TAGS = ("fyp", "viral", "tips", "daily", "learnontok", "trending", "howto", "shorts")
BAIT = ("wait for it", "nobody tells you this", "watch till the end", "this changed everything")
MOODS = (
    "so good", "wait for it", "day 3", "had to share this", "pov", "you asked for it", "part 2", "no words",
    "weekend mood", "finally", "just because", "my favourite", "this again", "who else", "see you tomorrow",
)  # fmt: skip
_ADJECTIVES = (
    "quiet", "sunny", "rusty", "paper", "north", "tiny", "velvet", "lucky", "wild", "slow", "copper", "odd",
    "cozy", "amber", "little", "brave", "salty", "misty", "plain", "loud", "early", "patient", "crooked",
)  # fmt: skip
_PLACES = (
    "harbor", "studio", "corner", "porch", "garage", "lane", "cabin", "desk", "balcony", "kitchen", "attic",
    "lab", "bench", "window", "cellar", "bridge", "meadow", "workshop", "diary", "club", "market", "shed",
)  # fmt: skip
"""Creators sign as one of each: 'rusty porch'."""
_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Uploads:
    """What is known of the items before they have texts; arrays [items]."""

    need: Ints
    author: Ints
    partial: Flags


@dataclass(frozen=True)
class _Voice:
    """What there is to say about a need, in plain words and in the scene's."""

    sense: Sense
    need: Need
    titles: tuple[list[str], list[str]]
    captions: tuple[list[str], list[str]]
    obvious: str


Texts = tuple[str | None, str | None, str | None]
Columns = tuple[tuple[str | None, ...], tuple[str | None, ...], tuple[str | None, ...]]


def write_texts(heads: Sequence[Head], uploads: Uploads, authors: int, rng: np.random.Generator) -> Columns:
    """Return the titles (OCR of the cover), captions and hashtags of the items.

    Args:
        heads: the topics.
        uploads: what the items are about and who posts them.
        authors: number of creators.
        rng: source of randomness.
    """
    voices = [
        _Voice(
            sense,
            need,
            _split_by_style(need, need.titles),
            _split_by_style(need, need.captions),
            head.name.replace(" ", ""),
        )
        for head in heads
        for sense in head.senses
        for need in sense.needs
    ]
    all_tags = [tag for voice in voices for tag in voice.need.tags]
    plain_author = rng.random(authors) < PLAIN_AUTHORS
    adjective, place = rng.integers(0, len(_ADJECTIVES), authors), rng.integers(0, len(_PLACES), authors)
    latest: dict[int, Texts] = {}
    texts: list[Texts] = []
    for row, (need, author) in enumerate(zip(uploads.need.tolist(), uploads.author.tolist(), strict=True)):
        if need in latest and rng.random() < REPOST:
            texts.append(latest[need])
            continue
        voice, plain = voices[need], bool(plain_author[author])
        signature = f"{_ADJECTIVES[adjective[author]]} {_PLACES[place[author]]}"
        if rng.random() < SPEECHLESS:
            texts.append(_speechless(signature, rng))
            continue
        title = _title(voice, plain, bool(uploads.partial[row]), rng)
        caption = _caption(voice, plain, signature, rng)
        latest[need] = _lose(title, caption, _hashtags(voice, all_tags, rng), rng)
        texts.append(latest[need])
    title_column, caption_column, tag_column = zip(*texts, strict=True)
    return title_column, caption_column, tag_column


def _speechless(signature: str, rng: np.random.Generator) -> Texts:
    title = _pick(MOODS, rng) if rng.random() < 0.5 else None
    return title, signature, _pick(GENERIC_TAGS, rng)


def _split_by_style(need: Need, phrases: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Split phrases into (plain, jargon): plain are the two that share most words with the searches."""
    asked = {word for query in need.search for word in _WORD.findall(query) if len(word) > 3}
    order = sorted(phrases, key=lambda text: (-len(asked & set(_WORD.findall(text.lower()))), text))
    return order[:2], order[2:]


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.random() * len(choices))]


def _in_style(styles: tuple[list[str], list[str]], plain: bool, rng: np.random.Generator) -> list[str]:
    return styles[0] if (rng.random() < STYLE_PURITY) == plain else styles[1]


def _title(voice: _Voice, plain: bool, partial: bool, rng: np.random.Generator) -> str:
    title = _pick(_in_style(voice.titles, plain, rng), rng)
    if rng.random() < DETAIL:
        title = f"{title} {_pick(voice.sense.details, rng)}"
    if partial:
        title = f"{_pick(BAIT, rng)} {title}"
    return _break_letter(title, rng) if rng.random() < OCR_ERROR else title


def _caption(voice: _Voice, plain: bool, signature: str, rng: np.random.Generator) -> str:
    choices = _in_style(voice.captions, plain, rng)
    parts = [_pick(choices, rng)]
    if rng.random() < DETAIL / 2:
        parts.append(_pick(voice.sense.details, rng))
    if rng.random() < SCENE:
        parts.append(_pick(voice.sense.search if plain else voice.sense.creator, rng))
    if rng.random() < ASKED:
        parts.append(_pick(voice.need.search, rng))
    if rng.random() < SIGNATURE:
        parts.append(signature)
    return ". ".join(parts)


def _hashtags(voice: _Voice, all_tags: list[str], rng: np.random.Generator) -> str:
    own = voice.need.tags
    first, count = int(rng.random() * len(own)), 1 + int(rng.random() * 2)
    tags = [own[(first + i) % len(own)] for i in range(count)]
    tags.append(_pick(GENERIC_TAGS, rng))
    if rng.random() < OBVIOUS_TAG:
        tags.append(voice.obvious)
    if rng.random() < OFF_TOPIC_TAG:
        tags.append(_pick(all_tags, rng))
    return " ".join(tags)


def _lose(title: str, caption: str, tags: str, rng: np.random.Generator) -> Texts:
    """Leave out the title or the caption of some uploads."""
    lost = rng.random()
    if lost < MISSING / 2:
        return None, caption, tags
    return title, None if lost < MISSING else caption, tags


def _break_letter(text: str, rng: np.random.Generator) -> str:
    at = int(rng.random() * len(text))
    return text[:at] + _pick("il0O", rng) + text[at + 1 :]
