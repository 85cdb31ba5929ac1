"""An experiment on the simulated platform: A/B days, and one whole world per arm beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops.config import RunConfig, TrainingConfig
from crops.errors import CropsError, nearest
from crops.evaluation import recall_at_k
from crops.labels import SEARCH_SOURCES, SOURCE_GROUPS, Source, parse_sources
from crops.online.assign import BUCKETS, Experiment, Routes, Traffic, Trial, assign, route_traffic, split
from crops.online.bubble import SHARES, Evidence, Measured, measure_days
from crops.online.userdays import SEARCHES, live_through
from crops.outputs import console
from crops.pipeline import Start, is_done, load_retriever, mine_day, train_model
from crops.platform import (
    IMPRESSIONS,
    ROUTES,
    Platform,
    Served,
    day_file,
    day_name,
    same_for_all,
    write_items,
)
from crops.platform.world import Ints
from crops.protocols import Retriever

PLAN = "plan.json"

LIVE, PAIRED = "live", "paired"

A_A = "aa"

"""The experiment whose arms change nothing: it runs beside the others, in a layer of its own."""


def in_own_layer(name: str, arms: Sequence[str], share: float, start: Start) -> Experiment:
    """Return an experiment in its own layer, all arms with the same share; the first is the control.

    Raises:
        CropsError: the shares cannot be given out, or an arm gets no user.
    """
    experiment = Experiment(name, f"{name}-{start.platform.seed}", split(dict.fromkeys(arms, share)))
    assign(experiment, np.arange(1, start.users + 1))
    return experiment


def run_live(out: Path, start: Start, trials: Sequence[Trial], days: int) -> None:
    """Run the A/B days: users of different arms on one platform, whose memory learns from all of them.

    Days that `out` has already are not simulated again: a killed run goes on, and ends as if it never
    stopped.

    Args:
        out: gets logs/ (with `exposures`) and truth/.
        start: the platform before.
        trials: the experiments that run at the same time.
        days: how many.

    Raises:
        CropsError: see `crops.online.assign.route_traffic`.
    """
    traffic = route_traffic(start.deployed, trials, start.users)
    _live(out, start, traffic, days)


def run_paired(out: Path, start: Start, arms: Mapping[str, Routes], days: int) -> None:
    """Live the same days once per arm, everybody in it: what no real platform can do.

    The same people come for the same needs at the same times with the same random numbers; what differs
    between the copies is caused by the routes, through what they find and what the platform learns from it.

    Args:
        out: gets a folder with logs/ and truth/ per arm.
        start: the platform before.
        arms: by name, the text routes that the arm swaps or adds.
        days: how many.
    """
    for name, routes in arms.items():
        _live(out / name, start, same_for_all({**start.deployed, **routes}, start.users), days)


def _live(folder: Path, start: Start, traffic: Traffic | Served, days: int) -> None:
    open_world(folder, start.platform)
    if day_file(folder, SEARCHES, start.first_day + days - 1).exists():
        return
    platform = start.fork()
    for day in range(start.first_day, start.first_day + days):
        live_through(folder, platform, day, start.sessions, traffic)


def open_world(folder: Path, platform: Platform) -> None:
    """Write the catalogue, as it is before the first day, beside the logs to come."""
    if not (folder / "logs" / "items.parquet").exists():
        write_items(folder / "logs", platform)


def write_plan(out: Path, trials: Sequence[Trial], facts: Mapping[str, Any]) -> None:
    """Write plan.json before the first day.

    Raises:
        CropsError: `out` holds the plan of another experiment.
    """
    plan = {**facts, "experiments": [_described(trial) for trial in trials]}
    text = json.dumps(plan, indent=2) + "\n"
    path = out / PLAN
    if path.exists() and json.loads(path.read_text()) != json.loads(text):
        raise CropsError(f"{path} is the plan of another experiment; name another folder, or remove this one")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _described(trial: Trial) -> dict[str, Any]:
    """Return what an analysis has to know; `route` is null where no arm changes any."""
    arms = trial.experiment.arms
    changed = sorted({name for routes in trial.routes.values() for name in routes})
    return {
        "name": trial.experiment.name,
        "salt": trial.experiment.salt,
        "control": arms[0].name,
        "route": "+".join(changed) or None,
        "arms": [asdict(arm) | {"share": (arm.end - arm.first) / BUCKETS} for arm in arms],
    }


# ------------------------------------------------------------------------------
# The closed loop: each day users search, the day's logs are mined, a model is trained on them and deployed.
# Each arm is a world of its own with the same people, needs and random numbers; all begin on the same
# morning.


RECALL = "recall"

DEPTH = 100

"""Cut-off of true recall."""

RELEVANT = 2

"""From this grade on an item meets a need."""

_SAMPLE = 2_000

"""Searches per day that true recall is measured on; they are the same in all arms."""


@dataclass(frozen=True)
class Loop:
    """A closed loop on disk: a folder per arm with logs/, truth/, recall.json and the model in use."""

    out: Path
    world: Path
    """The days before, with the truth of the world."""
    samples: Path
    """Mined from the last of them: what the first model learns from."""
    route: str
    """The text route that the arm's model serves."""
    run: RunConfig
    """Settings of the mining, and the seed."""
    training: TrainingConfig
    generated: Path
    """Documents that an LLM wrote."""


