"""The pages of `crops demo`: what each source adds in a simulation, or graded labels on real queries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from crops.config import EvaluationConfig, RunConfig
from crops.evaluation import MIN_QUERIES, Difference, Evaluation, Interval, compare
from crops.labels import Source
from crops.logs import Judged
from crops.outputs import versions
from crops.report.charts import Dot, Figure, signed
from crops.report.page import Page, Section, Table, count_range, percent
from crops.report.side_by_side import Cases, comparison_section
from crops.report.training import sources_section, training_section

SIGNIFICANT = 0.05
"""Differences with a smaller p-value are marked."""


@dataclass(frozen=True)
class Arm:
    """A trained arm of the ablation."""

    name: str
    folder: Path
    sources: Source


@dataclass(frozen=True)
class Column:
    """A metric of a table of results; higher is better."""

    key: str
    label: str
    explanation: str
    """One line for a reader who does not know it."""


def demo_page(
    run: RunConfig,
    mined: dict[str, Any],
    arms: Sequence[Arm],
    results: dict[str, Evaluation],
    not_tested: dict[str, str],
    bubble: Section,
    cases: Cases,
    seconds: dict[str, float],
) -> Page:
    """Return the page of a simulated run.

    Args:
        arms: the arms, the baseline first and the fullest last.
        results: evaluation by model name; from the baseline on they are the arms and what is compared with
            them, before it the models that are known only.
        not_tested: arms that were left out, with the reason.
        seconds: wall time by part, with `total`.
    """
    from crops.training import read_log  # torch takes seconds to import: not for --help

    columns = [one for one in simulated_columns(run.evaluation) if not one.key.endswith("/qr_independent")]
    names = [arm.name for arm in arms]
    drawn = list(results)[list(results).index(names[0]) :]
    against = differences(results, names[0], run)
    made = [
        *_made(run, seconds),
        ("platform", f"{run.platform.size}, {run.platform.days} days"),
        ("training day", f"{mined['input']['searches']:,} searches, {mined['input']['queries']:,} queries"),
        ("relevance (θ)", f"{run.relevance.model}, calibrated on public judgements"),
    ]
    result = result_section(
        "What each source adds",
        columns,
        results,
        against,
        names[0],
        coloured=drawn,
        leading=[names[-1], drawn[-1]],
        not_tested=not_tested,
        note=coverage_text(mined),
    )
    training = training_section({arm.name: read_log(arm.folder) for arm in arms})
    examples = [comparison_section(cases)] if cases.compared else []
    truth = _truth(columns)
    answer = answered(against[names[-1]].get(truth.key), results[names[0]].summary[truth.key].mean)
    return Page(
        f"Does the filter bubble break? {answer}.",
        _headline(columns, results, against, arms, mined, drawn[len(arms) :]),
        [result, bubble, *examples, sources_section(mined), replace(training, folded=True)],
        made,
        [
            f"The answer in the title is about {truth.label}: {ANSWER_RULE}",
            *mined["notes"],
            "One world and one seed: intervals cover the choice of queries, not of worlds or seeds.",
            "Grades, topics and true recall come from the simulator's truth, which training never read.",
        ],
    )


def judged_page(
    run: RunConfig, judged: Judged, results: dict[str, Evaluation], seconds: dict[str, float]
) -> Page:
    """Return the page of a judged collection; the binary loss is the reference row, H-InfoNCE the last."""
    k, m = run.evaluation.recall_k, run.evaluation.ndcg_k
    found = f"share of the documents of grade {judged.positive_label}+ found"
    columns = [
        Column(f"recall@{k}", f"Recall@{k}", found),
        Column(f"ndcg_exp2@{m}/catalogue", f"NDCG@{m}", "order of the top results against human grades"),
        Column("ndcg_exp2@10/catalogue", "NDCG@10", "order of the top ten results against human grades"),
        Column("ndcg_exp2@10/judged", "NDCG@10, judged", "only the query's judged documents are ranked"),
    ]
    reference, names = "infonce_binary", list(results)
    against, coloured = differences(results, reference, run), names[names.index(reference) :]
    last = against[names[-1]]
    gains = [f"{column.label} {points(last[column.key])}" for column in columns if column.key in last]
    title = "Real queries, human grades"
    return Page(
        "Graded labels on a judged collection",
        [
            f"{len(judged.queries)} queries, {len(judged.texts):,} documents, {len(judged.judgements):,} "
            "human grades; each query is tested by a model that did not train on it.",
            f"H-InfoNCE against binary InfoNCE: {'; '.join(gains)}.",
        ],
        [result_section(title, columns, results, against, reference, coloured=coloured)],
        [*_made(run, seconds), ("document text", " + ".join(judged.text_columns))],
        [f"rows left out: {judged.rejects}"] if judged.rejects else [],
    )


def simulated_columns(config: EvaluationConfig) -> list[Column]:
    """Return the metrics of a day of logs, those by truth among them."""
    k, m = config.recall_k, config.ndcg_k

    def reworded(judge: str) -> str:
        return f"share of the items consumed after rewording, right {judge}, that the first wording finds"

    editor = "for the query by an editor who does not know who asks"
    own = reworded("by θ") + "; θ is its own witness where it also chose what was trained on"
    second = reworded("by a second θ that chose no training data")
    clicked = "share of the items clicked on the test day that are found"
    ordered = "order of the old system's 50 results against true grades"
    needed = "share of all that answers the searcher's need that is found"
    return [
        Column(f"recall@{k}/ct", f"CT recall@{k}", clicked),
        Column(f"recall@{k}/qr_truth", f"QR recall@{k}, truth", reworded("by truth")),
        Column(f"recall@{k}/qr_editor", f"QR recall@{k}, editor", reworded(editor)),
        Column(f"ndcg_exp2@{m}/pool", f"NDCG@{m}", ordered),
        Column(f"true_recall@{k}", f"true recall@{k}", needed),
        Column(f"recall@{k}/qr", f"QR recall@{k}, θ", own),
        Column(f"recall@{k}/qr_independent", f"QR recall@{k}, 2nd θ", second),
    ]


def _truth(columns: Sequence[Column]) -> Column:
    """Return the column of true recall."""
    return next(column for column in columns if column.key.startswith("true_recall"))


PART, MOST = 0.1, 0.5
"""Shares of what was missed that is found now, from which the answer is "in part" and "mostly"."""
ANSWER_RULE = (
    f"“not measurably” unless the paired difference has p < {SIGNIFICANT}, “no” if it is a loss, else “a "
    f"little” where less than {PART:.0%} of what the baseline misses is found now, “in part” below "
    f"{MOST:.0%}, “mostly” from there on."
)


def answered(change: Difference | None, before: float) -> str:
    """Return the answer to the title's question, by `ANSWER_RULE`.

    `change` is the paired difference in true recall, None where nobody searched; `before` the baseline's.
    """
    if change is None or not change.p < SIGNIFICANT:
        return "Not measurably"
    if change.mean < 0:
        return "No"
    found = change.mean / (1 - before)
    return "A little" if found < PART else "In part" if found < MOST else "Mostly"


def _headline(
    columns: Sequence[Column],
    results: Mapping[str, Evaluation],
    against: Mapping[str, Mapping[str, Difference]],
    arms: Sequence[Arm],
    mined: dict[str, Any],
    more: Sequence[str],
) -> list[str]:
    first, last = arms[0].name, arms[-1].name
    fullest = last.rpartition("= ")[2]
    sentences = []
    truth = _truth(columns)
    for column in (truth, columns[1], columns[0]):
        if (change := against[last].get(column.key)) is not None:
            before, after = (results[name].summary[column.key].mean for name in (first, last))
            sentences.append(
                f"{column.label}, the {column.explanation}: {100 * before:.1f} % with search labels only, "
                f"{100 * after:.1f} % with {fullest} ({points(change)}): {said_of(change)}."
            )
    sentences += [
        f"{truth.label} with “{name}”: {percent(results[name].summary[truth.key].mean)} % ({points(change)})."
        for name in more[-1:]
        if (change := against[name].get(truth.key)) is not None
    ]
    added = [
        f"{100 * found['share']:.0f} % of {name.upper()}"
        for name, found in mined["novelty"].items()
        if name not in ("p0", "all") and found["positives"]
    ]
    if added:
        sentences.append(f"{' and '.join(added)} positives had never been shown for their query.")
    return sentences


def said_of(change: Difference) -> str:
    """Return in words whether a difference is more than chance."""
    if math.isnan(change.p):
        return "too few queries to tell"
    if change.p >= SIGNIFICANT:
        return "no significant difference"
    return "a significant gain" if change.mean > 0 else "a significant loss"


def points(change: Difference) -> str:
    """Write a difference of shares in points, with its interval."""
    interval = f"no interval: n = {change.n}"
    if not math.isnan(change.ci_low):
        interval = f"95 % interval {signed(change.ci_low)} to {signed(change.ci_high)}"
    return f"{signed(change.mean)} points, {interval}"


def _made(run: RunConfig, seconds: dict[str, float]) -> list[tuple[str, str]]:
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


# Models against metrics: a table of means, the paired differences to one of them, and both drawn.


def differences(
    results: Mapping[str, Evaluation], reference: str, run: RunConfig
) -> dict[str, dict[str, Difference]]:
    """Return each model's paired differences to the reference, by metric; of those that some query has."""
    return {
        name: {
            key: change
            for key, change in compare(one, results[reference], run.evaluation.resamples, run.seed).items()
            if not math.isnan(change.mean)
        }
        for name, one in results.items()
        if name != reference
    }


