"""Training groups: a query with its graded documents, ragged, in flat arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
