"""Trains a method of the paper's tables (`crops.training.registry`) with the one trainer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from crops.config import TrainingConfig
from crops.encoders import rendering_for
from crops.errors import CropsError
from crops.labels import ALL_SOURCES, DEFAULT_LABELS, Source
from crops.text import PLAIN
from crops.training.data import TrainingData
from crops.training.fit import train
from crops.training.memory import MemoryGroups
from crops.training.miners import Schedule, mine_adore, mine_bm25
from crops.training.mining import Corpus, Miner, Mining
from crops.training.registry import METHODS, Method, Point, Value, find_method
from crops.training.sample import GroupSampler
from crops.training.samples import load_samples
from crops.training.trainer import Evaluation
from crops.training.validation import is_validation, load_catalogue

__all__ = ["BUDGET_SOURCES", "METHODS", "Method", "Point", "documents_per_step", "find_method", "fit_method"]

COPIED = ("temperature", "docs_per_source", "min_anchor_label", "in_batch")
"""Settings of a method that are settings of the trainer."""
BUDGET_SOURCES = ALL_SOURCES & ~Source.KNOWLEDGE
"""What the shared budget is drawn from. Not P3: methods see as much, however many documents an LLM wrote."""
BUDGET_BATCHES = 16
"""Batches of the CroPS arm that the budget of documents is the mean of."""


def documents_per_step(data: TrainingData, config: TrainingConfig, seed: int) -> int:
    """Return the budget of documents that methods share: the mean batch of these groups, rounded up.

    Args:
        data: groups of `BUDGET_SOURCES`.
        config: sizes of a batch.
        seed: of the batches.
    """
    sampler = GroupSampler(MemoryGroups(data, config.min_anchor_label, config.beta), config, seed)
    sizes = [len(sampler.draw(step).pair) for step in range(BUDGET_BATCHES)]
    return int(np.ceil(np.mean(sizes)))


def fit_method(
    name: str,
    samples: Path,
    out: Path,
    config: TrainingConfig,
    *,
    seed: int,
    cache: Path | None = None,
    point: Point | None = None,
    documents: int | None = None,
    held_out: int | None = None,
    evaluation: Evaluation | None = None,
) -> dict[str, Any]:
    """Train a method and write its model as `crops.training.train` does; a killed run starts over.

    Args:
        name: a key of `METHODS`.
        samples: a folder of `crops mine`; its items known by the end of the last day are the catalogue.
        out: the folder to write.
        config: encoder, batches, steps, optimiser, shared by all methods; loss and sampling are the method's.
        seed: of batches and samplers.
        cache: see `crops.encoders.load_encoder`.
        point: settings of the method, its defaults where absent.
        documents: documents per step; `documents_per_step` of these samples' `BUDGET_SOURCES` when None.
        held_out: leave out the queries of this fold (`crops.training.validation`).
        evaluation: along the way, as of `train`.

    Returns:
        What `train` returns, and `method`, `point` (all settings), `steps`, `train_seconds` (wall),
        `cpu_seconds` (of this process, from the training on), `budget` (of documents per step),
        `queries_seen`, `documents_seen`, `documents_per_step`, `refreshes`; for ADORE sums of both stages,
        and `star`, the facts of the first.

    Raises:
        CropsError: the method or a setting is unknown, or as `train`.
    """
    method = find_method(name)
    settings = method.settings(point)
    rendering = rendering_for(config)
    if method.miner is mine_bm25 and rendering is not PLAIN:
        raise CropsError(f"{name}: BM25 reads texts and {config.encoder} ids; take an encoder of texts")

    def read(keep: Source, labels: Mapping[Source, int]) -> TrainingData:
        data = load_samples(samples, keep=keep, labels=labels, rendering=rendering)
        return data if held_out is None else data.select(~is_validation(data.query_id, held_out))

    if documents is None:
        documents = documents_per_step(read(BUDGET_SOURCES, DEFAULT_LABELS), config, seed)
    mining = Mining(
        load_catalogue(samples, rendering),
        documents,
        _miner(method, settings, config),
        int(settings["negatives"]) or None,
        notes={"method": name, "point": settings},
    )
    data = read(method.keep, method.labels or DEFAULT_LABELS)
    learn = partial(train, data, seed=seed, cache=cache, evaluation=evaluation, fresh=True)
    start = time.process_time()
    if method.live_queries:
        facts = _star_then_adore(learn, mining, out, _config(method, settings, config), settings)
    else:
        facts = learn(out, _config(method, settings, config), mining=mining)
    return {**facts, "train_seconds": facts["seconds"]["train"], "cpu_seconds": time.process_time() - start}


def _config(method: Method, settings: Mapping[str, Value], config: TrainingConfig) -> TrainingConfig:
    """Return the run's settings with those of the method laid over them."""
    changes = {
        "loss": method.loss,
        "learning_rate": config.learning_rate * settings["learning_rate_scale"],
        # Nothing of a method's miner is in a checkpoint.
        "checkpoint_steps": config.steps,
        **{name: settings[name] for name in COPIED},
    }
    return config.model_copy(update=changes)


def _miner(
    method: Method, settings: Mapping[str, Value], config: TrainingConfig
) -> Callable[[Corpus], Miner] | None:
    sampler = method.miner
    if sampler is None:
        return None
    schedule = Schedule(
        warm_up=round(settings["warm_up"] * config.steps),
        refresh=int(settings["refresh"]),
        temperature=float(settings["temperature"]),
    )
    return lambda corpus: sampler(corpus, schedule)


def _star_then_adore(
    learn: Callable[..., dict[str, Any]],
    mining: Mining,
    out: Path,
    config: TrainingConfig,
    settings: Mapping[str, Value],
) -> dict[str, Any]:
    """Train STAR for the first steps, then the query tower alone for the rest; return the facts of both."""
    last = max(1, round(settings["query_share"] * config.steps))
    first = out.with_name(f".{out.name}.star")
    try:
        star = learn(first, config.model_copy(update={"steps": config.steps - last}), mining=mining)
        query_side = {
            "init": str(first),
            "steps": last,
            "towers": "separate",
            "train_documents": False,
            "in_batch": False,
            "temperature": star["temperature"],
        }
        notes = {**mining.notes, "star": star}
        live = replace(mining, miner=mine_adore, negatives=None, notes=notes)
        adore = learn(out, config.model_copy(update=query_side), mining=live)
    finally:
        shutil.rmtree(first, ignore_errors=True)
    summed = {
        name: star[name] + adore[name] for name in ("steps", "queries_seen", "documents_seen", "refreshes")
    }
    seconds = {part: star["seconds"].get(part, 0.0) + spent for part, spent in adore["seconds"].items()}
    per_step = summed["documents_seen"] / summed["steps"]
    return {**adore, **summed, "documents_per_step": per_step, "seconds": seconds}
