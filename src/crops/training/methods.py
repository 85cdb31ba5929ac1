"""The methods of the paper's tables, each as settings of the one trainer: what it learns from, and negatives.

All methods share encoder, initialisation, queries and their order, steps, and documents per step
(`documents_per_step`). What its own sources and sampler leave of that budget, random documents of the
catalogue fill up.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crops.config import TrainingConfig
from crops.encoders import rendering_for
from crops.errors import CropsError, nearest
from crops.labels import ALL_SOURCES, DEFAULT_LABELS, SEARCH_SOURCES, Source
from crops.negatives import BASELINES
from crops.negatives.base import Corpus, Method, Miner, Point, Schedule, Value, grid
from crops.outputs import Scratch
from crops.retrieval import load_items
from crops.text import DOCUMENT_FIELDS, PLAIN, Rendering, has_text
from crops.training.fit import train
from crops.training.groups import store_groups
from crops.training.mining import Mining
from crops.training.sampler import GroupSampler
from crops.training.samples import Catalogue, Samples
from crops.training.trainer import Evaluation

_GRADED = grid({"docs_per_source": 1}, {"docs_per_source": 2}, {"docs_per_source": 4})
_P1 = SEARCH_SOURCES | Source.REFORMULATION
_P2 = _P1 | Source.FEED
_CROPS = "CroPS, AAAI 2026 (arXiv 2511.15443)"

METHODS: dict[str, Method] = {
    **BASELINES,
    "fs_lr": Method(
        "FS-LR",
        "Zheng et al., Full Stage Learning to Rank (arXiv 2405.04844); the baseline of CroPS, Table 3",
        "the stages of search: labels 4, 3, 2, 1",
        SEARCH_SOURCES,
        "h_infonce",
        _GRADED,
    ),
    "plus_p1": Method("+ P1", _CROPS, "FS-LR and P1 at label 5", _P1, "h_infonce", _GRADED),
    "plus_p2": Method("+ P2", _CROPS, "FS-LR, P1, and P2 at label 4", _P2, "h_infonce", _GRADED),
    "crops": Method("CroPS", _CROPS, "FS-LR, P1, P2, and P3 at label 4", ALL_SOURCES, "h_infonce", _GRADED),
    "binary": Method(
        "binary labels", _CROPS, "as CroPS, labels 4 and up alike", ALL_SOURCES, "infonce_binary", _GRADED
    ),
    "p1_at_4": Method(
        "P1 at label 4",
        _CROPS,
        "as CroPS, P1 at label 4",
        ALL_SOURCES,
        "h_infonce",
        _GRADED,
        labels={**DEFAULT_LABELS, Source.REFORMULATION: 4},
    ),
    "crops_anchors": Method(
        "CroPS, high anchors",
        "ours",
        "as CroPS; low labels are negatives only",
        ALL_SOURCES,
        "h_infonce",
        tuple({"docs_per_source": most, "min_anchor_label": label} for most in (1, 2) for label in (2, 3, 4)),
        defaults={"min_anchor_label": 3},
    ),
    "infonce_graded": Method("InfoNCE", _CROPS, "as CroPS", ALL_SOURCES, "infonce_graded", _GRADED),
    "softmax_ce": Method("Softmax-CE", _CROPS, "as CroPS", ALL_SOURCES, "softmax_ce", _GRADED),
    "softmax_ce_lower": Method(
        "Softmax-CE over lower labels", "ours", "as CroPS", ALL_SOURCES, "softmax_ce_lower", _GRADED
    ),
}
"""The trained rows of Tables 2, 3 and 4, and two of ours: the baselines of `crops.negatives`, and what
differs in sources, labels or loss. `fs_lr` is also Table 3's baseline; `crops` also its row + P3 and Table
4's H-InfoNCE."""
COPIED = ("temperature", "docs_per_source", "min_anchor_label", "in_batch")
"""Settings of a method that are settings of the trainer."""
BUDGET_SOURCES = ALL_SOURCES & ~Source.KNOWLEDGE
"""What the shared budget is drawn from. Not P3: methods see as much, however many documents an LLM wrote."""
BUDGET_BATCHES = 16
"""Batches of the CroPS arm that the budget of documents is the mean of."""
ALL_GROUPS = 2**62
"""Groups of a buffer: all are shuffled together, however many there are."""


