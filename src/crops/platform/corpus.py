"""The catalogue: who posts what about which need, in whose words, with the noise of real uploads."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.platform.topics import Need, Sense
from crops.platform.world import Floats, Ints, World
from crops.schema import ITEMS

PLAIN_AUTHORS = 0.45
"""Share of creators who speak as searchers do; the others use the jargon of their scene."""
STYLE_PURITY = 0.85
"""How often a creator keeps to the own style for a phrase."""
SECOND_NEED, PARTIAL, REPOST, MISSING, OCR_ERROR, OFF_TOPIC_TAG = 0.25, 0.12, 0.04, 0.08, 0.06, 0.10
"""Chances per item: touches a second need, answers only in part, copies an earlier item's text, lacks a
text field, has a broken letter on the cover, carries a tag of another topic."""
ARRIVAL_DAYS = 60
"""Items were uploaded over this many days before the last simulated day, evenly."""
GENERIC_TAGS = ("fyp", "viral", "tips", "daily", "learnontok", "trending", "howto", "shorts")
_WORD = re.compile(r"[a-z0-9]+")
BAIT = ("wait for it", "nobody tells you this", "watch till the end", "this changed everything")


@dataclass(frozen=True)
class Corpus:
    """Items as arrays of shape [items]; the id of row i is i + 1."""

    need: Ints
    second: Ints
    partial: NDArray[np.bool_]
    sense: Ints
    author: Ints
    quality: Floats
    """Drives popularity: log-normal, independent of relevance."""
    duration_ms: Ints
    uploaded_day: Floats
    """Days since the first simulated day; negative = before it."""
    title: tuple[str | None, ...]
    caption: tuple[str | None, ...]
    tags: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.need)


def _split_by_style(need: Need, phrases: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Split phrases into (plain, jargon): plain are the two that share most words with the searches."""
    asked = {word for query in need.search for word in _WORD.findall(query) if len(word) > 3}
    order = sorted(phrases, key=lambda text: (-len(asked & set(_WORD.findall(text.lower()))), text))
    return order[:2], order[2:]


def build_corpus(world: World, items: int, authors: int, days: int, rng: np.random.Generator) -> Corpus:
    """Draw the catalogue.

    Args:
        world: the world.
        items: number of items.
        authors: number of creators.
        days: simulated days; items keep arriving during them.
        rng: source of randomness.
    """
    sense = rng.choice(len(world.sense_supply), items, p=world.sense_supply)
    need = draw_needs(world, sense, rng)
    other = draw_needs(world, sense, rng)
    plain_author = rng.random(authors) < PLAIN_AUTHORS
    author = rng.integers(0, authors, items)
    partial = rng.random(items) < PARTIAL
    texts = _texts(world, need, plain_author[author], partial, rng)
    return Corpus(
        need=need,
        second=np.where((rng.random(items) < SECOND_NEED) & (other != need), other, -1),
        partial=partial,
        sense=sense,
        author=author,
        quality=rng.lognormal(0.0, 1.0, items),
        duration_ms=(np.clip(rng.lognormal(np.log(30), 0.8, items), 5, 600) * 1000).astype(np.int64),
        uploaded_day=rng.uniform(days - ARRIVAL_DAYS, days, items),
        title=tuple(text[0] for text in texts),
        caption=tuple(text[1] for text in texts),
        tags=tuple(text[2] for text in texts),
    )


def draw_needs(world: World, sense: Ints, rng: np.random.Generator) -> Ints:
    """Draw one need per given sense, by the needs' shares."""
    first = np.searchsorted(world.need_sense, np.arange(len(world.sense_head)))
    cumulative = np.cumsum(world.need_share)
    start = np.concatenate([[0.0], cumulative])[first[sense]]
    drawn = np.searchsorted(cumulative, start + rng.random(len(sense)) * (1 - 1e-9))
    return np.clip(drawn, first[sense], first[sense] + np.bincount(world.need_sense)[sense] - 1)


Texts = tuple[str | None, str | None, str | None]


def _texts(
    world: World, need: Ints, plain: NDArray[np.bool_], partial: NDArray[np.bool_], rng: np.random.Generator
) -> list[Texts]:
    senses = [sense for head in world.heads for sense in head.senses]
    needs = [(sense, one) for sense in senses for one in sense.needs]
    styles = [(_split_by_style(one, one.titles), _split_by_style(one, one.captions)) for _, one in needs]
    all_tags = [tag for _, one in needs for tag in one.tags]
    texts: list[Texts] = []
    for row in range(len(need)):
        if texts and rng.random() < REPOST and (earlier := np.flatnonzero(need[:row] == need[row])).size:
            texts.append(texts[rng.choice(earlier)])
            continue
        sense, one = needs[need[row]]
        titles, captions = (
            style[0] if (rng.random() < STYLE_PURITY) == plain[row] else style[1]
            for style in styles[need[row]]
        )
        texts.append(
            _compose(sense, one, titles, captions, all_tags, bool(partial[row]), bool(plain[row]), rng)
        )
    return texts


def _compose(
    sense: Sense,
    need: Need,
    titles: list[str],
    captions: list[str],
    all_tags: list[str],
    partial: bool,
    plain: bool,
    rng: np.random.Generator,
) -> Texts:
    title: str | None = str(rng.choice(titles))
    if partial:
        title = f"{rng.choice(BAIT)} {title}"
    if rng.random() < OCR_ERROR:
        title = _break_letter(title or "", rng)
    sentences = list(rng.permutation(captions)[: 1 + int(rng.random() < 0.5)])
    if rng.random() < 0.5:
        sentences.append(str(rng.choice(sense.search if plain else sense.creator)))
    caption: str | None = ". ".join(sentences)
    tags = [*rng.permutation(need.tags)[: rng.integers(1, 4)], str(rng.choice(GENERIC_TAGS))]
    if rng.random() < OFF_TOPIC_TAG:
        tags.append(str(rng.choice(all_tags)))
    lost = rng.random()
    if lost < MISSING / 2:
        title = None
    elif lost < MISSING:
        caption = None
    return title, caption, " ".join(tags)


def _break_letter(text: str, rng: np.random.Generator) -> str:
    at = int(rng.integers(0, len(text)))
    return text[:at] + "il0O"[int(rng.integers(0, 4))] + text[at + 1 :]


def items_table(
    world: World, corpus: Corpus, first_day_us: int, counters: dict[str, Ints], click_query: list[str | None]
) -> pa.Table:
    """Return the catalogue as the `items` table.

    Args:
        world: the world.
        corpus: the catalogue.
        first_day_us: start of the first simulated day, microseconds UTC.
        counters: play_cnt, like_cnt, long_view_cnt and download_cnt, each [items].
        click_query: queries that led to clicks, '|'-separated, per item.
    """
    category = np.array([sense.category for head in world.heads for sense in head.senses])
    columns = {
        "item_id": np.arange(1, len(corpus) + 1),
        "ocr_cover": corpus.title,
        "photo_caption": corpus.caption,
        "keyword": corpus.tags,
        "click_query": click_query,
        **counters,
        "duration_ms": corpus.duration_ms,
        "uploaded_at": first_day_us + (corpus.uploaded_day * 86_400e6).astype(np.int64),
        "author_id": corpus.author + 1,
        "category": category[corpus.sense],
    }
    schema = ITEMS.arrow()
    return pa.table(
        [pa.array(columns[name], schema.field(name).type) for name in schema.names], schema=schema
    )
