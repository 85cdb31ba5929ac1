"""The paper's tables from finished cells: means over worlds, paired differences, cost, speed, breakdowns."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.config import RunConfig
from crops.errors import CropsError
from crops.evaluation import AGES, FREQUENCIES, Difference, Interval
from crops.evaluation.evaluate import CUTOFFS
from crops.evaluation.significance import Resampled, holm, nested_bootstrap
from crops.report import Bar, Figure, Section, Table
from crops.reproduce.design import CT, NDCG, ORACLES, QR, QR_EDITOR, QR_TRUTH, TRUE, Layout
from crops.reproduce.make import SCORE

RESULTS = {
    CT: "CT recall@100",
    QR_TRUTH: "QR, by truth",
    QR_EDITOR: "QR, by an editor",
    NDCG: "NDCG@4",
    TRUE: "true recall@100",
    "recall@100/qr_independent": "QR, second theta",
    QR: "QR recall@100, by theta",
}
"""The columns of a table, by metric: the paper's three and others; those without any value are left out. QR
by the theta of the training comes last: it chose P1 and P2, and is its own witness."""
DIVERSITY = {
    "senses@100": "senses covered",
    "never_shown@100": "results never shown",
    "true_recall@100|never_shown": "true recall, never shown",
    "mrr@100/ct": "MRR of clicks",
}
SIGNIFICANT = 0.05
_Parts = dict[str, tuple[str, dict[str, str]]]
"""A metric over the queries with these values of columns of `Measured.queries`, by name."""
_NEARER: _Parts = {
    f"{name}@{k}": (f"recall@{k}/{of}", {})
    for name, of in (("CT", "ct"), ("QR, truth", "qr_truth"), ("QR, editor", "qr_editor"))
    for k in CUTOFFS
}
_CLICKS: _Parts = {
    "wordy": (f"{CT}|words=some", {}),
    "wordless": (f"{CT}|words=none", {}),
    "shown for this text": (f"{CT}|shown=text", {}),
    "shown for this meaning": (f"{CT}|shown=meaning", {}),
    "never shown": (f"{CT}|shown=never", {}),
}
_BREAKDOWNS: _Parts = {
    **{f"CT: {name}": (CT, {"frequency": name}) for name in FREQUENCIES},
    "true recall: one sense": (TRUE, {"senses": "1"}),
    "true recall: two senses": (TRUE, {"senses": "2"}),
    **{f"CT: {age} items": (f"{CT}|age={age}", {}) for age in AGES},
}


# Finished cells, one value per query, brought together over seeds.

RESAMPLES = 4000
"""Enough that the smallest p-value, 2 / 4001, stays below 0.05 when corrected for a hundred comparisons."""


@dataclass(frozen=True)
class Measured:
    """A finished cell."""

    folder: Path
    info: dict[str, Any]
    """What cell.json says."""
    method: str
    seed: int
    """Of its world."""
    training: int
    """Which training of the method in its world it is: 0 is the first."""

    @cached_property
    def values(self) -> pa.Table:
        """Return the values per query (`crops.evaluation.evaluate.VALUES`)."""
        return pq.read_table(self.folder / "values.parquet")

    @cached_property
    def queries(self) -> pa.Table:
        """Return query_id, frequency, senses, seen."""
        return pq.read_table(self.folder / "queries.parquet")

    def of(self, metric: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the queries that have a value of the metric, ascending, and the values."""
        rows = self.values.filter((pc.field("metric") == metric) & pc.field("value").is_valid())
        return rows["query_id"].to_numpy(), rows["value"].to_numpy()


def read_measured(folder: Path) -> Measured:
    """Return a finished cell.

    Raises:
        CropsError: its files are damaged.
    """
    try:
        info = json.loads((folder / "cell.json").read_text())
        return Measured(folder, info, info["method"], info["seed"], info.get("repeat", 0))
    except (OSError, ValueError) as error:
        raise CropsError(f"{folder} is damaged: {error}; remove it, and it is made again") from error


