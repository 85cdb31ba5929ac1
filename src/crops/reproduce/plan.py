"""Which cells a table, a figure or the map needs."""

from __future__ import annotations

import importlib.resources
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crops.config import RunConfig
from crops.errors import CropsError, nearest
from crops.reproduce.cells import Cell, base_run, learns_from_generated
from crops.reproduce.paper import BM25, LAYOUTS
from crops.reproduce.worlds import World, content_hash

FIG6_NAME, FIG7_NAME, MAP_NAME, ALL = "fig6", "fig7", "map", "all"
TARGETS = (*LAYOUTS, FIG6_NAME, FIG7_NAME, MAP_NAME, ALL)
"""`all` is every table and figure; the map is a night's work of its own."""
SPEED_METHODS = tuple(row.method for row in LAYOUTS["table4"].rows if row.hours is not None)
FIG7_METHODS = ("fs_lr", "crops")


@dataclass(frozen=True)
class Plan:
    """What all cells of a run have in common."""

    config: RunConfig
    points: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Tuned settings by method."""
    generated: Mapping[str, Path] = field(default_factory=dict)
    """File of documents that an LLM wrote, by the label of the world; `""` stands for all others."""

    def documents(self, world: World) -> Path | None:
        """Return the file of generated documents of a world."""
        return self.generated.get(world.label, self.generated.get(""))

    def files(self, cells: Iterable[Cell]) -> dict[str, Path]:
        """Return the files of generated documents of cells, by their hash."""
        return {cell.generated: file for cell in cells if (file := self.documents(cell.world))}

    def cell(
        self, world: World, method: str, *, settings: str | None = None, validated: bool = False
    ) -> Cell:
        """Return a cell of a world, with the tuned settings of the method `settings`; its own when None."""
        documents = self.documents(world) if learns_from_generated(method) else None
        return Cell(
            world,
            method,
            base_run(world, self.config),
            content_hash([documents]) if documents else "",
            self.points.get(settings or method, {}),
            validated,
        )

    def cells(self, target: str, world: World) -> list[Cell]:
        """Return the cells of a table, of fig7, or of `all`, in a world."""
        if target == ALL:
            return [cell for name in (*LAYOUTS, FIG7_NAME) for cell in self.cells(name, world)]
        if target == FIG7_NAME:
            return [self.cell(world, method) for method in FIG7_METHODS]
        if target == FIG6_NAME:
            return []
        layout = LAYOUTS[target]
        cells = [self.cell(world, row.method, settings=layout.settings) for row in layout.rows]
        if target == "table4":
            cells += [self.cell(world, method, validated=True) for method in SPEED_METHODS]
        return cells


def parse_target(name: str) -> str:
    """Return a target.

    Raises:
        CropsError: there is none of that name.
    """
    if name not in TARGETS:
        raise CropsError(f"unknown table '{name}'; known: {', '.join(TARGETS)}.{nearest(name, TARGETS)}")
    return name


def stored_points(encoder: str) -> dict[str, dict[str, Any]]:
    """Return the settings that were tuned for an encoder and are packaged, by method; BM25's for all."""
    file = importlib.resources.files("crops.reproduce").joinpath("tuned.toml")
    if not file.is_file():
        return {}
    stored: dict[str, Any] = tomllib.loads(file.read_text())
    return {**stored.get(encoder, {}), **({BM25: stored[BM25]} if BM25 in stored else {})}


def generated_files(folder: Path | None, packaged: Path) -> dict[str, Path]:
    """Return the files of generated documents, by the label of their world; the packaged one for all others.

    Args:
        folder: holds `<size>-<world>-<seed>.jsonl`, e.g. small-default-0.jsonl.
        packaged: the documents that come with crops.

    Raises:
        CropsError: the folder is not there or holds no such file.
    """
    if folder is None:
        return {"": packaged}
    found = {file.stem: file for file in sorted(folder.glob("*.jsonl"))}
    if not found:
        raise CropsError(f"{folder}: no <size>-<world>-<seed>.jsonl in it, e.g. small-default-0.jsonl")
    return {"": packaged, **found}
