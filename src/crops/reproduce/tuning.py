"""`--tune`: each method's settings from its own stated grid, on held-out queries of the training day."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crops.outputs import cache_folder, console
from crops.reproduce.cells import Cell, named
from crops.reproduce.folder import TUNED
from crops.reproduce.measure import make_samples
from crops.reproduce.paper import LAYOUTS
from crops.reproduce.stages import Stages


def tunable(names: Sequence[str]) -> list[str]:
    """Return the methods whose own settings some tables use, each once."""
    return list(
        dict.fromkeys(LAYOUTS[name].settings or row.method for name in names for row in LAYOUTS[name].rows)
    )


def tune(
    cells: Mapping[str, Cell], out: Path, stages: Stages, generated: Mapping[str, Path], folds: int
) -> dict[str, dict[str, Any]]:
    """Return the best point of each method's grid; what an earlier run tuned is read.

    Args:
        cells: a cell of each method, all of one world: the test day is not read.
        out: an opened folder of a reproduction; each method's grid and scores stay in it as JSON.
        stages: what the samples are made with.
        generated: files of documents that an LLM wrote, by their hash.
        folds: see `crops.training.tune.tune_method`.

    Raises:
        CropsError: the world cannot be made, or there is no held-out query.
    """
    from crops.training.tune import tune_method  # torch takes seconds to import: not for --help

    points = {}
    for method, cell in cells.items():
        samples = make_samples(cell, out, stages, generated.get(cell.generated))
        training = cell.run.training.model_dump(mode="json")
        folder = (
            out
            / TUNED
            / named(
                cell.run.training.encoder.replace("/", "-"),
                mined=samples.name,
                training=training,
                folds=folds,
            )
        )
        found = _read(folder / f"{method}.json")
        if found is None:
            console.print(f"tune {method}")
            found = tune_method(
                method,
                samples,
                folder,
                cell.run.training,
                seed=cell.run.seed,
                cache=cache_folder(),
                folds=folds,
            )
            shutil.rmtree(folder / "models", ignore_errors=True)
        points[method] = dict(found["best"])
    return points


def _read(path: Path) -> dict[str, Any] | None:
    """Return a finished tuning; None where there is none, or a kill tore it off."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found
