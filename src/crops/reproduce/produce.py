"""From a target to its report: the cells are made, then read; nothing in the report is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from crops.outputs import versions
from crops.platform import platform_version
from crops.report import LineFigure, Section, TablesReport, TextTable, standalone, write_report
from crops.reproduce import run, tables
from crops.reproduce.cells import (
    ALL,
    CT,
    DEFAULT,
    FIG6_NAME,
    FIG7_METHODS,
    FIG7_NAME,
    LAYOUTS,
    QR,
    SPEED_METHODS,
    TRUE,
    Plan,
    World,
    build_world,
    learns_from_generated,
)
from crops.reproduce.dials import map_cells, map_sections
from crops.reproduce.make import CELLS, write_atomically
from crops.reproduce.results import Group, Measured, group
from crops.reproduce.run import Outcome, make_cells, make_precisions, tunable, tune
from crops.reproduce.tables import Convergence, cells_csv, convergence
from crops.reproduce.verdicts import FEWEST_P3, ONLINE, Rules, Verdict, judge, read_rules

_TITLES = {row.method: row.title for layout in reversed(LAYOUTS.values()) for row in layout.rows}

"""Names of methods, a table's own where an earlier table has none."""


@dataclass(frozen=True)
class Produced:
    """What a run has to show."""

    report: TablesReport
    verdicts: dict[str, list[Verdict]]
    """By world."""
    cells: list[Measured]
    failed: dict[str, str]
    """Why cells could not be made, by their name."""


def produce(target: str, worlds: Sequence[Sequence[World]], plan: Plan, out: Path, jobs: int) -> Produced:
    """Make and read the cells of a table, of a figure, or of all of them.

    Args:
        target: a table, `fig6`, `fig7` or `all`.
        worlds: worlds of one name after the other, each with its seeds.
        plan: what all cells have in common.
        out: an opened folder of a reproduction.
        jobs: processes.

    Raises:
        CropsError: as `make_cells`.
    """
    everything = [world for seeds in worlds for world in seeds]
    cells = [cell for world in everything for cell in plan.cells(target, world)]
    outcome = make_cells(cells, out, plan.files(cells), jobs)
    precisions = _precisions(everything, plan, out, jobs) if target in (FIG6_NAME, ALL) else {}
    rules = read_rules(_TITLES)
    sections: list[Section] = []
    verdicts: dict[str, list[Verdict]] = {}
    for seeds in worlds:
        name = seeds[0].name
        found, verdicts[name] = _world_sections(target, seeds, plan, outcome, rules)
        if verdicts[name]:
            rulings = verdict_tables(verdicts[name])
            sections.append(Section(f"Verdicts, world “{name}”", _VERDICT_LEAD, rulings))
        sections += found
        if seeds[0] in precisions:
            section = run.precision_section([precisions[world] for world in seeds])
            sections.append(_in_world(section, name))
    title, facts = f"CroPS, reproduced: {target}", _facts(worlds, plan, outcome)
    report = TablesReport(title, _headline(verdicts), sections, facts, _notes(outcome))
    return Produced(report, verdicts, outcome.measured, outcome.failed)


def _precisions(worlds: Sequence[World], plan: Plan, out: Path, jobs: int) -> dict[World, Path]:
    """Measure how often the sources of each world are right."""
    cells = {world: plan.cell(world, "crops") for world in worlds}
    return make_precisions(cells, out, plan.files(cells.values()), jobs)


_VERDICT_LEAD = (
    "The rules were written before the runs (claims.toml): reproduced, if above 0 with p < 0.05 after Holm's "
    "correction over the claims of a table; not reproduced, if the 95 % interval ends below half a point "
    "(NDCG: one); inconclusive otherwise."
)


def tuned(plan: Plan, target: str, world: World, out: Path, folds: int) -> Plan:
    """Return the plan with the settings of every method of the target tuned in a world.

    Raises:
        CropsError: as `tune`.
    """
    methods = tunable([target] if target in LAYOUTS else list(LAYOUTS))
    plain = replace(plan, points={})
    cells = {method: plain.cell(world, method) for method in methods}
    return replace(plan, points=tune(cells, out, plan.files(cells.values()), folds))


def produce_map(plan: Plan, size: str, seeds: Sequence[int], out: Path, jobs: int) -> Produced:
    """Make and read the cells of the map: the lift of each source over each dial.

    Args:
        plan: what all cells have in common.
        size: of the worlds.
        seeds: of the worlds.
        out: an opened folder of a reproduction.
        jobs: processes.

    Raises:
        CropsError: as `make_cells`.
    """
    cells = map_cells(plan, size, seeds, out)
    wanted = [cell for own in cells.by_value.values() for cell in own]
    outcome = make_cells(wanted, out, cells.files, jobs)
    sections = map_sections(cells, outcome.measured, seeds)
    worlds = [[build_world(DEFAULT, size, seed) for seed in seeds]]
    headline = ["One dial is turned at a time; all else stays at its default."]
    facts, notes = _facts(worlds, plan, outcome), _notes(outcome)
    report = TablesReport("When does it help?", headline, sections, facts, notes)
    return Produced(report, {}, outcome.measured, outcome.failed)


