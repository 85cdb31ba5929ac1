"""The methods of the paper's tables, each as settings of the one trainer: what it learns from, and negatives.

All methods share encoder, initialisation, queries and their order, steps, and documents per step
(`documents_per_step`). What its own sources and sampler leave of that budget, random documents of the
catalogue fill up.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from crops.config import RECIPES, TrainingConfig
from crops.encoders import rendering_for
from crops.errors import CropsError, nearest
from crops.evaluation import recall_at_k
from crops.labels import ALL_SOURCES, DEFAULT_LABELS, SEARCH_SOURCES, Source, parse_sources
from crops.negatives import BASELINES
from crops.negatives.base import Corpus, Ids, Method, Miner, Point, Schedule, Value, grid
from crops.outputs import Scratch, console
from crops.protocols import Retriever
from crops.relevance.encode import is_ngram_folder
from crops.retrieval import BM25Retriever, ExactRetriever, load_items
from crops.retrieval.bm25 import Tokeniser
from crops.text import DOCUMENT_FIELDS, PLAIN, Rendering, has_text
from crops.training.fit import train
from crops.training.groups import GroupSampler, store_groups
from crops.training.model import Mining
from crops.training.samples import FOLDS, Catalogue, Samples
from crops.training.trainer import Evaluation

_GRADED = grid({"docs_per_source": 1}, {"docs_per_source": 2}, {"docs_per_source": 4})
_P1 = SEARCH_SOURCES | Source.REFORMULATION
_P2 = _P1 | Source.FEED
_P3 = _P2 | Source.KNOWLEDGE
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
    "crops": Method("CroPS", _CROPS, "FS-LR, P1, P2, and P3 at label 4", _P3, "h_infonce", _GRADED),
    "oracle_theta": Method(
        "oracle θ", "ours", "FS-LR, and of P1 and P2 what is right by truth", _P2, "h_infonce", _GRADED
    ),
    "oracle_source": Method(
        "oracle source",
        "ours",
        "FS-LR, and documents that are right by truth at label 4",
        SEARCH_SOURCES | Source.PROMOTED,
        "h_infonce",
        _GRADED,
    ),
    "binary": Method(
        "binary labels", _CROPS, "as CroPS, labels 4 and up alike", _P3, "infonce_binary", _GRADED
    ),
    "p1_at_4": Method(
        "P1 at label 4",
        _CROPS,
        "as CroPS, P1 at label 4",
        _P3,
        "h_infonce",
        _GRADED,
        labels={**DEFAULT_LABELS, Source.REFORMULATION: 4},
    ),
    "crops_anchors": Method(
        "CroPS, high anchors",
        "ours",
        "as CroPS; low labels are negatives only",
        _P3,
        "h_infonce",
        tuple({"docs_per_source": most, "min_anchor_label": label} for most in (1, 2) for label in (2, 3, 4)),
        defaults={"min_anchor_label": 3},
    ),
    "infonce_graded": Method("InfoNCE", _CROPS, "as CroPS", _P3, "infonce_graded", _GRADED),
    "softmax_ce": Method("Softmax-CE", _CROPS, "as CroPS", _P3, "softmax_ce", _GRADED),
    "softmax_ce_lower": Method(
        "Softmax-CE over lower labels", "ours", "as CroPS", _P3, "softmax_ce_lower", _GRADED
    ),
    "recommended": Method(
        "recommended",
        "ours",
        "the sources and settings of the recipe",
        parse_sources(RECIPES["recommended"]["engine.sources"]),
        RECIPES["recommended"]["training.loss"],
        _GRADED,
        defaults={"docs_per_source": RECIPES["recommended"]["training.docs_per_source"]},
    ),
}
"""The trained rows of Tables 2, 3 and 4, three of ours and two oracles: the baselines of `crops.negatives`,
and what differs in sources, labels or loss. `fs_lr` is also Table 3's baseline; `crops` also its row + P3 and
Table 4's H-InfoNCE."""
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
        config: encoder, batches, steps, optimiser, shared by all methods; loss and sampling are the method's.
        point: settings of the method, its defaults where absent.
        documents: documents per step; `documents_per_step` of these samples' `BUDGET_SOURCES` when None.
        held_out: leave out the queries of this fold (`is_validation`).
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
    labels = method.labels or DEFAULT_LABELS
    data = Samples(samples, method.keep, labels=labels, held_out=held_out, fields=fields)
    rendering = data.rendering(rendering)
    if documents is None:
        budget = replace(data, keep=BUDGET_SOURCES, labels=DEFAULT_LABELS)
        documents = documents_per_step(budget, rendering, config, seed)
    sampler, warm_up, refresh = (
        method.miner,
        round(settings["warm_up"] * config.steps),
        int(settings["refresh"]),
    )
    schedule = Schedule(warm_up, refresh, float(settings["temperature"]))
    mining = Mining(
        load_catalogue(samples, rendering),
        documents,
        None if sampler is None else lambda corpus: sampler(corpus, schedule),
        int(settings["negatives"]) or None,
        notes={"method": name, "point": settings},
    )
    changes = {
        "loss": method.loss,
        "learning_rate": config.learning_rate * settings["learning_rate_scale"],
        # Nothing of a method's miner is in a checkpoint.
        "checkpoint_steps": config.steps,
        **{name: settings[name] for name in COPIED},
    }
    config = config.model_copy(update=changes)
    learn = partial(train, data, seed=seed, cache=cache, evaluation=evaluation, fresh=True)
    start = time.process_time()
    if method.query_miner is not None:
        learned = _in_two_stages(learn, mining, method.query_miner, out, config, settings)
    else:
        learned = learn(out, config, mining=mining)
    return {
        **learned,
        "train_seconds": learned["seconds"]["train"],
        "cpu_seconds": time.process_time() - start,
    }


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
    """Return the budget of documents that methods share: the mean batch of groups of `BUDGET_SOURCES`."""
    with Scratch("crops-budget-") as folder:
        groups = store_groups(data, Path(folder) / "groups", rendering, config.min_anchor_label, config.beta)
        sampler = GroupSampler(groups, config, seed)
        sizes = [len(sampler.draw(step).doc_id) for step in range(BUDGET_BATCHES)]
    return int(np.ceil(np.mean(sizes)))