def run_loop(loop: Loop, start: Start, arms: Sequence[str], days: int) -> Iterator[int]:
    """Let all arms live day by day, so that at any time they can be compared; yield each day that is over.

    What is on disk is not done again; a killed run goes on and ends as if it never stopped.

    Args:
        loop: where, and how models are made.
        start: the platform before the first day.
        arms: names in `SOURCES`.
        days: how many.
    """
    platforms = {arm: start.fork() for arm in arms}
    for arm, platform in platforms.items():
        open_world(loop.out / arm, platform)
    for day in range(start.first_day, start.first_day + days):
        for arm, platform in platforms.items():
            _one_day(loop, start, arm, platform, day)
        yield day


def _one_day(loop: Loop, start: Start, arm: str, platform: Platform, day: int) -> None:
    folder = loop.out / arm
    if str(day) in read_recall(folder):
        live_through(folder, platform, day, start.sessions, same_for_all(start.deployed, start.users))
        return
    model = _model_of(loop, start, arm, platform, day)
    served = same_for_all({**start.deployed, loop.route: model}, start.users)
    live_through(folder, platform, day, start.sessions, served)
    known = read_recall(folder) | {str(day): _true_recall(loop, folder, platform, day, model)}
    staging = folder / ".recall.json"
    staging.write_text(json.dumps(known, indent=2) + "\n")
    staging.rename(folder / "recall.json")


def _model_of(loop: Loop, start: Start, arm: str, platform: Platform, day: int) -> Retriever:
    """Return the model trained on the logs of the day before; make it unless it is there, drop older ones."""
    folder = loop.out / arm
    first = day == start.first_day
    logs = (loop.world if first else folder) / "logs"
    model = folder / "models" / day_name(day)
    if not model.exists():
        samples = loop.samples if first else folder / "samples"
        if not first:
            write_items(logs, platform)
            mine_day(logs, day_name(day - 1), samples, loop.run, loop.generated)
        console.print(f"[bold]{arm}, {day_name(day)}[/bold]")
        train_arm(arm, samples, model, loop.training, loop.run.seed)
    shutil.rmtree(folder / "models" / day_name(day - 1), ignore_errors=True)
    texts = platform.world.corpus.document_texts()
    return load_retriever(model, np.arange(1, len(texts) + 1), texts, logs)


def read_recall(folder: Path) -> dict[str, dict[str, float | None]]:
    """Return the true recall of an arm's models by day number: mean (None of none) and n searches."""
    path = folder / "recall.json"
    found: dict[str, dict[str, float | None]] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _true_recall(
    loop: Loop, folder: Path, platform: Platform, day: int, model: Retriever
) -> dict[str, float | None]:
    """Return the mean of |top 100 that meets the need| / min(100, |all that does|) over first searches."""
    truth = pq.read_table(day_file(folder, SEARCHES, day), partitioning=None)
    truth = truth.filter(pc.equal(truth["step"], 0))
    rows = np.random.default_rng([platform.seed, day]).permutation(len(truth))[:_SAMPLE]
    texts = _texts(folder, day, truth["search_id"].take(pa.array(rows)))
    needs = dict(zip(*(truth.take(rows)[name].to_pylist() for name in ("search_id", "need_id")), strict=True))
    live = np.flatnonzero(platform.world.corpus.uploaded_day <= day) + 1
    relevant = _relevant(loop.world / "truth", live)
    wanted = [relevant.get(needs[search], np.zeros(0, np.int64)) for search in texts]
    found, _ = model.search(list(texts.values()), DEPTH)
    recall = recall_at_k(found, wanted, DEPTH, capped=True)
    known = recall[~np.isnan(recall)]
    return {"mean": float(known.mean()) if len(known) else None, "n": len(known)}


def _texts(folder: Path, day: int, searches: pa.Array) -> dict[int, str]:
    columns = ["search_id", "query"]
    logged = pq.read_table(day_file(folder, IMPRESSIONS, day), columns=columns, partitioning=None)
    logged = (
        logged.filter(pc.is_in(logged["search_id"], searches))
        .group_by("search_id")
        .aggregate([("query", "min")])
    )
    return dict(sorted(zip(logged["search_id"].to_pylist(), logged["query_min"].to_pylist(), strict=True)))


