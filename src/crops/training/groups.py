"""Training groups as flat arrays, and where they come from: parts that can be read in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Groups:
    """G queries with their P graded documents; texts are rows of a pool, queries first."""

    query_id: NDArray[np.int64]
    """[G]"""
    query_text: NDArray[np.int64]
    """[G] row of the query's text."""
    searches: NDArray[np.float64]
    """[G] how often each query was searched."""
    offsets: NDArray[np.int64]
    """[G + 1] where each group's pairs begin."""
    doc_id: NDArray[np.int64]
    """[P]"""
    doc_text: NDArray[np.int64]
    """[P] row of the document's text."""
    label: NDArray[np.int64]
    """[P] 0 and up."""
    source: NDArray[np.int64]
    """[P] the source that earned the label (one bit of Source), 0 for human judgements."""
    weight: NDArray[np.float64]
    """[P] the odds of the pair to be drawn."""

    def __len__(self) -> int:
        return len(self.query_id)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Return the groups of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        arrays = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)
        }
        sizes = np.concatenate([np.diff(part.offsets) for part in parts])
        arrays["offsets"] = np.concatenate([[0], np.cumsum(sizes)])
        return cls(**arrays)


class GroupSource(Protocol):
    """Groups in parts; only what is asked for is in memory."""

    groups: int
    """Groups with an anchor, over all parts."""
    dropped: int
    """Groups that have no anchor and are left out."""
    undocumented: int
    """Queries that have no document and are left out."""
    one_label: int
    """Groups whose documents share one label: other queries' documents are all they are contrasted with."""
    queries: int
    """Rows of the pool that are query texts."""
    part_groups: NDArray[np.int64]
    """Groups of each part."""
    part_searches: NDArray[np.float64]
    """Sum of searches^beta of each part."""

    def read(self, parts: NDArray[np.int64]) -> Groups:
        """Return the groups of the given parts.

        Raises:
            CropsError: a part is damaged.
        """
        ...

    def query_texts(self) -> Iterator[list[str]]:
        """Yield the query texts in the order of their rows, a batch at a time."""
        ...

    def doc_texts(self) -> Iterator[list[str]]:
        """Yield the document texts in the order of their rows, a batch at a time."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of the groups and texts."""
        ...
