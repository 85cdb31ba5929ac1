"""The output of `crops mine` as training groups: one SQL, read into memory or streamed to disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.database import Connection, failing_as, open_database, parquet
from crops.errors import CropsError
from crops.labels import ALL_SOURCES, DEFAULT_LABELS, Source
from crops.logs.tables import refuse_lake_tables
from crops.outputs import Scratch
from crops.text import PLAIN, Rendering
from crops.training.groups import Groups, TrainingData, Wordless

BATCH_ROWS = 65_536

"""Rows between SQL and Python at a time."""

PAIRS = """
select g.query_id, q.query_text, q.searches, g.item_id as doc_id, d.doc_text, g.label, g.source, g.weight
from graded g join groups q using (query_id) join docs d using (item_id)
order by g.query_id, g.item_id
"""

"""The labelled documents, group after group; texts are numbered in `groups` and `doc_texts`."""


@dataclass(frozen=True)
class Samples:
    """A folder of `crops mine`, labelled as if only the sources in `keep` had spoken."""

    mined: Path
    """Holds samples, queries, items and synthetic_items as Parquet."""
    keep: Source = ALL_SOURCES
    """The sources of this arm; pairs of no kept source are left out."""
    memory: str = "2GB"
    """Memory limit of DuckDB while the groups are put together."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mined", Path(self.mined))  # text will do

    def files(self, table: str) -> list[Path]:
        """Return the Parquet files of a table: one, or the parts in a folder of that name.

        Raises:
            CropsError: there is none.
        """
        path = self.mined / f"{table}.parquet"
        refuse_lake_tables([path])
        parts = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not parts or not parts[0].exists():
            raise CropsError(f"{path} is missing; name an output folder of `crops mine`")
        return parts


def load_samples(
    mined: str | Path,
    keep: Source = ALL_SOURCES,
    labels: Mapping[Source, int] = DEFAULT_LABELS,
    rendering: Rendering = PLAIN,
) -> TrainingData:
    """Read the output of `crops mine` into memory.

    Args:
        mined: folder with samples, queries, items and synthetic_items as Parquet.
        keep: the sources of this arm; pairs of no kept source are left out.
        labels: label by source.
        rendering: what the encoder reads of a query and of an item.

    Raises:
        CropsError: a file or column is missing, a pair's query or item has no text, or no pair is left.
    """
    mined = Path(mined)
    with opened(Samples(mined, keep), 0, rendering, labels) as database:
        groups = database.sql(
            "select query_id, query, searches from groups order by query_id"
        ).to_arrow_table()
        docs = database.sql("select item_id, text from rendered order by item_id").to_arrow_table()
        pairs = database.sql(PAIRS).to_arrow_table()
    group_id, start = np.unique(pairs["query_id"].to_numpy(), return_index=True)
    doc_id = docs["item_id"].to_numpy()
    return TrainingData(
        query_texts=[rendering.query(text) for text in groups["query"].to_pylist()],
        query_id=group_id,
        searches=groups["searches"].to_numpy().astype(np.float64),
        doc_texts=docs["text"].to_pylist(),
        doc_id=doc_id,
        offsets=np.append(start, len(pairs)),
        doc=np.searchsorted(doc_id, pairs["doc_id"].to_numpy()),
        label=pairs["label"].to_numpy().astype(np.int64),
        source=pairs["source"].to_numpy(),
        weight=pairs["weight"].to_numpy(),
    )


@contextlib.contextmanager
def opened(
    samples: Samples,
    lowest_anchor: int,
    rendering: Rendering,
    labels: Mapping[Source, int] = DEFAULT_LABELS,
    without: Wordless | None = None,
) -> Iterator[Connection]:
    """Yield a database with the groups that have an anchor.

    Queries and documents of the texts `without` are left out, as rendered.

    It spills to disk beyond its memory limit. Tables: `all_groups` (query_id, highest, lowest label),
    `groups` (query_text, query_id, query, searches), `rendered` (item_id, text), `doc_texts` (doc_text,
    text), `docs` (item_id, doc_text), `graded` (query_id, item_id, label, source, weight); query texts and
    document texts are numbered from 0.

    Raises:
        CropsError: as `load_samples`.
    """
    with Scratch("crops-training-") as spill:
        with open_database(samples.memory, spill) as database:
            _grade(database, samples, labels)
            _number_queries(database, samples, lowest_anchor)
            _number_documents(database, samples, rendering)
            if without is not None:
                _leave_out(database, rendering, without)
                _number_queries(database, samples, lowest_anchor)
                _number_documents(database, samples, rendering)
            yield database


