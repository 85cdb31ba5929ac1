"""Counts of a mining job that add up over its parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from crops.engine.backend import Backend
from crops.labels import DEFAULT_LABELS, Source

STAGES = (Source.CLICKED, Source.EXPOSED, Source.UNEXPOSED, Source.FILTERED)
"""Of online search, highest first."""


@dataclass
class Census:
    """Distinct pairs by where they come from; parts of a job are disjoint in their queries."""

    merged: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Pairs by (bits of what the system considered, bits of what was kept)."""
    candidates: Counter[int] = field(default_factory=Counter)
    """P1 (after similarity) and P2 pairs by bits."""
    relevant: Counter[int] = field(default_factory=Counter)
    """The same above alpha."""

    def add(self, backend: Backend) -> None:
        """Count the part that the backend holds."""
        for row in backend.rows(
            "select considered, sources, count(*) as n from merged group by considered, sources"
        ):
            self.merged[row["considered"], row["sources"]] += row["n"]
        for counter, table in ((self.candidates, "candidate_pairs"), (self.relevant, "scored_pairs")):
            for row in backend.rows(f"select sources, count(*) as n from {table} group by sources"):
                counter[row["sources"]] += row["n"]

    def samples(self) -> Iterator[tuple[Source, Source, int]]:
        """Yield (considered, sources, pairs) of the samples."""
        for (considered, sources), n in self.merged.items():
            if sources:
                yield Source(considered), Source(sources), n


def count_bit(counter: Counter[int], source: Source) -> int:
    """Return the pairs that have the bit of `source`."""
    return sum(n for bits, n in counter.items() if bits & source)


def stage_of(considered: Source) -> Source:
    """Return the highest search bit, 0 for none."""
    return next((stage for stage in STAGES if considered & stage), Source(0))


def label_of(sources: Source) -> int:
    """Return the highest label among the bits."""
    return max(label for source, label in DEFAULT_LABELS.items() if sources & source)