def result_section(
    title: str,
    columns: Sequence[Column],
    results: Mapping[str, Evaluation],
    against: Mapping[str, Mapping[str, Difference]],
    reference: str,
    *,
    coloured: Sequence[str],
    leading: Sequence[str] = (),
    not_tested: Mapping[str, str] | None = None,
    note: str = "",
    corrected: bool = False,
) -> Section:
    """Return models against metrics: what each metric is beside the differences drawn, then all figures.

    Args:
        against: what `differences` returns.
        reference: the model that others are compared with.
        coloured: models to draw, in the order of their colours; the table has the others too.
        leading: models beside the reference where the metrics are explained; when empty the last one drawn.
        not_tested: models without figures, and why.
        note: what else is to be known.
        corrected: whether the p-values of `against` are corrected for their number.
    """
    means = {
        name: {
            column.key: found
            for column in columns
            if (found := one.summary.get(column.key)) is not None and not math.isnan(found.mean)
        }
        for name, one in results.items()
    }
    lead = (
        f"Every dot is a difference to “{reference}” on the same queries, in points, with its 95 % interval; "
        f"hollow ones may be chance (p ≥ {SIGNIFICANT})."
    )
    dots = []
    for column in columns:
        for tone, name in enumerate(coloured, 1):
            if change := against.get(name, {}).get(column.key):
                low, high = (None if math.isnan(end) else end for end in (change.ci_low, change.ci_high))
                sure = change.p < SIGNIFICANT
                dots.append(Dot(name, change.mean, low, high, tone, column.label, sure=sure))
    # What each metric is, with the reference and what leads; with the model drawn last where that is alone.
    last = [one.name for one in dots[-1:]] if not leading else []
    models = list(dict.fromkeys([reference, *leading, *last]))
    rows = [
        [
            f"{column.label}\n{column.explanation}",
            *(percent(own.mean) if (own := means[name].get(column.key)) else "–" for name in models),
        ]
        for column in columns
    ]
    head = ["Metric", *(f"{name}\n%" for name in models)]
    drawn = Figure("Differences on the same queries", dots)
    tables = [
        Table("What is measured", head, rows, beside=drawn, headed=False, narrow=True),
        _means_table(title, columns, means, against, reference, not_tested or {}),
        _differences_table(columns, against, reference, corrected=corrected),
    ]
    return Section(title, " ".join(filter(None, [lead if dots else "", note])), tables)


