"""From a target to its report: the cells are made, then read; nothing in the report is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from crops.outputs import versions
from crops.platform import platform_version
from crops.report import Page, Section, Table, standalone, write_page
from crops.report.page import curves, markdown
from crops.reproduce import run, tables
from crops.reproduce.design import (
    ALL,
    DEFAULT,
    FIG6_NAME,
    FIG7_METHODS,
    FIG7_NAME,
    LAYOUTS,
    SPEED_METHODS,
    Cell,
    Design,
    World,
    build_world,
    learns_from_generated,
)
from crops.reproduce.factors import map_cells, map_sections
from crops.reproduce.make import CELLS, write_atomically
from crops.reproduce.run import Outcome, make_cells, make_precisions, tunable, tune
from crops.reproduce.tables import Convergence, Group, Measured, cells_csv, convergence, group
from crops.reproduce.verdicts import (
    FEWEST_P3,
    ONLINE,
    Rules,
    Verdict,
    judge,
    read_rules,
    verdict_section,
    verdict_sentence,
)

_TITLES = {row.method: row.title for layout in reversed(LAYOUTS.values()) for row in layout.rows}
"""Names of methods, a table's own where an earlier table has none."""


@dataclass(frozen=True)
class Produced:
    """What a run has to show."""

    page: Page
    verdicts: dict[str, list[Verdict]]
    """By world."""
    cells: list[Measured]
    failed: dict[str, str]
    """Why cells could not be made, by their name."""


def produce(target: str, worlds: Sequence[Sequence[World]], design: Design, out: Path, jobs: int) -> Produced:
    """Make and read the cells of a table, of a figure, or of all of them.

    Args:
        target: a table, `fig6`, `fig7` or `all`.
        worlds: worlds of one name after the other, each with its seeds.

    Raises:
        CropsError: as `make_cells`.
    """
    everything = [world for seeds in worlds for world in seeds]
    cells = [cell for world in everything for cell in design.cells(target, world)]
    outcome = make_cells(cells, out, design.files(cells), jobs)
    precisions: dict[World, Path] = {}
    if target in (FIG6_NAME, ALL):
        judged = {world: design.cell(world, "crops") for world in everything}
        precisions = make_precisions(judged, out, design.files(judged.values()), jobs)
    rules = read_rules(_TITLES)
    sections: list[Section] = []
    verdicts: dict[str, list[Verdict]] = {}
    for seeds in worlds:
        name = seeds[0].name
        found, verdicts[name] = _world_sections(target, seeds, design, outcome, rules)
        if verdicts[name]:
            sections.append(verdict_section(name, verdicts[name]))
        if seeds[0] in precisions:
            found.append(run.precision_section([precisions[world] for world in seeds]))
        sections += [_in_world(section, name) for section in found]
    headline = [verdict_sentence(name, own) for name, own in verdicts.items() if own]
    page = _page(f"CroPS, reproduced: {target}", headline, sections, worlds, design, outcome)
    return Produced(page, verdicts, outcome.measured, outcome.failed)


def tuned(design: Design, target: str, world: World, out: Path, folds: int) -> Design:
    """Return the design with the settings of every method of the target tuned in a world.

    Raises:
        CropsError: as `tune`.
    """
    methods = tunable([target] if target in LAYOUTS else list(LAYOUTS))
    plain = replace(design, points={})
    cells = {method: plain.cell(world, method) for method in methods}
    return replace(design, points=tune(cells, out, design.files(cells.values()), folds))


def produce_map(design: Design, size: str, seeds: Sequence[int], out: Path, jobs: int) -> Produced:
    """Make and read the cells of the map: the lift of each source over each setting.

    Raises:
        CropsError: as `make_cells`.
    """
    cells = map_cells(design, size, seeds, out)
    wanted = [cell for own in cells.by_value.values() for cell in own]
    outcome = make_cells(wanted, out, cells.files, jobs)
    sections = map_sections(cells, outcome.measured, seeds)
    worlds = [[build_world(DEFAULT, size, seed) for seed in seeds]]
    headline = ["One setting changes at a time; all else stays at its default."]
    page = _page("When does it help?", headline, sections, worlds, design, outcome)
    return Produced(page, {}, outcome.measured, outcome.failed)


