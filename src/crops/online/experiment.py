"""An experiment on the simulated platform: A/B days, and one whole world per arm beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.config import RECIPES, RunConfig, TrainingConfig, with_recipe, with_settings
from crops.errors import CropsError, nearest
from crops.labels import CROPS_SOURCES, SEARCH_SOURCES, SOURCE_GROUPS, Source, parse_sources
from crops.online.assignment import (
    BUCKETS,
    Experiment,
    Routes,
    Traffic,
    Trial,
    assign,
    log_exposures,
    name_arms,
    route_traffic,
    set_arms,
    split,
)
from crops.outputs import console
from crops.pipeline import Start, expand_rewordings, is_done, load_documents, train_model
from crops.platform import (
    FEED,
    IMPRESSIONS,
    SEARCHES,
    DayLogs,
    Platform,
    Served,
    day_file,
    day_name,
    replay_day,
    same_for_all,
    simulate_day,
    write_items,
)
from crops.platform.day import KeyedDraws
from crops.platform.people import ABUSE_SESSIONS
from crops.text import DOCUMENT_FIELDS

PREREGISTRATION = "plan.json"
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

    `out` gets logs/ (with `exposures`) and truth/. Days that it has already are not simulated again: a killed
    run resumes, and ends as if it never stopped.

    Raises:
        CropsError: see `crops.online.assignment.route_traffic`.
    """
    _live(out, start, route_traffic(start.deployed, trials, start.users), days)


