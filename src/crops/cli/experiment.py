"""`crops experiment` and `crops bubble-loop`: retrievers before simulated users."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from crops.cli.analyse import analyse_experiment
from crops.cli.options import Options, command
from crops.config import RunConfig, TrainingConfig
from crops.engine.mined import REPORT
from crops.errors import CropsError, nearest
from crops.online.bubble import Loop, Measured, SimulatedDays, measure_days, read_days, run_loop
from crops.online.experiment import (
    A_A,
    LIVE,
    PAIRED,
    TEXTS,
    Routes,
    Trial,
    arm_run,
    arm_texts,
    arm_training,
    in_own_layer,
    preregister,
    run_live,
    run_paired,
    split,
    train_arm,
)
from crops.online.statistics import require_tea_tasting
from crops.outputs import console, ended, timed, to_json
from crops.pipeline import load_retriever, mine_day, packaged_documents, require_encoder
from crops.platform import ROUTES, day_name, platform_version
from crops.report import Figure, Line, Page, Section, Table, write_page
from crops.report.page import count_range, percent
from crops.retrieval import load_items
from crops.simulation import FIRST_DAY, TRAIN, Simulated, Start, days_before

MODELS = {"dense": "static", "sparse": "two_tower"}
"""Kinds of model: the route that the arms swap, and the encoder that is trained for it."""
GeneratedOption = Annotated[
    Path | None,
    typer.Option(help="JSON lines of documents that an LLM wrote (P3).", show_default="those of the demo"),
]


@command
def experiment(
    out: Annotated[Path, typer.Option(help="Folder for worlds, models, logs and tables.")],
    days: Annotated[int, typer.Option(help="Days of the experiment.")] = 7,
    arms: Annotated[
        str, typer.Option(help="Comma-separated arms, the control first.")
    ] = "baseline,+p1,+p2,crops",
    models: Annotated[str, typer.Option(help="dense, sparse, or both.")] = "dense,sparse",
    share: Annotated[float, typer.Option(help="Share of the users in each arm.")] = 0.10,
    paired: Annotated[
        bool, typer.Option(help="Live the same days once per arm too, everybody in it.")
    ] = True,
    generated: GeneratedOption = None,
    *,
    run: Annotated[RunConfig, Options(size="platform.size", relevance="relevance.model", seed="seed")],
) -> Path:
    """Test retrievers trained with more and more sources on the users of the simulated platform.

    The kinds of model are tested at the same time, in layers of their own, with an A/A test beside them. An
    interrupted run resumes at its day or model.
    """
    require_tea_tasting()
    run = with_days(run, days)
    names, kinds = arm_names(arms), list(dict.fromkeys(_kind(one.strip()) for one in models.split(",")))
    _require_texts(names, kinds == ["dense"], "--models dense")
    split(dict.fromkeys(names, share))  # an impossible share should not cost the days before
    require_encoder(run.training)
    seconds: dict[str, float] = {}
    with timed(seconds, "days before"):
        start = days_before(out, run)
    experiments = [in_own_layer(kind, names, share, start) for kind in kinds]
    experiments.append(in_own_layer(A_A, ("a", "b"), share, start))
    samples = {name: arm_samples(out, name, run, generated or packaged_documents()) for name in names}
    arms_of = {kind: _train(kind, samples, out, start, run) for kind in kinds}
    trials = [Trial(one, arms_of.get(one.name, {})) for one in experiments]
    shared = next((mined for name, mined in samples.items() if arm_run(name, run) == run), samples[names[0]])
    preregister(out, trials, _facts(run, days, shared, kinds))
    with timed(seconds, "A/B days"):
        run_live(out / LIVE, start, trials, days)
    if paired:
        with timed(seconds, "one world per arm"):
            for kind, routes in arms_of.items():
                run_paired(out / PAIRED / kind, start, routes, days)
    console.print(
        f"logs in [bold]{out / LIVE}[/bold]; " + ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items())
    )
    analyse_experiment(out, run)
    return out


def arm_names(arms: str) -> list[str]:
    """Return the names in a comma-separated list of arms."""
    names = [name.strip() for name in arms.split(",")]
    if len(names) < 2 or len(set(names)) < len(names):
        raise CropsError(f"--arms {arms}: name at least two arms, each once")
    for name in names:
        arm_training(name, TrainingConfig())
    return names


def _require_texts(names: Sequence[str], there: bool, remedy: str) -> None:
    """Refuse arms that change the texts of items where a model reads ids."""
    if not there and (changed := [name for name in names if name in TEXTS]):
        raise CropsError(f"--arms: {', '.join(changed)} changes the texts of items; use {remedy}")


def _kind(model: str) -> str:
    """Return the kind of model, if there is such a one."""
    if model not in MODELS:
        raise CropsError(f"unknown model '{model}'; models: {', '.join(MODELS)}.{nearest(model, MODELS)}")
    return model


def _train(
    kind: str, samples: Mapping[str, Path], out: Path, start: Start, run: RunConfig
) -> dict[str, Routes]:
    """Train the arms' models of one kind on the arms' samples; return the routes that each arm swaps."""
    training = run.training.changed(encoder=MODELS[kind]) if kind == "sparse" else run.training
    routes: dict[str, Routes] = {}
    for name, mined in samples.items():
        folder = out / "models" / kind / name
        train_arm(name, mined, folder, training, run.seed, arm_run(name, run).document.fields)
        ids, texts = arm_texts(name, start, Simulated(out).logs, FIRST_DAY, out / "expanded", run)
        routes[name] = {kind: load_retriever(folder, ids, texts, Simulated(out).world / "logs")}
    return routes


def _facts(run: RunConfig, days: int, samples: Path, kinds: list[str]) -> dict[str, object]:
    coverage = json.loads((samples / REPORT).read_text())["p3_coverage"]["share_of_queries"] or 0.0
    return {
        "days": [day_name(day) for day in range(FIRST_DAY, FIRST_DAY + days)],
        "seed": run.seed,
        "size": run.platform.size,
        "platform": platform_version(),
        "routes": kinds,
        "p3_share_of_queries": coverage,
    }


def with_days(run: RunConfig, days: int) -> RunConfig:
    """Return the settings of a world that lasts for the days before and `days` of an experiment."""
    bounds = type(run.platform).model_fields["days"].metadata
    least = next(one.ge for one in bounds if hasattr(one, "ge"))
    longest = next(one.le for one in bounds if hasattr(one, "le"))
    if not 1 <= days <= longest - FIRST_DAY:
        raise CropsError(f"--days {days}: an experiment lasts from 1 to {longest - FIRST_DAY} days")
    platform = run.platform.model_copy(update={"days": max(least, FIRST_DAY + days)})
    return run.model_copy(update={"platform": platform})


def arm_samples(out: Path, arm: str, run: RunConfig, generated: Path) -> Path:
    """Return the samples of an arm, which most arms share; mine the training day unless that is done."""
    own = arm_run(arm, run)
    samples = out / ("samples" if own == run else f"samples-{arm}")
    if not (samples / REPORT).exists():
        mine_day(Simulated(out).logs, day_name(TRAIN), samples, own, generated)
    return samples


Days = Mapping[str, Mapping[str, Measured]]

OBSERVABLES = {
    "top": ("Exposure on 1 % of the items", "share of all shown results that goes to the most shown 1 %"),
    "senses": (
        "Senses per ambiguous query",
        "exp of the entropy of what is shown over the senses of the word",
    ),
    "catalogue": ("Catalogue ever shown", "share of all items that any search has shown so far"),
    "unseen": (
        "Relevant, never shown",
        "share of what meets the needs behind a query that it was never shown",
    ),
    "again": ("Shown again", "share of shown results that the query was shown on an earlier day"),
    "own": ("Found by the own model", "share of shown results that the arm's model found"),
    "satisfied": ("Satisfied searches", "by truth"),
    "reformulated": (
        "Reformulated searches",
        "the next search, within 90 s, has other words for the same need, by truth",
    ),
    "recall": ("True recall@100 of the model", "of what meets the needs of the day's first searches"),
}
"""What is drawn and tabled, with headings and explanations."""
_COUNTS = {"senses"}
"""Observables that are no shares."""
_TOLD = ("top", "unseen", "satisfied", "recall")
"""Observables whose course is in the headline."""


@command
def bubble_loop(
    out: Annotated[Path, typer.Option(help="Folder for worlds, models, logs and the report.")],
    days: Annotated[int, typer.Option(help="Days that the loop runs.")] = 10,
    arms: Annotated[
        str, typer.Option(help="Comma-separated arms; each is a world of its own.")
    ] = "clicks,baseline,crops,-p1,-p2",
    model: Annotated[str, typer.Option(help="dense or sparse: what is trained again every day.")] = "dense",
    generated: GeneratedOption = None,
    *,
    run: Annotated[
        RunConfig,
        Options(size="platform.size", bubble="platform.bubble", relevance="relevance.model", seed="seed"),
    ],
) -> Path:
    """Let users search, mine the day's logs, train on them, deploy, and so on, in one world per arm.

    The report is rewritten after each day. An interrupted run resumes at its day and arm.
    """
    run = with_days(run, days)
    names = arm_names(arms)
    _require_texts(names, _kind(model) == "dense", "--model dense")
    start, documents = days_before(out, run), generated or packaged_documents()
    samples = {name: arm_samples(out, name, run, documents) for name in names}
    training = run.training.changed(encoder=MODELS[model])
    loop = Loop(out / "arms", Simulated(out).world, samples, model, run, training, documents)
    facts = {
        "bubble": run.platform.bubble,
        "seed": run.seed,
        "size": run.platform.size,
        "platform": platform_version(),
        "model": model,
        "last_day": run.platform.days,
    }
    preregister(out, [], facts)
    for _ in run_loop(loop, start, names, days):
        measured = shared_days({name: read_days(loop, start, name) for name in names})
        written = {
            arm: {day: {key: asdict(one) for key, one in row.items()} for day, row in known.items()}
            for arm, known in measured.items()
        }
        (out / "loop.json").write_text(to_json(written))
        write_page(loop_page(measured, run), out / "report.html")
    ended(f"open [bold]{out / 'report.html'}[/bold]")
    return out / "report.html"


def shared_days(measured: Mapping[str, Days]) -> dict[str, Days]:
    """Return the days that all arms have: of a killed loop the first arms may be a day ahead."""
    days = set.intersection(*(set(own) for own in measured.values()))
    return {arm: {day: row for day, row in own.items() if day in days} for arm, own in measured.items()}


def loop_page(measured: Mapping[str, Days], run: RunConfig) -> Page:
    """Return the page of a loop: a chart and a table per observable; all arms have the same days."""
    days = sorted(next(iter(measured.values())))
    figures = [_figure(key, measured, days) for key in OBSERVABLES]
    tables = [_table(key, measured, days) for key in OBSERVABLES]
    return Page(
        title="The filter bubble over days",
        headline=[
            f"{len(measured)} worlds with the same people and needs; in each a model is trained every day "
            f"on the logs of the day before and deployed. {len(days)} days.",
            "Models of day 1 learned from the same logs; from day 2 on each world learns from itself.",
            *(_course(key, measured, days) for key in _TOLD),
        ],
        sections=[
            Section("At a glance", figures=figures),
            Section("Day by day", "Shares in %; senses as numbers.", tables=tables),
        ],
        made=[
            ("seed", str(run.seed)),
            ("platform", f"{run.platform.size}, bubble {run.platform.bubble}, {platform_version()}"),
            ("relevance (θ)", run.relevance.model),
        ],
        notes=[
            "One world and one seed: no interval; worlds of other seeds differ by more than their days do."
        ],
    )


def _course(key: str, measured: Mapping[str, Days], days: Sequence[str]) -> str:
    """Return what became of an observable from the first day to the last."""
    ends = (
        f"{arm} " + " to ".join(_told(_scaled(key, found[day]), 1) for day in (days[0], days[-1]))
        for arm, found in measured.items()
    )
    return f"{OBSERVABLES[key][0]}, first to last day, in %: {', '.join(ends)}."


def _figure(key: str, measured: Mapping[str, Days], days: Sequence[str]) -> Figure:
    lines = [
        _line(arm, [_scaled(key, found[day]) for day in days], tone)
        for tone, (arm, found) in enumerate(measured.items(), start=1)
    ]
    return Figure(f"{OBSERVABLES[key][0]}{'' if key in _COUNTS else ', %'}", lines, "day")


def _line(name: str, values: Sequence[float | None], tone: int) -> Line:
    """Return the values of days 1, 2, ... that are known."""
    points = [(day, value) for day, value in enumerate(values, start=1) if value is not None]
    return Line(name, [day for day, _ in points], [value for _, value in points], tone)


def _table(key: str, measured: Mapping[str, Days], days: Sequence[str]) -> Table:
    title, note = OBSERVABLES[key]
    rows = [
        [arm, *(_told(_scaled(key, found[day]), 2 if key in _COUNTS else 1) for day in days)]
        for arm, found in measured.items()
    ]
    if any("–" in row for row in rows):
        note += "; a dash: no search of that day is such a case"
    return Table(title, ["arm", *(f"day {i}" for i in range(1, len(days) + 1))], rows, note)


def _scaled(key: str, row: Mapping[str, Measured]) -> float | None:
    """Return an observable of a day, shares in %; None where nothing of the day tells it."""
    found = row.get(key)
    if found is None or found.value is None:
        return None
    return found.value if key in _COUNTS else 100 * found.value


def _told(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


# How the bubble forms: what the platform's own logs show of it, day by day.


_FORMING = {
    "again": ("shown again", "share of shown results that this query had already been shown before"),
    "unseen": (
        "relevant, never shown",
        "share of what answers the query's needs that it was never shown",
    ),
    "own": ("found by the own model", "share of shown results that the deployed retriever found"),
    "top": ("shown from 1 % of items", "share of all exposures that goes to the most shown 1 % of items"),
}


def bubble_section(logs: Path, truth: Path) -> Section:
    """Return the observables of the bubble per simulated day, over that day's shown results."""
    evidence = SimulatedDays(
        logs=logs,
        searches=(f"{truth}/searches.parquet",),
        truth=truth,
        items=load_items(logs)[0].size,
        route=ROUTES.index("dense"),
    )
    measured = measure_days(evidence, _FORMING)
    days = sorted(measured)
    columns = {key: [measured[day].get(key, Measured(None, 0)) for day in days] for key in _FORMING}
    rows = [[day, *(percent(one[at].value) for one in columns.values())] for at, day in enumerate(days)]
    lines = [
        _line(label, [None if one.value is None else 100 * one.value for one in columns[key]], tone)
        for tone, (key, (label, _)) in enumerate(_FORMING.items(), 1)
    ]
    counts = {key: count_range(one.n for one in own if one.value is not None) for key, own in columns.items()}
    head = ["Day", *(f"{label}\n%, n = {counts[key]}" for key, (label, _) in _FORMING.items())]
    terms = list(_FORMING.values())
    note = (
        f"From {days[0]} to {days[-1]} {' and '.join(_moved(line) for line in lines[:2] if line.y)}. "
        "The first day has no own model; one is then trained on that day's clicks and deployed."
    )
    title = "How the bubble forms"
    chart = Figure("Day by day, in %", lines, "day")
    return Section(title, note, [Table(title, head, rows, terms=terms, beside=chart, headed=False)])


def _moved(line: Line) -> str:
    """Return what a share does from its first day to its last."""
    first, last = line.y[0], line.y[-1]
    verb = "rises" if last > first else "falls" if last < first else "stays"
    return f"the share “{line.name}” {verb} from {first:.1f} to {last:.1f} %"
