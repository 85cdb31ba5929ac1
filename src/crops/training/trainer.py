"""The steps of a training on `transformers.Trainer`, which brings optimiser loop, schedule and devices."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from accelerate.utils import reduce
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Sampler
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from crops.config import TrainingConfig
from crops.errors import CropsError
from crops.outputs import finite, progress
from crops.training import runs
from crops.training.model import GroupLoss, Steps

Evaluator = Callable[[SentenceTransformer], dict[str, float]]
"""Metrics of an encoder, by name; larger is better."""
Join = Callable[[int, dict[str, Any]], dict[str, Any]]
"""From a step, counted from 0, and its inputs to the inputs with negatives of the encoder as it is then."""
_MEMORY_SIGNS = ("can't allocate memory", "not enough memory", "out of memory")
MAX_GRAD_NORM = 1.0
"""Longer gradients are shortened to it."""


@dataclass(frozen=True)
class Evaluation:
    """Evaluation during the training."""

    metrics: Evaluator
    metric: str
    """The one that decides which weights are kept and when to stop."""


def fit(
    model: GroupLoss,
    steps: Steps,
    config: TrainingConfig,
    seed: int,
    work: Path,
    *,
    resume_from: Path | None = None,
    evaluation: Evaluation | None = None,
    join: Join | None = None,
    each_node: bool = False,
    name: str = "crops",
) -> None:
    """Train `model` in place; with an evaluation, the weights of its best value are kept.

    Args:
        work: folder of the checkpoints and the log.
        resume_from: the checkpoint to resume from.
        evaluation: what to evaluate every `eval_steps`.
        join: what each step sees besides.
        each_node: whether each node has a `work` of its own, with all that resuming needs.
        name: of the run, for trackers.

    Raises:
        CropsError: a step's loss or gradient is not finite, or it does not fit in memory; names the step,
            which is not applied.
    """
    start = 0 if resume_from is None else int(resume_from.name.rpartition("-")[2])
    journal = Journal(model, work, len(steps), after=start, writes=runs.is_first_process(each_node))
    every = config.checkpoint_steps if evaluation is None else config.eval_steps
    try:
        arguments = TrainingArguments(
            output_dir=str(work),
            run_name=name,
            max_steps=len(steps),
            warmup_steps=round(config.warmup * len(steps)),
            max_grad_norm=0.0,
            use_cpu=runs.ON_CPU,
            seed=seed,
            bf16=config.bf16,
            ignore_data_skip=True,
            restore_callback_states_from_checkpoint=evaluation is not None,
            save_strategy="steps",
            save_steps=every,
            save_on_each_node=each_node,
            save_total_limit=2,
            eval_strategy="no" if evaluation is None else "steps",
            eval_steps=every,
            load_best_model_at_end=evaluation is not None,
            metric_for_best_model=None if evaluation is None else evaluation.metric,
            greater_is_better=None if evaluation is None else True,
            logging_strategy="steps" if config.report_to else "no",
            logging_steps=1,
            report_to=list(config.report_to) or "none",
            disable_tqdm=True,
            logging_nan_inf_filter=False,  # the Journal refuses such a loss
        )
        trainer = _GroupTrainer(
            model,
            arguments,
            train_dataset=steps,
            eval_dataset=None if evaluation is None else steps,
            optimizers=(_optimizer(model, config), None),
            callbacks=[journal],
        )
    except (ValueError, RuntimeError, ImportError) as error:
        raise CropsError(f"report_to = {', '.join(config.report_to)}: {error}") from error
    trainer.remove_callback(PrinterCallback)
    trainer.start, trainer.evaluation, trainer.journal = start, evaluation, journal
    trainer.join = join
    if evaluation is not None:
        trainer.add_callback(EarlyStoppingCallback(config.patience))
    with journal:
        trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))


def _optimizer(model: GroupLoss, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return the fused optimiser; decay would pull log tau towards 0, so tau has none."""
    weights = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": [model.log_temperature], "weight_decay": 0.0},
    ]
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.learning_rate, fused=True)


class _From(Sampler[int]):
    """The steps from `start` on; its length is that of all steps, from which the Trainer counts epochs."""

    def __init__(self, start: int, steps: int) -> None:
        self._start, self._steps = start, steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._start, self._steps))


