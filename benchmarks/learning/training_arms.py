"""What bench_training.py compares: one model and its batches, under crops and SentenceTransformerTrainer."""

from __future__ import annotations

import contextlib
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from transformers import TrainerCallback

from crops.config import TrainingConfig
from crops.training import TrainingData, fit, train, trainer
from crops.training.runs import ON_CPU

TAU = 0.05


@dataclass
class Clock(TrainerCallback):
    """CPU seconds of each step, alone and with what leads to it (drawing, collating, tokenising)."""

    step: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    _begun: float = 0.0
    _ended: float | None = None
    _wall: float = 0.0

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._begun, self._wall = cpu(), time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        now = cpu()
        self.step.append(now - self._begun)
        self.wall.append(time.perf_counter() - self._wall)
        if self._ended is not None:
            self.whole.append(now - self._ended)
        self._ended = now


def cpu() -> float:
    """CPU seconds of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def crops_arm(
    model: Path, data: TrainingData, queries: int, steps: int, *, clock: Clock | None = None, **settings
) -> Clock:
    """Train `steps` batches of all of `data` with crops; return its clock."""
    clock = clock or Clock()

    class Timed(trainer.Journal):
        def on_step_begin(self, *args, **kwargs) -> None:
            clock.on_step_begin(*args, **kwargs)

        def on_step_end(self, *args, **kwargs) -> None:
            clock.on_step_end(*args, **kwargs)
            super().on_step_end(*args, **kwargs)

    config = TrainingConfig(
        **{"init": str(model), "learning_rate": 1e-5, "temperature": TAU, "docs_per_query": 64} | settings,
        batch_queries=queries,
        docs_per_source=64,
        steps=steps,
        checkpoint_steps=steps + 1,
    )
    with replaced(trainer, "Journal", Timed), replaced(fit, "save_encoder", lambda *_: None):
        with tempfile.TemporaryDirectory() as folder:
            train(data, Path(folder) / "model", config, seed=0)
    return clock


def rival_arm(
    model: Path,
    data: TrainingData,
    queries: int,
    steps: int,
    *,
    clock: Clock | None = None,
    bf16: bool = False,
    cached: int | None = None,
) -> Clock:
    """Train the same batches with SentenceTransformerTrainer: one column for each document of a group."""
    encoder = SentenceTransformer(str(model), device="cpu" if ON_CPU else None)
    texts = data.docs["text"].to_pylist()
    docs = data.pairs["item_id"].to_numpy().reshape(data.groups, -1)  # the ids are rows
    columns = {"anchor": data.queries["query"].to_pylist()} | {
        f"document_{place}": [texts[doc] for doc in docs[:, place]] for place in range(docs.shape[1])
    }
    loss = (
        MultipleNegativesRankingLoss(encoder, scale=1 / TAU)
        if cached is None
        else CachedMultipleNegativesRankingLoss(encoder, scale=1 / TAU, mini_batch_size=cached)
    )
    clock = clock or Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=queries,
            learning_rate=1e-5,
            bf16=bf16,
            use_cpu=ON_CPU,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        made = SentenceTransformerTrainer(
            model=encoder,
            args=arguments,
            train_dataset=Dataset.from_dict(columns),
            loss=loss,
            callbacks=[clock],
        )
        made.train()
    return clock


@contextlib.contextmanager
def replaced(module: object, name: str, value: object) -> Iterator[None]:
    """Put `value` in the place of a module's attribute for a while."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def token_counts(model: Path, data: TrainingData) -> tuple[int, int]:
    """Return the tokens of all texts as they are drawn, and of the distinct ones (without padding)."""
    encoder = SentenceTransformer(str(model), device="cpu")

    def count(texts: list[str]) -> int:
        features = encoder.preprocess(texts)
        mask = features.get("attention_mask")
        return len(features["input_ids"]) if mask is None else int(mask.sum())

    texts = data.docs["text"].to_pylist()
    drawn = data.queries["query"].to_pylist() + [texts[doc] for doc in data.pairs["item_id"].to_pylist()]
    return count(drawn), count(sorted(set(drawn)))


Arm = Callable[[], Clock]


def interleaved(arms: dict[str, Arm], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Run every arm once per round; the first step of each run is warm-up and left out."""
    found: dict[str, dict[str, list[float]]] = {name: {"step": [], "whole": [], "wall": []} for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            clock = arm()
            found[name]["step"] += clock.step[1:]
            found[name]["whole"] += clock.whole
            found[name]["wall"] += clock.wall[1:]
    return found


def spread(values: list[float]) -> tuple[float, float, float]:
    """Return the median and both quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(middle), float(low), float(high)