@dataclass(frozen=True)
class _Made:
    """What became of the cells of a table in worlds of one name."""

    plain: list[Measured]
    watched: list[Measured]
    """Those that were evaluated along the way."""
    failed: dict[str, str]
    """Why a method has no cell."""


def _made(target: str, seeds: Sequence[World], plan: Plan, outcome: Outcome) -> _Made:
    wanted = {cell.name(): cell for world in seeds for cell in plan.cells(target, world)}
    found = [(wanted[one.folder.name], one) for one in outcome.measured if one.folder.name in wanted]
    return _Made(
        [measured for cell, measured in found if not cell.validated],
        [measured for cell, measured in found if cell.validated],
        {cell.method: outcome.failed[name] for name, cell in wanted.items() if name in outcome.failed},
    )


def _world_sections(
    target: str, seeds: Sequence[World], plan: Plan, outcome: Outcome, rules: Rules
) -> tuple[list[Section], list[Verdict]]:
    """Return the sections of worlds of one name, and the verdicts on the claims of their tables."""
    name, numbers = seeds[0].name, [world.seed for world in seeds]
    sections, verdicts = [], []
    for layout in [LAYOUTS[target]] if target in LAYOUTS else list(LAYOUTS.values()) if target == ALL else []:
        made = _made(layout.name, seeds, plan, outcome)
        cells = group(made.plain, [row.method for row in layout.rows], numbers)
        speeds = _speeds(cells, made.watched) if layout.name == "table4" else {}
        shown = [tables.result_table(layout, cells, made.failed), tables.cost_table(layout, cells)]
        shown += [tables.speed_table(layout, speeds)] if speeds else []
        shown.append(tables.breakdown_table(layout, cells))
        drawn = [tables.bars(layout, cells, metric, tables.RESULTS[metric]) for metric in (CT, QR, TRUE)]
        section = Section(layout.title, tables.coverage(cells), shown, [one for one in drawn if one])
        sections.append(_in_world(section, name))
        verdicts += judge(rules, layout.name, cells, speeds)
    if target == ALL:
        verdicts += judge(rules, ONLINE, group([], [], numbers), {})
    if target in (FIG7_NAME, ALL):
        plain = _made(FIG7_NAME, seeds, plan, outcome).plain
        logs = {
            _TITLES[method]: [one for one in plain if one.method == method]
            for method in FIG7_METHODS
            if any(one.method == method for one in plain)
        }
        sections.append(_in_world(run.temperature_section(logs), name))
    return sections, verdicts


def _speeds(cells: Group, watched: Sequence[Measured]) -> dict[str, list[Convergence]]:
    """Return the convergence of each method that has a watched cell for every seed."""
    found = {(one.method, one.seed): one for one in watched}
    return {
        method: [convergence(cells.cells[method, seed], found[method, seed]) for seed in cells.seeds]
        for method in SPEED_METHODS
        if method in cells.methods and all((method, seed) in found for seed in cells.seeds)
    }


def _in_world(section: Section, name: str) -> Section:
    """Return the section with its world in the title, unless it is the default one."""
    if name == DEFAULT:
        return section
    return Section(f"{section.title} (world “{name}”)", section.lead, section.tables, section.figures)


def _headline(verdicts: dict[str, list[Verdict]]) -> list[str]:
    sentences = []
    for world, own in verdicts.items():
        if not own:
            continue
        counts = {
            ruling: sum(one.ruling == ruling for one in own)
            for ruling in ("reproduced", "not reproduced", "inconclusive", "not tested")
        }
        told = ", ".join(f"{count} {ruling}" for ruling, count in counts.items() if count)
        sentences.append(f"World “{world}”: of {len(own)} claims, each on one metric, {told}.")
    return sentences


def _facts(worlds: Sequence[Sequence[World]], plan: Plan, outcome: Outcome) -> list[tuple[str, str]]:
    training = [one.facts["training"] for one in outcome.measured if one.facts["training"]]
    return [
        ("worlds", ", ".join(seeds[0].name for seeds in worlds)),
        ("size", worlds[0][0].platform.size),
        ("seeds", ", ".join(str(world.seed) for world in worlds[0])),
        ("encoder", plan.config.training.encoder),
        ("steps", f"{plan.config.training.steps} of {plan.config.training.batch_queries} queries"),
        ("methods with tuned settings", ", ".join(sorted(plan.points)) or "none: their defaults"),
        ("cells", f"{len(outcome.measured)} in {CELLS}/"),
        ("training in all", f"{sum(one['cpu_seconds'] for one in training) / 60:.1f} CPU-minutes"),
        ("platform", platform_version()),
        ("crops", versions()["crops"]),
    ]


