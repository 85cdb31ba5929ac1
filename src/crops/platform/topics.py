"""Topics: heads (vague queries) with senses, and senses with needs; written by hand, one TOML per head.

For each need the file holds how searchers say it and how creators say it, and the two vocabularies
overlap only in part: that gap is what a lexical route cannot cross.
"""

from __future__ import annotations

import importlib.resources
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources.abc import Traversable

import numpy as np
from pydantic import TypeAdapter

from crops.config import PlatformConfig
from crops.errors import CropsError
from crops.platform.people import FIRST_LEVEL, MODIFIERS
from crops.platform.world import (
    ARRIVAL_DAYS,
    HEAD_LEVEL,
    NEED_LEVEL,
    SENSE_LEVEL,
    SIZES,
    Corpus,
    Flags,
    Intents,
    Ints,
    Phrases,
    Size,
    draw_fate,
    order_phrases,
    split_shares,
    zipf,
)
from crops.text import SPACELESS, terms


@dataclass(frozen=True)
class Need:
    """One thing that people want to see; a video answers it or it does not."""

    name: str
    search: tuple[str, ...]
    titles: tuple[str, ...]
    captions: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Sense:
    """One meaning of a head; `demand` and `supply` are relative shares of searchers and creators."""

    name: str
    category: str
    demand: float
    supply: float
    search: tuple[str, ...]
    creator: tuple[str, ...]
    """Words of the scene."""
    details: tuple[str, ...]
    """Short phrases that fit any video of the sense and answer no need."""
    needs: tuple[Need, ...]


@dataclass(frozen=True)
class Head:
    """A vague query that people type."""

    name: str
    kind: str
    senses: tuple[Sense, ...]


FIRST_HEADS = (
    "transformer", "cushion_foundation", "jaguar", "ficus", "mercury", "sourdough", "python", "guitar_chords",
    "bat", "home_workout", "squash", "camping", "orange", "hair_braids", "bow", "small_bathroom",
)  # fmt: skip
"""The heads of the smaller sizes, in order: words with several meanings and broad needs in turn."""


ENGLISH = "en"


def load_topics(heads: int, language: str = ENGLISH) -> list[Head]:
    """Return the first `heads` topics of the package; of another language than English, as many as it has.

    Raises:
        CropsError: more heads are asked than the package has in English.
    """
    folder = _folder(language)
    names = {path.name.removesuffix(".toml") for path in folder.iterdir() if path.name.endswith(".toml")}
    order = [name for name in FIRST_HEADS if name in names]
    order += sorted(name for name in names - set(order) if not name.startswith("_"))
    if heads > len(order) and language == ENGLISH:
        raise CropsError(
            f"setting 'heads' = {heads}: the package has {len(order)} topics; ask for at most that"
        )
    read = [tomllib.loads((folder / f"{name}.toml").read_text("utf-8")) for name in order[:heads]]
    return [TypeAdapter(Head).validate_python({"name": raw["head"], **raw}) for raw in read]


def _folder(language: str) -> Traversable:
    topics = importlib.resources.files("crops.platform") / "topics"
    return topics if language == ENGLISH else topics / language


# How creators write about a need: in their own style, with details, signatures and the noise of uploads.


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
class Manner:
    """What uploads and searches hold beside what they are about, in one language."""

    generic_tags: tuple[str, ...] = GENERIC_TAGS
    bait: tuple[str, ...] = BAIT
    moods: tuple[str, ...] = MOODS
    adjectives: tuple[str, ...] = _ADJECTIVES
    places: tuple[str, ...] = _PLACES
    modifiers: tuple[str, ...] = MODIFIERS
    broken: str = "il0O"
    """Letters that a misread cover shows."""
    space: str = " "
    stop: str = ". "
    """Between two sentences."""


def load_manner(language: str) -> Manner:
    """Return how people write in a language that the package has topics of."""
    if language == ENGLISH:
        return Manner()
    raw = tomllib.loads((_folder(language) / "_manner.toml").read_text("utf-8"))
    return TypeAdapter(Manner).validate_python(raw)


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


