"""What training groups are made of: the output of `crops mine`, or tables such as a judged collection's.

Either way the pairs are labelled, numbered and joined with their texts by one SQL, in bounded memory,
whatever their number; `crops.training.groups` writes the result down.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.database import Connection, explained, failing_as, open_database, parquet, parquet_files
from crops.engine.documents import require_lag
from crops.errors import CropsError
from crops.labels import ALL_SOURCES, DEFAULT_LABELS, Source
from crops.logs.files import refuse_lake_tables
from crops.outputs import Scratch
from crops.text import CLICK_QUERY, DOCUMENT_FIELDS, Rendering, content_id

BATCH_ROWS = 65_536
"""Rows between SQL and Python at a time."""
FOLDS = 10
"""One query in so many is in a fold that can be held out: ids are hashes, so by their remainder."""


TABLES = ("samples", "queries", "items", "synthetic_items")


@dataclass(frozen=True)
class Samples:
    """A folder of `crops mine`, labelled as if only the sources in `keep` had spoken."""

    mined: Path
    """Holds samples, queries, items and synthetic_items as Parquet."""
    keep: Source = ALL_SOURCES
    """The sources of this arm; pairs of no kept source are left out."""
    memory: str = "2GB"
    """Memory limit of DuckDB while the groups are put together."""
    labels: Mapping[Source, int] = field(default_factory=lambda: DEFAULT_LABELS)
    """Label by source."""
    held_out: int | None = None
    """Leave out the queries of this fold, one of `FOLDS`."""
    fields: tuple[str, ...] = DOCUMENT_FIELDS
    """What stands for a document (`crops.config.DocumentConfig`)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mined", Path(self.mined))  # text will do

    def files(self, table: str) -> list[Path]:
        """Return the Parquet files of a table: one, or those in a folder of that name.

        Raises:
            CropsError: there is none.
        """
        path = self.mined / f"{table}.parquet"
        refuse_lake_tables([path])
        found = parquet_files(path)
        if not found or not found[0].exists():
            raise CropsError(f"{path} is missing; name an output folder of `crops mine`")
        return found

    def key(self) -> dict[str, Any]:
        """Return what the groups depend on; a file is recognised by its size and time of change."""
        return {
            "files": {
                str(file): [file.stat().st_size, file.stat().st_mtime_ns]
                for table in TABLES
                for file in self.files(table)
            },
            "keep": int(self.keep),
            "labels": {int(source): label for source, label in self.labels.items()},
            "held_out": self.held_out,
        }

    def rendering(self, encoder: Rendering) -> Rendering:
        """Return what an encoder reads of these documents.

        Raises:
            CropsError: their click queries are not all older than the samples.
        """
        rendering = encoder.of(self.fields)
        if CLICK_QUERY in rendering.columns:
            require_lag(self.mined)
        return rendering


@dataclass(frozen=True)
class TrainingData:
    """Graded pairs and their texts in memory, as the encoder is to read them."""

    queries: pa.Table
    """query_id, query, searches (how often each was searched)."""
    docs: pa.Table
    """item_id, text."""
    pairs: pa.Table
    """query_id, item_id, label (0 and up), source (one bit of Source, 0 for human judgements), weight (the
    odds of the pair to be drawn)."""

    @property
    def groups(self) -> int:
        """Number of queries with a pair."""
        return len(self.pairs["query_id"].unique())

    def key(self) -> str:
        """Return a hash of the tables."""
        digest = hashlib.sha256()
        for table in (self.queries, self.docs, self.pairs):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            digest.update(sink.getvalue())
        return digest.hexdigest()


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
    query, doc = _ids(qrels["query_id"]), _ids(qrels["doc_id"])
    pairs = {"query_id": query, "item_id": doc, "label": grade}
    pairs |= {"source": np.zeros_like(grade), "weight": np.ones(len(grade))}
    texts = [" ".join(text for text in row.values() if text) for row in docs.select(fields).to_pylist()]
    asked = {"query_id": _ids(queries["query_id"]), "query": queries["text"]}
    return TrainingData(
        _named("query", pa.table(asked | {"searches": np.ones(queries.num_rows)}), "query_id", query),
        _named("item", pa.table({"item_id": _ids(docs["doc_id"]), "text": texts}), "item_id", doc),
        pa.table(pairs),
    )