def _grade(database: Connection, samples: Samples, labels: Mapping[Source, int]) -> None:
    files = samples.files("samples")
    if missing := {"query_id", "item_id", "sources", "weight"} - set(_columns(files[0])):
        raise CropsError(f"{files[0]} has no column {min(missing)}; make it with `crops mine`")
    kept = {source: labels[source] for source in sorted(labels) if source & samples.keep}
    label = ", ".join(f"if((sources & {int(s)}) <> 0, {label}, -1)" for s, label in kept.items())
    # The lowest bit speaks first: a click outranks a generated text of the same label.
    source = " ".join(
        f"when (sources & {int(s)}) <> 0 and label = {label} then {int(s)}" for s, label in kept.items()
    )
    _execute(
        database,
        f"""
        create table graded as
        select query_id, item_id, label, cast(case {source} end as BIGINT) as source, weight
        from (select *, cast(greatest({label or -1}, -1) as INTEGER) as label
              from (select query_id, item_id, sources, weight from {parquet(*files)}) rows) labelled
        where label >= 0
        """,
        files,
    )
    if only_row(database, "select count(*) from graded") == (0,):
        raise CropsError(f"{files[0]}: no sample comes from the sources {samples.keep!r}; keep more sources")


def _leave_out(database: Connection, rendering: Rendering, without: Wordless) -> None:
    """Drop the pairs of texts from `graded`, and the tables that were made of it."""
    known = database.sql("select query_id, query from groups").to_arrow_table()
    gone = [rendering.query(text) in without.queries for text in known["query"].to_pylist()]
    database.register("wordless_queries", known.filter(pa.array(gone, pa.bool_())))
    database.register("wordless_documents", pa.table({"text": pa.array(without.documents, pa.string())}))
    database.execute("delete from graded where query_id in (select query_id from wordless_queries)")
    items = "select item_id from rendered semi join wordless_documents using (text)"
    database.execute(f"delete from graded where item_id in ({items})")
    for table in ("all_groups", "groups", "used", "rendered", "doc_texts", "docs"):
        database.execute(f"drop table {table}")


def _number_queries(database: Connection, samples: Samples, lowest_anchor: int) -> None:
    files = samples.files("queries")
    _execute(
        database,
        "create table all_groups as select query_id, max(label) as highest, min(label) as lowest "
        "from graded group by query_id",
    )
    _execute(
        database,
        f"""
        create table groups as
        select row_number() over (order by query_id) - 1 as query_text, query_id, query, searches
        from (select distinct on (query_id) query_id, query, searches from {parquet(*files)}) known
        semi join (select query_id from all_groups where highest >= {lowest_anchor}) usable using (query_id)
        """,
        files,
    )
    orphans = f"select query_id from all_groups where highest >= {lowest_anchor}"
    _refuse_orphans(database, orphans, "query_id", "groups", f"{samples.mined}: query")


def _number_documents(database: Connection, samples: Samples, rendering: Rendering) -> None:
    _execute(
        database, "create table used as select distinct item_id from graded semi join groups using (query_id)"
    )
    _execute(database, "create table rendered (item_id BIGINT, text VARCHAR)")
    for table in ("items", "synthetic_items"):
        for file in samples.files(table):
            columns = [name for name in rendering.columns if name in _columns(file)]
            chosen = ", ".join(["item_id", *(f'"{name}"' for name in columns)])
            query = f"select {chosen} from {parquet(file)} semi join used using (item_id) order by item_id"
            _render(database, query, rendering, file)
    _refuse_orphans(database, "select item_id from used", "item_id", "rendered", f"{samples.mined}: item")
    _execute(
        database,
        """
        create table doc_texts as
        select row_number() over (order by first) - 1 as doc_text, text
        from (select text, min(item_id) as first from rendered group by text) texts
        """,
    )
    _execute(
        database, "create table docs as select item_id, doc_text from rendered join doc_texts using (text)"
    )


def _render(database: Connection, query: str, rendering: Rendering, file: Path) -> None:
    """Add the texts of items to `rendered`, a batch at a time."""
    with database.cursor() as reader, database.cursor() as writer:
        with failing_as(f"{file} cannot be read; make it again with `crops mine`"):
            for batch in reader.sql(query).to_arrow_reader(BATCH_ROWS):
                texts = [rendering.document(row) for row in batch.to_pylist()]
                part = pa.table({"item_id": batch["item_id"], "text": pa.array(texts, pa.string())})
                writer.register("part", part)
                writer.execute("insert into rendered select item_id, text from part")


def _refuse_orphans(database: Connection, wanted: str, key: str, table: str, what: str) -> None:
    least, count = only_row(
        database, f"select min({key}), count(*) from ({wanted}) wanted anti join {table} using ({key})"
    )
    if count:
        raise CropsError(f"{what} {least} has a label but no text ({count} such); mend the tables")