@dataclass(frozen=True)
class Group:
    """The cells of a table in one world: methods against seeds, all there."""

    methods: tuple[str, ...]
    cells: Mapping[tuple[str, int], Sequence[Measured]]
    """By method and seed, one for each training."""
    seeds: tuple[int, ...]
    trainings: int = 1
    known: dict[tuple[str, str], Resampled | None] = field(default_factory=dict, repr=False)
    """What was resampled already."""

    def folders(self, *methods: str) -> list[str]:
        """Return the names of the cells of the methods: what a verdict rests on."""
        keys = [(method, seed) for method in methods for seed in self.seeds]
        return [cell.folder.name for key in keys for cell in self.cells[key]]

    def info(self, method: str) -> list[dict[str, Any]]:
        """Return what cell.json says of a method's cells, seed by seed."""
        return [cell.info for seed in self.seeds for cell in self.cells[method, seed]]

    def resampled(self, metric: str, part: Mapping[str, str] | None = None) -> Resampled | None:
        """Return the resampled means of all methods over the queries that have a value of each.

        `part` takes only queries with these values of a column of `Measured.queries`, as text. None where a
        world has no such query.
        """
        key = (metric, str(part))
        if key not in self.known:
            worlds = [self._matrix(metric, seed, part or {}) for seed in self.seeds] if self.methods else []
            empty = not worlds or any(not matrix.shape[1] for matrix in worlds)
            self.known[key] = None if empty else nested_bootstrap(worlds, RESAMPLES, seed=0)
        return self.known[key]

    def weights(self, weights: Mapping[str, float]) -> NDArray[np.float64]:
        """Return weights by method as a row for `Resampled`."""
        return np.array([weights.get(method, 0.0) for method in self.methods])

    def mean(self, resampled: Resampled, method: str) -> Interval:
        """Return a method's mean."""
        return resampled.interval(self.weights({method: 1.0}))

    def gain(self, resampled: Resampled, method: str, reference: str) -> Difference:
        """Return a method's paired difference to another."""
        return resampled.contrast(self.weights({method: 1.0, reference: -1.0}))

    def _matrix(self, metric: str, seed: int, part: Mapping[str, str]) -> NDArray[np.float64]:
        """Return the values [trainings, queries, methods] of a world; BM25 has the same in each training."""
        cells = [self.cells[method, seed] for method in self.methods]
        columns = [[one.of(metric) for one in own] for own in cells]
        common = columns[0][0][0]
        for own in columns:
            for ids, _ in own:
                common = np.intersect1d(common, ids, assume_unique=True)
        queries = cells[0][0].queries
        for name, wanted in part.items():
            keep = np.array([str(value) == wanted for value in queries[name].to_pylist()])
            common = np.intersect1d(common, queries["query_id"].to_numpy()[keep])
        found = [[values[np.searchsorted(ids, common)] for ids, values in own] for own in columns]
        return np.stack(
            [np.column_stack([own[n % len(own)] for own in found]) for n in range(self.trainings)]
        )


def group(
    cells: Sequence[Measured], methods: Sequence[str], seeds: Sequence[int], trainings: int = 1
) -> Group:
    """Return the cells of some methods; one without a cell for each seed and training is left out.

    BM25 is not trained: it has one cell for each seed.
    """
    found: dict[tuple[str, int], list[Measured]] = {}
    for cell in sorted(cells, key=lambda one: one.training):
        found.setdefault((cell.method, cell.seed), []).append(cell)
    whole = {key for key, own in found.items() if len(own) == (trainings if own[0].info["training"] else 1)}
    kept = tuple(method for method in methods if all((method, seed) in whole for seed in seeds))
    return Group(kept, {key: own for key, own in found.items() if key[0] in kept}, tuple(seeds), trainings)


# The tables of a layout.


def table_section(
    layout: Layout, group: Group, speeds: Mapping[str, Sequence[Convergence]], failed: Mapping[str, str]
) -> Section:
    """Return a table of the paper with what else the cells tell of its rows.

    Args:
        speeds: convergence by method, seed by seed.
        failed: why a method has no row.
    """
    lead = ""
    if "crops" in group.methods:  # how far the generated documents reach: P3 cannot be judged without it
        firsts = [group.cells["crops", seed][0].info for seed in group.seeds]
        shares = [info["p3_coverage"]["share_of_queries"] or 0.0 for info in firsts]
        covered = ", ".join(f"{100 * share:.1f}" for share in shares)
        lead = f"P3 covers {covered} % of the training queries, by seed."
    tables = [result_table(layout, group, failed), cost_table(layout, group)]
    tables += [speed_table(layout, speeds)] if speeds else []
    tables += breakdown_tables(layout, group)
    drawn = [_figure(layout, group, metric) for metric in (CT, QR_TRUTH, TRUE)]
    return Section(layout.title, lead, tables, [figure for figure in drawn if figure is not None])


