"""A run: its checkpoints and its log with one line per step, how to read them, and its processes.

A checkpoint is whole or ignored, and only for the settings and data that made it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from numpy.typing import NDArray
from torch import Tensor

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


def checkpoints(work: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    whole = [path.parent for path in work.glob(f"checkpoint-*/{WHOLE}")]
    return sorted(whole, key=lambda path: int(path.name.rpartition("-")[2]))


def last_checkpoint(work: Path) -> Path | None:
    """Return the newest complete checkpoint, if there is one."""
    return next(reversed(checkpoints(work)), None)


def drop_partial(work: Path) -> None:
    """Remove checkpoints whose writing was interrupted."""
    for path in work.glob("checkpoint-*"):
        if not (path / WHOLE).exists():
            shutil.rmtree(path)


def same_run(work: Path, settings: Mapping[str, Any], data: str) -> str:
    """Note what run a work folder belongs to, or hold its checkpoints against it; return a name for the run.

    `settings` are all that decides the result, flat, and `data` is the fingerprint of the training data.

    Raises:
        CropsError: there are checkpoints of other settings or of other data.
    """
    described = json.loads(json.dumps({"settings": settings, "data": data}))
    if (checkpoint := last_checkpoint(work)) is not None:
        remedy = f"pass --fresh to drop {work} and start over, or name another output folder"
        before = json.loads((work / RUN).read_text())
        old, new = before["settings"], described["settings"]
        changed = [
            f"{key}: {old.get(key)} -> {new.get(key)}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
        if changed:
            raise CropsError(
                f"{checkpoint} was made with another configuration ({', '.join(changed)}); repeat its "
                f"settings to resume, {remedy}"
            )
        if before["data"] != data:
            raise CropsError(f"{checkpoint} was made from other training data than there is now; {remedy}")
    work.mkdir(parents=True, exist_ok=True)
    written = json.dumps(described, indent=2)
    (work / RUN).write_text(written + "\n")
    return hashlib.sha256(written.encode()).hexdigest()[:16]


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

    Since when is the first step from which on it stays within `tolerance` (a share) of that value; None if
    that is only within the last tenth, over which the value itself was taken.
    """
    tail = max(1, len(log.step) // 10)
    value = float(log.temperature[-tail:].mean())
    outside = np.flatnonzero(np.abs(log.temperature / value - 1) > tolerance)
    first = outside[-1] + 1 if len(outside) else 0
    return value, int(log.step[first]) if first < len(log.step) - tail else None


# What several processes exchange in a step; without them, nothing happens.


ON_CPU = not torch.accelerator.is_available()


def joined() -> PartialState:
    """Return what this process knows of the others; meet them first, if torchrun started it."""
    return PartialState(cpu=ON_CPU)


def processes() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def exchanged(value: Any) -> list[Any]:  # noqa: ANN401
    """Return what each process gives, by rank; it goes from host to host and no GPU waits."""
    world = processes()[1]
    if world == 1:
        return [value]
    found: list[Any] = [None] * world
    dist.all_gather_object(found, value, group=_hosts())
    return found


@functools.cache
def _hosts() -> dist.ProcessGroup:
    group: dist.ProcessGroup = dist.new_group(backend="gloo")
    return group


def is_first_process(each_node: bool = False) -> bool:
    """Return whether this process writes the outputs, or what its node keeps."""
    return bool(joined().is_local_main_process) if each_node else processes()[0] == 0


def node() -> int:
    """Return the number of this machine among those of the run, as torchrun tells it."""
    return int(os.environ.get("GROUP_RANK", 0))


class _Gather(torch.autograd.Function):
    """Rows of all processes in one matrix; the gradient of a row is summed over the processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, here: NDArray[np.bool_]) -> Tensor:  # noqa: ANN401
        place = torch.from_numpy(np.flatnonzero(here)).to(rows.device, non_blocking=True)
        ctx.save_for_backward(place)
        whole = rows.new_zeros(len(here), rows.shape[1])
        whole[place] = rows
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (place,) = ctx.saved_tensors
        summed = upstream.contiguous().clone()
        dist.all_reduce(summed)
        return summed[place], None


def gather(rows: Tensor, here: NDArray[np.bool_]) -> Tensor:
    """Return the rows of all processes, [U, d]; `here` [U] says which of them are this process's `rows`."""
    if processes()[1] == 1:
        return rows
    whole: Tensor = _Gather.apply(rows, here)  # type: ignore[no-untyped-call]
    return whole