def _named(what: str, table: pa.Table, key: str, ids: NDArray[np.int64]) -> pa.Table:
    """Return the rows of a table that judgements name."""
    missing = np.setdiff1d(ids, table[key].to_numpy())
    if len(missing):
        raise CropsError(_no_text(f"qrels: {what}", missing[0], len(missing)))
    return table.filter(pc.is_in(table[key], pa.array(ids)))


def _ids(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return integer ids as they are and other ids as 64 bits of their hash."""
    whole = pa.types.is_integer(column.type)
    values = column.to_pylist()
    return np.array(values if whole else [content_id(str(value)) for value in values], dtype=np.int64)


@contextlib.contextmanager
def opened(
    data: Samples | TrainingData,
    lowest_anchor: int,
    rendering: Rendering,
    without: Wordless | None = None,
    catalogue: Catalogue | None = None,
) -> Iterator[Connection]:
    """Yield a database with the groups that have an anchor; it spills to disk beyond its memory limit.

    Queries and documents of the texts `without` are left out, as rendered. Tables: `known_queries` (query_id,
    query, searches), `all_groups` (query_id, highest, lowest label), `groups` (query_text, query_id, query,
    searches), `rendered` (item_id, text), `doc_texts` (doc_text, text), `docs` (item_id, doc_text), `graded`
    (query_id, item_id, label, source, weight), `catalogue` (place, text); query texts and document texts are
    numbered from 0, those that only the catalogue has come last.

    Raises:
        CropsError: a file or column is missing, a pair's query or item has no text, or no pair is left.
    """
    where, memory, files = "training data", "2GB", []
    if isinstance(data, Samples):
        where, memory = str(data.mined), data.memory
        files = [file for table in TABLES for file in data.files(table)]
    with (
        Scratch("crops-training-") as spill,
        open_database(memory, spill) as database,
        failing_as(f"{where} cannot be read; make it again with `crops mine`"),
        explained(f"a memory limit of {memory}", files, disk=False),
    ):
        if isinstance(data, Samples):
            _grade(database, data)
        else:
            database.register("known_queries", data.queries)
            database.register("texts", data.docs)
            database.register("pairs", data.pairs)
            database.execute("create table graded as select * from pairs")
        _number(database, data, lowest_anchor, rendering, where)
        if without is not None:
            _leave_out(database, rendering, without)
            _number(database, data, lowest_anchor, rendering, where)
        if catalogue is not None:
            _add_catalogue(database, catalogue)
        yield database


def _grade(database: Connection, samples: Samples) -> None:
    """Make `known_queries`, and `graded` from the bits of the kept sources."""
    files = samples.files("samples")
    if missing := {"query_id", "item_id", "sources", "weight"} - set(_columns(files[0])):
        raise CropsError(f"{files[0]} has no column {min(missing)}; make it with `crops mine`")
    kept = {source: samples.labels[source] for source in sorted(samples.labels) if source & samples.keep}
    label = ", ".join(f"if((sources & {int(s)}) <> 0, {label}, -1)" for s, label in kept.items())
    # The lowest bit speaks first: a click outranks a generated text of the same label.
    source = " ".join(
        f"when (sources & {int(s)}) <> 0 and label = {label} then {int(s)}" for s, label in kept.items()
    )
    rest = f"((query_id % {FOLDS}) + {FOLDS}) % {FOLDS}"  # also of negative ids
    trained = "true" if samples.held_out is None else f"{rest} <> {samples.held_out}"
    database.execute(
        f"""
        create table graded as
        select query_id, item_id, label, cast(case {source} end as BIGINT) as source, weight
        from (select *, cast(greatest({label or -1}, -1) as INTEGER) as label
              from (select query_id, item_id, sources, weight from {parquet(*files)}) rows) labelled
        where label >= 0 and {trained}
        """
    )
    if database.sql("select count(*) from graded").fetchall() == [(0,)]:
        raise CropsError(f"{files[0]}: no sample comes from the sources {samples.keep!r}; keep more sources")
    queries = f"select query_id, query, searches from {parquet(*samples.files('queries'))} where {trained}"
    database.execute(f"create view known_queries as {queries}")


def _number(
    database: Connection,
    data: Samples | TrainingData,
    lowest_anchor: int,
    rendering: Rendering,
    where: str,
) -> None:
    """Number the queries that have an anchor, and the distinct texts of their documents."""
    database.execute(
        "create or replace table all_groups as select query_id, max(label) as highest, min(label) as lowest "
        "from graded group by query_id"
    )
    usable = f"select query_id from all_groups where highest >= {lowest_anchor}"
    database.execute(
        f"""
        create or replace table groups as
        select row_number() over (order by query_id) - 1 as query_text, query_id, query, searches
        from (select distinct on (query_id) query_id, query, searches from known_queries) known
        semi join ({usable}) usable using (query_id)
        """
    )
    _refuse_orphans(database, usable, "query_id", "groups", f"{where}: query")
    used = "select distinct item_id from graded semi join groups using (query_id)"
    database.execute(f"create or replace table used as {used}")
    if isinstance(data, Samples):
        database.execute("create or replace table rendered (item_id BIGINT, text VARCHAR)")
        for table in ("items", "synthetic_items"):
            for file in data.files(table):
                _render(database, rendering, file)
    else:
        database.execute("create or replace table rendered as from texts semi join used using (item_id)")
    _refuse_orphans(database, "select item_id from used", "item_id", "rendered", f"{where}: item")
    database.execute(
        """
        create or replace table doc_texts as
        select row_number() over (order by first) - 1 as doc_text, text
        from (select text, min(item_id) as first from rendered group by text) texts;
        create or replace table docs as select item_id, doc_text from rendered join doc_texts using (text)
        """
    )


def _render(database: Connection, rendering: Rendering, file: Path) -> None:
    """Add the texts of items to `rendered`, a batch at a time."""
    columns = [name for name in rendering.columns if name in _columns(file)]
    chosen = ", ".join(["item_id", *(f'"{name}"' for name in columns)])
    query = f"select {chosen} from {parquet(file)} semi join used using (item_id) order by item_id"
    with database.cursor() as reader, database.cursor() as writer:
        for batch in reader.sql(query).to_arrow_reader(BATCH_ROWS):
            texts = [rendering.document(row) for row in batch.to_pylist()]
            rendered = pa.table({"item_id": batch["item_id"], "text": pa.array(texts, pa.string())})
            writer.register("batch", rendered)
            writer.execute("insert into rendered select item_id, text from batch")


def _leave_out(database: Connection, rendering: Rendering, without: Wordless) -> None:
    """Drop the pairs of texts from `graded`."""
    known = database.sql("select query_id, query from groups").to_arrow_table()
    gone = [rendering.query(text) in without.queries for text in known["query"].to_pylist()]
    database.register("wordless_queries", known.filter(pa.array(gone, pa.bool_())))
    database.register("wordless_documents", pa.table({"text": pa.array(without.documents, pa.string())}))
    database.execute("delete from graded where query_id in (select query_id from wordless_queries)")
    items = "select item_id from rendered semi join wordless_documents using (text)"
    database.execute(f"delete from graded where item_id in ({items})")


def _add_catalogue(database: Connection, catalogue: Catalogue) -> None:
    """Make `catalogue`, and number the texts that only it has."""
    places = pa.array(np.arange(len(catalogue.texts)))
    database.register(
        "catalogue", pa.table({"place": places, "text": pa.array(catalogue.texts, pa.string())})
    )
    database.execute(
        """
        insert into doc_texts
        select (select count(*) from doc_texts) + row_number() over (order by place) - 1, text
        from (select text, min(place) as place from catalogue anti join doc_texts using (text) group by text)
        """
    )


def _refuse_orphans(database: Connection, wanted: str, key: str, table: str, what: str) -> None:
    ((least, count),) = database.sql(
        f"select min({key}), count(*) from ({wanted}) wanted anti join {table} using ({key})"
    ).fetchall()
    if count:
        raise CropsError(_no_text(what, least, count))


def _no_text(what: str, least: int, count: int) -> str:
    return f"{what} {least} has a label but no text ({count} such); fix the tables"


def _columns(file: Path) -> list[str]:
    try:
        return list(pq.read_schema(file).names)
    except (OSError, pa.ArrowException) as error:
        raise CropsError(f"{file} cannot be read: {error}; make it again with `crops mine`") from error
