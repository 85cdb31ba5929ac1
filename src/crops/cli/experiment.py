"""`crops experiment`: A/B tests of trained retrievers on the simulated platform."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from crops.cli.analyse import analyse_experiment
from crops.cli.options import Options, command
from crops.config import RunConfig, TrainingConfig
from crops.engine.mined import REPORT
from crops.errors import CropsError, nearest
from crops.online.assignment import Routes, Trial, split
from crops.online.experiment import (
    A_A,
    LIVE,
    PAIRED,
    arm_training,
    in_own_layer,
    preregister,
    run_live,
    run_paired,
    train_arm,
)
from crops.online.statistics import require_tea_tasting
from crops.outputs import console, timed
from crops.pipeline import (
    FIRST_DAY,
    TRAIN,
    Simulated,
    Start,
    days_before,
    load_retriever,
    mine_day,
    packaged_documents,
    require_encoder,
)
from crops.platform import day_name, platform_version

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
    names, kinds = arm_names(arms), _kinds(models)
    split(dict.fromkeys(names, share))  # an impossible share should not cost the days before
    require_encoder(run.training)
    seconds: dict[str, float] = {}
    with timed(seconds, "days before"):
        start = days_before(out, run)
    experiments = [in_own_layer(kind, names, share, start) for kind in kinds]
    experiments.append(in_own_layer(A_A, ("a", "b"), share, start))
    samples = mined_samples(out, run, generated or packaged_documents())
    arms_of = {kind: _train(kind, names, samples, out, start, run) for kind in kinds}
    trials = [Trial(one, arms_of.get(one.name, {})) for one in experiments]
    preregister(out, trials, _facts(run, days, samples, kinds))
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
    """Return the names in a comma-separated list of arms.

    Raises:
        CropsError: an arm is unknown or named twice, or there is only one.
    """
    names = [name.strip() for name in arms.split(",")]
    if len(names) < 2 or len(set(names)) < len(names):
        raise CropsError(f"--arms {arms}: name at least two arms, each once")
    for name in names:
        arm_training(name, TrainingConfig())
    return names


def _kinds(models: str) -> list[str]:
    kinds = [kind.strip() for kind in models.split(",")]
    for kind in kinds:
        if kind not in MODELS:
            raise CropsError(f"unknown model '{kind}'; models: {', '.join(MODELS)}.{nearest(kind, MODELS)}")
    return list(dict.fromkeys(kinds))


def _train(
    kind: str, names: list[str], samples: Path, out: Path, start: Start, run: RunConfig
) -> dict[str, Routes]:
    """Train the arms' models of one kind; return the routes that each arm swaps."""
    training = run.training.changed(encoder=MODELS[kind]) if kind == "sparse" else run.training
    texts = start.platform.world.corpus.document_texts()
    ids = np.arange(1, len(texts) + 1)
    routes: dict[str, Routes] = {}
    for name in names:
        folder = out / "models" / kind / name
        train_arm(name, samples, folder, training, run.seed)
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


LEAST_DAYS = 4
"""Days that a simulated world has at least."""


def with_days(run: RunConfig, days: int) -> RunConfig:
    """Return the settings of a world that lasts for the days before and `days` of an experiment.

    Raises:
        CropsError: that is more than a world lasts.
    """
    field = type(run.platform).model_fields["days"]
    longest = next(one.le for one in field.metadata if hasattr(one, "le"))
    if not 1 <= days <= longest - FIRST_DAY:
        raise CropsError(f"--days {days}: an experiment lasts from 1 to {longest - FIRST_DAY} days")
    platform = run.platform.model_copy(update={"days": max(LEAST_DAYS, FIRST_DAY + days)})
    return run.model_copy(update={"platform": platform})


def mined_samples(out: Path, run: RunConfig, generated: Path) -> Path:
    """Mine the training day with all sources into OUT/samples, unless that is done; return the folder."""
    samples = out / "samples"
    if not (samples / REPORT).exists():
        mine_day(Simulated(out).logs, day_name(TRAIN), samples, run, generated)
    return samples
