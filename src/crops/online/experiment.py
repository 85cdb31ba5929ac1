"""An experiment on the simulated platform: A/B days, and one whole world per arm beside them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from crops.errors import CropsError
from crops.online.assign import BUCKETS, Experiment, assign, split
from crops.online.routing import Routes, Traffic, Trial, route_traffic
from crops.online.store import SEARCHES, day_file, live_through
from crops.platform import Platform, Served, same_for_all, write_items

PLAN = "plan.json"
LIVE, PAIRED = "live", "paired"
A_A = "aa"
"""The experiment whose arms change nothing: it runs beside the others, in a layer of its own."""


@dataclass(frozen=True)
class Start:
    """A platform just before the first day of an experiment."""

    platform: Platform
    deployed: Routes
    """The text routes of users who are in no arm."""
    first_day: int
    sessions: int
    """Search sessions per day."""

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.platform.users.activity)

    def fork(self) -> Platform:
        """Return the platform with memory and interests of its own; forks share the co-watch tables."""
        users = copy.deepcopy(self.platform.users)
        return replace(self.platform, users=users, memory=self.platform.memory.copy())


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
        CropsError: see `crops.online.routing.route_traffic`.
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
