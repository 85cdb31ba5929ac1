"""Training groups on disk: sharded Parquet that is read a buffer of groups at a time.

A group is a query with its graded documents, ragged, in flat arrays. `crops.training.samples` says what
groups are made of; here they are written once, read in any order, and opened again as long as they are still
true.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.database import Connection
from crops.errors import CropsError
from crops.outputs import write_text
from crops.text import Rendering
from crops.training.samples import BATCH_ROWS, Catalogue, Samples, TrainingData, Wordless, opened

GROUPS_READ = 4096
"""Groups of a row group of a shard: what is read at once, and put in random order."""
SHARD_ROW_GROUPS = 256
"""Row groups of a shard: about a million groups."""
TEXT_BATCH = 4096
"""Texts handed out at a time."""
_INDEX = "index.json"
COUNTS = ("groups", "dropped", "undocumented", "one_label")
"""Groups with an anchor, groups without one and queries without a document, which are left out, and groups
whose documents share one label: other queries' documents are their only contrast."""
_COUNTS = """
select (select count(*) from groups) as groups,
       (select count(*) from all_groups) - (select count(*) from groups) as dropped,
       (select count(*) from all_groups semi join groups using (query_id)
        where highest = lowest) as one_label,
       (select count(*) from (select query_id from known_queries) known
        anti join all_groups using (query_id)) as undocumented
"""


@dataclass(frozen=True)
class Groups:
    """G queries with their P graded documents; texts are rows of a pool, queries first."""

    query_id: NDArray[np.int64]
    """[G]"""
    query_text: NDArray[np.int64]
    """[G] row of the query's text."""
    searches: NDArray[np.float64]
    """[G] how often each query was searched; groups are drawn with weight searches^beta."""
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


