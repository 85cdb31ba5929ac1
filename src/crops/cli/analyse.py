"""`crops analyse`: an experiment's logs in, effects with intervals out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crops.cli.command import command
from crops.cli.options import ConfigOption, RelevanceOption
from crops.config import RunConfig, load_config
from crops.errors import CropsError
from crops.outputs import console, finite, publish, to_json, write_manifest

if TYPE_CHECKING:
    from rich.table import Table

    from crops.online.analysis import Analysis
    from crops.report import TextTable

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
    salts: Annotated[int, typer.Option(help="Re-salted A/A assignments beside it.", min=0)] = 1000,
    relevance: RelevanceOption = None,
    config: ConfigOption = None,
) -> dict[str, Any]:
    """Test an experiment: CTR, LPR, RQR, Ratio_rank, Ratio_show, with user-level intervals and checks."""
    from crops.cli.online_text import checked_effect
    from crops.online.experiment import PLAN

    checked_effect(effect)
    if (logs / PLAN).is_file():
        return analyse_experiment(logs, out, effect=effect, salts=salts, relevance=relevance, config=config)
    if control is None or not treatment:
        raise CropsError(
            f"{logs}: name the arms, e.g. --control A --treatment B; a folder with {PLAN} needs none"
        )
    from crops.cli.online_sources import log_analysis

    run = load_config(config, relevance__model=relevance)
    target = out or logs.with_name(f"{logs.name}.{COMMAND}")
    analysis = log_analysis(
        logs,
        target,
        run,
        arms=[control, *treatment],
        experiment=experiment,
        ratios=_ratios(ratio, treatment),
        before=(pre, pre_day),
        routes=route,
        truth=truth,
        wanted=effect,
        salts=salts,
    )
    return _write([analysis], target, run, {"logs": str(logs)})


def analyse_experiment(
    folder: Path,
    out: Path | None = None,
    *,
    effect: float | None = None,
    salts: int = 1000,
    relevance: str | None = None,
    config: Path | None = None,
) -> dict[str, Any]:
    """Analyse an output of `crops experiment`: all its experiments, their A/A, and the paired worlds.

    Args:
        folder: with plan.json, world/, live/ and paired/.
        out: folder for report.html and analysis.json; `folder`/analysis when None.
        effect: relative effect that matters.
        salts: re-salted A/A assignments.
        relevance: theta's model.
        config: TOML of the run.

    Raises:
        CropsError: the folder is no such output, or its logs cannot be analysed.
    """
    from crops.cli.online_sources import experiment_analyses

    run = load_config(config, relevance__model=relevance)
    analyses, facts = experiment_analyses(folder, run, wanted=effect, salts=salts)
    facts = {"experiment": str(folder), **facts}
    return _write(analyses, out or folder / "analysis", run, facts)


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
    analyses: Sequence[Analysis],
    target: Path,
    run: RunConfig,
    facts: Mapping[str, str],
) -> dict[str, Any]:
    from crops.cli.online_summary import headline
    from crops.cli.online_tables import section
    from crops.report import TablesReport, write_report

    report = TablesReport(
        title="What the experiment shows",
        headline=[headline(one) for one in analyses],
        sections=[section(one) for one in analyses],
        facts=list(facts.items()),
        notes=["Definitions and formulas: docs/online-metrics.md"],
    )
    found = {"analyses": [as_json(one) for one in analyses], **facts}
    with publish(target, COMMAND) as folder:
        write_report(report, folder / "report.html")
        (folder / "analysis.json").write_text(to_json(found))
        write_manifest(folder, COMMAND, config=run.dump(), seconds={}, **facts)
    for part in report.sections:
        console.rule(part.title)
        console.print(part.lead, markup=False, highlight=False)
        for table in part.tables:
            console.print(_printed(table))
    console.print(f"open [bold]{target / 'report.html'}[/bold]")
    return found


def _printed(table: TextTable) -> Table:
    from rich.table import Table

    printed = Table(*table.head, title=table.title, caption=table.note, title_justify="left")
    for row in table.rows:
        printed.add_row(*row)
    return printed


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
