"""The paper's tables from cells: means, intervals, paired differences, cost, diversity and breakdowns."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from crops.config import RunConfig
from crops.errors import CropsError
from crops.evaluation import AGES, FREQUENCIES, Difference, Interval
from crops.evaluation.significance import holm
from crops.report import Bar, BarFigure, Estimate, TextTable
from crops.reproduce.cells import CT, NDCG, QR, QR_TRUTH, TRUE, Layout, Row
from crops.reproduce.make import SCORE
from crops.reproduce.results import Group, Measured, differences, means

RESULTS = {
    CT: "CT recall@100",
    QR: "QR recall@100",
    NDCG: "NDCG@4",
    QR_TRUTH: "QR, by truth",
    "recall@100/qr_independent": "QR, second theta",
    TRUE: "true recall@100",
}

"""The columns of a table, by metric: the paper's three and others; those without any value are left out."""

DIVERSITY = {
    "senses@100": "senses covered",
    "never_shown@100": "results never shown",
    "true_recall@100|never_shown": "true recall, never shown",
    "mrr@100/ct": "MRR of clicks",
}

SIGNIFICANT = 0.05

_BREAKDOWNS = {
    **{f"CT: {name}": (CT, {"frequency": name}) for name in FREQUENCIES},
    "true recall: one sense": (TRUE, {"senses": "1"}),
    "true recall: two senses": (TRUE, {"senses": "2"}),
    **{f"CT: {age} items": (f"{CT}|age={age}", {}) for age in AGES},
}


def result_table(layout: Layout, group: Group, failed: Mapping[str, str]) -> TextTable:
    """Return a table as the paper has it, its own figures beside; differences are to the layout's reference.

    Args:
        layout: rows and reference.
        group: the cells.
        failed: why a method has no row.
    """
    cells: dict[str, dict[str, tuple[Interval, Difference | None]]] = {name: {} for name in group.methods}
    found = {metric: one for metric in RESULTS if (one := group.resampled(metric)) is not None}
    for metric, resampled in found.items():
        compared = {}
        if layout.reference in group.methods:
            compared = differences(resampled, group, layout.reference)
        for method, value in means(resampled, group).items():
            cells[method][metric] = (value, compared.get(method))
    p_values = _corrected(cells)
    rows = [_row(row, cells.get(row.method), list(found), p_values, failed) for row in layout.rows]
    head = [f"{RESULTS[metric]} (n = {one.n:,})" for metric, one in found.items()]
    reference = next((i for i, row in enumerate(layout.rows) if row.method == layout.reference), None)
    note = (
        f"Means in % over {len(group.seeds)} world{'s' * (len(group.seeds) > 1)} and their queries, 95 % "
        f"intervals in brackets; then the difference to “{_title(layout)}”, * where p < {SIGNIFICANT} "
        "(paired by query, corrected by Holm over this table); then the paper's figure."
    )
    if layout.settings:
        note += " All rows are trained with CroPS's settings: one thing changes a row."
    return TextTable(layout.title, ["method", *head], rows, note, reference)


def _title(layout: Layout) -> str:
    return next((row.title for row in layout.rows if row.method == layout.reference), layout.reference)


def _corrected(
    cells: Mapping[str, Mapping[str, tuple[Interval, Difference | None]]],
) -> dict[tuple[str, str], float]:
    """Return the corrected p-value of each difference of a table, by method and metric."""
    found = {
        (method, metric): difference.p
        for method, own in cells.items()
        for metric, (_, difference) in own.items()
        if difference is not None
    }
    return dict(zip(found, holm(list(found.values())), strict=True))


def _row(
    row: Row,
    own: Mapping[str, tuple[Interval, Difference | None]] | None,
    metrics: Sequence[str],
    p_values: Mapping[tuple[str, str], float],
    failed: Mapping[str, str],
) -> list[str]:
    if own is None:
        reason = failed.get(row.method, "no cell for every seed")
        return [row.title, f"not tested: {reason}", *("–" for _ in metrics[1:])]
    texts = []
    for metric in metrics:
        value, difference = own[metric]
        lines = [f"{100 * value.mean:.1f}", value.ends()]
        if difference is not None:
            star = "*" if p_values[row.method, metric] < SIGNIFICANT else ""
            lines.append(f"{100 * difference.mean:+.1f}{star}")
        if metric in row.published():
            lines.append(f"paper {100 * row.published()[metric]:.1f}")
        texts.append("\n".join(lines))
    return [row.title, *texts]


