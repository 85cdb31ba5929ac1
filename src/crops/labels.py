"""Where a training label comes from, and the label each origin earns (CroPS, hierarchical label assignment).

`samples.sources` keeps every origin of a (query, item) pair as a bit mask, so labels can be assigned again
for any subset of sources: an ablation needs no second mining run.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING

from crops.errors import CropsError, nearest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Source(IntFlag):
    """Origin of a (query, item) pair; the bits of `samples.sources`."""

    FILTERED = 1
    """Recalled, then filtered between pre-rank and rank."""
    UNEXPOSED = 2
    """Ranked, not shown."""
    EXPOSED = 4
    """Shown, not consumed."""
    CLICKED = 8
    """Shown and clicked or liked: P0."""
    KNOWLEDGE = 16
    """Written by an LLM for this query: P3."""
    FEED = 32
    """Consumed in the feed by users who issued the query: P2."""
    REFORMULATION = 64
    """Consumed after the same user reformulated the query: P1."""
    PROMOTED = 128
    """Ranked or filtered, never shown, and right by theta: P4, ours."""


@dataclass(frozen=True)
class Origin:
    """All that distinguishes one source from the others; a row of `ORIGINS`."""

    bit: Source
    group: str
    """What settings and commands call it: `search` or its own key."""
    section: str
    """Its section of the engine's settings."""
    label: int
    """The label it earns (CroPS, section on HLA); only the order of labels matters."""
    meaning: str
    """What happened, as the end of "the item was ..."."""
    stage: str | None = None
    """The same in short, for what the search itself had recalled."""
    key: str = ""
    """What reports on disk call a source of positives; empty for the negatives of search."""
    name: str = ""
    """What readers of the paper call a source of positives."""
    human: str = ""
    """What others call it."""
    tone: int = 0
    """Its colour in charts (`crops.report.charts`)."""
    extra: bool = False
    """Whether it is no source of CroPS: mined where it is asked for only."""


ORIGINS = (
    Origin(
        Source.REFORMULATION,
        group="p1",
        section="reformulation",
        label=5,
        meaning="consumed after rewording",
        key="p1",
        name="P1",
        human="rewording",
        tone=2,
    ),
    Origin(
        Source.FEED,
        group="p2",
        section="feed",
        label=4,
        meaning="consumed in the feed of its searchers",
        key="p2",
        name="P2",
        human="feed",
        tone=3,
    ),
    Origin(
        Source.PROMOTED,
        group="p4",
        section="promotion",
        label=4,
        meaning="found by search, not shown, right by theta",
        key="p4",
        name="P4",
        human="promotion",
        tone=5,
        extra=True,
    ),
    Origin(
        Source.KNOWLEDGE,
        group="p3",
        section="knowledge",
        label=4,
        meaning="written by an LLM",
        key="p3",
        name="P3",
        human="LLM",
        tone=4,
    ),
    Origin(
        Source.CLICKED,
        group="search",
        section="search",
        label=4,
        meaning="clicked or liked",
        stage="clicked",
        key="p0",
        name="clicks",
        human="search",
        tone=1,
    ),
    Origin(Source.EXPOSED, "search", "search", 3, "shown, not consumed", "shown"),
    Origin(Source.UNEXPOSED, "search", "search", 2, "ranked, not shown", "ranked, not shown"),
    Origin(Source.FILTERED, "search", "search", 1, "found, filtered before ranking", "filtered"),
)
"""Every source, the most telling first. A new one has a bit in `Source` and a row here; its miner reads a
section of `crops.config.EngineConfig`."""
POSITIVE_ORIGINS = tuple(sorted((row for row in ORIGINS if row.key), key=lambda row: row.key))
"""The sources of positives, P0 to P4."""
SEARCH_STAGES = tuple(row.bit for row in ORIGINS if row.stage)
"""What search did with an item, the furthest first."""
ALL_SOURCES = ~Source(0)
SEARCH_SOURCES = functools.reduce(operator.or_, SEARCH_STAGES)
"""What online search alone gives: the multi-stage baseline (FS-LR)."""
SOURCE_GROUPS: dict[str, Source] = {
    "search": SEARCH_SOURCES,
    **{row.group: row.bit for row in POSITIVE_ORIGINS if row.group != "search"},
}
"""The names that settings and commands use."""
CROPS_SOURCES = (
    "search",
    *(row.group for row in POSITIVE_ORIGINS if row.group != "search" and not row.extra),
)
"""Those of CroPS: what is mined by default."""
DEFAULT_LABELS: dict[Source, int] = {row.bit: row.label for row in reversed(ORIGINS)}
"""Labels by origin. 0 is left to in-batch documents."""
POSITIVE_LABEL = 4
"""The lowest label that counts as positive."""


def parse_sources(names: Iterable[str]) -> Source:
    """Return the union of the named source groups.

    Raises:
        CropsError: a name is not one of `SOURCE_GROUPS`.
    """
    mask = Source(0)
    for name in names:
        if name not in SOURCE_GROUPS:
            words = {word: row.group for row in POSITIVE_ORIGINS for word in (row.name, row.human, row.key)}
            hint = f" Did you mean '{words[name]}'?" if name in words else nearest(name, SOURCE_GROUPS)
            humans = {row.group: row.human for row in POSITIVE_ORIGINS if row.human != row.group}
            known = ", ".join(f"{one} ({humans[one]})" if one in humans else one for one in SOURCE_GROUPS)
            raise CropsError(f"unknown source '{name}'; known: {known}.{hint}")
        mask |= SOURCE_GROUPS[name]
    return mask


def assign_labels(
    sources: NDArray[np.int64],
    keep: Source = ALL_SOURCES,
    labels: Mapping[Source, int] = DEFAULT_LABELS,
) -> NDArray[np.int64]:
    """Return the highest label among the kept sources of each pair, -1 where none is kept.

    Args:
        sources: bit masks of `Source`, shape [n].
        keep: the sources that may speak.
        labels: label by origin.
    """
    import numpy as np  # Settings read this file, and should open fast.

    result = np.full(sources.shape, -1, dtype=np.int64)
    for source, label in labels.items():
        if source & keep:
            result = np.where(sources & int(source), np.maximum(result, label), result)
    return result


def label_meanings() -> dict[int, str]:
    """Return what earns each label by default."""
    meanings: dict[int, list[str]] = {}
    for row in reversed(ORIGINS):
        named = row.meaning if row.stage else f"{row.meaning} ({row.name})"
        meanings.setdefault(row.label, []).insert(0, named)
    return {label: ", or ".join(texts) for label, texts in meanings.items()}
