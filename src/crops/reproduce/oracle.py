"""What the truth would choose: the samples of the oracle rows, which say how much there is to gain.

They are the only samples that truth has touched. No claim is theirs; they bound those of others.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops.config import RunConfig
from crops.engine import mine
from crops.evaluation.testsets import RELEVANT_GRADE
from crops.labels import DEFAULT_LABELS, Source
from crops.logs import open_logs
from crops.outputs import Scratch, publish
from crops.pipeline import Simulated
from crops.platform import query_grades
from crops.reproduce.design import ORACLE_THETA
from crops.schema import SAMPLES
from crops.text import PLAIN

RIGHT = 10
"""Documents that the oracle source gives a query, drawn among all that are right for it."""


def mine_oracle(oracle: str, world: Simulated, out: Path, run: RunConfig) -> None:
    """Mine the training day of a world with the truth in place of theta, or of all sources but search.

    Right is what an editor who never errs calls so: grade >= 2 for a need that the query's searches had.

    Args:
        oracle: one of `crops.reproduce.design.ORACLES`.
        world: the world.
        out: folder of the samples.
        run: the settings.
    """
    from crops.training.methods import load_catalogue  # torch takes seconds to import: not for --help

    day = world.day("train")
    grades = query_grades(world.logs, [day], world.truth)
    right = grades.filter(pc.field("grade") >= RELEVANT_GRADE).select(["query_id", "item_id"])
    theta = RightScorer(right) if oracle == ORACLE_THETA else None
    sources = ("search", "p1", "p2") if theta else ("search",)
    # Not on a cluster: what is mined lies in a folder of this machine, and is changed here.
    engine = run.engine.model_copy(update={"engine": "duckdb", "days": (day,), "sources": sources})
    with Scratch("crops-oracle-") as scratch:
        mined = Path(scratch) / "mined"
        mine(
            open_logs(world.logs),
            mined,
            engine,
            relevance=theta,
            similarity=None,
            seed=run.seed,
            document=run.document,
            noted={"oracle": oracle},
        )
        if theta is None:
            known = pq.read_table(mined / "queries.parquet", columns=["query_id"])["query_id"]
            there = pa.array(load_catalogue(mined, PLAIN).ids)  # not what was uploaded later
            right = right.filter(
                pc.and_(
                    pc.is_in(right["query_id"], known.combine_chunks()), pc.is_in(right["item_id"], there)
                )
            )
            samples = add_right(pq.read_table(mined / "samples.parquet"), right, RIGHT, run.seed)
            pq.write_table(samples, mined / "samples.parquet")
        with publish(out, "mine") as folder:
            shutil.copytree(mined, folder, dirs_exist_ok=True)


@dataclass(frozen=True)
class RightScorer:
    """A theta that knows: 1 for the pairs that are right, 0 for all others."""

    right: pa.Table
    """query_id, item_id."""
    by_item = True

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Append `score` to each batch, by `left_key` and `right_key`."""
        known = set(zip(*(self.right[name].to_pylist() for name in ("query_id", "item_id")), strict=True))
        for batch in batches:
            keys = (batch.column(name).to_pylist() for name in ("left_key", "right_key"))
            scores = [float(pair in known) for pair in zip(*keys, strict=True)]
            yield batch.append_column("score", pa.array(scores, pa.float64()))


def add_right(samples: pa.Table, right: pa.Table, most: int, seed: int) -> pa.Table:
    """Return samples with up to `most` right pairs of each query, drawn by chance, as positives.

    Args:
        samples: rows of `crops.schema.SAMPLES`.
        right: query_id, item_id.
        most: pairs of a query.
        seed: of the draw.
    """
    bit = Source.PROMOTED
    drawn = right.take(np.random.default_rng(seed).permutation(len(right)))
    order = np.argsort(drawn["query_id"].to_numpy(), kind="stable")
    queries = drawn["query_id"].to_numpy()[order]
    first = np.searchsorted(queries, queries)
    drawn = drawn.take(order[np.arange(len(queries)) - first < most])
    added = drawn.append_column("added", pa.array([int(bit)] * len(drawn), pa.int64()))
    both = samples.join(added, ["query_id", "item_id"], join_type="full outer")
    sources = pc.bit_wise_or(both["sources"].fill_null(0), both["added"].fill_null(0))
    own = pa.scalar(DEFAULT_LABELS[bit], pa.int32())
    label = pc.if_else(both["added"].is_valid(), pc.max_element_wise(both["label"], own), both["label"])
    columns = [both["query_id"], both["item_id"], label, sources, both["weight"].fill_null(1.0)]
    table = pa.table(columns, names=SAMPLES.names()).cast(SAMPLES.arrow())
    return table.sort_by([("query_id", "ascending"), ("item_id", "ascending")])