def result_table(layout: Layout, group: Group, failed: Mapping[str, str]) -> Table:
    """Return a table as the paper has it, its own figures beside; differences are to the layout's reference.

    `failed` says why a method has no row.
    """
    found = {metric: one for metric in RESULTS if (one := group.resampled(metric)) is not None}
    # By method and then metric: ties of Holm's correction are taken in this order.
    compared = {
        (method, metric): group.gain(one, method, layout.reference)
        for method in group.methods
        for metric, one in found.items()
        if layout.reference in group.methods and method != layout.reference
    }
    p_values = dict(zip(compared, holm([one.p for one in compared.values()]), strict=True))
    rows = []
    for row in layout.rows:
        if row.method not in group.methods:
            reason = failed.get(row.method, "no cell for every seed and training")
            rows.append([row.title, f"not tested: {reason}", *("–" for _ in list(found)[1:])])
            continue
        texts = []
        for metric, one in found.items():
            value, difference = group.mean(one, row.method), compared.get((row.method, metric))
            lines = [f"{100 * value.mean:.1f}", value.ends()]
            if difference is not None:
                star = "*" if p_values[row.method, metric] < SIGNIFICANT else ""
                lines.append(f"{100 * difference.mean:+.1f}{star}")
            if metric in row.published():
                lines.append(f"paper {100 * row.published()[metric]:.1f}")
            texts.append("\n".join(lines))
        rows.append([row.title, *texts])
    head = [f"{RESULTS[metric]} (n = {one.n:,})" for metric, one in found.items()]
    reference = next((i for i, row in enumerate(layout.rows) if row.method == layout.reference), None)
    title = layout.reference if reference is None else layout.rows[reference].title
    note = (
        f"Means in % over {len(group.seeds)} world{'s' * (len(group.seeds) > 1)}"
        f"{f', {group.trainings} trainings in each,' * (group.trainings > 1)} and their queries, 95 % "
        f"intervals in brackets; then the difference to “{title}”, * where p < {SIGNIFICANT} "
        "(paired by query, corrected by Holm over this table); then the paper's figure."
    )
    if layout.settings:
        note += " All rows are trained with CroPS's settings: one thing changes a row."
    if QR in found:
        note += " QR by theta comes last: theta chose P1 and P2, so it is its own witness."
    if any(method in group.methods for method in ORACLES):
        note += " The oracles are no methods: truth chose their positives, which says how much is to gain."
    return Table(layout.title, ["method", *head], rows, note, reference)


def cost_table(layout: Layout, group: Group) -> Table:
    """Return what each method's training cost and saw, and how diverse its results are."""
    diversity = {metric: group.resampled(metric) for metric in DIVERSITY}
    rows = []
    for row in layout.rows:
        if row.method not in group.methods:
            continue
        training, cost = [info["training"] for info in group.info(row.method)], ["–", "–", "–"]
        if training[0]:
            queries = mean(one["queries_seen"] for one in training)
            documents = mean(one["documents_seen"] / one["queries_seen"] for one in training)
            cost = [
                f"{mean(one['cpu_seconds'] for one in training):.1f}",
                f"{mean(one['train_seconds'] for one in training):.1f}",
                f"{queries:,.0f} × {documents:.1f}",
            ]
        rows.append([row.title, *cost, *_means(group, row.method, diversity.values())])
    head = ["method", "training, CPU-s", "wall, s", "queries × documents a query", *DIVERSITY.values()]
    note = (
        "Cost is the mean over trainings; documents a query: those drawn in a step for each of its queries. "
        "Senses: share of the meanings of an ambiguous query with an answer in the top 100; never shown: "
        "share of the top 100 that the old system had not shown for the query up to the training day, and "
        "true recall of such answers. All in %."
    )
    return Table("Cost and diversity", head, rows, note)


def _means(group: Group, method: str, found: Iterable[Resampled | None]) -> list[str]:
    """Write a method's means in %."""
    return ["–" if one is None else f"{100 * group.mean(one, method).mean:.1f}" for one in found]