def _relevant(truth: Path, live: Ints) -> dict[int, Ints]:
    """Return the live items that meet each need."""
    grades = pq.read_table(truth / "grades.parquet")
    grades = grades.filter(pc.greater_equal(grades["grade"], RELEVANT))
    need, item = grades["need_id"].to_numpy(), grades["item_id"].to_numpy()
    there = np.isin(item, live)
    need, item = need[there], item[there]
    order = np.argsort(need, kind="stable")
    ids, first = np.unique(need[order], return_index=True)
    return dict(zip(ids.tolist(), np.split(item[order], first[1:]), strict=True))


def read_days(loop: Loop, start: Start, arm: str) -> dict[str, dict[str, Measured]]:
    """Return all observables of an arm's days, by day and name; `recall` is that of the day's model."""
    folder = loop.out / arm
    evidence = Evidence(
        logs=(loop.world / "logs", folder / "logs"),
        searches=(f"{loop.world}/truth/searches.parquet", f"{folder}/{SEARCHES}/*/*.parquet"),
        truth=loop.world / "truth",
        items=len(start.platform.world.corpus),
        route=ROUTES.index(loop.route),
        arm=folder,
    )
    measured = measure_days(evidence, SHARES)
    for day, recall in read_recall(folder).items():
        measured[day_name(int(day))][RECALL] = Measured(recall["mean"], int(recall["n"] or 0))
    return {day: row for day, row in measured.items() if RECALL in row}


# ------------------------------------------------------------------------------
# What CroPS measured on people (arXiv 2511.15443, Tables 5, 6, 8 and 9), in %, by model type and arm. The
# arms are cumulative. Whether the effects are absolute or relative is not stated.


RATIO_TABLES: Mapping[str, str] = {"dense": "Table 5", "sparse": "Table 8"}

EFFECT_TABLES: Mapping[str, str] = {"dense": "Table 6", "sparse": "Table 9"}

RATIOS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "dense": {
        "baseline": (29.8, 32.5),
        "+p1": (34.8, 35.1),
        "+p2": (38.7, 41.8),
        "crops": (40.9, 44.3),
    },
    "sparse": {
        "baseline": (20.8, 29.1),
        "+p1": (27.9, 38.7),
        "+p2": (28.6, 40.6),
        "crops": (33.8, 44.7),
    },
}

"""Ratio_rank and Ratio_show."""

EFFECTS: Mapping[str, Mapping[str, tuple[float, float, float]]] = {
    "dense": {
        "+p1": (0.448, 0.222, -0.334),
        "+p2": (0.756, 0.361, -0.487),
        "crops": (0.869, 0.483, -0.646),
    },
    "sparse": {
        "+p1": (0.328, 0.187, -0.297),
        "+p2": (0.573, 0.310, -0.458),
        "crops": (0.783, 0.423, -0.614),
    },
}

"""CTR, LPR and RQR against the baseline."""


# ------------------------------------------------------------------------------
# What arms are made of: a choice of sources, and the model trained on them.


BASELINE = "baseline"

_ADDED = [group for group in SOURCE_GROUPS if group != "search"]

_ALL = parse_sources(SOURCE_GROUPS)

SOURCES = {
    BASELINE: SEARCH_SOURCES,
    **{f"+{_ADDED[n]}": parse_sources(["search", *_ADDED[: n + 1]]) for n in range(len(_ADDED) - 1)},
    "crops": _ALL,
    **{f"-{group}": _ALL & ~SOURCE_GROUPS[group] for group in _ADDED},
    "clicks": Source.CLICKED,
}

"""Arms by name. The baseline is online search alone with its stages as labels (FS-LR); +p1, +p2 and crops add
one source each; -p1, -p2, -p3 are crops without one; clicks is the platform's own recipe: clicked or not."""


def arm_training(arm: str, training: TrainingConfig) -> TrainingConfig:
    """Return the settings that an arm is trained with: `clicks` has a loss of its own.

    Raises:
        CropsError: there is no such arm.
    """
    if arm not in SOURCES:
        raise CropsError(f"unknown arm '{arm}'; arms: {', '.join(SOURCES)}.{nearest(arm, SOURCES)}")
    if arm == "clicks":
        return TrainingConfig(**{**training.model_dump(), "loss": "infonce_binary"})
    return training


def train_arm(arm: str, samples: Path, out: Path, training: TrainingConfig, seed: int) -> None:
    """Train an arm's model on mined samples, unless it is there.

    Args:
        arm: a name in `SOURCES`.
        samples: output of a mining with all sources that the arm may want.
        out: the model's folder.
        training: the settings, see `arm_training`.
        seed: of the training.
    """
    if is_done(out):
        return
    console.print(f"[bold]{out.parent.name} {out.name}[/bold]")
    train_model(samples, out, arm_training(arm, training), seed, SOURCES[arm])