def _world_sections(
    target: str, seeds: Sequence[World], design: Design, outcome: Outcome, rules: Rules
) -> tuple[list[Section], list[Verdict]]:
    """Return the sections of worlds of one name, and the verdicts on the claims of their tables."""
    numbers = [world.seed for world in seeds]
    sections: list[Section] = []
    verdicts: list[Verdict] = []
    for layout in [LAYOUTS[target]] if target in LAYOUTS else list(LAYOUTS.values()) if target == ALL else []:
        found = _made(layout.name, seeds, design, outcome)
        cells = group([one for cell, one in found if not cell.validated], layout.methods, numbers)
        speeds = {}
        if layout.name == "table4":
            speeds = _speeds(cells, [one for cell, one in found if cell.validated])
        failed = {
            cell.method: outcome.failed[cell.name()]
            for world in seeds
            for cell in design.cells(layout.name, world)
            if cell.name() in outcome.failed
        }
        sections.append(tables.table_section(layout, cells, speeds, failed))
        verdicts += judge(rules, layout.name, cells, speeds)
    if target == ALL:
        verdicts += judge(rules, ONLINE, group([], [], numbers), {})
    if target in (FIG7_NAME, ALL):
        logs: dict[str, list[Measured]] = {}
        for method in FIG7_METHODS:
            own = [one for _, one in _made(FIG7_NAME, seeds, design, outcome) if one.method == method]
            if own:
                logs[_TITLES[method]] = own
        sections.append(run.temperature_section(logs))
    return sections, verdicts


def _made(
    target: str, seeds: Sequence[World], design: Design, outcome: Outcome
) -> list[tuple[Cell, Measured]]:
    """Return the cells of a table or figure that were made, with what they measured."""
    wanted = {cell.name(): cell for world in seeds for cell in design.cells(target, world)}
    return [(wanted[one.folder.name], one) for one in outcome.measured if one.folder.name in wanted]


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


def _page(
    title: str,
    headline: Sequence[str],
    sections: Sequence[Section],
    worlds: Sequence[Sequence[World]],
    design: Design,
    outcome: Outcome,
) -> Page:
    """Return the page of a run, with how it was made."""
    training = [one.info["training"] for one in outcome.measured if one.info["training"]]
    made = [
        ("worlds", ", ".join(seeds[0].name for seeds in worlds)),
        ("size", worlds[0][0].platform.size),
        ("seeds", ", ".join(str(world.seed) for world in worlds[0])),
        ("encoder", design.config.training.encoder),
        ("steps", f"{design.config.training.steps} of {design.config.training.batch_queries} queries"),
        ("methods with tuned settings", ", ".join(sorted(design.points)) or "none: their defaults"),
        ("cells", f"{len(outcome.measured)} in {CELLS}/"),
        ("training in all", f"{sum(one['cpu_seconds'] for one in training) / 60:.1f} CPU-minutes"),
        ("platform", platform_version()),
        ("crops", versions()["crops"]),
    ]
    return Page(title, headline, sections, made, _notes(outcome))


def _notes(outcome: Outcome) -> list[str]:
    notes = [f"{label} failed: {why}" for label, why in outcome.failed.items()]
    codes = sorted({one.info["code"] for one in outcome.measured})
    if len(codes) > 1:
        notes.append(
            f"the cells were made by {len(codes)} states of the code ({', '.join(codes)}): what changed "
            "between them was held not to change results (RESULTS_VERSION)"
        )
    coverage = [
        one.info["p3_coverage"]["share_of_queries"] or 0.0
        for one in outcome.measured
        if learns_from_generated(one.method)
    ]
    if coverage and min(coverage) < FEWEST_P3:
        notes.append(
            f"P3 has generated documents for {100 * min(coverage):.1f} to {100 * max(coverage):.1f} % of the "
            "training queries, by world: below 5 %, “+ P3” is in truth P1 and P2 with a trace of P3"
        )
    return notes


# What a run leaves on disk: one content as a page, as Markdown and as JSON.

PAGE, DATA, TEXT, VERDICTS = "report.html", "tables.json", "results.md", "verdicts.json"
CELLS_CSV = "cells.csv"


def write_all(made: Produced, out: Path) -> None:
    """Write report.html, results.md, tables.json and verdicts.json into a folder."""
    page = made.page
    write_page(page, out / PAGE)
    write_atomically(out / TEXT, markdown(page))
    tables = {section.title: [_json(table) for table in section.tables] for section in page.sections}
    write_atomically(out / DATA, json.dumps({"facts": dict(page.made), "sections": tables}, indent=2) + "\n")
    told = {world: [asdict(verdict) for verdict in own] for world, own in made.verdicts.items()}
    write_atomically(out / VERDICTS, json.dumps(told, indent=2) + "\n")


def _json(table: Table) -> dict[str, object]:
    names = ("title", "head", "rows", "note", "reference")
    return {name: getattr(table, name) for name in names} | {"words": bool(table.words)}


def write_docs(made: Produced, path: Path) -> None:
    """Write the page as Markdown; its curves, as SVG, and its cells go into a folder of the file's name."""
    folder, named = path.with_suffix(""), curves(made.page)
    for name, figure in named.items():
        write_atomically(folder / name, standalone(figure))
    write_atomically(folder / CELLS_CSV, cells_csv(made.cells))
    link = f"- what each cell was, and what it found: [{CELLS_CSV}]({folder.name}/{CELLS_CSV})\n"
    write_atomically(path, markdown(made.page, folder.name) + link)
    for old in folder.glob("*.svg"):
        if old.name not in named:
            old.unlink()