def _notes(outcome: Outcome) -> list[str]:
    notes = [f"{label} failed: {why}" for label, why in outcome.failed.items()]
    codes = sorted({one.facts["code"] for one in outcome.measured})
    if len(codes) > 1:
        notes.append(
            f"the cells were made by {len(codes)} states of the code ({', '.join(codes)}): what changed "
            "between them was held not to change results (RESULTS_VERSION)"
        )
    coverage = [
        one.facts["p3_coverage"]["share_of_queries"] or 0.0
        for one in outcome.measured
        if learns_from_generated(one.method)
    ]
    if coverage and min(coverage) < FEWEST_P3:
        notes.append(
            f"P3 has generated documents for {100 * min(coverage):.1f} to {100 * max(coverage):.1f} % of the "
            "training queries, by world: below 5 %, “+ P3” is in truth P1 and P2 with a trace of P3"
        )
    return notes


# ------------------------------------------------------------------------------
# Tables on the terminal, as Markdown, as JSON and as a page: one content, four forms.


PAGE, DATA, TEXT, VERDICTS = "report.html", "tables.json", "results.md", "verdicts.json"

RECORD = "cells.csv"


def write_all(report: TablesReport, verdicts: dict[str, list[Verdict]], out: Path) -> None:
    """Write report.html, results.md, tables.json and verdicts.json into a folder."""
    write_report(report, out / PAGE)
    write_atomically(out / TEXT, markdown(report))
    tables = {section.title: [asdict(table) for table in section.tables] for section in report.sections}
    write_atomically(
        out / DATA, json.dumps({"facts": dict(report.facts), "sections": tables}, indent=2) + "\n"
    )
    told = {world: [asdict(verdict) for verdict in own] for world, own in verdicts.items()}
    write_atomically(out / VERDICTS, json.dumps(told, indent=2) + "\n")


def verdict_tables(verdicts: Sequence[Verdict]) -> list[TextTable]:
    """Return a line for each claim, and below them the cells that each rests on."""
    rows = [[one.claim, one.metric or "–", one.ruling, one.why] for one in verdicts]
    cells = [[one.claim, one.metric or "–", "\n".join(one.cells)] for one in verdicts if one.cells]
    return [
        TextTable("The paper's claims", ["claim", "on", "verdict", "why"], rows, words=True),
        TextTable("Cells behind the verdicts", ["claim", "on", "cells"], cells, words=True),
    ]


def write_docs(report: TablesReport, cells: Sequence[Measured], page: Path) -> None:
    """Write the report as Markdown; its curves, as SVG, and its cells go into a folder of the page's name."""
    folder, curves = page.with_suffix(""), _curves(report)
    for name, figure in curves.items():
        write_atomically(folder / name, standalone(figure.drawn()))
    write_atomically(folder / RECORD, cells_csv(cells))
    record = f"- what each cell was, and what it found: [{RECORD}]({folder.name}/{RECORD})\n"
    write_atomically(page, markdown(report, folder.name) + record)
    for old in folder.glob("*.svg"):
        if old.name not in curves:
            old.unlink()


def _curves(report: TablesReport) -> dict[str, LineFigure]:
    """Return the figures of lines that there is data for, by the name of a file."""
    return {
        f"{place}-{number}.svg": figure
        for place, section in enumerate(report.sections, 1)
        for number, figure in enumerate(section.figures, 1)
        if isinstance(figure, LineFigure) and figure.drawn()
    }


def markdown(report: TablesReport, pictures: str | None = None) -> str:
    """Return the report as Markdown.

    Args:
        report: what to tell.
        pictures: folder of its curves as `write_docs` names them; they are only named when None.
    """
    curves = _curves(report)
    parts = [f"# {report.title}", *report.headline]
    for place, section in enumerate(report.sections, 1):
        parts += [f"## {section.title}", *([section.lead] if section.lead else [])]
        for table in section.tables:
            parts += [f"### {table.title}", *([table.note] if table.note else []), _grid(table)]
        drawn = {name: one.title for name, one in curves.items() if name.startswith(f"{place}-")}
        if pictures is None:
            parts += [f"Drawn in the page: {title}." for title in drawn.values()]
        else:
            parts += [f"{title}:\n\n![{title}]({pictures}/{name})" for name, title in drawn.items()]
    if report.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in report.notes)]
    parts += ["## How this was made", "\n".join(f"- {name}: {value}" for name, value in report.facts)]
    return "\n\n".join(parts) + "\n"


def _grid(table: TextTable) -> str:
    rows = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


def show(section: Section, console: Console) -> None:
    """Print the first table of a section; the others are in the files."""
    for table in section.tables[:1]:
        printed = Table(*table.head, title=table.title, show_lines=True)
        for row in table.rows:
            printed.add_row(*row)
        console.print(printed)