def breakdown_tables(layout: Layout, group: Group) -> list[Table]:
    """Return recall by query and item, by kind of click, and nearer the top, where cells have it."""
    tables = {
        "Breakdowns": (
            _BREAKDOWNS,
            "Recall@100 in %. Head, torso, tail: a third of the training day's searches each; unseen: not "
            "searched on it. New items were uploaded after the training day, recent ones in the week before "
            "its end.",
        ),
        "Clicks by kind": (
            _CLICKS,
            "CT recall@100 in %, of such clicks alone. Wordless: no word of the item is in any search of the "
            "test day with its meaning. Shown: up to the training day, for the same text, or for another "
            "text with the same meaning.",
        ),
        "Nearer the top": (_NEARER, "Recall at 20 and 50 in %."),
    }
    made = []
    for title, (parts, note) in tables.items():
        found = {name: group.resampled(metric, part) for name, (metric, part) in parts.items()}
        rows = [
            [row.title, *_means(group, row.method, found.values())]
            for row in layout.rows
            if row.method in group.methods
        ]
        heads = (name if one is None else f"{name} (n = {one.n:,})" for name, one in found.items())
        if any(found.values()):
            made.append(Table(title, ["method", *heads], rows, note))
    return made


def speed_table(layout: Layout, speeds: Mapping[str, Sequence[Convergence]]) -> Table:
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
    return Table("Speed", head, rows, note)


def _figure(layout: Layout, group: Group, metric: str) -> Figure | None:
    """Return a bar for each method, the reference as a line."""
    if (resampled := group.resampled(metric)) is None:
        return None
    drawn, reference = [], None
    for row in layout.rows:
        if row.method not in group.methods:
            continue
        one = group.mean(resampled, row.method)
        low, high = (None, None) if math.isnan(one.ci_low) else (one.ci_low, one.ci_high)
        drawn.append(Bar(row.title, one.mean, low, high, int(row.method == layout.reference)))
        if row.method == layout.reference:
            reference = one.mean
    return Figure(RESULTS[metric], drawn, reference=reference)


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


def converged_at(folder: Path) -> int:
    """Return the first evaluated step whose score is at least (1 - `NEAR`) times the best of the run.

    Raises:
        CropsError: the folder holds no evaluations, or damaged ones.
    """
    from crops.training import read_evaluations  # torch takes seconds to import: not for --help

    try:
        scores = read_evaluations(folder)[SCORE]
    except (CropsError, KeyError) as error:
        raise CropsError(f"{folder} is damaged ({error}); remove it to make it again") from error
    return min(step for step, score in scores.items() if score >= (1 - NEAR) * max(scores.values()))


def convergence(plain: Measured, watched: Measured) -> Convergence:
    """Return when a method converged: the step of its watched cell, at the cost of its plain one's steps."""
    training = plain.info["training"]
    per_step = training["cpu_seconds"] / training["steps"]
    return Convergence(converged_at(watched.folder), per_step, watched.folder.name)


# The cells behind a page of results as one CSV: what each was, and what it found.


_COLUMNS = (
    "method",
    "world",
    "size",
    "seed",
    "encoder",
    "repeat",
    "validated",
    "code",
    "platform",
    "test_day",
)
_TRAINING = ("queries_seen", "documents_seen", "cpu_seconds", "loss", "temperature")


def cells_csv(cells: Sequence[Measured]) -> str:
    """Return a row for each cell, ordered by name; a verdict of the page names the cells that it rests on.

    `settings` are those that differ from the defaults of crops, `point` the tuned ones of the method. A
    metric has two columns, its mean over queries in [0, 1] and, as `n <metric>`, their number; empty where a
    world has no such query. Of a folder or file only the name is told: the file is read on other machines.
    """
    text = io.StringIO()
    head = ["cell", *_COLUMNS, "point", "settings", "p3_share_of_queries", *_TRAINING]
    metrics = [*RESULTS, *DIVERSITY]
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*head, *(name for metric in metrics for name in (metric, f"n {metric}"))])
    defaults = RunConfig().model_dump(mode="json")
    for cell in sorted(cells, key=lambda one: one.folder.name):
        info, training = cell.info, cell.info["training"]
        row = [
            cell.folder.name,
            *(_portable({"repeat": 0, **info}[name]) for name in _COLUMNS),
            json.dumps(info["point"]),
        ]
        row += [json.dumps(_changed(info["settings"], defaults)), info["p3_coverage"]["share_of_queries"]]
        row += [training.get(name) for name in _TRAINING]
        found = [info["metrics"].get(metric, {}) for metric in metrics]
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
