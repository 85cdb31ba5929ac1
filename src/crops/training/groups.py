"""Training groups: a query with its graded documents, ragged, in flat arrays."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.text import content_id


class _Pairs(NamedTuple):
    """Graded pairs in any order, [P] each."""

    query_id: NDArray[np.int64]
    doc_id: NDArray[np.int64]
    label: NDArray[np.int64]
    source: NDArray[np.int64]
    weight: NDArray[np.float64]


class Catalogue(NamedTuple):
    """Documents that negatives are drawn from."""

    ids: NDArray[np.int64]
    """[D] ascending."""
    texts: list[str]
    """D texts."""

    def without(self, texts: frozenset[str]) -> Catalogue:
        """Return the documents that have none of these texts."""
        kept = [row for row, text in enumerate(self.texts) if text not in texts]
        return Catalogue(self.ids[kept], [self.texts[row] for row in kept])


class Wordless(NamedTuple):
    """Texts without a token for an encoder."""

    queries: frozenset[str]
    documents: frozenset[str]


_PAIR_COLUMNS = ("doc", "label", "source", "weight")


@dataclass(frozen=True)
class TrainingData:
    """G groups with P graded pairs over D documents."""

    query_texts: list[str]
    """G texts, one per group."""
    query_id: NDArray[np.int64]
    """[G]"""
    searches: NDArray[np.float64]
    """[G] how often each query was searched; groups are drawn with weight searches^beta."""
    doc_texts: list[str]
    """D texts."""
    doc_id: NDArray[np.int64]
    """[D]"""
    offsets: NDArray[np.int64]
    """[G + 1] where each group's pairs begin."""
    doc: NDArray[np.int64]
    """[P] row of the pair's document."""
    label: NDArray[np.int64]
    """[P] its label, 0 and up."""
    source: NDArray[np.int64]
    """[P] the source that earned the label (one bit of Source), 0 for human judgements."""
    weight: NDArray[np.float64]
    """[P] the odds of the pair to be drawn."""

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.query_id)

    def group_of_pair(self) -> NDArray[np.int64]:
        """Return the group of each pair, [P]."""
        return np.repeat(np.arange(self.groups), np.diff(self.offsets))

    def select(self, keep: NDArray[np.bool_]) -> TrainingData:
        """Return the groups where `keep` [G] is true; the documents stay."""
        pairs = keep[self.group_of_pair()]
        return dataclasses.replace(
            self,
            query_texts=[text for text, kept in zip(self.query_texts, keep, strict=True) if kept],
            query_id=self.query_id[keep],
            searches=self.searches[keep],
            offsets=np.concatenate([[0], np.cumsum(np.diff(self.offsets)[keep])]),
            **{name: getattr(self, name)[pairs] for name in _PAIR_COLUMNS},
        )

    def without(self, texts: Wordless) -> TrainingData:
        """Return what is left without these texts; groups that lose their query or all documents go."""
        gone = np.array([text in texts.documents for text in self.doc_texts], dtype=np.bool_)
        kept = ~gone[self.doc]
        sizes = np.bincount(self.group_of_pair()[kept], minlength=self.groups)
        left = dataclasses.replace(
            self,
            offsets=np.concatenate([[0], np.cumsum(sizes)]),
            **{name: getattr(self, name)[kept] for name in _PAIR_COLUMNS},
        )
        known = np.array([text not in texts.queries for text in self.query_texts], dtype=np.bool_)
        emptied = (sizes == 0) & (np.diff(self.offsets) > 0)
        return left.select(known & ~emptied)

    def with_anchors(self, lowest: int) -> TrainingData:
        """Return the groups that have a document of at least the label `lowest`."""
        anchors = np.bincount(self.group_of_pair()[self.label >= lowest], minlength=self.groups)
        return self.select(anchors > 0)


def from_judgements(docs: pa.Table, queries: pa.Table, qrels: pa.Table) -> TrainingData:
    """Return the groups of a judged collection: labels are grades, grade 0 is an own negative.

    Args:
        docs: doc_id, and title or text or both.
        queries: query_id, text.
        qrels: query_id, doc_id, grade (>= 0). Queries and documents without a judgement are left out.

    Raises:
        CropsError: a column is missing, a grade is negative, a judgement names no query or document of the
            collection, or there is none.
    """
    fields = [name for name in ("title", "text") if name in docs.column_names]
    for name, table, needed in (
        ("docs", docs, ["doc_id", *(fields or ["text"])]),
        ("queries", queries, ["query_id", "text"]),
        ("qrels", qrels, ["query_id", "doc_id", "grade"]),
    ):
        if missing := [column for column in needed if column not in table.column_names]:
            raise CropsError(f"{name} has no column {missing[0]}; it has {', '.join(table.column_names)}")
    grade = qrels["grade"].to_numpy().astype(np.int64)
    if len(grade) == 0 or grade.min() < 0:
        raise CropsError("qrels holds no judgement or a negative grade; grades start at 0 (not relevant)")
    query, doc, doc_id = _ids(qrels["query_id"]), _ids(qrels["doc_id"]), _ids(docs["doc_id"])
    judged = np.isin(doc_id, doc)
    rows = docs.select(fields).filter(pa.array(judged)).to_pylist()
    return _grouped(
        queries=(_ids(queries["query_id"]), queries["text"].to_pylist(), np.ones(queries.num_rows)),
        docs=(doc_id[judged], [" ".join(text for text in row.values() if text) for row in rows]),
        pairs=_Pairs(query, doc, grade, np.zeros_like(grade), np.ones(len(grade))),
        where="qrels",
    )


def _grouped(
    queries: tuple[NDArray[np.int64], Sequence[str], NDArray[np.int64] | NDArray[np.float64]],
    docs: tuple[NDArray[np.int64], list[str]],
    pairs: _Pairs,
    where: str,
) -> TrainingData:
    """Order the pairs by (query, document) and cut them into groups."""
    order = np.lexsort((pairs.doc_id, pairs.query_id))
    group_id, start = np.unique(pairs.query_id[order], return_index=True)
    row = _rows(queries[0], group_id, f"{where}: query")
    return TrainingData(
        query_texts=[queries[1][i] for i in row],
        query_id=group_id,
        searches=queries[2][row].astype(np.float64),
        doc_texts=docs[1],
        doc_id=docs[0],
        offsets=np.append(start, len(order)),
        doc=_rows(docs[0], pairs.doc_id[order], f"{where}: item"),
        label=pairs.label[order],
        source=pairs.source[order],
        weight=pairs.weight[order],
    )


def _rows(ids: NDArray[np.int64], wanted: NDArray[np.int64], what: str) -> NDArray[np.int64]:
    """Return the row of each wanted id."""
    missing = wanted[~np.isin(wanted, ids)]
    if len(missing):
        raise CropsError(
            f"{what} {missing[0]} has a label but no text ({len(missing)} such); mend the tables"
        )
    order = np.argsort(ids, kind="stable")
    rows: NDArray[np.int64] = order[np.searchsorted(ids, wanted, sorter=order)]
    return rows


def _ids(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return integer ids as they are and other ids as 64 bits of their hash."""
    whole = pa.types.is_integer(column.type)
    values = column.to_pylist()
    return np.array(values if whole else [content_id(str(value)) for value in values], dtype=np.int64)


# ------------------------------------------------------------------------------
# Training groups as flat arrays, and where they come from: parts that can be read in any order.


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


# ------------------------------------------------------------------------------
# Training data in memory as a source of groups: one part.


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