Means = Mapping[str, Mapping[str, Interval]]
"""Intervals by model and metric."""


def _means_table(
    title: str,
    columns: Sequence[Column],
    means: Means,
    against: Mapping[str, Mapping[str, Difference]],
    reference: str,
    not_tested: Mapping[str, str],
) -> Table:
    known = {column: [own[column.key] for own in means.values() if column.key in own] for column in columns}
    ranked = {column.key: found for column, found in known.items() if len(found) > 1}
    best = {key: percent(max(one.mean for one in found)) for key, found in ranked.items()}
    counts = [count_range(one.n for one in found) for found in known.values()]
    rows: list[list[str]] = []
    for name, own in means.items():
        tag = Markup(' <span class="tag">reference</span>') if name == reference else ""
        cells = [
            _mean_cell(own.get(column.key), against.get(name, {}).get(column.key), best.get(column.key))
            for column in columns
        ]
        rows.append([Markup("{}{}").format(name, tag), *cells])
    rows += [[name, f"not tested: {reason}"] for name, reason in not_tested.items()]
    below = Markup(
        "Mean over n queries, with its 95 % interval in brackets where there are {} or more; –: no query "
        'has a value. <b class="best">Bold, underlined</b>: best of the column. '
        '<span class="nowrap"><span class="up">▲</span> <span class="down">▼</span></span> better or worse '
        "than “<bdi>{}</bdi>” on the same queries, by so many points, p &lt; {}."
    ).format(MIN_QUERIES, reference, SIGNIFICANT)
    return Table(
        f"{title}: mean and 95 % interval of each metric, in %",
        ["Model", *(f"{one.label}\n%, n = {n}" for one, n in zip(columns, counts, strict=True))],
        rows,
        reference=list(means).index(reference),
        below=below,
        headed=False,
    )


