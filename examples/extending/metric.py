"""A metric of your own in one file: how many authors the first k results have, of k.

python examples/extending/metric.py MODEL LOGS
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from crops.cli.models import evaluate
from crops.evaluation import METRICS, Measured, RankedDay


def authors(items: Path) -> None:
    """Make `authors@k` a metric, by the authors of an items.parquet."""
    table = pq.read_table(items, columns=["item_id", "author_id"])
    author = dict(zip(table["item_id"].to_pylist(), table["author_id"].to_pylist(), strict=True))

    def metric(day: RankedDay) -> dict[str, Measured]:
        queries = day.testsets.queries["query_id"].to_numpy()
        tops = day.rankings.of(queries)[:, : day.k]
        values = [len({author[item] for item in top.tolist() if item >= 0}) / day.k for top in tops]
        return {f"authors@{day.k}": (queries, np.array(values), None)}

    METRICS["authors"] = metric


if __name__ == "__main__":
    model, logs = sys.argv[1:3]
    authors(Path(logs) / "items.parquet")
    evaluate([model], logs=Path(logs))