def find_method(name: str) -> Method:
    """Return a method by its key.

    Raises:
        CropsError: there is none of that name.
    """
    if name not in METHODS:
        raise CropsError(f"unknown method '{name}'; known: {', '.join(METHODS)}.{nearest(name, METHODS)}")
    return METHODS[name]


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
    fields: tuple[str, ...] = DOCUMENT_FIELDS,
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
        held_out: leave out the queries of this fold (`crops.training.tune`).
        evaluation: along the way, as of `train`.
        fields: what stands for a document, of the groups and of the catalogue.

    Returns:
        What `train` returns, and `method`, `point` (all settings), `steps`, `train_seconds` (wall),
        `cpu_seconds` (of this process, from the training on), `budget` (of documents per step),
        `queries_seen`, `documents_seen`, `documents_per_step`, `refreshes`; for ADORE sums of both stages,
        and `star`, those of the first.

    Raises:
        CropsError: the method or a setting is unknown, or as `train`.
    """
    method = find_method(name)
    settings = method.settings(point)
    config = config.model_copy(update={"buffer_groups": ALL_GROUPS})
    rendering = rendering_for(config)
    if method.reads_texts and rendering is not PLAIN:
        raise CropsError(f"{name}: BM25 reads texts and {config.encoder} ids; take an encoder of texts")
    data = Samples(
        samples,
        method.keep,
        labels=method.labels or DEFAULT_LABELS,
        held_out=held_out,
        fields=fields,
    )
    rendering = data.rendering(rendering)
    if documents is None:
        budget = replace(data, keep=BUDGET_SOURCES, labels=DEFAULT_LABELS)
        documents = documents_per_step(budget, rendering, config, seed)
    mining = Mining(
        load_catalogue(samples, rendering),
        documents,
        _miner(method, settings, config),
        int(settings["negatives"]) or None,
        notes={"method": name, "point": settings},
    )
    learn = partial(train, data, seed=seed, cache=cache, evaluation=evaluation, fresh=True)
    start = time.process_time()
    if method.query_miner is not None:
        learned = _in_two_stages(
            learn, mining, method.query_miner, out, _config(method, settings, config), settings
        )
    else:
        learned = learn(out, _config(method, settings, config), mining=mining)
    return {
        **learned,
        "train_seconds": learned["seconds"]["train"],
        "cpu_seconds": time.process_time() - start,
    }


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


def _in_two_stages(
    learn: Callable[..., dict[str, Any]],
    mining: Mining,
    query_miner: Callable[[Corpus], Miner],
    out: Path,
    config: TrainingConfig,
    settings: Mapping[str, Value],
) -> dict[str, Any]:
    """Train STAR for the first steps, then the query tower alone for the rest; return what both did."""
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
        live = replace(mining, miner=query_miner, negatives=None, notes=notes)
        adore = learn(out, config.model_copy(update=query_side), mining=live)
    finally:
        shutil.rmtree(first, ignore_errors=True)
    summed = {
        name: star[name] + adore[name] for name in ("steps", "queries_seen", "documents_seen", "refreshes")
    }
    seconds = {part: star["seconds"].get(part, 0.0) + spent for part, spent in adore["seconds"].items()}
    per_step = summed["documents_seen"] / summed["steps"]
    return {**adore, **summed, "documents_per_step": per_step, "seconds": seconds}


def documents_per_step(data: Samples, rendering: Rendering, config: TrainingConfig, seed: int) -> int:
    """Return the budget of documents that methods share: the mean batch of these groups, rounded up.

    Args:
        data: groups of `BUDGET_SOURCES`.
        rendering: what the encoder reads.
        config: sizes of a batch.
        seed: of the batches.
    """
    with Scratch("crops-budget-") as folder:
        groups = store_groups(data, Path(folder) / "groups", rendering, config.min_anchor_label, config.beta)
        sampler = GroupSampler(groups, config, seed)
        sizes = [len(sampler.draw(step).pair) for step in range(BUDGET_BATCHES)]
    return int(np.ceil(np.mean(sizes)))


def load_catalogue(mined: Path, rendering: Rendering) -> Catalogue:
    """Return the items of a mined folder that were there when its last day ended and have a text.

    Raises:
        CropsError: the folder is no output of `crops mine`.
    """
    samples = Samples(mined)
    table = pa.concat_tables(
        [pq.read_table(file, columns=["item_id", "uploaded_at"]) for file in samples.files("items")]
    )
    uploaded = table["uploaded_at"].cast(pa.int64()).fill_null(0).to_numpy()
    ids, texts = load_items(mined, table["item_id"].to_numpy()[uploaded < _end_of_days(mined)], rendering)
    kept = [row for row, text in enumerate(texts) if has_text(text)]
    return Catalogue(ids[kept], [texts[row] for row in kept])


def _end_of_days(mined: Path) -> int:
    """Return when the last mined day ended, in microseconds UTC."""
    path = mined / "report.json"
    try:
        last = max(json.loads(path.read_text())["days"])
        end = datetime.fromisoformat(last).replace(tzinfo=UTC) + timedelta(days=1)
    except (OSError, ValueError, KeyError) as error:
        raise CropsError(
            f"{path}: cannot tell the mined days: {error}; make it again with `crops mine`"
        ) from error
    return int(end.timestamp()) * 1_000_000
