"""The pages of `crops engine-report` and `crops train`: what a model learns from, and its curves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crops.config import EngineConfig
from crops.labels import ORIGINS, POSITIVE_ORIGINS, label_meanings, parse_sources
from crops.report.charts import Bar, Figure, Line, SplitBar
from crops.report.page import Page, Section, Table, count, count_range, percent

if TYPE_CHECKING:
    from crops.training import TrainingLog

MAX_POINTS = 60
"""A curve with more points is drawn as means over equal windows, or the noise hides it."""
_SEARCH_SAID = {
    "clicked": "clicked",
    "exposed": "shown",
    "unexposed": "ranked",
    "filtered": "filtered",
    "nothing": "not found",
}
_TONES = {row.key: row.tone for row in POSITIVE_ORIGINS}


def mining_page(found: dict[str, Any]) -> Page:
    """Return the page of what `crops.engine.report.insights` found."""
    novelty, rescued, days = found["novelty"]["all"], found["rescued"]["pairs"], found["days"]
    rows, filters, k = found["input"], found["sources"]["p1"], found["k"]
    headline = [f"{sum(found['labels'].values()):,} samples from {rows['searches']:,} searches."]
    if novelty["share"] is not None:
        headline.append(
            f"{100 * novelty['share']:.1f} % of the positives the system had never shown for their query; "
            f"{rescued:,} would have been trained as negatives."
        )
    bars = [
        SplitBar(f"label {label}", found["labels"][label])
        for label in sorted(found["labels"], key=int, reverse=True)
    ]
    return Page(
        "What the mining did",
        headline,
        [
            sources_section(found),
            *([Section("Labels", figures=[Figure("Samples by label", bars)])] if bars else []),
            _disagreements_section(found),
            _coverage_section(found),
            _influence_section(found),
        ],
        [
            ("days", f"{days[0]} to {days[-1]} ({len(days)})"),
            ("queries", f"{rows['queries']:,}"),
            ("users", f"{rows['users']:,}"),
            ("theta, similarity", f"{filters['theta']}, {filters['similarity']}"),
        ],
        found["notes"],
        f"At least {k} user{'s' * (k > 1)} searched, and are behind the positives of each source; "
        '"–" where fewer are behind a row.',
    )


def sources_section(mined: dict[str, Any]) -> Section:
    """Return where the samples come from, by the report of a mining.

    Raises:
        CropsError: while it is drawn, if more positives were never shown than were kept.
    """
    sources = {
        row: mined["sources"].get(row.key) or mined["sources"]["search"][row.stage]
        for row in POSITIVE_ORIGINS
        if not row.extra or mined["sources"].get(row.key, {}).get("candidates")
    }
    coverage = mined["p3_coverage"]
    never_shown = {row: mined["novelty"].get(row.key, {}).get("never_shown") for row in sources}
    columns = {
        "Found": "candidates",
        "Similar query": "after_similarity",
        "Relevant": "after_relevance",
        "Kept": "kept",
    }
    table = Table(
        "Positives by source",
        ["Source", *columns, "Never shown"],
        [
            [row.name, *(count(own.get(column)) for column in columns.values()), count(never_shown[row])]
            for row, own in sources.items()
        ],
        below=f"Generated documents (P3) cover {coverage['with_generation']:,} of {coverage['queries']:,} "
        f"training queries and are {coverage['samples']:,} of {sum(mined['labels'].values()):,} samples.",
        terms=[(row.name, row.meaning) for row in sources],
        beside=Figure(
            "Positives by source",
            [SplitBar(row.name, own["kept"], never_shown[row], row.tone) for row, own in sources.items()],
            marked="never shown",
        ),
        headed=False,
    )
    return Section(
        "Where each query's positives come from",
        "A positive is a document that training pulls towards a query; counted are pairs of query and "
        "document. Hatched: the system had never shown it for that query, so its own clicks could not have "
        "taught it.",
        [table, _labels_table(mined)],
    )


def why_empty(mined: dict[str, Any], config: EngineConfig) -> list[str]:
    """Return why sources have brought nothing, where the notes of the report do not say it."""
    sources, wanted = mined["sources"], parse_sources(config.sources)
    p1, p2 = config.reformulation, config.feed
    near = f"nothing was consumed in the feed within {p2.window_s / 60:g} minutes of a search"
    if not mined["input"]["feed_events_consumed"]:
        near = "nothing in the feed was clicked, liked or played long"
    steps = {
        "p1": {
            "candidates": f"nothing was consumed within {p1.window_s:g} s after a rewording",
            "after_similarity": f"no two queries are alike enough (similarity {p1.similarity:g})",
            "after_relevance": f"theta is above {p1.relevance:g} for no pair",
        },
        "p2": {"candidates": near, "after_relevance": f"theta is above {p2.relevance:g} for no pair"},
    }
    steps["p0"] = {"candidates": "no result was clicked or liked"}
    steps["p4"] = {
        "candidates": "search found nothing that it did not show",
        "after_relevance": f"theta is above {config.promotion.relevance:g} for no such pair",
    }
    told = {row.key for row in POSITIVE_ORIGINS if row.key not in steps}  # by the notes
    if not mined["input"]["feed_events"]:
        told.add("p2")
    found = []
    for row in POSITIVE_ORIGINS:
        if row.extra and not row.bit & wanted:
            continue  # nobody asked for it
        counts, why = sources.get(row.key) or sources["search"][row.stage], None
        if not row.bit & wanted:
            why = "it is not among engine.sources"
        elif row.key not in told:
            why = next((said for step, said in steps[row.key].items() if not counts[step]), None)
        if why is not None:
            found.append(f"no positives from {row.human}: {why}")
    return found


def _labels_table(mined: dict[str, Any]) -> Table:
    meanings, rescued = label_meanings(), mined["rescued"]
    rows = [
        [label, meanings[int(label)], count(mined["labels"][label]), count(rescued.get(label))]
        for label in sorted(mined["labels"], key=int, reverse=True)
    ]
    return Table(
        "What the model learns from",
        ["Label", "What earns it", "Samples", "Rescued"],
        rows,
        words=[1],
        below="Only the order of the labels matters: a document is trained to score above every document of "
        "the same query with a lower label, and above those of other queries. Rescued: "
        f"{rescued['pairs']:,} pairs that search alone would have trained as negatives with this label, now "
        "positives.",
        narrow=True,
    )


def _disagreements_section(found: dict[str, Any]) -> Section:
    extra = {row.key for row in POSITIVE_ORIGINS if row.extra}
    told = [row for row in found["disagreements"] if row["positives"] or row["source"] not in extra]
    names = [row["source"] for row in told]
    negatives = [str(row.bit.name).lower() for row in ORIGINS if not row.key]
    agreed, reached, bars = [], [], []
    for row in told:
        also = [count(row["also"].get(name)) for name in names]
        search = [count(row["search"][stage]) for stage in _SEARCH_SAID]
        agreed.append([_named(row["source"]), count(row["positives"]), *also])
        reached.append([_named(row["source"]), *search])
        rescued = sum(row["search"][stage] for stage in negatives)
        bars.append(SplitBar(_named(row["source"]), row["positives"], rescued, _TONES[row["source"]]))
    tables = [
        Table(
            "Positives that another source makes positive too",
            ["Source", "Positives", *(f"Also\n{_named(name)}" for name in names)],
            agreed,
            narrow=True,
        ),
        Table(
            "How far the positives had come in search",
            ["Source", *_SEARCH_SAID.values()],
            reached,
            below="Shown: without a click; ranked: and not shown; filtered: found, and dropped before the "
            "ranking; not found: not among what search considered for the query.",
            narrow=True,
        ),
    ]
    return Section(
        "Where the sources disagree",
        "For the positives of each source: how many another source makes positive too, and how far they had "
        "come in search. A positive that search showed without a click, or dropped on the way, would have "
        "been a false negative.",
        tables,
        [Figure("Positives, of them rescued from the negatives of search", bars, marked="rescued")],
    )


def _coverage_section(found: dict[str, Any]) -> Section:
    extra = {row.key for row in POSITIVE_ORIGINS if row.extra}
    told = ((name, share) for row in found["coverage"] for name, share in row["shares"].items())
    names = list(dict.fromkeys(name for name, share in told if share or name not in extra))
    rows, figures = [], []
    for row in found["coverage"]:
        each = "–"
        if row["least"] is not None and row["most"] is not None:
            each = count_range([row["least"], row["most"]])
        shares = [percent(row["shares"][name]) for name in names]
        rows.append([row["part"], count(row["queries"]), count(row["searches"]), each, *shares])
        bars = [
            Bar(_named(name), share, tone=_TONES.get(name, 5))
            for name, share in row["shares"].items()
            if share is not None and name in names
        ]
        figures.append(Figure(f"Queries with a positive, {row['part']}", bars, upper=1.0))
    table = Table(
        "Queries with a positive, in %",
        ["Part", "Queries", "Searches", "Each", *(f"{_named(name)}\n%" for name in names)],
        rows,
        headed=False,
    )
    return Section(
        "Which queries have positives",
        "Head: the most frequent queries, which make a third of all searches; torso: the next third; tail: "
        "the rest. Each: the fewest and the most searches of one of them.",
        [table],
        figures,
    )


def _influence_section(found: dict[str, Any]) -> Section:
    influence, shares = found["influence"], {}
    for row in influence["blocks"]:
        shares[f"users {row['first']}–{row['last']}"] = row["contributions"], row["share"] or 0.0
    for row in influence.get("top", ()):
        name = f"user {row['user_id']} (alone for {row['alone']:,})"
        shares[name] = row["pairs"], row["pairs"] / influence["contributions"]
    alone = "."
    if influence["of_one_user"] is not None:
        alone = f", {influence['of_one_user']:,} of them on that of one user alone."
    table = Table(
        "Influence",
        ["Users", "Contributions", "Share\n%"],
        [[name, count(contributions), percent(share)] for name, (contributions, share) in shares.items()],
        below="A contribution: one user's behaviour speaks for one pair. Users are numbered by their "
        "contributions, most first.",
        headed=False,
        narrow=True,
    )
    return Section(
        "Whom the positives rest on",
        f"{influence['pairs']:,} positives rest on the behaviour of {influence['users']:,} users{alone}",
        [table] if shares else [],
        [Figure("Share of all contributions", [Bar(name, share) for name, (_, share) in shares.items()])],
    )


def _named(source: str) -> str:
    return source if source == "any" else source.upper()


# The curves of a training.


def training_page(folders: Sequence[Path]) -> Page:
    """Return the curves of trained models (outputs of `crops train`): loss, validation, and temperature.

    Raises:
        CropsError: a folder holds no training log, or a damaged one.
    """
    from crops.training import read_evaluations, read_log  # torch takes seconds to import: not for --help

    logs = {folder.name: read_log(folder) for folder in folders}
    evaluations = {folder.name: read_evaluations(folder) for folder in folders}
    sentences = [sentence for name, log in logs.items() for sentence in _said(name, log, evaluations[name])]
    manifest = json.loads((folders[0] / "manifest.json").read_text())
    contrast = manifest["contrast"]
    parts = {"queries": "queries", "documents": "documents", "texts": "distinct texts"}
    made = [
        ("training groups", f"{manifest['groups']:,}"),
        ("a step", ", ".join(f"{contrast[part]:,} {said}" for part, said in parts.items())),
        ("documents of others that a query is contrasted with", f"{contrast['contrasted']:,.0f}"),
        ("seed", str(manifest["seed"])),
        ("seconds", f"{sum(manifest['seconds'].values()):,.0f}"),
    ]
    return Page("Training", sentences, [training_section(logs, evaluations)], made)


Evaluations = Mapping[str, Mapping[int, float]]
"""Value by step, by metric."""
_DRAWN = re.compile(r"recall@\d+/(ct|qr)")


def _said(name: str, log: TrainingLog, evaluations: Evaluations) -> Iterator[str]:
    from crops.training import settles

    tenth = max(1, len(log.step) // 10)
    first, last = log.loss[:tenth].mean(), log.loss[-tenth:].mean()
    verb = "falls" if last < first else "does not fall: it goes"
    yield f"{name}: the loss {verb} from {first:.3f} to {last:.3f} in {len(log.step):,} steps."
    for metric, values in evaluations.items():
        if not _DRAWN.fullmatch(metric):
            continue
        best = max(values, key=lambda step: values[step])
        yield (
            f"{metric} on the validation day: {100 * values[min(values)]:.1f} % at step {min(values):,}, "
            f"at best {100 * values[best]:.1f} % at step {best:,}."
        )
    if not evaluations:
        yield "There was no validation; --eval-logs shows what the model makes of a later day."
    value, step = settles(log)
    end = "and still moves" if step is None else f"and stays within 1 % of it from step {step:,} on"
    yield f"The temperature goes from {log.temperature[0]:.4f} to {value:.4f} {end}."


def training_section(
    logs: Mapping[str, TrainingLog], evaluations: Mapping[str, Evaluations] | None = None
) -> Section:
    """Return loss, recall on a validation day and temperature over the steps, drawn for each training."""
    window = -(-max(len(log.step) for log in logs.values()) // MAX_POINTS)
    lead = (
        "The loss sums over different training data in each run, so its level does not compare models. "
        "The temperature is learnt: a lower one makes the model separate close documents more sharply."
    )
    if window > 1:
        lead += f" Each point is the mean over up to {window} steps."
    temperatures, losses = [], []
    validations: dict[str, list[Line]] = {}
    for tone, (name, log) in enumerate(logs.items(), 1):
        steps = _smooth(log.step)
        temperatures.append(Line(name, steps, _smooth(log.temperature), tone))
        losses.append(Line(name, steps, _smooth(log.loss), tone))
        for metric, values in (evaluations or {}).get(name, {}).items():
            if _DRAWN.fullmatch(metric):
                percents = [100 * value for value in values.values()]
                validations.setdefault(metric, []).append(Line(name, list(values), percents, tone))
    figures = [
        Figure("Loss", losses, "step"),
        *(Figure(f"{metric}, %", lines, "step") for metric, lines in validations.items()),
        Figure("Temperature", temperatures, "step"),
    ]
    return Section("Training", lead, figures=figures)


def _smooth(values: NDArray[np.float64] | NDArray[np.int64]) -> list[float]:
    """Return the values, or their means over equal windows where they are more than `MAX_POINTS`."""
    size = -(-len(values) // MAX_POINTS)
    return [float(values[start : start + size].mean()) for start in range(0, len(values), size)]
