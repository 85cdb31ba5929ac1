"""The steps of a training on `transformers.Trainer`, which brings optimiser loop, schedule and devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from crops.config import TrainingConfig
from crops.errors import CropsError
from crops.outputs import progress
from crops.training.model import GroupLoss, TextPool
from crops.training.sample import GroupSampler

MAX_GRAD_NORM = 1.0
"""Longer gradients are shortened to it."""


class Steps(Dataset[dict[str, Tensor]]):
    """The inputs of each step, by its number from 0."""

    def __init__(self, sampler: GroupSampler, pool: TextPool, steps: int) -> None:
        """Draw from `sampler`, name texts in `pool`."""
        self._sampler, self._pool, self._steps = sampler, pool, steps

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        if step >= self._steps:
            raise IndexError(step)
        return self._pool.inputs(self._sampler.draw(step))


def fit(
    model: GroupLoss, steps: Steps, config: TrainingConfig, seed: int, folder: Path, log: TextIO
) -> list[float]:
    """Train `model` in place and return the loss of each step.

    Args:
        model: encoder, temperature and loss.
        steps: what each step sees.
        config: optimiser settings.
        seed: of dropout.
        folder: what the Trainer may write to; nothing is, as it saves no checkpoints.
        log: gets one JSON line per step.

    Raises:
        CropsError: a step's loss or gradient is not finite; names the step, which is not applied.
    """
    journal = _Journal(model, log, len(steps))
    trainer = _GroupTrainer(
        model,
        TrainingArguments(
            output_dir=str(folder),
            max_steps=len(steps),
            warmup_steps=round(config.warmup * len(steps)),
            max_grad_norm=0.0,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=steps,
        optimizers=(_optimizer(model, config), None),
        callbacks=[journal],
    )
    trainer.remove_callback(PrinterCallback)
    with journal.display:
        trainer.train()
    return journal.losses


def _optimizer(model: GroupLoss, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW; decay would pull log tau towards 0, so tau has none."""
    groups = [
        {"params": list(model.encoder.parameters()), "weight_decay": config.weight_decay},
        {"params": [model.log_temperature], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


class _GroupTrainer(Trainer):
    """A Trainer whose batches come ready and whose model returns its loss."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the steps in order, each a batch already."""
        assert isinstance(self.train_dataset, Steps)
        return DataLoader(self.train_dataset, batch_size=None)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, None]:
        """Return the loss of a batch.

        Raises:
            CropsError: the loss is not finite, or the loss function refuses the batch; names the step.
        """
        step = self.state.global_step + 1
        try:
            loss: Tensor = model(**inputs)
        except CropsError as error:
            raise CropsError(f"step {step}: {error}. The step was not applied") from error
        if not torch.isfinite(loss):
            raise CropsError(
                f"step {step}: the loss is {loss.item()}; lower the learning rate. The step was not applied"
            )
        return (loss, None) if return_outputs else loss


class _Journal(TrainerCallback):
    """Checks and clips the gradient before each step, writes the log after it, and shows progress."""

    def __init__(self, model: GroupLoss, log: TextIO, steps: int) -> None:
        self.losses: list[float] = []
        self.display = progress()
        self._task = self.display.add_task("training", total=steps)
        self._model, self._log, self._grad_norm = model, log, 0.0

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
        self.losses.append(self._model.last_loss)
        line = {
            "step": state.global_step,
            "loss": self._model.last_loss,
            "temperature": self._model.last_temperature,
            "learning_rate": scheduler.get_last_lr()[0],
            "grad_norm": self._grad_norm,
        }
        self._log.write(json.dumps(line) + "\n")
        self.display.advance(self._task)
