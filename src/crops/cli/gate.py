"""The regression gate: is a model significantly worse than the one in use? And what a mean hides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from rich.table import Table

from crops.cli.trec import file_names
from crops.config import RunConfig
from crops.errors import CropsError, RegressionError
from crops.evaluation import FREQUENCIES, MIN_QUERIES, Evaluation, Facts, TestSets, build_facts, compare
from crops.evaluation.nested import holm
from crops.outputs import MANIFEST, console

SIGNIFICANT = 0.05


def gate(results: Mapping[str, Evaluation], against: str, metrics: Sequence[str], run: RunConfig) -> None:
    """Compare each model with the one in use, print the differences, and refuse a significant loss.

    Args:
        results: evaluations on the same queries, by model.
        against: the model in use.
        metrics: what counts.
        run: resamples and seed.

    Raises:
        RegressionError: a difference is below 0 with p < 0.05, corrected by Holm over models and metrics.
        CropsError: no metric has enough queries for a test.
    """
    found = {
        (name, metric): difference
        for name, one in results.items()
        if name != against
        for metric, difference in compare(one, results[against], run.evaluation.resamples, run.seed).items()
        if metric in metrics and difference.n > 0
    }
    if len(results) > 1 and all(one.n < MIN_QUERIES for one in found.values()):
        raise CropsError(
            f"no metric has {MIN_QUERIES} queries to compare with {against} on, so a test would say nothing; "
            "evaluate on a day with more searches"
        )
    corrected = dict(zip(found, holm([one.p for one in found.values()]), strict=True))
    table = Table(
        "model", "metric", "difference", "95 % interval", "p, corrected", title=f"Against {against}"
    )
    losses = []
    for (name, metric), one in found.items():
        p = corrected[name, metric]
        interval = one.ends("+.1f")
        told = "–" if one.n < MIN_QUERIES else f"{p:.3f}"
        table.add_row(name, metric, f"{100 * one.mean:+.2f}", interval, told)
        if one.mean < 0 and p < SIGNIFICANT:
            losses.append(f"{name} loses {-100 * one.mean:.2f} points of {metric} {interval}, p = {p:.3f}")
    console.print(table)
    if losses:
        raise RegressionError(f"significantly worse than {against}: {'; '.join(losses)}")


def refuse_trained_on(model: str, test_day: str) -> None:
    """Refuse a model of ours whose samples were mined from the test day; others do not name their samples.

    Raises:
        CropsError: test and training overlap.
    """
    manifest = Path(model) / MANIFEST
    if not manifest.is_file():
        return
    samples = json.loads(manifest.read_text()).get("samples")
    report = Path(samples or "") / "report.json"
    if samples and report.is_file() and test_day in json.loads(report.read_text())["days"]:
        raise CropsError(
            f"{model} was trained on {samples}, mined from {test_day} too; evaluate it on a day that its "
            "training has not seen"
        )


def facts_of(logs: Path, samples: Path, testsets: TestSets, truth: Path | None, run: RunConfig) -> Facts:
    """Return the facts that breakdowns need; the training day is the last one mined before the test day."""
    days = json.loads((samples / "report.json").read_text())["days"]
    train_day = max([day for day in days if day < testsets.day] or days)
    return build_facts(logs, train_day, testsets, truth, run.engine.memory)


def breakdown(results: Mapping[str, Evaluation], facts: Facts, k: int) -> Table:
    """Return recall by frequency of the query, and of clicked items by age: means in %."""
    by_name = {name: facts.queries.filter(pc.field("frequency") == name) for name in FREQUENCIES}
    groups = {name: own["query_id"].to_numpy() for name, own in by_name.items()}
    ages = [metric for metric in next(iter(results.values())).summary if "|age=" in metric and "/" in metric]
    ages = [metric for metric in ages if not metric.endswith(("/seen", "/unseen"))]
    heads = [f"{metric} {name}" for metric in ("CT", "QR") for name in groups]
    heads += [f"CT {metric.rpartition('=')[2]} items" for metric in ages]
    title = f"Recall@{k} by frequency of the query and age of the item, %"
    table = Table("model", *heads, title=title, caption="–: no such query has a value")
    names = file_names(list(results))
    for name, one in results.items():
        cells = [
            _mean(one, f"recall@{k}/{metric}", ids) for metric in ("ct", "qr") for ids in groups.values()
        ]
        cells += [_mean(one, metric, None) for metric in ages]
        table.add_row(names[name], *cells)
    return table


def _mean(one: Evaluation, metric: str, ids: np.ndarray | None) -> str:
    rows = one.values.filter((pc.field("metric") == metric) & pc.field("value").is_valid())
    values = rows["value"].to_numpy()
    if ids is not None:
        values = values[np.isin(rows["query_id"].to_numpy(), ids)]
    return f"{100 * values.mean():.1f}\nn = {len(values)}" if len(values) else "–"
