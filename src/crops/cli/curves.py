"""The page of a training run: its loss and its temperature, step by step (CroPS, Figure 7)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from crops.report import DemoReport, TrainingCurve


def curves_report(folders: Sequence[Path]) -> DemoReport:
    """Return the curves of trained models, with where each temperature converges.

    Args:
        folders: outputs of `crops train`; several are drawn in one chart.

    Raises:
        CropsError: a folder holds no training log, or a damaged one.
    """
    from crops.training import read_log, settles  # torch takes seconds to import: not for --help

    curves, sentences = [], []
    for folder in folders:
        log = read_log(folder)
        value, step = settles(log)
        start = f"{folder.name}: the temperature goes from {log.temperature[0]:.4f} to {value:.4f}"
        end = "and still moves" if step is None else f"and stays within 1 % of it from step {step:,} on"
        sentences.append(f"{start} in {len(log.step):,} steps {end}.")
        curves.append(
            TrainingCurve(folder.name, log.step.tolist(), log.loss.tolist(), log.temperature.tolist())
        )
    return DemoReport(title="Training", headline=sentences, facts=_facts(folders[0]), curves=curves)


def _facts(folder: Path) -> list[tuple[str, str]]:
    manifest = json.loads((folder / "manifest.json").read_text())
    contrast = manifest["contrast"]
    return [
        ("training groups", f"{manifest['groups']:,}"),
        (
            "a step",
            f"{contrast['queries']:,} queries, {contrast['documents']:,} documents, "
            f"{contrast['texts']:,} distinct texts",
        ),
        ("documents of others that a query is told from", f"{contrast['contrasted']:,.0f}"),
        ("seed", str(manifest["seed"])),
        ("seconds", f"{sum(manifest['seconds'].values()):,.0f}"),
    ]
