"""`crops analyse` and `crops power`: the effects of an experiment, and what it could see."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import typer
from rich.table import Table

from crops.cli.options import Options, command
from crops.config import RunConfig
from crops.engine.scoring import cached
from crops.errors import CropsError, nearest
from crops.logs import Logs, open_logs
from crops.online.analysis import Analysis, arms_of, everybody, with_pairs
from crops.online.analysis import analyse as analyse_arms
from crops.online.experiment import LIVE, PAIRED, PREREGISTRATION
from crops.online.metrics import Reading, creator_reach, metrics_of, user_days
from crops.online.statistics import sensitivity
from crops.outputs import MANIFEST, cache_folder, console, ended, finite, publish, to_json, write_manifest
from crops.pipeline import accepted_logs, mining_job
from crops.platform import ROUTES
from crops.simulation import Simulated

COMMAND = "analyse"


@command
def analyse(
    logs: Annotated[
        Path,
        typer.Argument(help="Logs whose search_impressions have an arm, or an output of `crops experiment`."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html and analysis.json.", show_default="LOGS.analyse"),
    ] = None,
    control: Annotated[str | None, typer.Option(help="Arm to compare with.")] = None,
    treatment: Annotated[list[str] | None, typer.Option(help="Other arm; repeat for more.")] = None,
    experiment: Annotated[
        str | None, typer.Option(help="Which experiment, where `arm` names several: a=x;b=y.")
    ] = None,
    ratio: Annotated[
        list[str] | None,
        typer.Option(help="Promised users per user of the control, ARM=RATIO.", show_default="1"),
    ] = None,
    pre: Annotated[Path | None, typer.Option(help="Logs of days before, if not in LOGS (CUPED).")] = None,
    pre_day: Annotated[
        list[str] | None,
        typer.Option(help="Day before the experiment, YYYY-MM-DD.", show_default="all before the arms"),
    ] = None,
    route: Annotated[
        list[str] | None, typer.Option(help="Recall route to report: its name, or NAME=BIT; repeat for more.")
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="Truth of a simulation.")] = None,
    effect: Annotated[
        float | None, typer.Option(help="Relative effect that matters, e.g. 0.01: are there users enough?")
    ] = None,
    salts: Annotated[int, typer.Option(help="Re-randomised A/A assignments beside it.", min=0)] = 1000,
    *,
    run: Annotated[RunConfig, Options(relevance="relevance.model")],
) -> dict[str, Any]:
    """Test an experiment: CTR, LPR, RQR, Ratio_rank, Ratio_show, with user-level intervals and checks."""
    from crops.report.experiment import checked_effect

    checked_effect(effect)
    if (logs / PREREGISTRATION).is_file():
        return analyse_experiment(logs, run, out, effect=effect, salts=salts)
    if control is None or not treatment:
        raise CropsError(
            f"{logs}: name the arms, e.g. --control A --treatment B; a folder with {PREREGISTRATION} needs "
            "none"
        )
    target, ratios = out or logs.with_name(f"{logs.name}.{COMMAND}"), _ratios(ratio, treatment)
    bits = route_bits(logs, route)
    opened = open_logs(accepted_logs(logs, target.with_name(f"{target.name}.checked"), run))
    how, known = reading(Path(opened.path), run, bits), [truth] if truth else ()
    table = user_days(opened, how, truth=known)
    ours = arms_of(table, experiment) if experiment else table
    past = table if pre is None else user_days(open_logs(pre), how, truth=known)
    analysis = analyse_arms(
        ours,
        control,
        treatment,
        routes=tuple(bits),
        before=_earlier(past, ours, pre_day),
        ratios=ratios,
        wanted=effect,
        salts=salts,
        name=experiment or "",
    )
    analysis = _with_reach(analysis, opened, how, experiment)
    return _write([analysis], target, run, {"logs": str(logs)})


def analyse_experiment(
    folder: Path, run: RunConfig, out: Path | None = None, *, effect: float | None = None, salts: int = 1000
) -> dict[str, Any]:
    """Analyse an output of `crops experiment`: all its experiments, their A/A, and the paired worlds.

    Args:
        folder: with plan.json, world/, live/ and paired/.
        out: folder for report.html and analysis.json; `folder`/analysis when None.
        effect: relative effect that matters.
        salts: re-randomised A/A assignments.
    """
    plan = json.loads((folder / PREREGISTRATION).read_text())
    live, days = open_logs(folder / LIVE / "logs"), plan["days"]
    if missing := sorted(set(days) - set(live.search_days)):
        raise CropsError(
            f"{folder / LIVE}: no searches on {', '.join(missing)}; run `crops experiment` again, it resumes "
            "where it stopped"
        )
    routes = {one["name"]: one["route"].split("+") if one["route"] else [] for one in plan["experiments"]}
    bits = {name: ROUTES.index(name) for named in routes.values() for name in named}
    world = Simulated(folder).world
    how, static = reading(Path(live.path), run, bits), world / "truth"
    table = user_days(live, how, days, [folder / LIVE / "truth", static])
    before = user_days(open_logs(world / "logs"), how, truth=[static])
    analyses = []
    for one in plan["experiments"]:
        name, control = one["name"], one["control"]
        shares = {arm["name"]: arm["share"] for arm in one["arms"]}
        treatments = [arm for arm in shares if arm != control]
        analysis = analyse_arms(
            arms_of(table, name),
            control,
            treatments,
            routes=tuple(routes[name]),
            before=before,
            ratios={arm: shares[arm] / shares[control] for arm in treatments},
            wanted=effect,
            salts=salts,
            name=name,
        )
        copies = {arm: folder / PAIRED / name / arm for arm in shares}
        paired = {
            arm: user_days(logs, how, days, [copy / "truth", static])
            for arm, copy in copies.items()
            if (logs := _whole(copy / "logs", days)) is not None
        }
        if control in paired:
            analysis = with_pairs(analysis, paired[control], paired)
        analyses.append(_with_reach(analysis, live, how, name))
    facts = {key: str(plan[key]) for key in ("seed", "size", "platform", "notes") if plan.get(key)}
    return _write(analyses, out or folder / "analysis", run, {"experiment": str(folder), **facts})


def _ratios(given: Sequence[str] | None, treatments: Sequence[str]) -> dict[str, float]:
    ratios = {}
    for text in given or ():
        arm, _, number = text.rpartition("=")
        try:
            ratios[arm] = float(number)
        except ValueError as error:
            raise CropsError(f"--ratio {text}: say ARM=RATIO, e.g. B=0.5") from error
        if arm not in treatments:
            raise CropsError(f"--ratio {text}: '{arm}' is none of the treatments {', '.join(treatments)}")
    return ratios


def _write(
    analyses: Sequence[Analysis], target: Path, run: RunConfig, facts: Mapping[str, str]
) -> dict[str, Any]:
    from crops.report import Page, printed, write_page
    from crops.report.experiment import headline, section

    page = Page(
        title="What the experiment shows",
        headline=[headline(one) for one in analyses],
        sections=[section(one) for one in analyses],
        made=list(facts.items()),
        notes=["Definitions and formulas: docs/online-metrics.md"],
    )
    found = {"analyses": [as_json(one) for one in analyses], **facts}
    with publish(target, COMMAND) as folder:
        write_page(page, folder / "report.html")
        (folder / "analysis.json").write_text(to_json(found))
        write_manifest(folder, COMMAND, config=run.dump(), seconds={}, **facts)
    for part in page.sections:
        console.rule(part.title)
        console.print(part.lead, markup=False, highlight=False)
        for table in part.tables:
            console.print(printed(table))
    ended(f"open [bold]{target / 'report.html'}[/bold]")
    return found


def as_json(analysis: Analysis) -> dict[str, Any]:
    """Return an analysis as JSON takes it: numbers that are not finite become null."""
    data = dataclasses.asdict(analysis)
    for written, found in zip(data["findings"], analysis.findings, strict=True):
        written["metric"] = found.metric.key
        written["verdict"] = found.verdict
        for test in ("effect", "paired"):
            if written[test] is not None:
                written[test]["mde"] = getattr(found, test).mde
    for arm, check in analysis.checks.items():
        data["checks"][arm]["holds"] = check.holds
    cleaned: dict[str, Any] = finite(data)
    return cleaned


def _earlier(table: pa.Table, experiment: pa.Table, days: Sequence[str] | None) -> pa.Table:
    """Return the rows of days before the first day with an arm, or of the given days."""
    first = pc.min(experiment.filter(pc.is_valid(experiment["arm"]))["day"]).as_py() or ""
    for day in days or ():
        if day not in table["day"].to_pylist() or day >= first:
            raise CropsError(
                f"--pre-day {day}: the days before the experiment end before {first} and need searches"
            )
    kept = pc.is_in(table["day"], pa.array(days)) if days else pc.less(table["day"], first)
    return table.filter(kept)


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


# How the commands on experiments read logs.


def reading(logs: Path, run: RunConfig, routes: Mapping[str, int]) -> Reading:
    """Return how logs are read: the reformulations of P1 by the run's theta, and the routes of interest."""
    similarity = cached(mining_job(logs, run, None).similarity, cache_folder() / "scores")
    return Reading(routes, run.engine.reformulation, similarity, run.engine.memory)


