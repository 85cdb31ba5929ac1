"""Samples in buckets of whole queries, in a store of objects or a folder: each trainer reads its share.

`split` writes them once. A bucket is a small mined folder: the samples of a range of query ids, their queries
and the items that they name. Each bucket then gives its own queries to every batch, drawn by a sampler of its
own, so that a batch is the same whichever process draws for which bucket: process r of W draws for the
buckets b with b % W = r, and reads no other.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as stores
import pyarrow.parquet as pq

from crops.config import TrainingConfig
from crops.database import Connection, explained, open_database, parquet
from crops.engine.mined import REPORT, days_seen
from crops.errors import CropsError
from crops.logs.lake import open_store
from crops.outputs import MANIFEST, Scratch, writable
from crops.retrieval.catalogue import SAMPLED
from crops.training.groups import Batch, GroupSampler, GroupStore, write_batches
from crops.training.samples import TABLES, Samples

STORE = "store.json"
"""Names the buckets; written last, so that without it there is no store."""


def is_split(path: str | Path) -> bool:
    """Return whether a path names an output of `split`: a URI, or a folder of one."""
    return "://" in str(path) or (Path(path) / STORE).is_file()


def split(mined: str | Path, uri: str, buckets: int, memory: str) -> dict[str, Any]:
    """Write the samples of a mined folder in buckets; return what `store.json` says.

    One process writes to a store at a time; a split that is written again is absent until it is whole. One
    bucket at a time is put together in the temporary folder (TMPDIR).

    Args:
        mined: an output of `crops mine`.
        uri: where to: a folder, or a URI of a store (`crops.logs.lake.open_store`).
        buckets: how many, of equally many queries.
        memory: limit of DuckDB.

    Raises:
        CropsError: a table is missing, there are fewer queries than buckets, or the store refuses.
    """
    mined = Path(mined)
    files = {table: Samples(mined).files(table) for table in TABLES}
    store, root = open_store(uri)
    found: list[dict[str, Any]] = []
    with (
        Scratch("crops-split-") as spill,
        open_database(memory, spill) as database,
        explained(f"engine.memory = '{memory}'", itertools.chain(*files.values()), disk=False),
        _explained(uri),
    ):
        for table, own in files.items():
            database.execute(f"create view {table} as from {parquet(*own)}")
        if store.get_file_info(f"{root}/{STORE}").type == stores.FileType.File:
            store.delete_file(f"{root}/{STORE}")
        for number, (low, high) in enumerate(_ranges(database, buckets)):
            rows, folder = {}, Path(spill) / f"bucket={number:03d}"
            folder.mkdir()
            used = f"select distinct item_id from samples where query_id between {low} and {high}"
            with writable(folder):
                for table in TABLES:
                    where = f"where query_id between {low} and {high} order by query_id"
                    if table.endswith("items"):
                        where = f"semi join ({used}) used using (item_id) order by item_id"
                    where += ", item_id" if table == "samples" else ""
                    written = write_batches(
                        database, f"select * from {table} {where}", folder / f"{table}.parquet"
                    )
                    rows[table] = sum(batch.num_rows for batch in written)
                if (mined / MANIFEST).exists():
                    shutil.copy(mined / MANIFEST, folder)
                found.append({"rows": rows, "sha256": _sha256(folder)})
            store.create_dir(f"{root}/{folder.name}")
            stores.copy_files(str(folder), f"{root}/{folder.name}", destination_filesystem=store)
            shutil.rmtree(folder)
        for info in store.get_file_info(stores.FileSelector(root)):  # of a former split into more
            if (bucket := re.fullmatch(r"bucket=(\d+)", info.base_name)) and int(bucket[1]) >= buckets:
                store.delete_dir(info.path)
        days = days_seen(mined) if (mined / REPORT).exists() else []
        whole = {"days": days, "buckets": found}
        with store.open_output_stream(f"{root}/{STORE}") as stream:
            stream.write(json.dumps(whole, indent=2).encode())
    return whole


def _ranges(database: Connection, buckets: int) -> list[tuple[int, int]]:
    """Return the first and last query id of each bucket; together they cover all 64-bit ids."""
    ((queries,),) = database.sql("select count(distinct query_id) from samples").fetchall()
    if not 1 <= buckets <= queries:
        raise CropsError(f"{buckets} buckets for {queries} queries; give 1 to {queries}")
    starts = database.sql(
        f"""
        select min(query_id) from (
            select query_id, (row_number() over (order by query_id) - 1) * {buckets} // {queries} as bucket
            from (select distinct query_id from samples) ids
        ) numbered group by bucket order by bucket
        """
    ).fetchall()
    first = [-(2**63), *(start for (start,) in starts[1:])]
    return list(zip(first, [*(start - 1 for start in first[1:]), 2**63 - 1], strict=True))


def _sha256(folder: Path) -> str:
    """Return the hash of the tables of a bucket."""
    digest = hashlib.sha256()
    for table in TABLES:
        with (folder / f"{table}.parquet").open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn a store's refusals into one sentence."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise CropsError(
            f"{uri}: {error}; check the address, and that you may read and write there"
        ) from error


@dataclass(frozen=True)
class SplitSamples:
    """An output of `split`, labelled as `arm` says; its folder of samples counts for nothing."""

    uri: str
    arm: Samples

    def facts(self) -> dict[str, Any]:
        """Return the days that were mined (`days`), and the rows and the hash of each bucket (`buckets`).

        Raises:
            CropsError: there is no whole split.
        """
        store, root = open_store(self.uri)
        with _explained(self.uri):
            if store.get_file_info(f"{root}/{STORE}").type != stores.FileType.File:
                raise CropsError(f"{self.uri} is not a whole output of `crops split` (no {STORE} in it)")
            with store.open_input_stream(f"{root}/{STORE}") as stream:
                found: dict[str, Any] = json.loads(stream.read())
        return found

    def fetch(self, number: int, sha256: str, folder: Path) -> Samples:
        """Return the samples of a bucket, copied into a local folder unless they are there.

        Raises:
            CropsError: the bucket is missing or not what was written.
        """
        if not (folder / sha256).exists():
            store, root = open_store(self.uri)
            shutil.rmtree(folder, ignore_errors=True)  # of a former split, with what says that it is there
            folder.mkdir(parents=True)
            with _explained(self.uri):
                stores.copy_files(f"{root}/bucket={number:03d}", str(folder), source_filesystem=store)
                written = _sha256(folder)
            if written != sha256:
                raise CropsError(
                    f"{self.uri}/bucket={number:03d} is not what was written; `crops split` it again"
                )
            (folder / sha256).touch()
        return replace(self.arm, mined=folder)

    def sample_texts(self) -> list[str]:
        """Return the first queries of the first bucket, 5,000 at most."""
        store, root = open_store(self.uri)
        with _explained(self.uri), store.open_input_file(f"{root}/bucket=000/queries.parquet") as file:
            batch = next(pq.ParquetFile(file).iter_batches(SAMPLED, columns=["query"]), None)
        return [] if batch is None else [str(text) for text in batch["query"].to_pylist() if text is not None]


class Lanes:
    """The group stores of a process's buckets as one: their texts are numbered through, queries first."""

    def __init__(self, by_bucket: Mapping[int, GroupStore], content: str) -> None:
        """Number the texts; `content` is the hash of all buckets.

        Raises:
            CropsError: a bucket has no group with an anchor.
        """
        self.by_bucket, self.content = by_bucket, content
        for number, store in by_bucket.items():
            if store.groups == 0:
                raise CropsError(f"bucket {number} has no group with an anchor; split into fewer buckets")
        self.counts = sum((store.counts for store in by_bucket.values()), Counter())
        self.groups = self.counts["groups"]
        query, doc = 0, self.groups
        for store in by_bucket.values():
            store.first_query, store.first_doc = query, doc
            query, doc = query + store.groups, doc + store.documents

    def query_texts(self) -> Iterator[list[str]]:
        """Yield the query texts in the order of their rows, a batch at a time."""
        return itertools.chain.from_iterable(store.query_texts() for store in self.by_bucket.values())

    def doc_texts(self) -> Iterator[list[str]]:
        """Yield the texts of the documents in the order of their rows."""
        return itertools.chain.from_iterable(store.doc_texts() for store in self.by_bucket.values())


