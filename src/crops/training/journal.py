"""What a run writes down: one line per step and one per evaluation, and how to read it."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crops.errors import CropsError
from crops.outputs import finite, progress
from crops.training.distributed import is_first_process
from crops.training.model import GroupLoss

LOG = "training_log.jsonl"
EVALUATIONS = "evaluations.jsonl"
MAX_GRAD_NORM = 1.0
"""Longer gradients are shortened to it."""
SETTLED = 0.01
"""A temperature that stays within this share of its last value has converged."""


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


class Journal(TrainerCallback):
    """Checks and clips the gradient before each step, writes the log after it, and shows progress."""

    def __init__(self, model: GroupLoss, work: Path, steps: int, *, after: int) -> None:
        """Write to `work`, after the lines of the first `after` steps."""
        self._model, self._work, self._after = model, work, after
        self._display = progress()
        self._task = self._display.add_task("training", total=steps, completed=after)
        self.temperature = self._loss = self._grad_norm = float("nan")
        self._writes = is_first_process()

    def __enter__(self) -> Self:
        if self._writes:
            for name in (LOG, EVALUATIONS):
                _cut(self._work / name, self._after)
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.stop()

    def note(self, loss: float, temperature: float) -> None:
        """Take down the loss of the step and the temperature that it was computed with."""
        self._loss, self.temperature = loss, temperature

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Shorten a long gradient; stop at one that is not finite, before it is applied."""
        try:
            norm = clip_grad_norm_(self._model.parameters(), MAX_GRAD_NORM, error_if_nonfinite=True)
        except RuntimeError as error:
            raise CropsError(
                f"step {state.global_step + 1}: the gradient is not finite; lower the learning rate. "
                "The step was not applied"
            ) from error
        self._grad_norm = norm.item()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Write a line."""
        scheduler: LRScheduler = kwargs["lr_scheduler"]
        line = {
            "step": state.global_step,
            "loss": self._loss,
            "temperature": self.temperature,
            "learning_rate": scheduler.get_last_lr()[0],
            "grad_norm": self._grad_norm,
        }
        self._write(LOG, line)
        self._display.advance(self._task)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Write the metrics of an evaluation."""
        self._write(EVALUATIONS, {"step": state.global_step, **kwargs["metrics"]})

    def _write(self, name: str, line: dict[str, Any]) -> None:
        if self._writes:
            with (self._work / name).open("a") as file:
                file.write(json.dumps(finite(line)) + "\n")


def _cut(path: Path, after: int) -> None:
    """Keep the lines of the first `after` steps; a run that was killed has written more."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= after]
    path.write_text("".join(whole))
