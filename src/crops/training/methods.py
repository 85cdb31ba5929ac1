"""The methods of the paper's tables, each as settings of the one trainer: what it learns from, and negatives.

All methods share encoder, initialisation, queries and their order, steps, and documents per step
(`crops.training.methods.documents_per_step`). What its own sources and sampler leave of that budget, random
documents of the catalogue fill up.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.config import TrainingConfig
from crops.encoders import rendering_for
from crops.errors import CropsError, nearest
from crops.evaluation import recall_at_k
from crops.labels import ALL_SOURCES, DEFAULT_LABELS, SEARCH_SOURCES, Source
from crops.protocols import Retriever
from crops.retrieval import load_items
from crops.text import PLAIN, Rendering, has_text
from crops.training.fit import train
from crops.training.groups import Catalogue, MemoryGroups, TrainingData
from crops.training.mining import (
    Corpus,
    Miner,
    Mining,
    Schedule,
    mine_adore,
    mine_ance,
    mine_bm25,
    mine_noise,
    mine_star,
    mine_tri,
)
from crops.training.sampler import GroupSampler
from crops.training.samples import Samples, load_samples
from crops.training.trainer import Evaluation

__all__ = ["BUDGET_SOURCES", "METHODS", "Method", "Point", "documents_per_step", "find_method", "fit_method"]

Value = bool | int | float

Point = Mapping[str, Value]

"""Settings of a method; see `SETTINGS`."""

SETTINGS: dict[str, Value] = {
    "learning_rate_scale": 1.0,
    "temperature": 0.05,
    "docs_per_source": 4,
    "min_anchor_label": 1,
    "negatives": 0,
    "in_batch": True,
    "warm_up": 0.2,
    "refresh": 50,
    "query_share": 0.25,
}

"""What a point may set, with its default: a factor of the run's learning rate; the start temperature; most
documents per (label, source); the lowest label that is contrasted with what is below it; most own negatives
per query (0: what the budget of documents leaves); whether other queries' documents are negatives; the share
of the steps before the first index; steps between two indexes; the share of the steps that train the query
tower alone (ADORE)."""


def _grid(*variants: Point) -> tuple[Point, ...]:
    """Return six points: each variant at once and twice the run's learning rate, of two at half as well."""
    scales = (1.0, 2.0) if len(variants) > 2 else (1.0, 2.0, 0.5)
    return tuple({"learning_rate_scale": scale, **variant} for scale in scales for variant in variants)


@dataclass(frozen=True)
class Method:
    """A row of the paper's tables."""

    title: str
    paper: str
    """Where it comes from."""
    trains_on: str
    """What it knows of the logs."""
    keep: Source
    """The sources of its groups."""
    loss: str
    """See `crops.config.TrainingConfig.loss`."""
    grid: tuple[Point, ...]
    """What is tried on the validation part."""
    labels: Mapping[Source, int] | None = None
    """Label by source, the paper's (`crops.labels.DEFAULT_LABELS`) when None."""
    miner: Callable[[Corpus, Schedule], Miner] | None = None
    """Where its own negatives come from."""
    defaults: Point | None = None
    """Settings that differ from `SETTINGS`."""
    live_queries: bool = False
    """Whether a second stage trains the query tower against the documents of the first."""

    def settings(self, point: Point | None) -> dict[str, Value]:
        """Return all settings of the method at a point of its grid.

        Raises:
            CropsError: a setting is unknown.
        """
        for key in point or {}:
            if key not in SETTINGS:
                known = ", ".join(SETTINGS)
                raise CropsError(
                    f"unknown setting '{key}' of a method; known: {known}.{nearest(key, SETTINGS)}"
                )
        return {**SETTINGS, **(self.defaults or {}), **(point or {})}


_CLICKS = "clicked documents as positives, nothing else"

_GRADED = _grid({"docs_per_source": 1}, {"docs_per_source": 2}, {"docs_per_source": 4})

_MINED = _grid({"negatives": 1}, {"negatives": 4})

_P1 = SEARCH_SOURCES | Source.REFORMULATION

_P2 = _P1 | Source.FEED

_CROPS = "CroPS, AAAI 2026 (arXiv 2511.15443)"