def coverage(group: Group) -> str:
    """Return how far the generated documents reach, by seed: P3 cannot be judged without it."""
    if "crops" not in group.methods:
        return ""
    shares = [facts["p3_coverage"]["share_of_queries"] or 0.0 for facts in group.facts("crops")]
    return (
        f"P3 covers {', '.join(f'{100 * share:.1f}' for share in shares)} % of the training queries, by seed."
    )


def cost_table(layout: Layout, group: Group) -> TextTable:
    """Return what each method's training cost and saw, and how diverse its results are."""
    diversity = {metric: group.resampled(metric) for metric in DIVERSITY}
    rows = []
    for row in layout.rows:
        if row.method not in group.methods:
            continue
        training = [facts["training"] for facts in group.facts(row.method)]
        found = [
            "–" if one is None else f"{100 * one.interval(group.weights({row.method: 1.0})).mean:.1f}"
            for one in diversity.values()
        ]
        rows.append([row.title, *_cost(training), *found])
    head = ["method", "training, CPU-s", "wall, s", "queries × documents a query", *DIVERSITY.values()]
    note = (
        "Cost is the mean over worlds; documents a query: those drawn in a step for each of its queries. "
        "Senses: share of the meanings of an ambiguous query with an answer in the top 100; never shown: "
        "share of the top 100 that the old system had not shown for the query up to the training day, and "
        "true recall of such answers. All in %."
    )
    return TextTable("Cost and diversity", head, rows, note)


def _cost(training: Sequence[Mapping[str, Any]]) -> list[str]:
    if not training[0]:
        return ["–", "–", "–"]
    queries = mean(one["queries_seen"] for one in training)
    documents = mean(one["documents_seen"] / one["queries_seen"] for one in training)
    return [
        f"{mean(one['cpu_seconds'] for one in training):.1f}",
        f"{mean(one['train_seconds'] for one in training):.1f}",
        f"{queries:,.0f} × {documents:.1f}",
    ]


def breakdown_table(layout: Layout, group: Group) -> TextTable:
    """Return recall by frequency and ambiguity of the query, and by age of the item."""
    found = {name: group.resampled(metric, part) for name, (metric, part) in _BREAKDOWNS.items()}
    rows = [
        [
            row.title,
            *(
                "–" if one is None else f"{100 * one.interval(group.weights({row.method: 1.0})).mean:.1f}"
                for one in found.values()
            ),
        ]
        for row in layout.rows
        if row.method in group.methods
    ]
    head = [
        "method",
        *(name if one is None else f"{name} (n = {one.n:,})" for name, one in found.items()),
    ]
    note = (
        "Recall@100 in %. Head, torso, tail: a third of the training day's searches each; unseen: not "
        "searched on it. New items were uploaded after the training day, recent ones in the week before its "
        "end."
    )
    return TextTable("Breakdowns", head, rows, note)


def speed_table(layout: Layout, speeds: Mapping[str, Sequence[Convergence]]) -> TextTable:
    """Return how long each loss takes to converge, beside the paper's hours."""
    rows = []
    for row in layout.rows:
        if row.method not in speeds:
            continue
        own = speeds[row.method]
        rows.append(
            [
                row.title,
                ", ".join(str(one.step) for one in own),
                f"{mean(one.cpu_per_step for one in own):.3f}",
                f"{mean(one.cpu_seconds for one in own):.1f}",
                f"{row.hours:g}",
            ]
        )
    head = ["loss", "steps to converge, by seed", "CPU-s a step", "CPU-s to converge", "paper, hours"]
    note = (
        "Converged: the validation score (mean recall@100 on clicks and rewordings of held-out training "
        "queries) is first within 1 % of its best; evaluated every 25 steps."
    )
    return TextTable("Speed", head, rows, note)


