"""What arms are made of: a choice of sources, and the model trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crops.config import TrainingConfig
from crops.errors import CropsError, nearest
from crops.labels import SEARCH_SOURCES, Source
from crops.outputs import MANIFEST, console

BASELINE = "baseline"
_P1 = SEARCH_SOURCES | Source.REFORMULATION
_P2 = _P1 | Source.FEED
_ALL = _P2 | Source.KNOWLEDGE
SOURCES = {
    BASELINE: SEARCH_SOURCES,
    "+p1": _P1,
    "+p2": _P2,
    "crops": _ALL,
    "-p1": _ALL & ~Source.REFORMULATION,
    "-p2": _ALL & ~Source.FEED,
    "-p3": _ALL & ~Source.KNOWLEDGE,
    "clicks": Source.CLICKED,
}
"""Arms by name. The baseline is online search alone with its stages as labels (FS-LR); +p1, +p2 and crops add
one source each; -p1, -p2, -p3 are crops without one; clicks is the platform's own recipe: clicked or not."""


@dataclass(frozen=True)
class Recipe:
    """How an arm's model comes from mined samples."""

    sources: Source
    training: TrainingConfig


def recipe(arm: str, training: TrainingConfig) -> Recipe:
    """Return the recipe of a named arm.

    Raises:
        CropsError: there is no such arm.
    """
    if arm not in SOURCES:
        raise CropsError(f"unknown arm '{arm}'; arms: {', '.join(SOURCES)}.{nearest(arm, SOURCES)}")
    if arm == "clicks":
        training = TrainingConfig(**{**training.model_dump(), "loss": "infonce_binary"})
    return Recipe(SOURCES[arm], training)


def train_arm(samples: Path, out: Path, recipe: Recipe, seed: int, cache: Path) -> Path:
    """Train an arm's model on mined samples, unless it is there; return its folder.

    Args:
        samples: output of a mining with all sources that the arm may want.
        out: the model's folder.
        recipe: sources and training.
        seed: of the training.
        cache: see `crops.encoders.load_encoder`.
    """
    if (out / MANIFEST).exists():
        return out
    from crops.encoders import rendering_for  # torch takes seconds to import: not for --help
    from crops.training import load_samples, train

    console.print(f"[bold]{out.parent.name} {out.name}[/bold]")
    data = load_samples(samples, keep=recipe.sources, rendering=rendering_for(recipe.training))
    train(data, out, recipe.training, seed=seed, cache=cache)
    return out
