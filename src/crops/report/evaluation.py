"""What `crops evaluate` found: tables for the terminal, and the page with the queries behind the figures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from crops.config import RunConfig
from crops.evaluation import FREQUENCIES, MIN_QUERIES, Difference, Evaluation, Slices, TestSets, compare
from crops.evaluation.evaluate import CUTOFFS
from crops.evaluation.significance import holm
from crops.report.demo import Column, differences, points, result_section, said_of, simulated_columns
from crops.report.page import Page, Section, Table

_DETAIL = re.compile(r"_events|/catalogue|/seen|/unseen|mrr@|never_shown|senses@|\|")
"""Metrics that the tables leave out."""
ACROSS = 4
"""Metrics side by side in a table: with their intervals, so many fit into 80 columns."""
MOST = 3
"""Queries that are shown of those that gained, and of those that lost."""


@dataclass(frozen=True)
class Basis:
    """What models were evaluated on."""

    title: str
    """The days, or the file of judgements."""
    testsets: TestSets | None = None
    """None for run files."""
    slices: Slices | None = None
    k: int = 1
    """Only queries of at least this many users are named."""


def main_metrics(results: Mapping[str, Evaluation]) -> list[str]:
    """Return the metrics that tables show and that a regression counts in, in order of evaluation."""
    shown = [name for name in next(iter(results.values())).summary if not _DETAIL.search(name)]
    deepest = max(map(_cutoff, shown), default=0)
    return [name for name in shown if _cutoff(name) in (0, deepest)]


def _cutoff(metric: str) -> int:
    """Return the cut-off of a recall, 0 of another metric."""
    found = re.match(r"recall@(\d+)", metric)
    return int(found[1]) if found else 0


def evaluation_page(
    results: Mapping[str, Evaluation], reference: str, tested: Basis, run: RunConfig, notes: Sequence[str]
) -> Page:
    """Return the page of an evaluation.

    Args:
        results: by model, on the same queries.
        reference: the model that the others are compared with.
        tested: what they were evaluated on.
        run: the settings.
        notes: what else is to be known, as sentences.
    """
    columns = _columns(results, run)
    against = differences(results, reference, run)
    title, names = f"Results on {tested.title}", list(results)
    sections = [result_section(title, columns, results, against, reference, coloured=names)]
    if tested.slices is not None:
        lead = (
            "Head: the queries of a third of the training searches, the most frequent ones; torso: the next."
        )
        tables = breakdown_tables(results, tested.slices, run.evaluation.recall_k)
        sections.append(Section("By frequency of the query and age of the item", lead, tables))
    if tables := cutoff_tables(results, run.evaluation.recall_k):
        sections.append(Section("Nearer the top", "Recall at shallower cuts, means in %.", tables))
    if queries := gain_tables(results, reference, tested, run.evaluation.recall_k):
        lead = (
            f"The {MOST} queries whose recall rose most and the {MOST} whose recall fell most, of those that "
            f"at least {tested.k} user{'s' * (tested.k > 1)} searched."
        )
        sections.append(Section("Queries that gained and lost most", lead, queries))
    counts = {} if tested.testsets is None else tested.testsets.counts
    made = [
        ("evaluated on", tested.title),
        ("theta", run.relevance.model),
        ("seed", str(run.seed)),
        *((_COUNTED.get(name, name.replace("_", " ")), f"{number:,}") for name, number in counts.items()),
    ]
    headline = _headline(columns, results, against, reference)
    return Page(f"Evaluation on {tested.title}", headline, sections, made, notes)


_COUNTED = {
    "ct_queries": "queries of CT",
    "ct_pairs": "clicks of CT",
    "ct_pairs_outside_catalogue": "clicks on what is not in the catalogue",
    "qr_queries": "queries of QR",
    "qr_pairs": "pairs of QR",
    "qr_pairs_outside_catalogue": "pairs of QR that are not in the catalogue",
}


def _columns(results: Mapping[str, Evaluation], run: RunConfig) -> list[Column]:
    known = {column.key: column for column in simulated_columns(run.evaluation)}
    return [known.get(name, Column(name, name, "higher is better")) for name in main_metrics(results)]


def _headline(
    columns: Sequence[Column],
    results: Mapping[str, Evaluation],
    against: Mapping[str, Mapping[str, Difference]],
    reference: str,
) -> list[str]:
    first = {column.label: results[reference].summary[column.key] for column in columns[:2]}
    known = [f"{label} {100 * found.mean:.1f} %" for label, found in first.items() if found.n]
    sentences = [f"{reference}: {', '.join(known)}."] if known else []
    for name, own in against.items():
        changes = [
            f"{column.label} {points(change)}, {said_of(change)}"
            for column in columns[:2]
            if (change := own.get(column.key)) is not None
        ]
        sentences.append(f"{name} against {reference}: {'; '.join(changes)}.")
    return sentences


def means_tables(results: Mapping[str, Evaluation], title: str) -> Iterator[Table]:
    """Yield the means in %, a row for each model; all metrics and the intervals are in summary.json."""
    metrics, counts = main_metrics(results), next(iter(results.values())).summary
    notes = ["± half the width of the 95 % interval"]
    if any(0 < counts[metric].n < MIN_QUERIES for metric in metrics):
        notes.append(f"fewer than {MIN_QUERIES} queries carry none")
    if any(not counts[metric].n for metric in metrics):
        notes.append("–: no query has a value")
    for start in range(0, len(metrics), ACROSS):
        shown = metrics[start : start + ACROSS]
        heads = [f"{name.replace('/', chr(10))}\nn = {counts[name].n:,}" for name in shown]
        rows = [[name, *(_mean_cell(one, metric) for metric in shown)] for name, one in results.items()]
        yield Table(title, ["model", *heads], rows, "; ".join(notes))


def _mean_cell(one: Evaluation, metric: str) -> str:
    """Return a mean in % with half the width of its interval, or a dash for what is unknown."""
    found = one.summary[metric]
    if not found.n:
        return "–"
    half = "–" if found.n < MIN_QUERIES else f"{50 * (found.ci_high - found.ci_low):.1f}"
    return f"{100 * found.mean:.1f} ±{half}"


Compared = dict[tuple[str, str], tuple[Difference, float]]
"""Difference to the reference and its corrected p-value, by model and metric."""


def compared(
    results: Mapping[str, Evaluation], reference: str, metrics: Sequence[str], run: RunConfig
) -> Compared:
    """Compare each model with the reference on the same queries; p-values are corrected by Holm."""
    found = {
        (name, metric): difference
        for name, one in results.items()
        if name != reference
        for metric, difference in compare(one, results[reference], run.evaluation.resamples, run.seed).items()
        if metric in metrics and difference.n > 0
    }
    corrected = holm([one.p for one in found.values()])
    return {key: (one, p) for (key, one), p in zip(found.items(), corrected, strict=True)}


def differences_table(found: Compared, reference: str) -> Table:
    """Return the differences in points, with intervals and corrected p-values."""
    rows = [
        [
            name,
            metric,
            f"{100 * one.mean:+.1f}",
            one.ends("+.1f"),
            "–" if one.n < MIN_QUERIES else f"{p:.3f}",
        ]
        for (name, metric), (one, p) in found.items()
    ]
    head = ["model", "metric", "points", "95 % interval", "p"]
    return Table(f"Against {reference}, on the same queries", head, rows, "p: corrected by Holm")


def breakdown_tables(results: Mapping[str, Evaluation], slices: Slices, k: int) -> list[Table]:
    """Return recall by frequency of the query, for CT and QR, and of clicked items by age: means in %.

    A table of which nothing was measured, as ages without `uploaded_at`, is left out.
    """
    groups = {
        name: slices.queries.filter(pc.field("frequency") == name)["query_id"].to_numpy()
        for name in FREQUENCIES
    }
    tables = [
        _part_table(
            f"Recall@{k} of {metric.upper()} by frequency of the query, %",
            results,
            {name: (f"recall@{k}/{metric}", ids) for name, ids in groups.items()},
        )
        for metric in ("ct", "qr")
    ]
    ages = {
        name.rpartition("=")[2]: (name, None)
        for name in next(iter(results.values())).summary
        if "|age=" in name and not name.endswith(("/seen", "/unseen"))
    }
    tables.append(_part_table(f"Recall@{k} of clicked items by their age, %", results, ages))
    return [table for table in tables if any(set(row[1:]) - {"–"} for row in table.rows)]


def cutoff_tables(results: Mapping[str, Evaluation], k: int) -> list[Table]:
    """Return recall at `CUTOFFS` beside that at k, a table for each test set."""
    known = next(iter(results.values())).summary
    sets = [name.partition("/")[2] for name in main_metrics(results) if name.startswith(f"recall@{k}/")]
    return [
        _part_table(
            f"Recall of {one}, %", results, {str(at): (f"recall@{at}/{one}", None) for at in (*CUTOFFS, k)}
        )
        for one in sets
        if all(f"recall@{at}/{one}" in known for at in CUTOFFS)
    ]


def _part_table(
    title: str, results: Mapping[str, Evaluation], parts: Mapping[str, tuple[str, np.ndarray | None]]
) -> Table:
    """Return means over parts of the queries, each named by its metric and the ids (all when None)."""
    rows, heads = [], ["model", *parts]
    for name, one in results.items():
        values = [_values(one, metric, ids) for metric, ids in parts.values()]
        rows.append([name, *(f"{100 * own.mean():.1f}" if own.size else "–" for own in values)])
        heads = ["model", *(f"{part}\nn = {own.size:,}" for part, own in zip(parts, values, strict=True))]
    empty = any("–" in row[1:] for row in rows)
    return Table(title, heads, rows, "–: no such query has a value" if empty else "")


def _values(one: Evaluation, metric: str, ids: np.ndarray | None) -> np.ndarray:
    found = _by_query(one, metric)
    wanted = found if ids is None else [query for query in ids.tolist() if query in found]
    return np.array([found[query] for query in wanted])


def gain_tables(results: Mapping[str, Evaluation], reference: str, tested: Basis, k: int) -> list[Table]:
    """Return, for each model, the queries whose recall rose and fell most against the reference.

    Of CT, or of QR where nothing was clicked. Of equal differences the more searched query comes first.
    """
    if (testsets := tested.testsets) is None:
        return []
    of, pairs = ("ct", testsets.ct) if len(testsets.ct) else ("qr", testsets.qr)
    wanted = set(zip(pairs["query_id"].to_pylist(), pairs["item_id"].to_pylist(), strict=True))
    items = Counter(query for query, _ in wanted)
    told = {row["query_id"]: row for row in testsets.queries.to_pylist() if row["users"] >= tested.k}
    metric, tables = f"recall@{k}/{of}", []
    before = _by_query(results[reference], metric)
    for name, one in results.items():
        after = _by_query(one, metric)
        change = {query: after[query] - before[query] for query in told if query in after}
        ordered = sorted(change, key=lambda query: (-change[query], -told[query]["searches"], query))
        rows = [
            [
                told[query]["query"],
                f"{100 * before[query]:.0f}",
                f"{100 * after[query]:.0f}",
                str(items[query]),
                str(told[query]["searches"]),
            ]
            for query in _ends(ordered, change)
        ]
        if name != reference and rows:
            head = ["Query", f"{reference}\n%", f"{name}\n%", "To find", "Searches"]
            title = f"Gained and lost most against {reference}: recall@{k} of {of.upper()}"
            tables.append(Table(title, head, rows))
    return tables


def _ends(ordered: Sequence[int], change: Mapping[int, float]) -> list[int]:
    """Return the queries that gained most, then those that lost most, the worst last."""
    gained = [query for query in ordered if change[query] > 0][:MOST]
    return gained + [query for query in ordered if change[query] < 0][-MOST:]


def _by_query(one: Evaluation, metric: str) -> dict[int, float]:
    rows = one.values.filter((pc.field("metric") == metric) & pc.field("value").is_valid())
    return dict(zip(rows["query_id"].to_pylist(), rows["value"].to_pylist(), strict=True))