class LaneSampler:
    """Draws for the buckets of a process: each bucket b of B gives its share of a batch's queries."""

    def __init__(self, lanes: Lanes, buckets: int, config: TrainingConfig, seed: int) -> None:
        """Prepare a sampler for each bucket, which knows nothing of the others.

        Raises:
            CropsError: a batch has fewer queries than there are buckets.
        """
        size = config.batch_queries
        if size < buckets:
            raise CropsError(
                f"batch_queries = {size} for {buckets} buckets, each of which gives to every batch; "
                "raise batch_queries or split into fewer buckets"
            )
        self._samplers = []
        for number, store in lanes.by_bucket.items():
            share = size * (number + 1) // buckets - size * number // buckets
            buffer = max(1, config.buffer_groups // buckets)
            own = config.model_copy(update={"batch_queries": share, "buffer_groups": buffer})
            (of_bucket,) = np.random.SeedSequence([seed, number]).generate_state(1)
            self._samplers.append(GroupSampler(store, own, int(of_bucket)))

    def draw(self, step: int) -> Batch:
        """Return what the buckets give to the batch of a step."""
        parts, queries = [], 0
        for sampler in self._samplers:
            part = sampler.draw(step)
            index, known = part.query_index + queries, part.known_index + queries
            parts.append(part._replace(query_index=index, known_index=known))
            queries += len(part.query_id)
        return Batch(*map(np.concatenate, zip(*parts, strict=True)))
