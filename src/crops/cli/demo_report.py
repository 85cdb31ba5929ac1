"""What the demo measured, in the form that the report shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crops.cli.source_counts import source_counts
from crops.config import EvaluationConfig, RunConfig
from crops.evaluation import Evaluation, compare
from crops.labels import Source
from crops.logs import Judged
from crops.outputs import versions
from crops.report import (
    DemoReport,
    Difference,
    Estimate,
    MetricColumn,
    QueryCase,
    ResultRow,
    ResultTable,
    TrainingCurve,
)


@dataclass(frozen=True)
class Arm:
    """A trained arm of the ablation."""

    name: str
    folder: Path
    sources: Source


def demo_report(
    run: RunConfig,
    mined: dict[str, Any],
    arms: Sequence[Arm],
    results: dict[str, Evaluation],
    not_tested: dict[str, str],
    bubble: ResultTable,
    cases: Sequence[QueryCase],
    seconds: dict[str, float],
) -> DemoReport:
    """Return the report of a simulated run.

    Args:
        run: its settings.
        mined: report of the mining.
        arms: the arms, the baseline first and the fullest last.
        results: evaluation by model name; holds the arms' names.
        not_tested: arms that were left out, with the reason.
        bubble: what the logs show of the bubble, day by day.
        cases: queries side by side.
        seconds: wall time by part, with `total`.
    """
    columns = _simulated_columns(run.evaluation)
    coverage = coverage_text(mined)
    table = result_table("What each source adds", columns, results, arms[0].name, run, not_tested, coverage)
    return DemoReport(
        title="Does the filter bubble break?",
        headline=_headline(table, arms, mined),
        facts=[
            *_facts(run, seconds),
            ("platform", f"{run.platform.size}, {run.platform.days} days"),
            (
                "training day",
                f"{mined['input']['searches']:,} searches, {mined['input']['queries']:,} queries",
            ),
            ("relevance (θ)", f"{run.relevance.model}, calibrated on public judgements"),
        ],
        tables=[table, bubble],
        sources=source_counts(mined),
        curves=[_curve(arm) for arm in arms],
        cases=cases,
        notes=[
            *mined["notes"],
            "One world and one seed: intervals cover the choice of queries, not of worlds or seeds.",
            "Grades, topics and true recall come from the simulator's truth, which training never read.",
        ],
    )


def judged_report(
    run: RunConfig, judged: Judged, results: dict[str, Evaluation], seconds: dict[str, float]
) -> DemoReport:
    """Return the report of a judged collection; the binary loss is the reference row."""
    k, m = run.evaluation.recall_k, run.evaluation.ndcg_k
    columns = [
        MetricColumn(
            f"recall@{k}", f"Recall@{k}", f"share of the documents of grade {judged.positive_label}+ found"
        ),
        MetricColumn(
            f"ndcg_exp2@{m}/catalogue", f"NDCG@{m}", "order of the top results against human grades"
        ),
        MetricColumn("ndcg_exp2@10/catalogue", "NDCG@10", "the same, ten results deep"),
        MetricColumn(
            "ndcg_exp2@10/judged", "NDCG@10, judged", "only the query's judged documents are ranked"
        ),
    ]
    table = result_table("Real queries, human grades", columns, results, "infonce_binary", run, {})
    differences = table.rows[-1].differences
    gains = [f"{c.label} {_points(differences[c.key])}" for c in columns if c.key in differences]
    headline = [
        f"{len(judged.queries)} queries, {len(judged.texts):,} documents, {len(judged.judgements):,} human "
        "grades; each query is tested by a model that did not train on it.",
        f"H-InfoNCE against binary InfoNCE: {'; '.join(gains)}.",
    ]
    facts = [*_facts(run, seconds), ("document text", " + ".join(judged.text_columns))]
    notes = [f"rows left out: {judged.rejects}"] if judged.rejects else []
    return DemoReport("Graded labels on a judged collection", headline, facts, [table], notes=notes)


def result_table(
    title: str,
    columns: Sequence[MetricColumn],
    results: Mapping[str, Evaluation],
    reference: str,
    run: RunConfig,
    not_tested: dict[str, str],
    note: str = "",
) -> ResultTable:
    """Return models against metrics, with paired differences to the reference model."""
    rows = []
    for name, one in results.items():
        against = (
            {} if name == reference else compare(one, results[reference], run.evaluation.resamples, run.seed)
        )
        cells = {c.key: e for c in columns if c.key in one.summary and (e := Estimate.of(one.summary[c.key]))}
        differences = {c.key: d for c in columns if c.key in against and (d := Difference.of(against[c.key]))}
        rows.append(ResultRow(name, cells, differences, is_reference=name == reference))
    rows += [ResultRow(name, not_tested=reason) for name, reason in not_tested.items()]
    return ResultTable(
        title, f"Means over queries in %, with 95 % bootstrap intervals. {note}".strip(), columns, rows
    )


def _simulated_columns(config: EvaluationConfig) -> list[MetricColumn]:
    k, m = config.recall_k, config.ndcg_k
    return [
        MetricColumn(
            f"recall@{k}/ct", f"CT recall@{k}", "share of the items clicked on the test day that are found"
        ),
        MetricColumn(
            f"recall@{k}/qr",
            f"QR recall@{k}",
            "share of the items consumed after rewording, kept by θ, that the first wording finds",
        ),
        MetricColumn(
            f"recall@{k}/qr_truth",
            f"QR recall@{k}, truth",
            "the same, kept by truth in place of θ",
            plotted=False,
        ),
        MetricColumn(
            f"ndcg_exp2@{m}/pool",
            f"NDCG@{m}",
            "order of the old system's 50 results against true grades",
            plotted=False,
        ),
        MetricColumn(
            f"true_recall@{k}", f"true recall@{k}", "share of all that answers the searcher's need, found"
        ),
    ]


def _headline(table: ResultTable, arms: Sequence[Arm], mined: dict[str, Any]) -> list[str]:
    rows = {row.name: row for row in table.rows}
    first, last = rows[arms[0].name], rows[arms[-1].name]
    fullest = arms[-1].name.rpartition("= ")[2]
    sentences = []
    for column in (table.columns[-1], table.columns[1], table.columns[0]):
        if column.key in last.differences:
            sentences.append(
                f"{column.label}: {100 * first.cells[column.key].mean:.1f} % with search labels only, "
                f"{100 * last.cells[column.key].mean:.1f} % with {fullest} "
                f"({_points(last.differences[column.key])}): {_verdict(last.differences[column.key])}."
            )
    added = {name: mined["novelty"][name] for name in ("p1", "p2") if mined["novelty"][name]["positives"]}
    if added:
        shares = " and ".join(f"{100 * row['share']:.0f} % of {name.upper()}" for name, row in added.items())
        sentences.append(f"{shares} positives had never been shown for their query.")
    return sentences


def _verdict(difference: Difference) -> str:
    if difference.p is None:
        return "too few queries to tell"
    if not difference.significant:
        return "no significant difference"
    return "a significant gain" if difference.mean > 0 else "a significant loss"


def _points(difference: Difference) -> str:
    interval = f"no interval: n = {difference.n}"
    if difference.low is not None and difference.high is not None:
        interval = f"95 % interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
    return f"{100 * difference.mean:+.1f} points, {interval}"


def _facts(run: RunConfig, seconds: dict[str, float]) -> list[tuple[str, str]]:
    found = versions()
    return [
        ("seed", str(run.seed)),
        ("encoder", run.training.encoder),
        ("training", f"{run.training.steps} steps of {run.training.batch_queries} queries"),
        ("minutes", f"{seconds['total'] / 60:.1f}"),
        ("versions", ", ".join(f"{name} {found[name]}" for name in ("crops", "torch", "duckdb"))),
    ]


def coverage_text(mined: dict[str, Any]) -> str:
    """Return how far the generated documents reach: P3 cannot be judged without it."""
    coverage = mined["p3_coverage"]
    return (
        f"P3 covers {coverage['with_generation']:,} of {coverage['queries']:,} training queries "
        f"({100 * (coverage['share_of_queries'] or 0):.1f} %) and is "
        f"{100 * (coverage['share_of_samples'] or 0):.1f} % of the samples."
    )


def _curve(arm: Arm) -> TrainingCurve:
    from crops.training import LOG  # torch takes seconds to import: not for --help

    lines = [json.loads(line) for line in (arm.folder / LOG).read_text().splitlines()]
    return TrainingCurve(
        arm.name,
        [line["step"] for line in lines],
        [line["loss"] for line in lines],
        [line["temperature"] for line in lines],
    )