def _mean_cell(found: Interval | None, change: Difference | None, best: str | None) -> str:
    if found is None:
        return "–"
    value: str = percent(found.mean)
    if value == best:
        value = Markup('<b class="best">{}</b><span class="hidden"> (best)</span>').format(value)
    mark = Markup("")
    if change is not None and change.p < SIGNIFICANT:
        way, sign, word = ("up", "▲", "better") if change.mean > 0 else ("down", "▼", "worse")
        mark = Markup(
            '<span class="change {}"><i aria-hidden="true">{}</i>'
            '<span class="hidden">significantly {}, </span>{}</span>'
        ).format(way, sign, word, signed(change.mean))
    return Markup('<span class="value">{}{}</span>\n{}').format(mark, value, found.ends())


def _differences_table(
    columns: Sequence[Column],
    against: Mapping[str, Mapping[str, Difference]],
    reference: str,
    *,
    corrected: bool,
) -> Table:
    rows = []
    for name, own in against.items():
        cells = []
        for change in (own.get(column.key) for column in columns):
            if change is None:
                cells.append("–")
                continue
            p = "p < 0.001" if change.p < 0.001 else f"p = {change.p:.3f}"
            p = "not testable" if math.isnan(change.p) else p
            interval = change.ends("+.1f").replace("-", "\N{MINUS SIGN}")
            cells.append(f"{signed(change.mean)}\n{interval}\n{p}")
        rows.append([name, *cells])
    how, holm = ("corrected", " (Holm)") if corrected else ("not corrected", "")
    return Table(
        f"All differences to “{reference}”, with intervals and p-values",
        ["Model", *(f"{column.label}\npoints" for column in columns)],
        rows,
        below=f"Paired bootstrap over queries; p-values are {how} for the number of comparisons{holm}.",
        folded=True,
    )
