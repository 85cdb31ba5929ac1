"""Training groups on disk: sharded Parquet that is read a buffer at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.text import Rendering
from crops.training.data import Wordless
from crops.training.groups import Groups
from crops.training.samples import BATCH_ROWS, PAIRS, Samples, only_row, opened

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


def _counts(database: duckdb.DuckDBPyConnection, samples: Samples) -> dict[str, int]:
    files = ", ".join("'{}'".format(str(file).replace("'", "''")) for file in samples.files("queries"))
    row = only_row(
        database,
        f"""
        select (select count(*) from groups),
               (select count(*) from all_groups) - (select count(*) from groups),
               (select count(*) from all_groups semi join groups using (query_id) where highest = lowest),
               (select count(*) from (select query_id from read_parquet([{files}])) known
                anti join all_groups using (query_id))
        """,
    )
    return dict(zip(("groups", "dropped", "one_label", "undocumented"), row, strict=True))


def _write_texts(database: duckdb.DuckDBPyConnection, query: str, path: Path, content: hashlib._Hash) -> None:
    reader = database.sql(query).to_arrow_reader(BATCH_ROWS)
    with pq.ParquetWriter(path, reader.schema, compression="zstd", write_page_checksum=True) as writer:
        for batch in reader:
            writer.write_batch(batch)
            content.update("\0".join(batch["text"].to_pylist()).encode())


def _write_shards(
    database: duckdb.DuckDBPyConnection, folder: Path, beta: float, content: hashlib._Hash
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


def _parts(database: duckdb.DuckDBPyConnection) -> Iterator[pa.Table]:
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
