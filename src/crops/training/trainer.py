"""The steps of a training on `transformers.Trainer`, which brings optimiser loop, schedule and devices."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler
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
from crops.training.distributed import ON_CPU, average, average_gradients, is_first_process
from crops.training.model import GroupLoss, Objective
from crops.training.sampler import Batch, GroupSampler
from crops.training.texts import TextPool

Evaluator = Callable[[SentenceTransformer], dict[str, float]]

"""Metrics of an encoder, by name; larger is better."""

Join = Callable[[int, dict[str, Tensor]], dict[str, Tensor]]

"""From a step, counted from 0, and its inputs to the inputs with negatives of the encoder as it is then."""


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
    name: str = "crops",
) -> Journal:
    """Train `model` in place; with an evaluation, the weights of its best value are kept.

    Args:
        model: encoder, temperature and loss.
        steps: what each step sees.
        config: optimiser settings, checkpoints and trackers.
        seed: of dropout.
        work: folder of the checkpoints and the log.
        resume_from: the checkpoint to go on from.
        evaluation: what to evaluate every `eval_steps`.
        join: what each step sees besides.
        name: of the run, for trackers.

    Returns:
        The journal of the run.

    Raises:
        CropsError: a step's loss or gradient is not finite, or it does not fit in memory; names the step,
            which is not applied.
    """
    journal = Journal(model, work, len(steps), after=_step_of(resume_from))
    try:
        trainer = _GroupTrainer(
            model,
            _arguments(config, seed, work, len(steps), evaluation, name),
            train_dataset=steps,
            eval_dataset=None if evaluation is None else steps,
            optimizers=(_optimizer(model, config), None),
            callbacks=[journal],
        )
    except (ValueError, RuntimeError, ImportError) as error:
        raise CropsError(f"report_to = {', '.join(config.report_to)}: {error}") from error
    trainer.remove_callback(PrinterCallback)
    trainer.start, trainer.evaluation, trainer.journal = _step_of(resume_from), evaluation, journal
    trainer.join = join
    if evaluation is not None:
        trainer.add_callback(EarlyStoppingCallback(config.patience))
    with journal:
        trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    return journal


def _step_of(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def _arguments(
    config: TrainingConfig, seed: int, work: Path, steps: int, evaluation: Evaluation | None, name: str
) -> TrainingArguments:
    every = config.checkpoint_steps if evaluation is None else config.eval_steps
    return TrainingArguments(
        output_dir=str(work),
        run_name=name,
        max_steps=steps,
        warmup_steps=round(config.warmup * steps),
        max_grad_norm=0.0,
        use_cpu=ON_CPU,
        seed=seed,
        bf16=config.bf16,
        ignore_data_skip=True,
        restore_callback_states_from_checkpoint=evaluation is not None,
        save_strategy="steps",
        save_steps=every,
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
    )


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


# ------------------------------------------------------------------------------
# What a run writes down: one line per step and one per evaluation, and how to read it.


LOG = "training_log.jsonl"

EVALUATIONS = "evaluations.jsonl"

MAX_GRAD_NORM = 1.0


def _cut(path: Path, after: int) -> None:
    """Keep the lines of the first `after` steps; a run that was killed has written more."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= after]
    path.write_text("".join(whole))


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
        return DataLoader(self.train_dataset, None, sampler=sampler, generator=torch.Generator())

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, None]:
        """Return the loss of a batch.

        In several processes `model` is wrapped for the Trainer's own averaging of gradients. The wrapped one
        is called: the embeddings travel between the processes inside it, and `_average` is exact for them.

        Raises:
            CropsError: the loss is not finite, or the loss function refuses the batch; names the step.
        """
        step = self.state.global_step + 1
        assert isinstance(self.model, GroupLoss)
        try:
            loss: Tensor = self.model(**inputs)
        except CropsError as error:
            raise CropsError(f"step {step}: {error}. The step was not applied") from error
        if not torch.isfinite(loss):
            raise CropsError(
                f"step {step}: the loss is {loss.item()}; lower the learning rate. The step was not applied"
            )
        return (loss, None) if return_outputs else loss

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Compute the gradient of a batch, averaged over the processes, and note the loss.

        Raises:
            CropsError: as `compute_loss`, or the batch does not fit in memory.
        """
        assert isinstance(self.model, GroupLoss)
        temperature = self.model.temperature
        if self.join is not None:
            # Here and not in the data loader, which is a step ahead of the weights.
            inputs = self.join(self.state.global_step, inputs)
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            raise CropsError(
                f"step {self.state.global_step + 1}: the batch does not fit in memory; set encode_chunk "
                "(e.g. 64), which gives the same gradient in less memory, or lower batch_queries"
            ) from error
        average_gradients(self.model.parameters())
        loss = average(loss)
        self.journal.note(loss.item(), temperature)
        return loss

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
            mark_whole(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(sign in str(error) for sign in ("can't allocate memory", "not enough memory", "out of memory"))


# ------------------------------------------------------------------------------
# The inputs of each step: what a process encodes and contrasts of a batch.


@dataclass(frozen=True)
class Share:
    """Which part of a step's work a process does."""

    rank: int = 0
    world: int = 1

    def of_texts(self, rows: NDArray[np.int64], pool: TextPool) -> NDArray[np.bool_]:
        """Return which distinct texts [U] this process encodes: every world-th in the order of length."""
        place = np.empty(len(rows), dtype=np.int64)
        place[np.argsort(pool.lengths(rows), kind="stable")] = np.arange(len(rows))
        return np.asarray(place % self.world == self.rank)

    def of_queries(self, query_id: NDArray[np.int64], query_index: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whose rows [Q] this process contrasts: about equal documents, equal query ids together.

        Raises:
            CropsError: there are fewer distinct queries than processes.
        """
        ids, owner = np.unique(query_id, return_inverse=True)
        if len(ids) < self.world:
            raise CropsError(f"a batch of {len(ids)} queries for {self.world} processes; raise batch_queries")
        sizes = np.bincount(owner[query_index], minlength=len(ids))
        place = np.empty(len(ids), dtype=np.int64)
        place[np.argsort(-sizes, kind="stable")] = np.arange(len(ids))
        return np.asarray(place % self.world == self.rank)[owner]


def step_inputs(batch: Batch, pool: TextPool, objective: Objective, share: Share) -> dict[str, Tensor]:
    """Return what `GroupLoss.forward` takes: each distinct text of the batch named once.

    Every process draws the same batch. It encodes its share of the texts and contrasts its share of the
    queries with all documents; documents of the other queries get the query index -1.
    """
    groups = batch.groups
    texts, place = np.unique(
        np.concatenate([groups.query_text[batch.group], groups.doc_text[batch.pair]]), return_inverse=True
    )
    labels, query_id = groups.label[batch.pair], groups.query_id[batch.group]
    mine = share.of_queries(query_id, batch.query_index)
    local = np.where(mine, np.cumsum(mine) - 1, -1)
    known = mine[batch.known_index]
    terms = objective.terms(labels, batch.query_index)
    arrays = {
        "texts": texts,
        "encoded_here": share.of_texts(texts, pool),
        "query_text": place[: len(batch.group)][mine],
        "doc_text": place[len(batch.group) :],
        "query_index": local[batch.query_index],
        "grades": labels,
        "query_id": query_id[mine],
        "doc_id": groups.doc_id[batch.pair],
        "known_index": local[batch.known_index][known],
        "known_id": groups.doc_id[batch.known_pair][known],
        "scale": np.float64(share.world / terms),
    }
    return {name: torch.as_tensor(array) for name, array in arrays.items()}


class Steps(Dataset[dict[str, Tensor]]):
    """The inputs of each step, by its number from 0."""

    def __init__(
        self,
        sampler: GroupSampler,
        pool: TextPool,
        steps: int,
        objective: Objective,
        share: Share = Share(),  # noqa: B008  (frozen)
    ) -> None:
        """Draw from `sampler`, name texts in `pool`."""
        self._sampler, self._pool, self._share = sampler, pool, share
        self._steps, self._objective = steps, objective

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        if step >= self._steps:
            raise IndexError(step)
        return step_inputs(self._sampler.draw(step), self._pool, self._objective, self._share)


# ------------------------------------------------------------------------------
# Checkpoints of a run: whole or ignored, and only for the configuration and data that made them.


RUN = "run.json"

WHOLE = "whole"

"""The last file that is written into a checkpoint: without it, the writing was interrupted."""


def work_folder(out: Path) -> Path:
    """Return the folder beside an output that holds what an interrupted run needs to go on."""
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
            f"to go on, {remedy}"
        )
    if before["data"] != now["data"]:
        raise CropsError(f"{checkpoint} was made from other training data than there is now; {remedy}")


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
