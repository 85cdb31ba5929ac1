"""What `crops evaluate` found: tables for the terminal, and the page with the queries behind the figures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc

from crops.config import RunConfig
from crops.evaluation import FREQUENCIES, MIN_QUERIES, Difference, Evaluation, Slices, TestSets, compare
from crops.evaluation.evaluate import CUTOFFS
from crops.evaluation.significance import holm
from crops.report.demo import Column, points, result_section, said_of, simulated_columns
from crops.report.page import Page, Section, Table

_DETAIL = re.compile(r"_events|/catalogue|/seen|/unseen|mrr@|never_shown|senses@|\|")
"""Metrics that the tables leave out."""
ACROSS = 4
"""Metrics side by side in a table: with their intervals, so many fit into 80 columns."""
MOST = 3
"""Queries that are shown of those that gained, and of those that lost."""
_SEEN = 0.005
"""A smaller difference is 0 in the whole % that are shown."""
FINEST = 100
"""Resamples for each test at least: Holm multiplies the smallest p-value, 2 / (resamples + 1), by tests."""
SHALLOW, FOUND = 0.1, 0.95
"""Recall@k can hardly differ from this share of k among the candidates on, or from this recall on."""


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
    results: Mapping[str, Evaluation],
    against: str | None,
    tested: Basis,
    run: RunConfig,
    notes: Sequence[str],
    found: Compared | None = None,
) -> Page:
    """Return the page of an evaluation on the same queries.

    `against` is the model in use, if one is named (see `pairs`), and `found` what `compared` returns, where
    that is known.
    """
    columns = _columns(results, run)
    found = compared(results, against, main_metrics(results), run) if found is None else found
    reference, differences = _seen_from(list(results), against, found)
    title, names = f"Results on {tested.title}", list(results)
    sections = [
        result_section(title, columns, results, differences, reference, coloured=names, corrected=True)
    ]
    if tested.slices is not None:
        lead = (
            "Head: the queries of a third of the training searches, the most frequent ones; torso: the next."
        )
        tables = breakdown_tables(results, tested.slices, run.evaluation.recall_k)
        sections.append(Section("By frequency of the query and age of the item", lead, tables))
    if tables := cutoff_tables(results, run.evaluation.recall_k):
        sections.append(Section("Nearer the top", "Recall at shallower cuts, means in %.", tables))
    if queries := gain_tables(results, against, tested, run.evaluation.recall_k):
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
    return Page(f"Evaluation on {tested.title}", headline(results, found, run), sections, made, notes)


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


def pairs(names: Sequence[str], against: str | None) -> list[tuple[str, str]]:
    """Return which model is compared with which: the first with each other one, or each with `against`.

    The first is the one that the reader asks about, unless a model in use is named.
    """
    if against is not None:
        return [(name, against) for name in names if name != against]
    return [(names[0], other) for other in names[1:]]


def _seen_from(
    names: Sequence[str], against: str | None, found: Compared
) -> tuple[str, dict[str, dict[str, Difference]]]:
    """Return one reference for all differences, and each other model's by metric, p-values corrected.

    It is the model that all are compared with; where the first is compared with several, that one.
    """
    wanted = pairs(names, against)
    references = {other for _, other in wanted}
    reference = references.pop() if len(references) == 1 else against or names[0]
    seen: dict[str, dict[str, Difference]] = {name: {} for name in names if name != reference}
    for (name, other, metric), (one, p) in found.items():
        if other == reference:
            seen[name][metric] = replace(one, p=p)
        else:
            seen[other][metric] = Difference(-one.mean, -one.ci_high, -one.ci_low, one.n, p)
    return reference, seen


def headline(results: Mapping[str, Evaluation], found: Compared, run: RunConfig) -> list[str]:
    """Return what was found in sentences: what the first model finds, and each comparison."""
    columns = _columns(results, run)[:2]
    name = next(iter(results))
    first = {column.label: results[name].summary[column.key] for column in columns}
    known = [f"{label} {100 * mean.mean:.1f} %" for label, mean in first.items() if mean.n]
    sentences = [f"{name}: {', '.join(known)}."] if known else []
    for own, other in dict.fromkeys((own, other) for own, other, _ in found):
        changes = [
            f"{column.label} {points(one)}, {said_of(replace(one, p=p))}"
            for column in columns
            if (pair := found.get((own, other, column.key))) is not None
            for one, p in [pair]
        ]
        if changes:
            sentences.append(f"{own} against {other}: {'; '.join(changes)}.")
    return sentences


def saturation(results: Mapping[str, Evaluation], tested: Basis, run: RunConfig) -> str | None:
    """Return why recall@k can hardly differ on these test sets, and what lowers k; None where it can."""
    k = run.evaluation.recall_k
    items = 0 if tested.testsets is None else len(tested.testsets.candidates)
    full = []
    for metric in main_metrics(results):
        best = max((one.summary[metric].mean for one in results.values()), default=0.0)
        if re.match(rf"recall@{k}(/|$)", metric) and best >= FOUND:
            full.append(f"{best:.0%} of {metric}")
    why = []
    if items and k >= SHALLOW * items:
        why.append(f"{k} places are {min(1.0, k / items):.0%} of the {items:,} items")
    if full:
        why.append(f"the best model has {', '.join(full)}")
    lower = max(1, min(10, items // 20 or 10))
    if not why or lower >= k:
        return None
    return (
        f"Recall@{k} can hardly differ between models here, as {' and '.join(why)}: evaluate nearer the top, "
        f"with recall_k = {lower} under [evaluation] in the file of --config."
    )


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


Compared = dict[tuple[str, str, str], tuple[Difference, float]]
"""Difference of a model to another and its corrected p-value, by model, other and metric."""


def compared(
    results: Mapping[str, Evaluation], against: str | None, metrics: Sequence[str], run: RunConfig
) -> Compared:
    """Compare models (see `pairs`) on the same queries; p-values are corrected by Holm over all of it."""
    wanted = pairs(list(results), against)
    resamples = max(run.evaluation.resamples, FINEST * len(wanted) * len(metrics))
    found = {
        (name, other, metric): difference
        for name, other in wanted
        for metric, difference in compare(results[name], results[other], resamples, run.seed).items()
        if metric in metrics and difference.n > 0
    }
    corrected = holm([one.p for one in found.values()])
    return {key: (one, p) for (key, one), p in zip(found.items(), corrected, strict=True)}


def differences_table(found: Compared) -> Table:
    """Return the differences in points, with intervals and corrected p-values."""
    whole = [list(dict.fromkeys(key[place] for key in found)) for place in (0, 1)]
    asked, others = whole
    rows = [
        [
            name if len(others) == 1 else other,
            metric,
            f"{100 * one.mean:+.1f}",
            one.ends("+.1f"),
            "–" if one.n < MIN_QUERIES else f"{p:.3f}",
        ]
        for (name, other, metric), (one, p) in found.items()
    ]
    title, first = f"Against {others[0]}, on the same queries", "model"
    if len(others) > 1:
        title, first = f"{asked[0]} against the others, on the same queries", "against"
    head = [first, "metric", "points", "95 % interval", "p"]
    return Table(title, head, rows, "p: corrected by Holm for the number of comparisons")


def breakdown_tables(results: Mapping[str, Evaluation], slices: Slices, k: int) -> list[Table]:
    """Return recall by frequency of the query, for CT and QR, and of clicked items by age: means in %.

    A table of which nothing was measured, as ages without `uploaded_at`, is left out.
    """
    groups = {
        name: slices.queries.filter(pc.field("frequency") == name)["query_id"].to_numpy()
        for name in FREQUENCIES
    }
    tables = []
    for metric in ("ct", "qr"):
        parts = {name: (f"recall@{k}/{metric}", ids) for name, ids in groups.items()}
        tables.append(
            _part_table(f"Recall@{k} of {metric.upper()} by frequency of the query, %", results, parts)
        )
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


def gain_tables(results: Mapping[str, Evaluation], against: str | None, tested: Basis, k: int) -> list[Table]:
    """Return, for each comparison (see `pairs`), the queries whose recall rose and fell most.

    Of CT, or of QR where nothing was clicked. Of equal differences the more searched query comes first.
    """
    if (testsets := tested.testsets) is None:
        return []
    of, answers = ("ct", testsets.ct) if len(testsets.ct) else ("qr", testsets.qr)
    wanted = set(zip(answers["query_id"].to_pylist(), answers["item_id"].to_pylist(), strict=True))
    items = Counter(query for query, _ in wanted)
    told = {row["query_id"]: row for row in testsets.queries.to_pylist() if row["users"] >= tested.k}
    metric, tables = f"recall@{k}/{of}", []
    for name, other in pairs(list(results), against):
        before, after = _by_query(results[other], metric), _by_query(results[name], metric)
        change = {query: after[query] - before[query] for query in told if query in after}
        ordered = sorted(change, key=lambda query: (-change[query], -told[query]["searches"], query))
        rows = []
        gained = [query for query in ordered if change[query] >= _SEEN][:MOST]
        lost = [query for query in ordered if change[query] <= -_SEEN][-MOST:]  # the worst last
        for query in gained + lost:
            shares = f"{100 * before[query]:.0f}", f"{100 * after[query]:.0f}"
            rows.append([told[query]["query"], *shares, str(items[query]), str(told[query]["searches"])])
        if rows:
            head = ["Query", f"{other}\n%", f"{name}\n%", "To find", "Searches"]
            title = f"Gained and lost most with {name} against {other}: recall@{k} of {of.upper()}"
            tables.append(Table(title, head, rows))
    return tables


def _by_query(one: Evaluation, metric: str) -> dict[int, float]:
    rows = one.values.filter((pc.field("metric") == metric) & pc.field("value").is_valid())
    return dict(zip(rows["query_id"].to_pylist(), rows["value"].to_pylist(), strict=True))
