"""Finished cells by hand: a world, a method, and the values of a few queries."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crops.evaluation.evaluate import metric_values
from crops.reproduce.tables import Measured, read_measured


def write_cell(
    out: Path,
    method: str,
    seed: int,
    metrics: dict[str, list[float | None]],
    *,
    frequency: list[str] | None = None,
    cpu_seconds: float = 30.0,
    scores: dict[int, float] | None = None,
    p3: float = 0.5,
    log: list[float] | None = None,
    repeat: int = 0,
) -> Measured:
    """Write a cell's folder; query ids are 1, 2, ... and None is a query without a value."""
    folder = out / "cells" / f"{method}-{seed}{'-validated' if scores else ''}{f'-{repeat}' * bool(repeat)}"
    folder.mkdir(parents=True)
    parts = [
        metric_values(
            name, np.arange(len(v)) + 1, np.array([np.nan if x is None else x for x in v], dtype=float)
        )
        for name, v in metrics.items()
    ]
    pq.write_table(pa.concat_tables(parts), folder / "values.parquet")
    count = max(len(values) for values in metrics.values())
    queries = {"query_id": np.arange(count) + 1, "frequency": frequency or ["head"] * count,
               "senses": [1] * count}  # fmt: skip
    pq.write_table(pa.table(queries), folder / "queries.parquet")
    training = {"cpu_seconds": cpu_seconds, "train_seconds": 40.0, "steps": 300, "queries_seen": 600,
                "documents_seen": 6000}  # fmt: skip
    facts = {
        "method": method,
        "seed": seed,
        "repeat": repeat,
        "code": "abc",
        "training": {} if method == "bm25" else training,
        "p3_coverage": {"share_of_queries": p3},
    }
    (folder / "cell.json").write_text(json.dumps(facts))
    if scores:
        lines = [json.dumps({"step": step, "eval_score": score}) + "\n" for step, score in scores.items()]
        (folder / "evaluations.jsonl").write_text("".join(lines))
    if log:
        rows = [{"step": i + 1, "loss": 1.0, "temperature": value} for i, value in enumerate(log)]
        (folder / "training_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_measured(folder)