def run_paired(out: Path, start: Start, arms: Mapping[str, Routes], days: int) -> None:
    """Live the same days once per arm, everybody in it: what no real platform can do.

    The same people come for the same needs at the same times with the same random numbers; what differs
    between the copies is caused by the routes, through what they find and what the platform learns from it.
    Each arm, with the text routes that it swaps or adds, gets a folder of its own in `out`.
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


EXPOSURES = "logs/exposures"


def online_day(platform: Platform, day: int, sessions: int, served: Served) -> DayLogs:
    """Simulate a day with random numbers that belong to its searches, so that copies of a world compare."""
    everybody = sessions + ABUSE_SESSIONS * int((platform.users.pushes >= 0).sum())
    return simulate_day(platform, day, sessions, served, KeyedDraws(platform.seed, day, everybody))


def live_through(
    folder: Path, platform: Platform, day: int, sessions: int, traffic: Traffic | Served
) -> None:
    """Bring a platform to the end of a day: simulate and write the day, or replay it if `folder` has it.

    Args:
        folder: gets logs/ and truth/.
        platform: the platform at the end of the day before.
        sessions: search sessions of the day.
        traffic: who is served how; as `Traffic`, the log names the arms and holds the exposures.
    """
    if day_file(folder, SEARCHES, day).exists():
        replay_day(folder, platform, day)
        return
    console.print(f"[dim]·[/dim] {folder.name}: day {day_name(day)}")
    result = online_day(platform, day, sessions, traffic.served if isinstance(traffic, Traffic) else traffic)
    tables = {IMPRESSIONS: result.impressions, FEED: result.feed}
    if isinstance(traffic, Traffic) and traffic.experiments:
        tables[IMPRESSIONS] = set_arms(result.impressions, name_arms(traffic))
        tables[EXPOSURES] = log_exposures(traffic, result.searches)
    tables[SEARCHES] = result.searches
    # All tables are written aside, then moved; what a killed run left is replaced. The last marks the day.
    staging = folder / ".day"
    shutil.rmtree(staging, ignore_errors=True)
    for name, table in tables.items():
        (staging / name).mkdir(parents=True)
        pq.write_table(table, staging / name / "part-0.parquet", compression="zstd")
    for name in tables:
        place = day_file(folder, name, day).parent
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        (staging / name).rename(place)
    shutil.rmtree(staging)


def open_world(folder: Path, platform: Platform) -> None:
    """Write the catalogue, as it is before the first day, beside the logs to come."""
    if not (folder / "logs" / "items.parquet").exists():
        write_items(folder / "logs", platform)


def preregister(out: Path, trials: Sequence[Trial], facts: Mapping[str, Any]) -> None:
    """Write plan.json before the first day; an experiment's `route` is null where no arm changes any.

    Raises:
        CropsError: `out` holds the plan of another experiment.
    """
    experiments = []
    for trial in trials:
        arms = trial.experiment.arms
        changed = sorted({name for routes in trial.routes.values() for name in routes})
        experiments.append(
            {
                "name": trial.experiment.name,
                "salt": trial.experiment.salt,
                "control": arms[0].name,
                "route": "+".join(changed) or None,
                "arms": [asdict(arm) | {"share": (arm.end - arm.first) / BUCKETS} for arm in arms],
            }
        )
    text = json.dumps({**facts, "experiments": experiments}, indent=2) + "\n"
    path = out / PREREGISTRATION
    if path.exists() and json.loads(path.read_text()) != json.loads(text):
        raise CropsError(f"{path} is the plan of another experiment; name another folder, or remove this one")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


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


# What arms are made of: a choice of sources, and the model trained on them.


BASELINE = "baseline"
_ADDED = [group for group in CROPS_SOURCES if group != "search"]
_ALL = parse_sources(CROPS_SOURCES)
SOURCES = {
    BASELINE: SEARCH_SOURCES,
    **{f"+{_ADDED[n]}": parse_sources(["search", *_ADDED[: n + 1]]) for n in range(len(_ADDED) - 1)},
    "crops": _ALL,
    **{f"-{group}": _ALL & ~SOURCE_GROUPS[group] for group in _ADDED},
    "clicks": Source.CLICKED,
    "click_queries": SEARCH_SOURCES,
    "expanded": SEARCH_SOURCES,
    "recommended": parse_sources(RECIPES["recommended"]["engine.sources"]),
}
"""Arms by name. The baseline is online search alone with its stages as labels (FS-LR); +p1, +p2 and crops add
one source each; -p1, -p2, -p3 are crops without one; clicks is the platform's own recipe: clicked or not;
click_queries and expanded are the baseline, whose texts click queries or those of rewordings join;
recommended is the recipe of that name, expanded too."""
EXPANDED = ("expanded", "recommended")
"""Arms whose texts the queries of rewordings join."""
TEXTS = ("click_queries", *EXPANDED)
"""Arms that change the texts of items."""


def arm_training(arm: str, training: TrainingConfig) -> TrainingConfig:
    """Return the settings that an arm is trained with: `clicks` has its own loss, `recommended` a recipe.

    Raises:
        CropsError: there is no such arm.
    """
    if arm not in SOURCES:
        raise CropsError(f"unknown arm '{arm}'; arms: {', '.join(SOURCES)}.{nearest(arm, SOURCES)}")
    if arm == "clicks":
        return TrainingConfig(**{**training.model_dump(), "loss": "infonce_binary"})
    return arm_run(arm, RunConfig(training=training)).training


def arm_run(arm: str, run: RunConfig) -> RunConfig:
    """Return the settings of an arm: those of the run, with click queries, or of the recipe `recommended`."""
    if arm == "click_queries":
        return with_settings(run, {"document.fields": RECIPES["recommended"]["document.fields"]})
    return with_recipe(run, arm) if arm == "recommended" else run


def train_arm(
    arm: str,
    samples: Path,
    out: Path,
    training: TrainingConfig,
    seed: int,
    fields: Sequence[str] = DOCUMENT_FIELDS,
) -> None:
    """Train an arm's model on mined samples, unless it is there.

    Args:
        arm: a name in `SOURCES`.
        samples: output of a mining with all sources that the arm may want.
        out: the model's folder.
        training: the settings, see `arm_training`.
        fields: what stands for a document.
    """
    if is_done(out):
        return
    console.print(f"[bold]{out.parent.name} {out.name}[/bold]")
    train_model(samples, out, arm_training(arm, training), seed, SOURCES[arm], fields)


def arm_texts(
    arm: str, start: Start, logs: Path, day: int, out: Path, run: RunConfig
) -> tuple[NDArray[np.int64], list[str]]:
    """Return the ids of all items, and what stands for each on the morning of a day.

    In the arms of `EXPANDED` the queries of rewordings join it: of the days since the training day, at most
    those that a window of daily builds holds.

    Args:
        arm: a name in `SOURCES`.
        start: the platform before the first day.
        logs: of the days before.
        day: number of the day.
        out: gets the queries that join the texts, unless they are there.
        run: the settings of the experiment.

    Raises:
        CropsError: there is no rewording to expand with.
    """
    texts = start.platform.world.corpus.document_texts()
    ids = np.arange(1, len(texts) + 1)
    own = arm_run(arm, run)
    if arm not in EXPANDED and own.document.fields == DOCUMENT_FIELDS:
        return ids, texts
    if arm not in EXPANDED:
        return load_documents(logs, own, day_name(day), ids)
    if not is_done(out):
        first = max(start.first_day - 1, day - own.engine.daily.window)
        expand_rewordings(logs, [day_name(one) for one in range(first, day)], out, own)
    return load_documents(logs, own, day_name(day), ids, expanded=out)