def bars(layout: Layout, group: Group, metric: str, title: str) -> BarFigure | None:
    """Return a bar for each method, the reference as a line."""
    if (resampled := group.resampled(metric)) is None:
        return None
    values = means(resampled, group)
    drawn = [
        Bar(row.title, one.mean, one.low, one.high, tone=1 if row.method == layout.reference else 0)
        for row in layout.rows
        if row.method in values and (one := Estimate.of(values[row.method])) is not None
    ]
    reference = values[layout.reference].mean if layout.reference in values else None
    return BarFigure(title, drawn, reference)


# ------------------------------------------------------------------------------
# How long a method trains until it converges, by its watched cell (Table 4's hours).


NEAR = 0.01

"""A training has converged when its validation score first comes within this share of its best."""


@dataclass(frozen=True)
class Convergence:
    """When one training converged."""

    step: int
    cpu_per_step: float
    """CPU-seconds of a step of the same training without the looks at the validation queries."""
    watched: str
    """Folder of the cell with those looks."""

    @property
    def cpu_seconds(self) -> float:
        """Return the CPU time until then."""
        return self.step * self.cpu_per_step


def converged_at(folder: Path, near: float = NEAR) -> int:
    """Return the first evaluated step whose score is at least (1 - near) times the best of the run.

    Raises:
        CropsError: the folder holds no evaluations, or damaged ones.
    """
    from crops.training import EVALUATIONS  # torch takes seconds to import: not for --help

    path = folder / EVALUATIONS
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        scores = {int(row["step"]): float(row[f"eval_{SCORE}"]) for row in rows}
        return min(step for step, score in scores.items() if score >= (1 - near) * max(scores.values()))
    except (OSError, ValueError, KeyError) as error:
        raise CropsError(f"{path} is damaged ({error}); remove its folder to make it again") from error


def convergence(plain: Measured, watched: Measured) -> Convergence:
    """Return when a method converged: the step of its watched cell, at the cost of its plain one's steps."""
    training = plain.facts["training"]
    per_step = training["cpu_seconds"] / training["steps"]
    return Convergence(converged_at(watched.folder), per_step, watched.folder.name)


# ------------------------------------------------------------------------------
# The cells behind a page of results as one CSV: what each was, and what it found.


_FACTS = ("method", "world", "size", "seed", "encoder", "validated", "code", "platform", "test_day")

_TRAINING = ("queries_seen", "documents_seen", "cpu_seconds", "loss", "temperature")


def cells_csv(cells: Sequence[Measured]) -> str:
    """Return a row for each cell, ordered by name; a verdict of the page names the cells that it rests on.

    `settings` are those that differ from the defaults of crops, `point` the tuned ones of the method. A
    metric has two columns, its mean over queries in [0, 1] and, as `n <metric>`, their number; empty where a
    world has no such query. Of a folder or file only the name is told: the record is read on other machines.
    """
    text = io.StringIO()
    head = ["cell", *_FACTS, "point", "settings", "p3_share_of_queries", *_TRAINING]
    metrics = [*RESULTS, *DIVERSITY]
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*head, *(name for metric in metrics for name in (metric, f"n {metric}"))])
    defaults = RunConfig().model_dump(mode="json")
    for cell in sorted(cells, key=lambda one: one.folder.name):
        facts, training = cell.facts, cell.facts["training"]
        row = [cell.folder.name, *(_portable(facts[name]) for name in _FACTS), json.dumps(facts["point"])]
        row += [json.dumps(_changed(facts["settings"], defaults)), facts["p3_coverage"]["share_of_queries"]]
        row += [training.get(name) for name in _TRAINING]
        found = [facts["metrics"].get(metric, {}) for metric in metrics]
        rows.writerow(row + [value for one in found for value in (one.get("mean"), one.get("n"))])
    return text.getvalue()


def _changed(settings: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings that are not the defaults, by their dotted name."""
    changed: dict[str, Any] = {}
    for name, value in settings.items():
        default = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            changed |= _changed(value, default, f"{prefix}{name}.")
        elif value != default:
            changed[prefix + name] = _portable(value)
    return changed


def _portable(value: object) -> object:
    """Return a value, or the name alone if it is the absolute path of a file or folder."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