def route_bits(logs: Path, wanted: Sequence[str] | None) -> dict[str, int]:
    """Return recall routes and their bits: names of the manifest in or above the logs, or `name=bit`."""
    made = (one / MANIFEST for one in (logs, logs.parent, logs.parent.parent))
    named = (json.loads(one.read_text()).get("routes") for one in made if one.is_file())
    names: list[str] = next(filter(None, named), [])
    bits: dict[str, int] = {}
    for route in wanted or ():
        name, given, bit = route.partition("=")
        if given and not bit.isdigit():
            raise CropsError(f"--route {route}: '{bit}' is no bit; give the position in the mask, 0 = lowest")
        if not given and name not in names:
            known = ", ".join(names) or "none (no manifest names them)"
            raise CropsError(
                f"--route {route}: the routes with a name are: {known}.{nearest(name, names)} Say NAME=BIT "
                "where the mask has no names, e.g. dense=1"
            )
        bits[name] = int(bit) if given else names.index(name)
    return bits


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
    from crops.report.experiment import checked_effect, value

    checked_effect(effect)
    if not 0 < share <= 0.5:
        raise CropsError(f"--share {share:g}: two arms have at most half of the users each, and some")
    bits = route_bits(logs, route)
    opened = open_logs(accepted_logs(logs, logs.with_name(f"{logs.name}.checked"), run))
    people = everybody(user_days(opened, reading(Path(opened.path), run, bits)))
    if unknown := sorted(set(pre_day or ()) - set(people.days)):
        raise CropsError(f"--pre-day {unknown[0]}: no search; the days there are: {', '.join(people.days)}")
    users = int(share * len(people.users))
    sums = people.sums([day for day in people.days if day not in (pre_day or ())])
    before = people.sums(pre_day) if pre_day else None
    table = Table("metric", "mean", "MDE", "MDE, relative", title=f"{users:,} users per arm")
    if effect:
        table.add_column(f"users per arm for {100 * effect:g} %")
        table.add_column("enough?")
    found = []
    for metric in metrics_of(tuple(bits), tuple(people.statistics)):
        try:
            one = sensitivity(metric, sums, users, wanted=effect, before=before, power=chance)
        except CropsError as error:
            console.print(f"left out: {error}", markup=False, highlight=False)
            continue
        cells = [metric.label, value(metric, one.mean), value(metric, one.mde)]
        cells.append(f"{100 * one.mde / one.mean:.2f} %" if one.mean else "–")
        if one.suffices is not None:
            more = one.suffices - users
            cells += [f"{one.suffices:,}", "yes" if more <= 0 else f"no: {more:,} more per arm"]
        table.add_row(*cells)
        found.append({"metric": metric.key, **dataclasses.asdict(one)})
    console.print(table)
    return found
