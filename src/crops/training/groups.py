"""Training groups: on disk as sharded Parquet, and drawn from it in batches.

A group is a query with its graded documents, ragged, in flat arrays. `crops.training.samples` says what
groups are made of; here they are written once, opened again as long as they are still true, and read a buffer
of groups at a time.
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
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.config import TrainingConfig
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
ROUND_BATCHES = 64
"""Batches between two shuffles, at least, of data that fits the buffer whole."""
_INDEX = "index.json"
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
        self.counts: Counter[str] = Counter(index["counts"])
        """`groups` with an anchor; `dropped` groups without one and `undocumented` queries, which are left
        out; groups of `one_label`, whose only contrast are other queries' documents."""
        self.groups: int = self.counts["groups"]
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

    Memory is bounded by that of the data and a buffer of groups, whatever the number of groups. Groups
    without a document of label `lowest_anchor` or more are left out, and so are the queries and documents of
    the texts `without`; the texts of the `catalogue` join the pool, in no group.

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
    index = {"key": key, "counts": counts, **written, "content": content.hexdigest()}  # last: all is there
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


# Batches of groups: what a step sees depends on the data, the settings, the seed and its number alone.


class Batch(NamedTuple):
    """Q queries with N drawn documents, and the K positives that were not drawn; texts are rows of a pool."""

    query_id: NDArray[np.int64]
    """[Q]"""
    query_text: NDArray[np.int64]
    """[Q]"""
    query_index: NDArray[np.int64]
    """[N] which of the Q is each document's query."""
    doc_id: NDArray[np.int64]
    """[N]"""
    doc_text: NDArray[np.int64]
    """[N]"""
    label: NDArray[np.int64]
    """[N]"""
    known_index: NDArray[np.int64]
    """[K] which of the Q is each left-out positive's query."""
    known_id: NDArray[np.int64]
    """[K]"""


class _Round(NamedTuple):
    """Batches drawn from one buffer: `first` is the step it begins with."""

    first: int
    batches: int
    number: int
    row_groups: NDArray[np.int64]


class GroupSampler:
    """Draws each group searches^beta times as often as one of a single search, and few documents of each.

    A pass puts the row groups of the data in random order and cuts them into buffers of about `buffer_groups`
    groups. A buffer gives its share of batches by stride scheduling (Waldspurger & Weihl 1995): a group is
    due at intervals of searches^-beta from a random start, and a batch takes the groups that are due first.
    So a group is in a batch at most once, and comes within one of its exact number of times in a pass (at
    most once per batch of its buffer).

    Clicks are rarer than what feeds and generation add, and filtered documents outnumber both: without the
    caps per (label, source) the many would drown the few.
    """

    def __init__(self, source: GroupStore, config: TrainingConfig, seed: int) -> None:
        """Keep what all steps share."""
        self._source, self._config, self._seed = source, config, seed
        self._size = min(config.batch_queries, source.groups)
        self._rounds: list[_Round] = []
        self._pass = -1
        self._buffer: _Buffer | None = None

    def draw(self, step: int) -> Batch:
        """Return the batch of a step; steps in order cost least.

        Raises:
            CropsError: a shard of the data is damaged.
        """
        turn = self._find_round(step)
        if self._buffer is None or self._buffer.turn != turn.first or self._buffer.drawn > step - turn.first:
            self._buffer = _Buffer(
                turn.first, self._source.read(np.sort(turn.row_groups)), self._config.beta, self._seed
            )
        group = self._buffer.batch(step - turn.first, self._size)
        groups = self._buffer.groups
        random = np.random.default_rng([self._seed, step])
        sizes = np.diff(groups.offsets)[group]
        row = np.repeat(np.arange(len(group)), sizes)
        pair = np.arange(len(row)) + np.repeat(groups.offsets[group] - (np.cumsum(sizes) - sizes), sizes)
        drawn = self._draw_pairs(random, groups, row, pair)
        known = ~drawn & (groups.label[pair] >= self._config.positive_label)
        taken = pair[drawn]
        return Batch(
            groups.query_id[group],
            groups.query_text[group],
            row[drawn],
            groups.doc_id[taken],
            groups.doc_text[taken],
            groups.label[taken],
            row[known],
            groups.doc_id[pair[known]],
        )

    def _find_round(self, step: int) -> _Round:
        """Return the round of a step; passes are laid out one after the other."""
        if not self._rounds or step < self._rounds[0].first:
            self._pass, self._rounds = 0, self._lay_out(0, 0)
        while step >= (end := self._rounds[-1].first + self._rounds[-1].batches):
            self._pass += 1
            self._rounds = self._lay_out(self._pass, end)
        starts = [turn.first for turn in self._rounds]
        return self._rounds[int(np.searchsorted(starts, step, side="right")) - 1]

    def _lay_out(self, number: int, first: int) -> list[_Round]:
        """Return the rounds of a pass: the row groups in random order, cut where a buffer is full."""
        order = np.random.default_rng([self._seed, number, 1]).permutation(len(self._source.row_groups))
        filled = np.cumsum(self._source.row_groups[order])
        buffers = max(1, round(filled[-1] / self._config.buffer_groups))
        cuts = np.searchsorted(filled, filled[-1] * np.arange(1, buffers) / buffers)
        draws_per_rate = self._source.groups / self._source.row_searches.sum()
        rounds = []
        for chosen in np.split(order, np.unique(cuts)):
            if len(chosen) == 0:
                continue
            rate = self._source.row_searches[chosen].sum()
            batches = max(1, round(rate * draws_per_rate / self._size))
            batches = max(batches, ROUND_BATCHES) if buffers == 1 else batches
            rounds.append(_Round(first, batches, number, chosen))
            first += batches
        return rounds

    def _draw_pairs(
        self,
        random: np.random.Generator,
        groups: Groups,
        row: NDArray[np.int64],
        pair: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Return which pairs are drawn.

        At most `docs_per_source` of a stratum, then at most `docs_per_query` of a group, one of each stratum
        in turn; the highest stratum has the first turn, so that no group loses its best label.
        """
        stratum = groups.label[pair] * (1 << 16) + groups.source[pair]
        times = random.exponential(size=len(pair)) / groups.weight[pair]
        turn = _places(np.lexsort((times, stratum, row)), row, stratum)
        best = np.zeros(row[-1] + 1, dtype=np.int64)
        np.maximum.at(best, row, stratum)
        first = (turn == 0) & (stratum == best[row])
        capped = turn < self._config.docs_per_source
        place = _places(np.lexsort((times, turn - first, ~capped, row)), row)
        return capped & (place < self._config.docs_per_query)


class _Buffer:
    """Groups in memory and when each of them is due."""

    def __init__(self, turn: int, groups: Groups, beta: float, seed: int) -> None:
        self.turn, self.groups, self.drawn = turn, groups, 0
        self._interval = groups.searches**-beta
        self._due = np.random.default_rng([seed, turn, 2]).random(len(groups)) * self._interval

    def batch(self, number: int, size: int) -> NDArray[np.int64]:
        """Return the rows of the `number`-th batch, ascending; it must not have been drawn before."""
        while True:
            chosen = np.argpartition(self._due, min(size, len(self._due)) - 1)[:size]
            self._due[chosen] += self._interval[chosen]
            self.drawn += 1
            if self.drawn > number:
                return np.sort(chosen)


def _places(order: NDArray[np.int64], *keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the 0-based place of each element among those of equal keys, in `order` (sorted by the keys)."""
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = np.logical_or.reduce([key[order][1:] != key[order][:-1] for key in keys])
    starts = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    places = np.empty_like(order)
    places[order] = np.arange(len(order)) - starts
    return places