def only_row(database: Connection, sql: str) -> tuple[int, ...]:
    """Return the one row of a query."""
    row: tuple[int, ...] = database.sql(sql).fetchall()[0]
    return row


def _execute(database: Connection, sql: str, files: Sequence[Path] = ()) -> None:
    where = ", ".join(map(str, files)) or "the training groups"
    with failing_as(f"{where}: cannot be read; make them again with `crops mine`"):
        database.execute(sql)


def _columns(file: Path) -> list[str]:
    try:
        names: list[str] = pq.read_schema(file).names
    except (OSError, pa.ArrowException) as error:
        raise CropsError(f"{file} cannot be read: {error}; make it again with `crops mine`") from error
    return names


# ------------------------------------------------------------------------------
# Training groups on disk: sharded Parquet that is read a buffer at a time.


PART_GROUPS = 4096

"""Groups of a part, one row group of a shard: what is read at once, and put in random order."""

SHARD_PARTS = 256

"""Parts of a shard: about a million groups."""

TEXT_BATCH = 4096

"""Texts handed out at a time."""

_INDEX = "index.json"

_INPUTS = ("samples", "queries", "items", "synthetic_items")


class StoredGroups:
    """Groups that `store_samples` wrote; implements `crops.training.groups.GroupSource`."""

    def __init__(self, folder: Path, rendering: Rendering) -> None:
        """Open a folder; `rendering` makes the texts of its queries."""
        index = json.loads((folder / _INDEX).read_text())
        self._folder, self._rendering, self._content = folder, rendering, index["content"]
        self.groups, self.dropped = index["groups"], index["dropped"]
        self.undocumented, self.one_label = index["undocumented"], index["one_label"]
        self.queries = self.groups
        self.part_groups = np.array(index["part_groups"], dtype=np.int64)
        self.part_searches = np.array(index["part_searches"], dtype=np.float64)

    def read(self, parts: NDArray[np.int64]) -> Groups:
        """Return the groups of the given parts, ascending.

        Raises:
            CropsError: a shard is missing or damaged.
        """
        shards, rows = np.divmod(parts, SHARD_PARTS)
        found = []
        for shard in np.unique(shards):
            path = self._folder / _shard_name(int(shard))
            with _readable(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
                found += [self._groups(file.read_row_group(row)) for row in rows[shards == shard].tolist()]
        return Groups.concatenate(found)

    def _groups(self, pairs: pa.Table) -> Groups:
        query_id = pairs["query_id"].to_numpy()
        first = np.flatnonzero(np.append(True, query_id[1:] != query_id[:-1]))
        return Groups(
            query_id=query_id[first],
            query_text=pairs["query_text"].to_numpy()[first],
            searches=pairs["searches"].to_numpy()[first].astype(np.float64),
            offsets=np.append(first, len(query_id)),
            doc_id=pairs["doc_id"].to_numpy(),
            doc_text=pairs["doc_text"].to_numpy() + self.queries,
            label=pairs["label"].to_numpy().astype(np.int64),
            source=pairs["source"].to_numpy(),
            weight=pairs["weight"].to_numpy(),
        )

    def query_texts(self) -> Iterator[list[str]]:
        """Yield the query texts in the order of their rows."""
        for texts in _texts(self._folder / "queries.parquet"):
            yield [self._rendering.query(text) for text in texts]

    def doc_texts(self) -> Iterator[list[str]]:
        """Yield the distinct document texts in the order of their rows."""
        return _texts(self._folder / "documents.parquet")

    def fingerprint(self) -> str:
        """Return a hash of the groups and texts."""
        return str(self._content)


def store_samples(
    samples: Samples,
    folder: Path,
    rendering: Rendering,
    lowest_anchor: int,
    beta: float,
    without: Wordless | None = None,
) -> StoredGroups:
    """Write the groups of a mined folder as shards, or open them if they are there and still true.

    Memory is bounded by that of `samples` and a buffer of groups, whatever the number of groups.

    Args:
        samples: the mined folder and the sources that count.
        folder: gets the shards, the texts and an index, which is written last.
        rendering: what the encoder reads of a query and of an item.
        lowest_anchor: groups without a document of at least this label are left out.
        beta: groups are drawn with weight searches^beta.
        without: texts that are left out, with their queries and documents.

    Raises:
        CropsError: as `load_samples`.
    """
    key = _key(samples, rendering, lowest_anchor, beta) | {"without": _digest(without)}
    with contextlib.suppress(OSError, ValueError, KeyError):
        if json.loads((folder / _INDEX).read_text())["key"] == key:
            return StoredGroups(folder, rendering)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    content = hashlib.sha256()
    with opened(samples, lowest_anchor, rendering, without=without) as database:
        counts = _counts(database, samples)
        for name, query in (
            ("queries", "select query as text from groups order by query_text"),
            ("documents", "select text from doc_texts order by doc_text"),
        ):
            _write_texts(database, query, folder / f"{name}.parquet", content)
        parts = _write_shards(database, folder, beta, content)
    index = {"key": key, **counts, **parts, "content": content.hexdigest()}
    staging = folder / f"{_INDEX}.tmp"
    staging.write_text(json.dumps(index))
    staging.rename(folder / _INDEX)
    return StoredGroups(folder, rendering)


def _key(samples: Samples, rendering: Rendering, lowest_anchor: int, beta: float) -> dict[str, Any]:
    """Return what the stored groups depend on; files are told by size and time of change."""
    facts = {
        str(file): [file.stat().st_size, file.stat().st_mtime_ns]
        for table in _INPUTS
        for file in samples.files(table)
    }
    return {
        "files": facts,
        "keep": int(samples.keep),
        "rendering": [*rendering.columns, rendering.document.__name__, rendering.query.__name__],
        "lowest_anchor": lowest_anchor,
        "beta": beta,
    }


def _digest(without: Wordless | None) -> str | None:
    if without is None:
        return None
    return hashlib.sha256(json.dumps([sorted(texts) for texts in without]).encode()).hexdigest()


def _counts(database: Connection, samples: Samples) -> dict[str, int]:
    row = only_row(
        database,
        f"""
        select (select count(*) from groups),
               (select count(*) from all_groups) - (select count(*) from groups),
               (select count(*) from all_groups semi join groups using (query_id) where highest = lowest),
               (select count(*) from (select query_id from {parquet(*samples.files("queries"))}) known
                anti join all_groups using (query_id))
        """,
    )
    return dict(zip(("groups", "dropped", "one_label", "undocumented"), row, strict=True))


def _write_texts(database: Connection, query: str, path: Path, content: hashlib._Hash) -> None:
    reader = database.sql(query).to_arrow_reader(BATCH_ROWS)
    with pq.ParquetWriter(path, reader.schema, compression="zstd", write_page_checksum=True) as writer:
        for batch in reader:
            writer.write_batch(batch)
            content.update("\0".join(batch["text"].to_pylist()).encode())


def _write_shards(
    database: Connection, folder: Path, beta: float, content: hashlib._Hash
) -> dict[str, list[Any]]:
    """Write the pairs, each part one row group; return each part's groups and sum of searches^beta."""
    groups: list[int] = []
    searches: list[float] = []
    writer: pq.ParquetWriter | None = None
    try:
        for number, part in enumerate(_parts(database)):
            if number % SHARD_PARTS == 0:
                if writer is not None:
                    writer.close()
                path = folder / _shard_name(number // SHARD_PARTS)
                writer = pq.ParquetWriter(path, part.schema, compression="zstd", write_page_checksum=True)
            assert writer is not None
            writer.write_table(part, row_group_size=len(part))
            for column in part.columns:
                content.update(column.to_numpy().tobytes())
            query_id = part["query_id"].to_numpy()
            first = np.append(True, query_id[1:] != query_id[:-1])
            groups.append(int(first.sum()))
            searches.append(float((part["searches"].to_numpy()[first].astype(np.float64) ** beta).sum()))
    finally:
        if writer is not None:
            writer.close()
    return {"part_groups": groups, "part_searches": searches}


def _parts(database: Connection) -> Iterator[pa.Table]:
    """Yield the pairs of PART_GROUPS whole groups at a time."""
    rest: pa.Table | None = None
    for batch in database.sql(PAIRS).to_arrow_reader(BATCH_ROWS):
        new = pa.Table.from_batches([batch])
        rest = new if rest is None else pa.concat_tables([rest, new])
        number = rest["query_text"].to_numpy() // PART_GROUPS
        # The last part may go on in the next batch.
        for part in range(int(number[0]), int(number[-1])):
            begin, end = np.searchsorted(number, [part, part + 1]).tolist()
            yield rest.slice(begin, end - begin)
        rest = rest.slice(int(np.searchsorted(number, number[-1])))
    if rest is not None and len(rest):
        yield rest


def _texts(path: Path) -> Iterator[list[str]]:
    with _readable(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(TEXT_BATCH):
            yield batch["text"].to_pylist()


def _shard_name(number: int) -> str:
    return f"groups-{number:05d}.parquet"


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise CropsError(
            f"{path} is missing or damaged ({error}); remove {path.parent}, it is made again from the samples"
        ) from error
