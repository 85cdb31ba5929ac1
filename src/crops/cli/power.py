"""`crops power`: what an experiment could see, before it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crops.cli.options import Options, command
from crops.config import RunConfig
from crops.errors import CropsError
from crops.outputs import console

if TYPE_CHECKING:
    from rich.table import Table

    from crops.online.analysis import UserDays
    from crops.online.metrics import Metric
    from crops.online.power import Sensitivity


@command
def power(
    logs: Annotated[Path, typer.Argument(help="Logs of as many days as the experiment will take.")],
    share: Annotated[float, typer.Option(help="Share of the users in each of two arms.", min=0)] = 0.1,
    effect: Annotated[float | None, typer.Option(help="Relative effect to be found, e.g. 0.01.")] = None,
    chance: Annotated[float, typer.Option(help="Chance to find it.", min=0.5, max=0.999)] = 0.8,
    pre_day: Annotated[
        list[str] | None, typer.Option(help="Day of LOGS for CUPED, not for the sums; repeat for more.")
    ] = None,
    route: Annotated[
        list[str] | None, typer.Option(help="Recall route to report: its name, or NAME=BIT.")
    ] = None,
    *,
    run: Annotated[RunConfig, Options(relevance="relevance.model")],
) -> list[dict[str, Any]]:
    """Print the minimal detectable effect of each metric, and the users that the asked effect needs."""
    from crops.cli.analyse import reading, route_bits
    from crops.logs import open_logs
    from crops.online.analysis import everybody
    from crops.online.metrics import user_days
    from crops.pipeline import accepted_logs
    from crops.report.experiment import checked_effect

    checked_effect(effect)
    if not 0.5 <= chance <= 0.999:
        raise CropsError(f"--chance {chance:g}: give a chance between 0.5 and 0.999")
    if not 0 < share <= 0.5:
        raise CropsError(f"--share {share:g}: two arms have at most half of the users each, and some")
    bits = route_bits(logs, route)
    opened = open_logs(accepted_logs(logs, logs.with_name(f"{logs.name}.checked"), run))
    people = everybody(user_days(opened, reading(opened.path, run, bits)))
    if unknown := sorted(set(pre_day or ()) - set(people.days)):
        raise CropsError(f"--pre-day {unknown[0]}: no search; the days there are: {', '.join(people.days)}")
    users = int(share * len(people.users))
    found = _sensitivities(people, tuple(bits), users, pre_day or (), effect, chance)
    console.print(_printed(found, users, effect))
    return [{"metric": metric.key, **dataclasses.asdict(one)} for metric, one in found]


def _sensitivities(
    people: UserDays,
    routes: Sequence[str],
    users: int,
    pre_days: Sequence[str],
    effect: float | None,
    chance: float,
) -> list[tuple[Metric, Sensitivity]]:
    """Return what can be planned; what cannot is said."""
    from crops.online.metrics import metrics_of
    from crops.online.power import sensitivity

    days = [day for day in people.days if day not in pre_days]
    sums, before = people.sums(days), people.sums(pre_days) if pre_days else None
    found = []
    for metric in metrics_of(routes, tuple(people.statistics)):
        try:
            one = sensitivity(metric, sums, users, wanted=effect, before=before, power=chance)
        except CropsError as error:
            console.print(f"left out: {error}", markup=False, highlight=False)
            continue
        found.append((metric, one))
    return found


def _printed(found: Sequence[tuple[Metric, Sensitivity]], users: int, effect: float | None) -> Table:
    from rich.table import Table

    from crops.report.experiment import value

    table = Table("metric", "mean", "MDE", "MDE, relative", title=f"{users:,} users per arm")
    if effect:
        table.add_column(f"users per arm for {100 * effect:g} %")
        table.add_column("enough?")
    for metric, one in found:
        cells = [metric.label, value(metric, one.mean), value(metric, one.mde)]
        cells.append(f"{100 * one.mde / one.mean:.2f} %" if one.mean else "–")
        if one.suffices is not None:
            more = one.suffices - users
            cells += [f"{one.suffices:,}", "yes" if more <= 0 else f"no: {more:,} more per arm"]
        table.add_row(*cells)
    return table