METHODS: dict[str, Method] = {
    "nce": Method(
        "NCE",
        "Gutmann & Hyvärinen, AISTATS 2010",
        _CLICKS,
        Source.CLICKED,
        "nce",
        _grid({"temperature": 0.05}, {"temperature": 0.1}, {"temperature": 0.2}),
        miner=mine_noise,
        defaults={"in_batch": False},
    ),
    "dpr": Method(
        "DPR",
        "Karpukhin et al., EMNLP 2020",
        _CLICKS,
        Source.CLICKED,
        "infonce_binary",
        _MINED,
        miner=mine_bm25,
        defaults={"negatives": 1},
    ),
    "ance": Method(
        "ANCE",
        "Xiong et al., ICLR 2021",
        _CLICKS,
        Source.CLICKED,
        "infonce_binary",
        _grid({"in_batch": False, "negatives": 0}, {"in_batch": True, "negatives": 4}),
        miner=mine_ance,
        defaults={"in_batch": False},
    ),
    "star": Method(
        "STAR",
        "Zhan et al., SIGIR 2021 (arXiv 2104.08051), STAR",
        _CLICKS,
        Source.CLICKED,
        "infonce_binary",
        _MINED,
        miner=mine_star,
        defaults={"negatives": 4},
    ),
    "adore": Method(
        "ADORE+STAR",
        "Zhan et al., SIGIR 2021 (arXiv 2104.08051), STAR and ADORE",
        _CLICKS,
        Source.CLICKED,
        "infonce_binary",
        _grid({"query_share": 0.125}, {"query_share": 0.25}, {"query_share": 0.5}),
        miner=mine_star,
        defaults={"negatives": 4},
        live_queries=True,
    ),
    "trisampler": Method(
        "TriSampler",
        "Yang et al., AAAI 2024 (arXiv 2402.11855)",
        _CLICKS,
        Source.CLICKED,
        "infonce_binary",
        _MINED,
        miner=mine_tri,
        defaults={"negatives": 4},
    ),
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

"""The trained rows of Tables 2, 3 and 4, and two of ours. `fs_lr` is also Table 3's baseline; `crops` also
its row + P3 and Table 4's H-InfoNCE."""


def find_method(name: str) -> Method:
    """Return a method by its key.

    Raises:
        CropsError: there is none of that name.
    """
    if name not in METHODS:
        raise CropsError(f"unknown method '{name}'; known: {', '.join(METHODS)}.{nearest(name, METHODS)}")
    return METHODS[name]


# ------------------------------------------------------------------------------
# Trains a method of the paper's tables (`crops.training.methods`) with the one trainer.


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
        held_out: leave out the queries of this fold (`crops.training.methods`).
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


# ------------------------------------------------------------------------------
# The validation part of the training day: queries held out by their hash, to tune settings on. Nothing of the
# test day is read. A validation query has two lists to find, as the test sets have: what was clicked for it
# on the mined days (CT), and what was consumed after its rewordings and passed theta (QR).


SHARE = 10

"""One query in so many is held out: there are as many folds."""

RECALL_K = 100

Ids = NDArray[np.int64]


def is_validation(query_id: Ids, fold: int = 0) -> NDArray[np.bool_]:
    """Return which queries [n] a fold holds out: ids are hashes, so that one in ten is by its remainder."""
    return np.asarray(np.mod(query_id, SHARE) == fold)


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


class ValidationSets(NamedTuple):
    """What the held-out queries should find."""

    queries: list[str]
    """n normalised texts."""
    clicked: list[Ids]
    """For each query the clicked items (may be none)."""
    reworded: list[Ids]
    """For each query the items of P1."""


def validation_sets(mined: Path, catalogue: Ids, fold: int = 0) -> ValidationSets:
    """Return the queries that a fold of a mined folder holds out and that have something to find.

    Args:
        mined: a folder of `crops mine`.
        catalogue: ids of what can be found.
        fold: from 0 to `SHARE` - 1.

    Raises:
        CropsError: there is none: the mined days are too small to tune on.
    """
    samples = Samples(mined)
    pairs = _read(samples, "samples", ["query_id", "item_id", "sources"])
    query, item, sources = (pairs[name].to_numpy() for name in ("query_id", "item_id", "sources"))
    wanted = int(Source.CLICKED | Source.REFORMULATION)
    held = is_validation(query, fold) & ((sources & wanted) > 0) & np.isin(item, catalogue)
    query, item, sources = query[held], item[held], sources[held]
    if not len(query):
        raise CropsError(f"{mined}: no held-out query has a clicked item; tune on more days")
    ids = np.unique(query)
    table = _read(samples, "queries", ["query_id", "query"])
    texts = dict(zip(table["query_id"].to_pylist(), table["query"].to_pylist(), strict=True))
    lists = [
        [item[(query == one) & ((sources & int(source)) > 0)] for one in ids]
        for source in (Source.CLICKED, Source.REFORMULATION)
    ]
    return ValidationSets([texts[one] for one in ids.tolist()], *lists)


def validate(retriever: Retriever, sets: ValidationSets, k: int = RECALL_K) -> dict[str, float]:
    """Return how much of what they should find the held-out queries find.

    Args:
        retriever: over the catalogue.
        sets: the queries and their lists.
        k: cut-off.

    Returns:
        As `summarise`.
    """
    return summarise([recalls(retriever, sets, k)])


def summarise(folds: Sequence[Mapping[str, NDArray[np.float64]]]) -> dict[str, float]:
    """Return the means of the recalls of some folds over all their queries.

    Args:
        folds: of each fold what `recalls` returns.

    Returns:
        `recall@k/ct` and `recall@k/qr`, means over the queries that have such a list (NaN where none has),
        and `score`, the mean of those that are defined.
    """
    found = {}
    for name in folds[0]:
        values = np.concatenate([fold[name] for fold in folds])
        defined = values[~np.isnan(values)]
        found[name] = float(defined.mean()) if len(defined) else float("nan")
    return {**found, "score": float(np.nanmean(list(found.values())))}


def recalls(retriever: Retriever, sets: ValidationSets, k: int = RECALL_K) -> dict[str, NDArray[np.float64]]:
    """Return `recall@k/ct` and `recall@k/qr` of each held-out query, [n], NaN where it has no such list."""
    ranked, _ = retriever.search(sets.queries, k)
    lists = {"ct": sets.clicked, "qr": sets.reworded}
    return {f"recall@{k}/{name}": recall_at_k(ranked, relevant, k) for name, relevant in lists.items()}


def _read(samples: Samples, table: str, columns: list[str]) -> pa.Table:
    return pa.concat_tables([pq.read_table(file, columns=columns) for file in samples.files(table)])
