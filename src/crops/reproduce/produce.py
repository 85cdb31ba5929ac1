"""From a target to its report: the cells are made, then read; nothing in the report is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from crops.outputs import versions, write_text
from crops.platform import SIZES, platform_version
from crops.report import Figure, Line, Page, Section, Table, standalone, write_page
from crops.report.page import curves, markdown
from crops.reproduce import run, tables
from crops.reproduce.design import (
    ALL,
    CT,
    DEFAULT,
    FIG6_NAME,
    FIG7_METHODS,
    FIG7_NAME,
    LAYOUTS,
    METRICS_VERSION,
    QR,
    QR_TRUTH,
    SPEED_METHODS,
    TRUE,
    VARIANTS,
    Cell,
    Design,
    World,
    build_world,
    content_hash,
    learns_from_generated,
)
from crops.reproduce.make import CELLS
from crops.reproduce.run import Outcome, make_cells, make_precisions, tune
from crops.reproduce.tables import Convergence, Measured, cells_csv, convergence, group
from crops.reproduce.verdicts import (
    FEWEST_P3,
    ONLINE,
    Rules,
    Verdict,
    judge,
    read_rules,
    verdict_section,
    verdict_sentence,
    verdicts_csv,
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
        if name != DEFAULT:
            found = [replace(section, title=f"{section.title} (world “{name}”)") for section in found]
        sections += found
    headline = [verdict_sentence(name, own) for name, own in verdicts.items() if own]
    page = _page(f"CroPS, reproduced: {target}", headline, sections, worlds, design, outcome)
    return Produced(page, verdicts, outcome.measured, outcome.failed)


def tuned(design: Design, target: str, worlds: Sequence[World], out: Path, folds: int) -> Design:
    """Return the design with the settings of every method of the target tuned in some worlds.

    Raises:
        CropsError: as `tune`.
    """
    layouts = [LAYOUTS[target]] if target in LAYOUTS else list(LAYOUTS.values())
    methods = {
        layout.settings_of(row.method) or row.method: None
        for layout in layouts
        for row in layout.rows
        if row.method not in VARIANTS
    }
    plain = replace(design, points={})
    cells = {method: [plain.cell(world, method) for world in worlds] for method in methods}
    every = [cell for own in cells.values() for cell in own]
    return replace(design, points=tune(cells, out, design.files(every), folds))


def _world_sections(
    target: str, seeds: Sequence[World], design: Design, outcome: Outcome, rules: Rules
) -> tuple[list[Section], list[Verdict]]:
    """Return the sections of worlds of one name, and the verdicts on the claims of their tables."""
    numbers = [world.seed for world in seeds]
    sections: list[Section] = []
    verdicts: list[Verdict] = []
    for layout in [LAYOUTS[target]] if target in LAYOUTS else list(LAYOUTS.values()) if target == ALL else []:
        found = _made(layout.name, seeds, design, outcome)
        plain = [one for cell, one in found if not cell.validated]
        cells = group(plain, layout.methods, numbers, design.trainings)
        speeds: dict[str, list[Convergence]] = {}
        if layout.name == "table4":
            # Of each method that has a watched cell for every seed.
            watched = {(one.method, one.seed): one for cell, one in found if cell.validated}
            for method in SPEED_METHODS:
                if method in cells.methods and all((method, seed) in watched for seed in numbers):
                    speeds[method] = [
                        convergence(cells.cells[method, seed][0], watched[method, seed]) for seed in numbers
                    ]
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
        ("trainings of each row in a world", str(design.trainings)),
        ("encoder", design.config.training.encoder),
        ("steps", f"{design.config.training.steps} of {design.config.training.batch_queries} queries"),
        ("methods with tuned settings", ", ".join(sorted(design.points)) or "none: their defaults"),
        ("cells", f"{len(outcome.measured)} in {CELLS}/"),
        ("training in all", f"{sum(one['cpu_seconds'] for one in training) / 60:.1f} CPU-minutes"),
        ("platform", platform_version()),
        ("crops", versions()["crops"]),
    ]
    notes = [f"{label} failed: {why}" for label, why in outcome.failed.items()]
    old = sum(one.info.get("metrics_version") != METRICS_VERSION for one in outcome.measured)
    if old:
        notes.append(
            f"{old} of {len(outcome.measured)} cells were evaluated before there was QR by an editor, recall "
            "at 20 and 50 and clicks by kind, so these columns are missing; --again makes such cells anew"
        )
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
    return Page(title, headline, sections, made, notes)


# What a run leaves on disk: one content as a page, as Markdown and as JSON.

PAGE, DATA, TEXT, VERDICTS = "report.html", "tables.json", "results.md", "verdicts.json"
CELLS_CSV, VERDICTS_CSV = "cells.csv", "verdicts.csv"


def write_all(made: Produced, out: Path) -> None:
    """Write report.html, results.md, tables.json and verdicts.json into a folder."""
    page = made.page
    write_page(page, out / PAGE)
    write_text(out / TEXT, markdown(page))
    names = ("title", "head", "rows", "note", "reference")
    found = {
        section.title: [
            {name: getattr(table, name) for name in names} | {"words": bool(table.words)}
            for table in section.tables
        ]
        for section in page.sections
    }
    write_text(out / DATA, json.dumps({"facts": dict(page.made), "sections": found}, indent=2) + "\n")
    told = {world: [asdict(verdict) for verdict in own] for world, own in made.verdicts.items()}
    write_text(out / VERDICTS, json.dumps(told, indent=2) + "\n")


def write_docs(made: Produced, path: Path) -> None:
    """Write the page as Markdown; curves (SVG), cells and verdicts (CSV) go into a folder of its name."""
    folder, named = path.with_suffix(""), curves(made.page)
    for name, figure in named.items():
        write_text(folder / name, standalone(figure))
    write_text(folder / CELLS_CSV, cells_csv(made.cells))
    link = f"- what each cell was, and what it found: [{CELLS_CSV}]({folder.name}/{CELLS_CSV})\n"
    if made.verdicts:
        write_text(folder / VERDICTS_CSV, verdicts_csv(made.verdicts))
        link += f"- the cells behind each verdict: [{VERDICTS_CSV}]({folder.name}/{VERDICTS_CSV})\n"
    write_text(path, markdown(made.page, folder.name) + link)
    for old in folder.glob("*.svg"):
        if old.name not in named:
            old.unlink()


# The map, "When does it help?": the lift of each source while one factor of platform or models changes.


MAP_METHODS = ("fs_lr", "plus_p1", "plus_p2", "crops")
LIFTS = {
    "P1": {"plus_p1": 1.0, "fs_lr": -1.0},
    "P2": {"plus_p2": 1.0, "plus_p1": -1.0},
    "P3": {"crops": 1.0, "plus_p2": -1.0},
}
"""What each source adds to those before it."""
METRICS = {CT: "CT", QR: "QR", QR_TRUTH: "QR by truth", TRUE: "true recall"}
Value = float | str | bool


@dataclass(frozen=True)
class Factor:
    """One property, and the values that it takes; all else stays at its default."""

    name: str
    explanation: str
    values: tuple[Value, ...]
    setting: str = ""
    """The setting of the platform that is changed; empty where the world is the default one."""
    default: Value = ""
    """The value of the default world."""
    worlds: Mapping[Value, str] = field(default_factory=dict)
    """Names of worlds by value; the setting and the value where there is none."""

    def world(self, value: Value, size: str, seed: int) -> World:
        """Return the world of a value."""
        world = build_world(DEFAULT, size, seed)
        if not self.setting or value == self.default:
            return world
        # The log's size is a share of what is usual for the size of the platform.
        changed = round(float(value) * SIZES[size].sessions) if self.setting == "sessions" else value
        platform = world.platform.model_copy(update={self.setting: changed})
        return World(self.worlds.get(value, f"{self.setting}-{value}"), platform, seed)


THETA, LLM = "theta", "LLM"
"""Factors that are no settings of the platform."""

FACTORS = (
    Factor(
        "bubble",
        "how much the old system follows popularity and its own past",
        ("weak", "default", "strong"),
        "bubble",
        "default",
        {"weak": "weak", "strong": "strong"},
    ),
    Factor(
        "feed alignment",
        "P(a feed item near a search is about the searched sense)",
        (0.0, 0.25, 0.5, 0.9),
        "feed_alignment",
        0.25,
    ),
    Factor(
        "reformulation rate",
        "P(a searcher rewords | not satisfied)",
        (0.05, 0.22, 0.45),
        "reformulate",
        0.22,
    ),
    Factor(
        "informative rewordings",
        "whether later queries and the feed say anything about the need (no: the null world)",
        (False, True),
        "informative",
        True,
        {False: "null"},
    ),
    Factor(
        THETA,
        "threshold of theta for P1 and P2: higher keeps fewer and more certain pairs",
        (0.0, 0.3, 0.6, 0.8),
    ),
    Factor(LLM, "share of the generated documents that are given to another query", (0.0, 0.5, 1.0)),
    Factor(
        "log size",
        "search sessions a day, as a share of the size's own",
        (0.25, 0.5, 1.0),
        "sessions",
        1.0,
    ),
)


FactorCells = Mapping[tuple[str, Value], Sequence[Cell]]
"""The cells of the map by factor and value: each method with each seed."""


def map_cells(
    design: Design, size: str, seeds: Sequence[int], out: Path
) -> tuple[FactorCells, dict[str, Path]]:
    """Return the cells of every value of every factor, and the files of generated documents by their hash.

    Equal cells are made once, also with the tables'.
    """
    found: dict[tuple[str, Value], list[Cell]] = {}
    files: dict[str, Path] = {}
    for factor in FACTORS:
        for value in factor.values:
            cells = []
            for world in (factor.world(value, size, seed) for seed in seeds):
                given, documents = design, design.documents(world)
                if documents is not None and factor.name == LLM and value:
                    given = replace(design, generated={"": misplaced(documents, float(value), out)})
                own = [given.cell(world, method, settings="crops") for method in MAP_METHODS]
                files |= given.files(own)
                cells += [run.above(cell, float(value)) for cell in own] if factor.name == THETA else own
            found[factor.name, value] = cells
    return found, files


def misplaced(documents: Path, share: float, out: Path) -> Path:
    """Write a copy of generated documents in which a share of them, drawn by chance, swap their queries."""
    path = out / "generated" / f"{content_hash([documents])}-wrong-{share:g}.jsonl"
    if not path.exists():
        rows = [json.loads(line) for line in documents.read_text().splitlines() if line.strip()]
        chosen = np.random.default_rng(0).permutation(len(rows))[: round(share * len(rows))]
        queries = [rows[place]["query"] for place in chosen]
        for place, query in zip(chosen, queries[1:] + queries[:1], strict=True):
            rows[place]["query"] = query
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def map_sections(cells: FactorCells, measured: Sequence[Measured], seeds: Sequence[int]) -> list[Section]:
    """Return a section for each factor: the lift of each source with its interval, as a table and drawn."""
    by_name = {one.folder.name: one for one in measured}
    return [_factor_section(factor, cells, by_name, seeds) for factor in FACTORS]


def _factor_section(
    factor: Factor, cells: FactorCells, by_name: Mapping[str, Measured], seeds: Sequence[int]
) -> Section:
    named = any(isinstance(value, (str, bool)) for value in factor.values)
    rows = []
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for place, value in enumerate(factor.values):
        names = [cell.name() for cell in cells[factor.name, value]]
        together = group([by_name[name] for name in names if name in by_name], MAP_METHODS, seeds)
        row = [str(value)]
        for metric, title in METRICS.items():
            resampled = together.resampled(metric) if len(together.methods) == len(MAP_METHODS) else None
            if resampled is None:
                row += ["–"] * (1 + len(LIFTS))
                continue
            row.append(f"{resampled.n:,}")
            for source, weights in LIFTS.items():
                lift = resampled.contrast(together.weights(weights))
                star = "*" if lift.p < 0.05 else ""
                row.append(f"{100 * lift.mean:+.1f}{star}\n{lift.ends('+.1f')}")
                x = float(place if named else value)
                points.setdefault((title, source), []).append((x, 100 * lift.mean))
        rows.append(row)
    head = [factor.name]
    for title in METRICS.values():
        head += [f"{title}: queries", *(f"{source}: {title}" for source in LIFTS)]
    figures = [
        Figure(
            f"{title}: lift in points by {factor.name}",
            [
                Line(source, [x for x, _ in drawn], [y for _, y in drawn], tone)
                for tone, source in enumerate(LIFTS, 1)
                if (drawn := points.get((title, source)))
            ],
            ", ".join(map(str, factor.values)) if named else factor.name,
        )
        for title in METRICS.values()
    ]
    note = "Points that each source adds to those before it, 95 % intervals; * p < 0.05, not corrected."
    return Section(factor.name, factor.explanation, [Table(factor.name, head, rows, note)], figures)


def produce_map(design: Design, size: str, seeds: Sequence[int], out: Path, jobs: int) -> Produced:
    """Make and read the cells of the map: the lift of each source over each setting."""
    cells, files = map_cells(design, size, seeds, out)
    outcome = make_cells([cell for own in cells.values() for cell in own], out, files, jobs)
    sections = map_sections(cells, outcome.measured, seeds)
    worlds = [[build_world(DEFAULT, size, seed) for seed in seeds]]
    headline = ["One setting changes at a time; all else stays at its default."]
    page = _page("When does it help?", headline, sections, worlds, design, outcome)
    return Produced(page, {}, outcome.measured, outcome.failed)
