"""Where a training label comes from, and the label each origin earns (CroPS, hierarchical label assignment).

`samples.sources` keeps every origin of a (query, item) pair as a bit mask, so labels can be assigned again
for any subset of sources: an ablation needs no second mining run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from crops.errors import CropsError, nearest


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


ALL_SOURCES = ~Source(0)

SEARCH_SOURCES = Source.FILTERED | Source.UNEXPOSED | Source.EXPOSED | Source.CLICKED
"""What online search alone gives: the multi-stage baseline (FS-LR)."""

SOURCE_GROUPS: dict[str, Source] = {
    "search": SEARCH_SOURCES,
    "p1": Source.REFORMULATION,
    "p2": Source.FEED,
    "p3": Source.KNOWLEDGE,
}
"""The names that settings and commands use."""

DEFAULT_LABELS: dict[Source, int] = {
    Source.FILTERED: 1,
    Source.UNEXPOSED: 2,
    Source.EXPOSED: 3,
    Source.CLICKED: 4,
    Source.KNOWLEDGE: 4,
    Source.FEED: 4,
    Source.REFORMULATION: 5,
}
"""Labels by origin (CroPS, section on HLA); only their order matters. 0 is left to in-batch documents."""

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
            hint = nearest(name, SOURCE_GROUPS)
            raise CropsError(f"unknown source '{name}'; known: {', '.join(SOURCE_GROUPS)}.{hint}")
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
    result = np.full(sources.shape, -1, dtype=np.int64)
    for source, label in labels.items():
        if source & keep:
            result = np.where(sources & int(source), np.maximum(result, label), result)
    return result