class Journal(TrainerCallback):
    """Checks and clips the gradient before each step, writes the log after it, and shows progress."""

    def __init__(self, model: GroupLoss, work: Path, steps: int, *, after: int, writes: bool) -> None:
        """Write to `work`, if it `writes`, after the lines of the first `after` steps."""
        self._model, self._work, self._after = model, work, after
        self._display = progress()
        self._task = self._display.add_task("training", total=steps, completed=after)
        self.temperature = self._loss = self._grad_norm = float("nan")
        self._noted: tuple[Tensor, Tensor] | None = None
        self._writes = writes

    def __enter__(self) -> Self:
        if self._writes:
            for name in (runs.LOG, runs.EVALUATIONS):
                runs.cut_lines(self._work / name, self._after)
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()

    def note(self, loss: Tensor, temperature: Tensor) -> None:
        """Take down the loss of the step and the temperature that it was computed with, scalars."""
        self._noted = loss, temperature

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Shorten a long gradient; stop at a loss or gradient that is not finite, before it is applied.

        The device is asked once for all of them.
        """
        assert self._noted is not None
        norm = clip_grad_norm_(self._model.parameters(), MAX_GRAD_NORM)
        scalars = torch.stack([value.detach().double() for value in (*self._noted, norm)])
        self._loss, self.temperature, self._grad_norm = scalars.tolist()
        if not (math.isfinite(self._loss) and math.isfinite(self._grad_norm)):
            lost = f"the loss is {self._loss}"
            fault = "the gradient is not finite" if math.isfinite(self._loss) else lost
            raise CropsError(
                f"step {state.global_step + 1}: {fault}; lower the learning rate. The step was not applied"
            )

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
        self._write(runs.LOG, line)
        self._display.advance(self._task)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Write the metrics of an evaluation."""
        self._write(runs.EVALUATIONS, {"step": state.global_step, **kwargs["metrics"]})

    def _write(self, name: str, line: dict[str, Any]) -> None:
        if self._writes:
            with (self._work / name).open("a") as file:
                file.write(json.dumps(finite(line)) + "\n")


class _GroupTrainer(Trainer):
    """A Trainer whose batches come ready and whose model returns its loss."""

    start = 0
    evaluation: Evaluation | None = None
    join: Join | None = None
    journal: Journal

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the steps in order, each a batch already.

        It has a generator of its own: making an iterator would else take a random number that a resumed run
        has not to spare.
        """
        assert isinstance(self.train_dataset, Steps)
        sampler = _From(self.start, len(self.train_dataset))
        generator = torch.Generator()
        return DataLoader(
            self.train_dataset, None, sampler=sampler, generator=generator, collate_fn=lambda inputs: inputs
        )

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:  # noqa: ANN401
        """Return the loss of a batch.

        In several processes `model` is the wrapped one: torch's DistributedDataParallel averages gradients
        while the backward pass still makes others.
        """
        assert self.model is not None
        loss: Tensor = (model if runs.processes()[1] > 1 else self.model)(**inputs)
        return loss

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Compute the gradient of a batch, averaged over the processes, and note the loss.

        Raises:
            CropsError: the loss function refuses the batch, or it does not fit in memory; names the step.
        """
        assert isinstance(self.model, GroupLoss)
        temperature = self.model.log_temperature.detach().exp()
        if self.join is not None:
            # Here and not in the data loader, which is a step ahead of the weights.
            inputs = self.join(self.state.global_step, inputs)
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except CropsError as error:
            raise CropsError(
                f"step {self.state.global_step + 1}: {error}. The step was not applied"
            ) from error
        except (RuntimeError, MemoryError) as error:
            full = isinstance(error, (MemoryError, torch.OutOfMemoryError))
            if not full and not any(sign in str(error) for sign in _MEMORY_SIGNS):
                raise
            raise CropsError(
                f"step {self.state.global_step + 1}: the batch does not fit in memory; set encode_chunk "
                "(e.g. 64), which gives the same gradient in less memory, or lower batch_queries"
            ) from error
        mean: Tensor = reduce(loss, "mean")  # over the processes
        self.journal.note(mean, temperature)
        return mean

    def evaluate(self, *_: object, metric_key_prefix: str = "eval", **__: object) -> dict[str, float]:
        """Return the metrics of the current encoder.

        Raises:
            CropsError: the deciding metric is not among them, or has no value.
        """
        assert self.evaluation is not None
        assert isinstance(self.model, GroupLoss)
        self.model.eval()
        found = self.evaluation.metrics(self.model.encoder)
        if self.evaluation.metric not in found:
            raise CropsError(
                f"there is no metric '{self.evaluation.metric}' to stop by; known: {', '.join(found)}"
            )
        if math.isnan(found[self.evaluation.metric]):
            raise CropsError(
                f"no query of the evaluation has a value of '{self.evaluation.metric}': there is nothing to "
                "stop by; name another metric or a day with more searches"
            )
        metrics = {f"{metric_key_prefix}_{metric}": value for metric, value in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Tell the trackers, the temperature with the loss."""
        if "loss" in logs:
            logs["temperature"] = self.journal.temperature
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            (Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}" / runs.WHOLE).touch()