def write_texts(
    heads: Sequence[Head],
    uploads: Uploads,
    authors: int,
    rng: np.random.Generator,
    manner: Manner = Manner(),  # noqa: B008  (frozen)
    speechless: float | None = None,
) -> Columns:
    """Return titles (OCR of the cover), captions and hashtags of the items; `SPEECHLESS` holds if None."""
    silent = SPEECHLESS if speechless is None else speechless
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
    adjective = rng.integers(0, len(manner.adjectives), authors)
    place = rng.integers(0, len(manner.places), authors)
    latest: dict[int, Texts] = {}
    texts: list[Texts] = []
    for row, (need, author) in enumerate(zip(uploads.need.tolist(), uploads.author.tolist(), strict=True)):
        if need in latest and rng.random() < REPOST:
            texts.append(latest[need])
            continue
        voice, plain = voices[need], bool(plain_author[author])
        signature = manner.space.join([manner.adjectives[adjective[author]], manner.places[place[author]]])
        if rng.random() < silent:
            mood = _pick(manner.moods, rng) if rng.random() < 0.5 else None
            texts.append((mood, signature, _pick(manner.generic_tags, rng)))
            continue
        title = _title(voice, plain, bool(uploads.partial[row]), rng, manner)
        caption = _caption(voice, plain, signature, rng, manner)
        tags = _hashtags(voice, all_tags, rng, manner)
        lost = rng.random()
        no_title, no_caption = lost < MISSING / 2, MISSING / 2 <= lost < MISSING
        latest[need] = (None if no_title else title, None if no_caption else caption, tags)
        texts.append(latest[need])
    title_column, caption_column, tag_column = zip(*texts, strict=True)
    return title_column, caption_column, tag_column


