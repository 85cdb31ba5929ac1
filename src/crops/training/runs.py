"""What a run leaves on disk: checkpoints while it works, a log with one line per step, and how to read it.

A checkpoint is whole or ignored, and only for the settings and data that made it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crops.errors import CropsError

LOG = "training_log.jsonl"
EVALUATIONS = "evaluations.jsonl"
SETTLED = 0.01
"""A temperature that stays within this share of its last value has converged."""
RUN = "run.json"
WHOLE = "whole"
"""The last file that is written into a checkpoint: without it, the writing was interrupted."""


def work_folder(out: Path) -> Path:
    """Return the folder next to an output that holds what an interrupted run needs to resume."""
    return out.with_name(f".{out.name}.training")


def mark_whole(checkpoint: Path) -> None:
    """Say that a checkpoint is complete."""
    (checkpoint / WHOLE).touch()


def last_checkpoint(work: Path) -> Path | None:
    """Return the newest complete checkpoint, if there is one."""
    whole = [path.parent for path in work.glob(f"checkpoint-*/{WHOLE}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def drop_partial(work: Path) -> None:
    """Remove checkpoints whose writing was interrupted."""
    for path in work.glob("checkpoint-*"):
        if not (path / WHOLE).exists():
            shutil.rmtree(path)


def same_run(work: Path, settings: Mapping[str, Any], data: str) -> str:
    """Note what run a work folder belongs to, or hold its checkpoints against it.

    Args:
        work: the folder.
        settings: all that decides the result, flat.
        data: fingerprint of the training data.

    Returns:
        A name for the pair of settings and data.

    Raises:
        CropsError: there are checkpoints of other settings or of other data.
    """
    described = json.loads(json.dumps({"settings": settings, "data": data}))
    checkpoint = last_checkpoint(work)
    if checkpoint is not None:
        _compare(checkpoint, json.loads((work / RUN).read_text()), described)
    work.mkdir(parents=True, exist_ok=True)
    written = json.dumps(described, indent=2)
    (work / RUN).write_text(written + "\n")
    return hashlib.sha256(written.encode()).hexdigest()[:16]


def _compare(checkpoint: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    remedy = f"pass --fresh to drop {checkpoint.parent} and start over, or name another output folder"
    keys = sorted(before["settings"].keys() | now["settings"].keys())
    changed = [
        f"{key}: {before['settings'].get(key)} -> {now['settings'].get(key)}"
        for key in keys
        if before["settings"].get(key) != now["settings"].get(key)
    ]
    if changed:
        raise CropsError(
            f"{checkpoint} was made with another configuration ({', '.join(changed)}); repeat its settings "
            f"to resume, {remedy}"
        )
    if before["data"] != now["data"]:
        raise CropsError(f"{checkpoint} was made from other training data than there is now; {remedy}")


def cut_lines(path: Path, after: int) -> None:
    """Keep the lines of the first `after` steps; a run that was killed has written more."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= after]
    path.write_text("".join(whole))


class TrainingLog(NamedTuple):
    """The steps of a run, S each."""

    step: NDArray[np.int64]
    loss: NDArray[np.float64]
    temperature: NDArray[np.float64]


def read_log(folder: str | Path) -> TrainingLog:
    """Read the log of a trained model's folder.

    Raises:
        CropsError: there is none, or a line of it is damaged.
    """
    folder = Path(folder)
    path = folder / LOG
    if not path.exists():
        raise CropsError(f"{folder} holds no {LOG}; name an output folder of `crops train`")
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        columns = {name: [row[name] for row in rows] for name in TrainingLog._fields}
    except (ValueError, KeyError) as error:
        raise CropsError(f"{path} is damaged: {error}") from error
    return TrainingLog(*(np.array(columns[name]) for name in TrainingLog._fields))


def read_evaluations(folder: str | Path) -> dict[str, dict[int, float]]:
    """Return the values of the evaluations during a training, by metric and step; {} where there was none.

    Raises:
        CropsError: a line is damaged.
    """
    path = Path(folder) / EVALUATIONS
    found: dict[str, dict[int, float]] = {}
    try:
        for line in path.read_text().splitlines() if path.exists() else ():
            row = json.loads(line)
            for name, value in row.items():
                if name.startswith("eval_") and value is not None:
                    found.setdefault(name.removeprefix("eval_"), {})[int(row["step"])] = float(value)
    except (ValueError, KeyError) as error:
        raise CropsError(f"{path} is damaged: {error}") from error
    return found


def settles(log: TrainingLog, tolerance: float = SETTLED) -> tuple[float, int | None]:
    """Return where the temperature goes (CroPS, Figure 7): its mean over the last tenth, and since when.

    Args:
        log: at least one step.
        tolerance: share of the value.

    Returns:
        The value, and the first step from which on the temperature stays within `tolerance` of it; None for
        the step if that is only within the last tenth, over which the value itself was taken.
    """
    tail = max(1, len(log.step) // 10)
    value = float(log.temperature[-tail:].mean())
    outside = np.flatnonzero(np.abs(log.temperature / value - 1) > tolerance)
    first = outside[-1] + 1 if len(outside) else 0
    return value, int(log.step[first]) if first < len(log.step) - tail else None
