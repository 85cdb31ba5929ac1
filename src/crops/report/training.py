"""The page of a training run: its loss and its temperature, step by step (CroPS, Figure 7)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crops.report.charts import Figure, Line
from crops.report.page import Page, Section

if TYPE_CHECKING:
    from crops.training import TrainingLog

MAX_POINTS = 60
"""A curve with more points is drawn as means over equal windows, or the noise hides it."""


def training_page(folders: Sequence[Path]) -> Page:
    """Return the curves of trained models, with where each temperature converges.

    Args:
        folders: outputs of `crops train`; several are drawn in one chart.

    Raises:
        CropsError: a folder holds no training log, or a damaged one.
    """
    from crops.training import read_log, settles  # torch takes seconds to import: not for --help

    logs = {folder.name: read_log(folder) for folder in folders}
    sentences = []
    for name, log in logs.items():
        value, step = settles(log)
        start = f"{name}: the temperature goes from {log.temperature[0]:.4f} to {value:.4f}"
        end = "and still moves" if step is None else f"and stays within 1 % of it from step {step:,} on"
        sentences.append(f"{start} in {len(log.step):,} steps {end}.")
    return Page("Training", sentences, [training_section(logs)], _made(folders[0]))


def _made(folder: Path) -> list[tuple[str, str]]:
    manifest = json.loads((folder / "manifest.json").read_text())
    contrast = manifest["contrast"]
    return [
        ("training groups", f"{manifest['groups']:,}"),
        (
            "a step",
            f"{contrast['queries']:,} queries, {contrast['documents']:,} documents, "
            f"{contrast['texts']:,} distinct texts",
        ),
        ("documents of others that a query is contrasted with", f"{contrast['contrasted']:,.0f}"),
        ("seed", str(manifest["seed"])),
        ("seconds", f"{sum(manifest['seconds'].values()):,.0f}"),
    ]


def training_section(logs: Mapping[str, TrainingLog]) -> Section:
    """Return temperature and loss over the steps, drawn for each training."""
    window = -(-max(len(log.step) for log in logs.values()) // MAX_POINTS)
    lead = (
        "The temperature is learnt: a lower one makes the model separate close documents more sharply. "
        "The loss sums over different training data in each run, so its level does not compare models."
    )
    if window > 1:
        lead += f" Each point is the mean over up to {window} steps."
    temperatures, losses = [], []
    for tone, (name, log) in enumerate(logs.items(), 1):
        steps = _smooth(log.step)
        temperatures.append(Line(name, steps, _smooth(log.temperature), tone))
        losses.append(Line(name, steps, _smooth(log.loss), tone))
    figures = [Figure("Temperature", temperatures, "step"), Figure("Loss", losses, "step")]
    return Section("Training", lead, figures=figures)


def _smooth(values: NDArray[np.float64] | NDArray[np.int64]) -> list[float]:
    """Return the values, or their means over equal windows where they are more than `MAX_POINTS`."""
    size = -(-len(values) // MAX_POINTS)
    return [float(values[start : start + size].mean()) for start in range(0, len(values), size)]