class GroupStore:
    """The groups that `store_groups` wrote; only what is asked for is in memory."""

    def __init__(self, folder: Path, rendering: Rendering) -> None:
        """Open a folder; `rendering` makes the texts of its queries."""
        index = json.loads((folder / _INDEX).read_text())
        self._folder, self._rendering = folder, rendering
        self.content: str = index["content"]
        """A hash of the groups and texts."""
        self.counts = Counter({name: index[name] for name in COUNTS})
        self.groups: int = index["groups"]
        """With an anchor; so many rows of the pool are query texts."""
        self.first_query, self.first_doc = 0, self.groups
        """Rows of the pool where its queries and its documents begin; `Lanes` moves them."""
        self.row_groups: NDArray[np.int64] = np.array(index["part_groups"], dtype=np.int64)
        """Groups of each row group."""
        self.row_searches: NDArray[np.float64] = np.array(index["part_searches"], dtype=np.float64)
        """Sum of searches^beta of each row group."""

    def read(self, row_groups: NDArray[np.int64]) -> Groups:
        """Return the groups of the given row groups, ascending.

        Raises:
            CropsError: a shard is missing or damaged.
        """
        shards, rows = np.divmod(row_groups, SHARD_ROW_GROUPS)
        found = []
        for shard in np.unique(shards):
            path = self._folder / _shard_name(int(shard))
            with _readable(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
                found.append(file.read_row_groups(rows[shards == shard].tolist()))
        pairs = pa.concat_tables(found)
        query_id = pairs["query_id"].to_numpy()
        first = np.flatnonzero(np.append(True, query_id[1:] != query_id[:-1]))
        return Groups(
            query_id=query_id[first],
            query_text=pairs["query_text"].to_numpy()[first] + self.first_query,
            searches=pairs["searches"].to_numpy()[first].astype(np.float64),
            offsets=np.append(first, len(query_id)),
            doc_id=pairs["doc_id"].to_numpy(),
            doc_text=pairs["doc_text"].to_numpy() + self.first_doc,
            label=pairs["label"].to_numpy().astype(np.int64),
            source=pairs["source"].to_numpy(),
            weight=pairs["weight"].to_numpy(),
        )

    @property
    def documents(self) -> int:
        """Distinct texts of documents."""
        return int(pq.read_metadata(self._folder / "documents.parquet").num_rows)

    def query_texts(self) -> Iterator[list[str]]:
        """Yield the query texts in the order of their rows, a batch at a time."""
        for texts in _texts(self._folder / "queries.parquet"):
            yield [self._rendering.query(text) for text in texts]

    def doc_texts(self) -> Iterator[list[str]]:
        """Yield the distinct texts of the documents and of the catalogue in the order of their rows."""
        return _texts(self._folder / "documents.parquet")

    def catalogue_text(self) -> NDArray[np.int64]:
        """Return the row of the pool of each document of the catalogue, [D]."""
        path = self._folder / "catalogue.parquet"
        with _readable(path):
            rows: NDArray[np.int64] = pq.read_table(path)["doc_text"].to_numpy() + self.groups
        return rows


def store_groups(
    data: Samples | TrainingData,
    folder: Path,
    rendering: Rendering,
    lowest_anchor: int,
    beta: float,
    without: Wordless | None = None,
    catalogue: Catalogue | None = None,
) -> GroupStore:
    """Write the groups that have an anchor as shards, or open them if they are there and still true.

    Memory is bounded by that of the data and a buffer of groups, whatever the number of groups.

    Args:
        data: a mined folder and the sources that count, or tables.
        folder: gets the shards, the texts and an index, which is written last.
        lowest_anchor: groups without a document of at least this label are left out.
        beta: groups are drawn with weight searches^beta.
        without: texts that are left out, with their queries and documents.
        catalogue: documents whose texts join the pool, in no group.

    Raises:
        CropsError: as `crops.training.samples.opened`.
    """
    facts = (
        data.key(),
        [*rendering.columns, rendering.document.__name__, rendering.query.__name__],
        lowest_anchor,
        beta,
        None if without is None else [sorted(texts) for texts in without],
        None if catalogue is None else [catalogue.ids.tolist(), catalogue.texts],
    )
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    with contextlib.suppress(OSError, ValueError, KeyError):
        if json.loads((folder / _INDEX).read_text())["key"] == key:
            return GroupStore(folder, rendering)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    content = hashlib.sha256()
    with opened(data, lowest_anchor, rendering, without, catalogue) as database:
        counts = database.sql(_COUNTS).to_arrow_table().to_pylist()[0]
        for name, query in (
            ("queries", "select query as text from groups order by query_text"),
            ("documents", "select text from doc_texts order by doc_text"),
        ):
            for batch in write_batches(database, query, folder / f"{name}.parquet"):
                content.update("\0".join(batch["text"].to_pylist()).encode())
        if catalogue is not None:
            rows = database.sql("select doc_text from catalogue join doc_texts using (text) order by place")
            pq.write_table(rows.to_arrow_table(), folder / "catalogue.parquet")
        written = _write_shards(database, folder, beta, content)
    index = {"key": key, **counts, **written, "content": content.hexdigest()}
    write_text(folder / _INDEX, json.dumps(index))
    return GroupStore(folder, rendering)


def write_batches(database: Connection, query: str, path: Path) -> Iterator[pa.RecordBatch]:
    """Write the rows of a query as Parquet; yield each batch as it is written."""
    reader = database.sql(query).to_arrow_reader(BATCH_ROWS)
    with pq.ParquetWriter(path, reader.schema, compression="zstd", write_page_checksum=True) as writer:
        for batch in reader:
            writer.write_batch(batch)
            yield batch


def _write_shards(
    database: Connection, folder: Path, beta: float, content: hashlib._Hash
) -> dict[str, list[Any]]:
    """Write the pairs; return each row group's groups and sum of searches^beta."""
    groups: list[int] = []
    searches: list[float] = []
    with contextlib.ExitStack() as shard:
        for number, pairs in enumerate(_row_groups(database)):
            if number % SHARD_ROW_GROUPS == 0:
                shard.close()
                path = folder / _shard_name(number // SHARD_ROW_GROUPS)
                writer = shard.enter_context(
                    pq.ParquetWriter(path, pairs.schema, compression="zstd", write_page_checksum=True)
                )
            writer.write_table(pairs, row_group_size=len(pairs))
            for column in pairs.columns:
                content.update(column.to_numpy().tobytes())
            query_id = pairs["query_id"].to_numpy()
            first = np.append(True, query_id[1:] != query_id[:-1])
            groups.append(int(first.sum()))
            searches.append(float((pairs["searches"].to_numpy()[first].astype(np.float64) ** beta).sum()))
    return {"part_groups": groups, "part_searches": searches}


def _row_groups(database: Connection) -> Iterator[pa.Table]:
    """Yield the pairs of GROUPS_READ whole groups at a time, group after group."""
    rest: pa.Table | None = None
    for batch in database.sql(
        """
        select g.query_id, q.query_text, q.searches, g.item_id as doc_id, d.doc_text, g.label, g.source,
        g.weight from graded g join groups q using (query_id) join docs d using (item_id)
        order by g.query_id, g.item_id
        """
    ).to_arrow_reader(BATCH_ROWS):
        new = pa.Table.from_batches([batch])
        rest = new if rest is None else pa.concat_tables([rest, new])
        number = rest["query_text"].to_numpy() // GROUPS_READ
        # The last one may go on in the next batch.
        for whole in range(int(number[0]), int(number[-1])):
            begin, end = np.searchsorted(number, [whole, whole + 1]).tolist()
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
