"""Training data in memory as a source of groups: one part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from crops.training.data import Catalogue, TrainingData
from crops.training.groups import Groups

BATCH = 4096
"""Texts handed out at a time."""


class MemoryGroups:
    """The groups of a TrainingData with an anchor; implements `crops.training.groups.GroupSource`."""

    def __init__(
        self, data: TrainingData, lowest_anchor: int, beta: float, catalogue: Catalogue | None = None
    ) -> None:
        """Leave out groups without a document of at least the label `lowest_anchor`; number the texts.

        Args:
            data: the groups.
            lowest_anchor: see above.
            beta: groups are drawn with weight searches^beta.
            catalogue: documents whose texts join the pool, in no group; none when None.
        """
        usable = data.with_anchors(lowest_anchor)
        self.undocumented = int((np.diff(data.offsets) == 0).sum())
        self.groups, self.dropped = usable.groups, data.groups - usable.groups - self.undocumented
        group = usable.group_of_pair()
        highest, lowest = np.zeros(usable.groups, np.int64), np.full(usable.groups, np.iinfo(np.int64).max)
        np.maximum.at(highest, group, usable.label)
        np.minimum.at(lowest, group, usable.label)
        self.one_label = int((highest == lowest).sum())
        self._query_rows: dict[str, int] = {}
        query_text = [self._query_rows.setdefault(t, len(self._query_rows)) for t in usable.query_texts]
        self.queries = len(self._query_rows)
        self._doc_rows: dict[str, int] = {}
        used = np.unique(usable.doc)
        doc_text = np.zeros(len(usable.doc_texts), dtype=np.int64)
        doc_text[used] = [
            self._doc_rows.setdefault(usable.doc_texts[doc], len(self._doc_rows)) for doc in used
        ]
        added = [] if catalogue is None else catalogue.texts
        rows = [self._doc_rows.setdefault(text, len(self._doc_rows)) for text in added]
        self.catalogue_text: NDArray[np.int64] = np.array(rows, dtype=np.int64) + self.queries
        """[D] row of the pool of each document of the catalogue."""
        self._all = Groups(
            query_id=usable.query_id,
            query_text=np.array(query_text, dtype=np.int64),
            searches=usable.searches,
            offsets=usable.offsets,
            doc_id=usable.doc_id[usable.doc],
            doc_text=doc_text[usable.doc] + self.queries,
            label=usable.label,
            source=usable.source,
            weight=usable.weight,
        )
        self.part_groups = np.array([usable.groups])
        self.part_searches = np.array([(usable.searches**beta).sum()])

    def read(self, parts: object) -> Groups:
        """Return all groups."""
        return self._all

    def query_texts(self) -> Iterator[list[str]]:
        """Yield the distinct query texts."""
        return _batches(list(self._query_rows))

    def doc_texts(self) -> Iterator[list[str]]:
        """Yield the distinct texts of the documents in use and of the catalogue."""
        return _batches(list(self._doc_rows))

    def fingerprint(self) -> str:
        """Return a hash of the groups and texts."""
        digest = hashlib.sha256()
        for array in vars(self._all).values():
            digest.update(np.ascontiguousarray(array).tobytes())
        for text in (*self._query_rows, *self._doc_rows):
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()


def _batches(texts: list[str]) -> Iterator[list[str]]:
    return (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
