"""A judged collection: documents, queries and human grades in three Parquet files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.logs.files import refuse_lake_tables
from crops.logs.sources import parquet_schema
from crops.text import has_text, normalise_query


@dataclass(frozen=True)
class Judged:
    """A judged collection with integer ids: 1, 2, ... in the order of the files."""

    doc_ids: tuple[str, ...]
    """The collection's own id of item_id i is `doc_ids[i - 1]`."""
    texts: tuple[str, ...]
    """Document texts, in the order of `doc_ids`."""
    source_query_ids: tuple[str, ...]
    """The collection's own id of query_id i is `source_query_ids[i - 1]`."""
    queries: tuple[str, ...]
    """Normalised query texts, in the order of `source_query_ids`."""
    judgements: pa.Table
    """query_id, item_id, grade; sorted, one row per pair."""
    positive_label: int
    """Lowest grade that counts as relevant."""
    text_columns: tuple[str, ...]
    """The columns of docs that make up a document's text, joined in this order."""
    titles: tuple[str, ...]
    """What of each text is its title, "" where docs has no such column."""
    rejected: pa.Table
    """Rows left out: table, row (from 0), reason."""

    @property
    def rejects(self) -> dict[str, int]:
        """Rows left out, by `<table>.<reason>`."""
        names = (f"{row['table']}.{row['reason']}" for row in self.rejected.to_pylist())
        return dict(sorted(Counter(names).items()))

    def item_ids(self) -> NDArray[np.int64]:
        """Return the ids of the documents [n]."""
        return np.arange(1, len(self.texts) + 1)

    def query_ids(self) -> NDArray[np.int64]:
        """Return the ids of the queries [q]."""
        return np.arange(1, len(self.queries) + 1)


def load_judged(folder: str | Path, positive_label: int | None = None) -> Judged:
    """Read docs.parquet, queries.parquet and qrels.parquet.

    Columns: docs(doc_id, title, text), queries(query_id, text), qrels(query_id, doc_id, grade). Where docs
    has no `text`, all its string columns but doc_id, in their order, make up the document. Ids may be of any
    type. Rows that cannot be used are left out and listed in `rejected`.

    Args:
        folder: holds the three files.
        positive_label: lowest grade that counts as relevant; the collection's top grade when None.

    Raises:
        CropsError: a file or column is missing, grades are not integers, or nothing usable is left.
    """
    folder = Path(folder)
    docs, queries, qrels = (_read(folder, *contract) for contract in _CONTRACT)
    columns = _text_columns(docs, folder)
    rejects: list[_Reject] = []
    joined = (
        " ".join(filter(None, (str(part or "").strip() for part in parts)))
        for parts in zip(*(docs[name].to_pylist() for name in columns), strict=True)
    )
    documents = _accepted("docs", docs["doc_id"].to_pylist(), joined, rejects)
    title = docs["title"].to_pylist() if "title" in columns else [""] * len(docs)
    first = zip(reversed(docs["doc_id"].to_pylist()), reversed(title), strict=True)
    titles = {str(identity): str(text or "").strip() for identity, text in first}
    texts = (normalise_query(text or "") for text in queries["text"].to_pylist())
    asked = _accepted("queries", queries["query_id"].to_pylist(), texts, rejects)
    judgements = _judgements(qrels, list(asked), list(documents), rejects)
    if not len(judgements):
        raise CropsError(f"{folder}: no judgement joins a query to a document; left out: {len(rejects)} rows")
    top = int(judgements["grade"].to_numpy().max())
    return Judged(
        tuple(documents),
        tuple(documents.values()),
        tuple(asked),
        tuple(asked.values()),
        judgements,
        top if positive_label is None else positive_label,
        columns,
        tuple(titles[identity] for identity in documents),
        pa.Table.from_pylist([dict(zip(_REJECTS.names, row, strict=True)) for row in rejects], _REJECTS),
    )


_Reject = tuple[str, int, str]
_REJECTS = pa.schema([("table", pa.string()), ("row", pa.int64()), ("reason", pa.string())])
_CONTRACT = (
    ("docs", ("doc_id",)),
    ("queries", ("query_id", "text")),
    ("qrels", ("query_id", "doc_id", "grade")),
)


def _read(folder: Path, name: str, columns: tuple[str, ...]) -> pa.Table:
    file = folder / f"{name}.parquet"
    if not file.is_file():
        raise CropsError(
            f"{file} is missing; a judged collection is docs, queries and qrels as Parquet files"
        )
    refuse_lake_tables([file])
    names = parquet_schema(file).names
    if twice := [column for column in names if names.count(column) > 1]:
        raise CropsError(f"{file}: column {twice[0]} is there {names.count(twice[0])} times; keep one")
    table = pq.read_table(file, partitioning=None)
    if absent := [column for column in columns if column not in table.column_names]:
        raise CropsError(
            f"{file} lacks the column {', '.join(absent)}; it has {', '.join(table.column_names)}"
        )
    return table


def _text_columns(docs: pa.Table, folder: Path) -> tuple[str, ...]:
    strings = [
        field.name
        for field in docs.schema
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    wanted = ("title", "text") if "text" in strings else docs.column_names
    columns = tuple(name for name in wanted if name in strings and name != "doc_id")
    if not columns:
        raise CropsError(f"{folder / 'docs.parquet'} has no text column; add title and text")
    return columns


def _accepted(
    table: str, ids: Iterable[object], texts: Iterable[str], rejects: list[_Reject]
) -> dict[str, str]:
    """Return text by id (as a string) of the usable rows, in order."""
    accepted: dict[str, str] = {}
    for row, (identity, text) in enumerate(zip(ids, texts, strict=True)):
        if identity is None:
            rejects.append((table, row, "missing_id"))
        elif str(identity) in accepted:
            rejects.append((table, row, "duplicate_id"))
        elif not has_text(text):
            rejects.append((table, row, "empty_text"))
        else:
            accepted[str(identity)] = text
    return accepted


def _judgements(qrels: pa.Table, queries: list[str], docs: list[str], rejects: list[_Reject]) -> pa.Table:
    if not pa.types.is_integer(qrels["grade"].type):
        raise CropsError(f"qrels, column grade is {qrels['grade'].type}; grades are integers from 0")
    query_number = {identity: number for number, identity in enumerate(queries, start=1)}
    item_number = {identity: number for number, identity in enumerate(docs, start=1)}
    grades: dict[tuple[int, int], int] = {}
    rows = zip(*(qrels[name].to_pylist() for name in ("query_id", "doc_id", "grade")), strict=True)
    for number, row in enumerate(rows):
        query, item, grade = query_number.get(str(row[0])), item_number.get(str(row[1])), row[2]
        if query is None:
            rejects.append(("qrels", number, "unknown_query"))
        elif item is None:
            rejects.append(("qrels", number, "unknown_doc"))
        elif grade is None or grade < 0:
            rejects.append(("qrels", number, "missing_or_negative_grade"))
        elif (query, item) in grades:
            rejects.append(("qrels", number, "duplicate_pair"))
        else:
            grades[query, item] = grade
    kept = [(query, item, grade) for (query, item), grade in sorted(grades.items())]
    schema = pa.schema([("query_id", pa.int64()), ("item_id", pa.int64()), ("grade", pa.int64())])
    return pa.table(
        dict(zip(schema.names, zip(*kept, strict=True), strict=True)) if kept else [[]] * 3, schema=schema
    )