def load_catalogue(mined: Path, rendering: Rendering) -> Catalogue:
    """Return the items of a mined folder that were there when its last day ended and have a text.

    Raises:
        CropsError: the folder is no output of `crops mine`.
    """
    table = _read(Samples(mined), "items", ["item_id", "uploaded_at"])
    path = mined / "report.json"
    try:
        last = max(json.loads(path.read_text())["days"])
        end = datetime.fromisoformat(last).replace(tzinfo=UTC) + timedelta(days=1)
    except (OSError, ValueError, KeyError) as error:
        raise CropsError(
            f"{path}: cannot tell the mined days: {error}; make it again with `crops mine`"
        ) from error
    uploaded = table["uploaded_at"].cast(pa.int64()).fill_null(0).to_numpy()
    there = uploaded < int(end.timestamp()) * 1_000_000
    ids, texts = load_items(mined, table["item_id"].to_numpy()[there], rendering)
    kept = [row for row, text in enumerate(texts) if has_text(text)]
    return Catalogue(ids[kept], [texts[row] for row in kept])


# Settings of each method from its stated grid, chosen on the validation part of the training day: queries are
# held out by their hash, and nothing of the test day is read. A validation query has two lists to find, as
# the test sets have: what was clicked for it on the mined days (CT), and what was consumed after its
# rewordings and passed theta (QR).

RECALL_K = 100
BM25 = "bm25"
BM25_GRID: tuple[dict[str, float], ...] = tuple(
    {"k1": k1, "b": b} for k1 in (0.6, 0.9, 1.2, 1.5) for b in (0.3, 0.5, 0.75)
)


def tune_method(
    name: str,
    samples: Path,
    out: Path,
    config: TrainingConfig,
    *,
    seed: int,
    cache: Path | None = None,
    fold: int = 0,
    tokeniser: Tokeniser | None = None,
    fields: tuple[str, ...] = DOCUMENT_FIELDS,
) -> dict[str, Any]:
    """Try a method's grid on the held-out queries of the mined days and write the outcome as JSON.

    A point trains without the queries of the fold and is judged on them, as `validate` says. Returned are
    `method`; `points`, each with `point`, `metrics` and `seconds` (wall).

    Args:
        name: a key of `METHODS`, or `bm25`.
        out: folder that gets `<name>.json`; the others as of `fit_method`.
        fold: the tenth of the queries that is held out (0 to 9).
        tokeniser: of BM25; chosen by the texts when None.

    Raises:
        CropsError: as `fit_method` and `validation_sets`.
    """
    rendering = (PLAIN if name == BM25 else rendering_for(config)).of(fields)
    catalogue = load_catalogue(samples, rendering)
    sets = validation_sets(samples, catalogue.ids, fold)
    points: Sequence[Point] = BM25_GRID if name == BM25 else find_method(name).grid
    tried: list[dict[str, Any]] = []
    documents = None
    for number, point in enumerate(points):
        start = time.perf_counter()
        retriever: Retriever
        if name == BM25:
            retriever = BM25Retriever(*catalogue, k1=point["k1"], b=point["b"], tokeniser=tokeniser)
        else:
            model = out / "models" / f"{name}-{number}"
            documents = fit_method(
                name,
                samples,
                model,
                config=config,
                seed=seed,
                cache=cache,
                point=point,
                documents=documents,
                held_out=fold,
                fields=fields,
            )["budget"]
            ours = is_ngram_folder(model)
            encoder = SentenceTransformer(str(model), device="cpu", trust_remote_code=ours)
            retriever = ExactRetriever(encoder, *catalogue, render_query=rendering.query)
        metrics, seconds = validate(retriever, sets), round(time.perf_counter() - start, 2)
        console.print(f"[dim]·[/dim] {name} {dict(point)}: {metrics['score']:.4f}")
        tried.append({"point": dict(point), "metrics": metrics, "seconds": seconds})
    outcome = {"method": name, "points": tried}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(outcome, indent=2) + "\n")
    return outcome


def is_validation(query_id: Ids, fold: int = 0) -> NDArray[np.bool_]:
    """Return which queries [n] a fold holds out: ids are hashes, so that one in ten is by its remainder."""
    return np.asarray(np.mod(query_id, FOLDS) == fold)


class ValidationSets(NamedTuple):
    """What the held-out queries should find."""

    queries: list[str]
    """n normalised texts."""
    clicked: list[Ids]
    """For each query the clicked items (may be none)."""
    reworded: list[Ids]
    """For each query the items of P1."""


def validation_sets(mined: Path, catalogue: Ids, fold: int = 0) -> ValidationSets:
    """Return the queries that a fold (from 0) of a mined folder holds out and that have something to find.

    `catalogue` holds the ids of what can be found.

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

    That is `recall@k/ct` and `recall@k/qr`, means over the queries that have such a list (NaN where none
    has), and `score`, the mean of those that are defined.
    """
    found = {}
    for name, values in recalls(retriever, sets, k).items():
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