def _split_by_style(need: Need, phrases: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Split phrases into (plain, jargon): plain are the two that share most words with the searches."""
    asked = {word for query in need.search for word in _content(query)}
    order = sorted(phrases, key=lambda text: (-len(asked & _content(text.lower())), text))
    return order[:2], order[2:]


def _content(text: str) -> set[str]:
    """Return the words of more than three letters, and the pairs of characters where no spaces are."""
    pairs = {pair for pair in terms(text) if re.match(f"[{SPACELESS}]", pair)}
    return {word for word in _WORD.findall(text) if len(word) > 3} | pairs


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.random() * len(choices))]


def _in_style(styles: tuple[list[str], list[str]], plain: bool, rng: np.random.Generator) -> list[str]:
    return styles[0] if (rng.random() < STYLE_PURITY) == plain else styles[1]


def _title(voice: _Voice, plain: bool, partial: bool, rng: np.random.Generator, manner: Manner) -> str:
    title = _pick(_in_style(voice.titles, plain, rng), rng)
    if rng.random() < DETAIL:
        title = f"{title} {_pick(voice.sense.details, rng)}"
    if partial:
        title = f"{_pick(manner.bait, rng)} {title}"
    return _break_letter(title, rng, manner.broken) if rng.random() < OCR_ERROR else title


def _caption(voice: _Voice, plain: bool, signature: str, rng: np.random.Generator, manner: Manner) -> str:
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
    return manner.stop.join(parts)


def _hashtags(voice: _Voice, all_tags: list[str], rng: np.random.Generator, manner: Manner) -> str:
    own = voice.need.tags
    first, count = int(rng.random() * len(own)), 1 + int(rng.random() * 2)
    tags = [own[(first + i) % len(own)] for i in range(count)]
    tags.append(_pick(manner.generic_tags, rng))
    if rng.random() < OBVIOUS_TAG:
        tags.append(voice.obvious)
    if rng.random() < OFF_TOPIC_TAG:
        tags.append(_pick(all_tags, rng))
    return " ".join(tags)


def _break_letter(text: str, rng: np.random.Generator, letters: str) -> str:
    at = int(rng.random() * len(text))
    return text[:at] + _pick(letters, rng) + text[at + 1 :]


# The world of hand-written topics: its needs, its catalogue and its truth.


SECOND_NEED, PARTIAL = 0.25, 0.12
"""Chances per item: touches a second need in passing, answers only in part (clickbait, low effort)."""


@dataclass(frozen=True)
class TopicsWorld:
    """A world whose grades follow from what each item is about."""

    intents: Intents
    corpus: Corpus
    second: Ints
    """A need that the item touches in passing, -1 for none, [items]."""

    def relevance(self, need: Ints, item: Ints) -> Ints:
        """Return the grade 0..3 of item rows for need rows; the arguments broadcast.

        3: the item is about the need; 2: it touches the need in passing, or answers it in part; 1: another
        need of the same sense; 0: anything else.
        """
        same_sense = self.intents.need_sense[need] == self.corpus.sense[item]
        main = np.where(self.corpus.partial[item], 2, 3)
        passing = np.where(self.second[item] == need, 2, same_sense.astype(np.int64))
        return np.where(self.corpus.need[item] == need, main, passing)


def build_topics_world(
    size: Size,
    days: int,
    rng: np.random.Generator,
    language: str = ENGLISH,
    *,
    speechless: float = SPEECHLESS,
    arrival_days: int = ARRIVAL_DAYS,
) -> TopicsWorld:
    """Return the world of the first `size.heads` topics with its catalogue.

    Args:
        days: simulated days; items keep arriving during them.
        speechless: share of uploads whose text says nothing.
        arrival_days: the catalogue was uploaded over so many days before the end.

    Raises:
        CropsError: the package has fewer topics, or there are more needs than items.
    """
    heads = load_topics(size.heads, language)
    intents = build_intents(heads, rng)
    items = size.items
    needs = len(intents.need_sense)
    if items < needs:
        raise CropsError(f"size: {items} items are fewer than the {needs} needs of {size.heads} heads")
    sense = rng.choice(len(intents.sense_supply), items, p=intents.sense_supply)
    need = intents.draw_needs(sense, rng)
    need[rng.permutation(items)[:needs]] = np.arange(needs)  # somebody posts about every need
    sense = intents.need_sense[need]
    other = intents.draw_needs(sense, rng)
    author = rng.integers(0, size.authors, items)
    partial = rng.random(items) < PARTIAL
    second = np.where((rng.random(items) < SECOND_NEED) & (other != need), other, -1)
    uploads = Uploads(need, author, partial)
    title, caption, tags = write_texts(heads, uploads, size.authors, rng, load_manner(language), speechless)
    corpus = Corpus(
        need=need,
        sense=sense,
        partial=partial,
        author=author,
        **draw_fate(items, days, rng, arrival_days),
        title=title,
        caption=caption,
        tags=tags,
    )
    return TopicsWorld(intents, corpus, second)


def build_intents(heads: Sequence[Head], rng: np.random.Generator) -> Intents:
    """Lay out the topics as arrays; heads follow Zipf's law, in different orders for demand and supply."""
    senses = [(h, sense) for h, head in enumerate(heads) for sense in head.senses]
    sense_head = np.array([h for h, _ in senses])
    demand, supply = (
        split_shares(sense_head, np.array([getattr(sense, name) for _, sense in senses]), rng)
        for name in ("demand", "supply")
    )
    return Intents(
        names=tuple(
            (head.name, sense.name, need.name)
            for head in heads
            for sense in head.senses
            for need in sense.needs
        ),
        sense_head=sense_head,
        sense_category=tuple(sense.category for _, sense in senses),
        sense_demand=demand,
        sense_supply=supply,
        need_sense=np.array([s for s, (_, sense) in enumerate(senses) for _ in sense.needs]),
        need_share=np.concatenate([rng.permutation(zipf(len(sense.needs), 0.7)) for _, sense in senses]),
        phrases=_phrases(heads),
    )


def _phrases(heads: Sequence[Head]) -> Phrases:
    rows: list[tuple[str, int, int, int, int]] = []
    sense_row = need_row = -1
    for head_row, head in enumerate(heads):
        rows.append((head.name, HEAD_LEVEL, head_row, -1, -1))
        for sense in head.senses:
            sense_row += 1
            rows.extend((text, SENSE_LEVEL, head_row, sense_row, -1) for text in sense.search)
            for need in sense.needs:
                need_row += 1
                rows.extend((text, NEED_LEVEL, head_row, sense_row, need_row) for text in need.search)
    return order_phrases(rows)


# Editions of the benchmark: what the catalogue and the searchers have in common in all of its worlds. `v1` is
# too easy to tell sources apart: its day before the test had shown what most test clicks are on, and a
# baseline that reads click queries finds nearly all of it. `v2` changes the old system's side only, and was
# frozen before any method but that system was trained on it (docs/platform.md).


@dataclass(frozen=True)
class Edition:
    """Settings that all worlds of an edition share; the defaults are those of v1."""

    items: float = 1.0
    """Items, as a multiple of the size's."""
    sessions: float = 1.0
    """Search sessions a day, as a multiple of the size's."""
    arrival_days: int = ARRIVAL_DAYS
    """At least two more than are simulated."""
    speechless: float = SPEECHLESS
    first_level: tuple[float, float, float] = FIRST_LEVEL


EDITIONS = {
    "v1": Edition(),
    "v2": Edition(2.5, 0.4, arrival_days=6, speechless=0.20, first_level=(0.25, 0.55, 0.20)),
}


def extent(config: PlatformConfig) -> Size:
    """Return how large a world of these settings is."""
    size, edition = SIZES[config.size], EDITIONS[config.edition]
    sessions = config.sessions or round(size.sessions * edition.sessions)
    users = config.users or size.users
    return replace(size, items=round(size.items * edition.items), sessions=sessions, users=users)
