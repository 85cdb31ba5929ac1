"""How long a method trains until it converges, by its watched cell (Table 4's hours)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from crops.errors import CropsError
from crops.reproduce.learn import SCORE
from crops.reproduce.results import Measured

NEAR = 0.01
"""A training has converged when its validation score first comes within this share of its best."""


@dataclass(frozen=True)
class Convergence:
    """When one training converged."""

    step: int
    cpu_per_step: float
    """CPU-seconds of a step of the same training without the looks at the validation queries."""
    watched: str
    """Folder of the cell with those looks."""

    @property
    def cpu_seconds(self) -> float:
        """Return the CPU time until then."""
        return self.step * self.cpu_per_step


def converged_at(folder: Path, near: float = NEAR) -> int:
    """Return the first evaluated step whose score is at least (1 - near) times the best of the run.

    Raises:
        CropsError: the folder holds no evaluations, or damaged ones.
    """
    from crops.training import EVALUATIONS  # torch takes seconds to import: not for --help

    path = folder / EVALUATIONS
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        scores = {int(row["step"]): float(row[f"eval_{SCORE}"]) for row in rows}
        return min(step for step, score in scores.items() if score >= (1 - near) * max(scores.values()))
    except (OSError, ValueError, KeyError) as error:
        raise CropsError(f"{path} is damaged ({error}); remove its folder to make it again") from error


def convergence(plain: Measured, watched: Measured) -> Convergence:
    """Return when a method converged: the step of its watched cell, at the cost of its plain one's steps."""
    training = plain.facts["training"]
    per_step = training["cpu_seconds"] / training["steps"]
    return Convergence(converged_at(watched.folder), per_step, watched.folder.name)
