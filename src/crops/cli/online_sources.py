"""Which logs an analysis reads: those of a team, or the folders of `crops experiment`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from crops.cli.mine import accepted_logs
from crops.cli.online_logs import reading, route_bits
from crops.config import RunConfig
from crops.errors import CropsError
from crops.logs import Logs, open_logs
from crops.online.analysis import Analysis, analyse, with_pairs
from crops.online.experiment import LIVE, PAIRED, PLAN
from crops.online.panel import arms_of
from crops.online.userdays import Reading, creator_reach, user_days
from crops.outputs import console, timed
from crops.platform import ROUTES

WORLD = "world"
"""Folder of `crops experiment` with the days before it."""


def log_analysis(
    logs: Path,
    target: Path,
    run: RunConfig,
    *,
    arms: Sequence[str],
    experiment: str | None,
    ratios: dict[str, float],
    before: tuple[Path | None, Sequence[str] | None],
    routes: Sequence[str] | None,
    truth: Path | None,
    wanted: float | None,
    salts: int,
) -> Analysis:
    """Analyse the logs of a team; raw ones are checked first.

    Args:
        logs: the logs folder.
        target: where the analysis goes; the accepted rows of raw logs go to a folder beside it.
        run: settings.
        arms: control first.
        experiment: whose arms, where `arm` names several experiments.
        ratios: promised users per user of the control, by treatment.
        before: logs folder of days before (None: the same logs), and those days (None: all before the arms).
        routes: recall routes to report, see `crops.cli.online_logs.route_bits`.
        truth: truth of a simulation.
        wanted: relative effect that matters.
        salts: re-salted A/A assignments.

    Raises:
        CropsError: the logs or the arms cannot be analysed.
    """
    bits = route_bits(logs, routes)
    opened = open_logs(accepted_logs(logs, target.with_name(f"{target.name}.checked"), run))
    how = reading(opened.path, run, bits)
    seconds: dict[str, float] = {}
    with timed(seconds, "sums per user and day"):
        table = user_days(opened, how, truth=[truth] if truth else ())
        ours = arms_of(table, experiment) if experiment else table
        pre_logs, pre_days = before
        other = table
        if pre_logs is not None:
            other = user_days(open_logs(pre_logs), how, truth=[truth] if truth else ())
        past = _earlier(other, ours, pre_days)
    with timed(seconds, "tests"):
        analysis = analyse(
            ours,
            arms[0],
            arms[1:],
            routes=tuple(bits),
            before=past,
            ratios=ratios,
            wanted=wanted,
            salts=salts,
            name=experiment or "",
        )
    return _with_reach(analysis, opened, how, experiment)


def _earlier(table: pa.Table, experiment: pa.Table, days: Sequence[str] | None) -> pa.Table:
    """Return the rows of days before the first day with an arm, or of the given days.

    Raises:
        CropsError: a given day has no search, or is not before the experiment.
    """
    first = pc.min(experiment.filter(pc.is_valid(experiment["arm"]))["day"]).as_py() or ""
    for day in days or ():
        if day not in table["day"].to_pylist() or day >= first:
            raise CropsError(
                f"--pre-day {day}: the days before the experiment end before {first} and need searches"
            )
    kept = pc.is_in(table["day"], pa.array(days)) if days else pc.less(table["day"], first)
    return table.filter(kept)


def experiment_analyses(
    folder: Path, run: RunConfig, *, wanted: float | None, salts: int
) -> tuple[list[Analysis], dict[str, str]]:
    """Analyse every experiment of an output of `crops experiment`, and say what was read.

    Raises:
        CropsError: a folder is missing, or its logs cannot be analysed.
    """
    plan = json.loads((folder / PLAN).read_text())
    live, seconds = open_logs(folder / LIVE / "logs"), dict[str, float]()
    if missing := sorted(set(plan["days"]) - set(live.search_days)):
        raise CropsError(
            f"{folder / LIVE}: no searches on {', '.join(missing)}; run `crops experiment` again, it goes on "
            "where it stopped"
        )
    bits = {name: ROUTES.index(name) for name in _routes(plan)}
    how, static = reading(live.path, run, bits), folder / WORLD / "truth"
    with timed(seconds, "sums per user and day"):
        table = user_days(live, how, plan["days"], [folder / LIVE / "truth", static])
        before = user_days(open_logs(folder / WORLD / "logs"), how, truth=[static])
    analyses = []
    for one in plan["experiments"]:
        with timed(seconds, f"experiment {one['name']}"):
            analyses.append(_planned(one, folder, live, table, before, how, plan["days"], wanted, salts))
    facts = {key: str(plan[key]) for key in ("seed", "size", "platform", "notes") if plan.get(key)}
    return analyses, facts


def _routes(plan: dict[str, Any]) -> list[str]:
    named = (name for one in plan["experiments"] for name in (one["route"] or "").split("+") if name)
    return list(dict.fromkeys(named))


def _planned(
    one: dict[str, Any],
    folder: Path,
    live: Logs,
    table: pa.Table,
    before: pa.Table,
    how: Reading,
    days: Sequence[str],
    wanted: float | None,
    salts: int,
) -> Analysis:
    """Analyse one experiment of a plan, with its paired worlds where there are any."""
    shares = {arm["name"]: arm["share"] for arm in one["arms"]}
    control = one["control"]
    treatments = [arm for arm in shares if arm != control]
    routes = tuple((one["route"] or "").split("+")) if one["route"] else ()
    analysis = analyse(
        arms_of(table, one["name"]),
        control,
        treatments,
        routes=routes,
        before=before,
        ratios={arm: shares[arm] / shares[control] for arm in treatments},
        wanted=wanted,
        salts=salts,
        name=one["name"],
    )
    worlds = {arm: folder / PAIRED / one["name"] / arm for arm in shares}
    lived = {
        arm: user_days(logs, how, days, [worlds[arm] / "truth", folder / WORLD / "truth"])
        for arm in shares
        if (logs := _whole(worlds[arm] / "logs", days)) is not None
    }
    if control in lived:
        analysis = with_pairs(analysis, lived[control], lived)
    return _with_reach(analysis, live, how, one["name"])


def _whole(logs: Path, days: Sequence[str]) -> Logs | None:
    """Return the logs of a paired world that has lived through all days."""
    if not logs.is_dir():
        return None
    opened = open_logs(logs)
    if missing := sorted(set(days) - set(opened.search_days)):
        console.print(f"left out: {logs} has not lived through {', '.join(missing)} yet", highlight=False)
        return None
    return opened


def _with_reach(analysis: Analysis, logs: Logs, how: Reading, experiment: str | None) -> Analysis:
    """Add the share of the creators that each arm's users were shown."""
    found = creator_reach(logs, how.memory, analysis.days, experiment)
    reach = {arm: found[arm][0] / found[arm][1] for arm in analysis.users if found.get(arm)}
    return dataclasses.replace(analysis, reach=reach if len(reach) == len(analysis.users) else {})
