"""A cell: one method in one world with one seed, from its settings to its figures per query.

Everything a cell needs is a folder named by the hash of what it depends on, shared by all cells that depend
on the same: one world per seed, one mining per set of settings, one set of test sets per world.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crops.config import EvaluationConfig, RunConfig, TrainingConfig
from crops.labels import Source
from crops.platform import platform_version
from crops.reproduce.paper import BM25
from crops.reproduce.version import RESULTS_VERSION
from crops.reproduce.worlds import World

FEWEST_RESAMPLES = 100
"""Intervals of a table come from all of its seeds: those of a single cell are not shown."""


@dataclass(frozen=True)
class Cell:
    """What is to be measured; equal cells are measured once."""

    world: World
    method: str
    """`bm25`, or a key of `crops.training.methods.METHODS`."""
    run: RunConfig
    """Resolved settings; `seed` and `platform` are the world's."""
    generated: str = ""
    """Hash of the documents that an LLM wrote; empty without, and for a method that does not learn from them:
    its cell stays when more are written."""
    point: Mapping[str, Any] = field(default_factory=dict)
    """Tuned settings of the method; its own defaults where empty."""
    validated: bool = False
    """Train without the validation queries, and evaluate on them along the way."""

    def name(self) -> str:
        """Return the folder's name: what it is, and the hash of all it depends on."""
        what = f"{self.method}-{self.world.label}" + ("-validated" if self.validated else "")
        training = None
        if self.method != BM25:
            training = self.run.training.model_dump(mode="json") | _method_facts(self.method, self.point)
        return named(
            what,
            method=self.method,
            mined=mined_name(self),
            tests=sets_name(self),
            training=training,
            point=dict(self.point),
            evaluation=self.run.evaluation.model_dump(mode="json"),
            validated=self.validated,
            results=RESULTS_VERSION,
        )


def learns_from_generated(method: str) -> bool:
    """Return whether a method learns from documents that an LLM wrote (P3)."""
    from crops.training.methods import find_method  # torch takes seconds to import: not for --help

    return method != BM25 and bool(find_method(method).keep & Source.KNOWLEDGE)


def _method_facts(name: str, point: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a method is, so that a cell of another definition of it is another cell."""
    from crops.training.methods import find_method  # torch takes seconds to import: not for --help

    method = find_method(name)
    return {
        "settings": method.settings(point or None),
        "keep": int(method.keep),
        "loss": method.loss,
        "labels": {int(source): label for source, label in (method.labels or {}).items()},
    }


def base_run(world: World, config: RunConfig) -> RunConfig:
    """Return the settings of the cells of a world: its seed and platform, all else as `config`."""
    evaluation = config.evaluation.model_copy(update={"resamples": FEWEST_RESAMPLES})
    return config.model_copy(
        update={"seed": world.seed, "platform": world.platform, "evaluation": evaluation}
    )


def world_run(world: World) -> RunConfig:
    """Return the settings of a world's simulation: the platform's own model is the default's, always."""
    return RunConfig(seed=world.seed, platform=world.platform)


def world_name(world: World) -> str:
    """Return the folder's name of a world."""
    return named(
        world.label,
        platform=world.platform.model_dump(mode="json"),
        seed=world.seed,
        collection=world.collection,
        deployed=TrainingConfig().model_dump(mode="json"),
        version=platform_version(),
    )


def mined_name(cell: Cell) -> str:
    """Return the folder's name of the samples of a cell."""
    return named(
        cell.world.label,
        world=world_name(cell.world),
        engine=cell.run.engine.model_dump(mode="json"),
        relevance=cell.run.relevance.model_dump(mode="json"),
        generated=cell.generated,
        results=RESULTS_VERSION,
    )


def sets_name(cell: Cell) -> str:
    """Return the folder's name of the test sets of a cell: those of the default engine, whatever it mined."""
    return named(
        cell.world.label,
        world=world_name(cell.world),
        evaluation=_sizes(cell.run.evaluation),
        relevance=cell.run.relevance.model_dump(mode="json"),
        results=RESULTS_VERSION,
    )


def read_cell(folder: Path) -> dict[str, Any]:
    """Return the facts of a finished cell."""
    facts: dict[str, Any] = json.loads((folder / "cell.json").read_text())
    return facts


def _sizes(config: EvaluationConfig) -> dict[str, Any]:
    """Return the settings that the test sets depend on."""
    return config.model_dump(mode="json", exclude={"recall_k", "ndcg_k", "resamples"})


def named(label: str, **facts: object) -> str:
    """Return a folder's name: the label and 12 hex digits over the facts."""
    written = json.dumps(facts, sort_keys=True, default=str)
    return f"{label}-{hashlib.sha256(written.encode()).hexdigest()[:12]}"
