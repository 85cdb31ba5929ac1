"""Settings of each method from its stated grid, chosen on the validation part of the training day.

Queries are held out by their hash, to tune settings on; nothing of the test day is read. A validation query
has two lists to find, as the test sets have: what was clicked for it on the mined days (CT), and what was
consumed after its rewordings and passed theta (QR).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from crops.config import TrainingConfig
from crops.encoders import rendering_for
from crops.errors import CropsError
from crops.evaluation import recall_at_k
from crops.labels import Source
from crops.negatives.base import Point
from crops.outputs import console
from crops.protocols import Retriever
from crops.retrieval import BM25Retriever, ExactRetriever
from crops.retrieval.bm25 import Tokeniser
from crops.text import DOCUMENT_FIELDS, PLAIN, Rendering
from crops.training.methods import find_method, fit_method, load_catalogue
from crops.training.samples import FOLDS, Catalogue, Samples

Ids = NDArray[np.int64]
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
    folds: int = 1,
    tokeniser: Tokeniser | None = None,
    fields: tuple[str, ...] = DOCUMENT_FIELDS,
) -> dict[str, Any]:
    """Try a method's grid on the held-out queries of the mined days and write the outcome as JSON.

    For each fold a point trains without the fold's queries and is judged on them: its score is that of
    `summarise`.

    Args:
        name: a key of `crops.training.methods.METHODS`, or `bm25`.
        samples: a folder of `crops mine`.
        out: folder that gets `<name>.json`.
        config: as of `fit_method`.
        seed: of batches and samplers, the same for all points.
        cache: see `crops.encoders.load_encoder`.
        folds: tenths of the queries that are held out, one after the other (at most 10).
        tokeniser: of BM25; chosen by the texts when None.
        fields: what stands for a document.

    Returns:
        `method`; `points`, each with `point`, `metrics` and `seconds` (wall); `best`, the point of the
        highest score, the first one of equals.

    Raises:
        CropsError: as `fit_method` and `validation_sets`.
    """
    rendering = (PLAIN if name == BM25 else rendering_for(config)).of(fields)
    catalogue = load_catalogue(samples, rendering)
    sets = [validation_sets(samples, catalogue.ids, fold) for fold in range(folds)]
    if name == BM25:
        tried = _tune_bm25(catalogue, sets, tokeniser)
    else:
        train = partial(fit_method, name, samples, config=config, seed=seed, cache=cache, fields=fields)
        tried = _tune(name, train, out / "models", rendering, catalogue, sets)
    best = max(tried, key=lambda one: one["metrics"]["score"])
    found = {"method": name, "points": tried, "best": best["point"]}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    return found


def _tune(
    name: str,
    train: Callable[..., dict[str, Any]],
    models: Path,
    rendering: Rendering,
    catalogue: Catalogue,
    sets: Sequence[ValidationSets],
) -> list[dict[str, Any]]:
    tried, documents = [], None
    for number, point in enumerate(find_method(name).grid):
        start, found = time.perf_counter(), []
        for fold, held_out in enumerate(sets):
            model = models / f"{name}-{number}-{fold}"
            documents = train(out=model, point=point, documents=documents, held_out=fold)["budget"]
            encoder = SentenceTransformer(str(model), device="cpu")
            retriever = ExactRetriever(encoder, *catalogue, render_query=rendering.query)
            found.append(recalls(retriever, held_out))
        tried.append(_line(name, point, summarise(found), start))
    return tried


def _tune_bm25(
    catalogue: Catalogue, sets: Sequence[ValidationSets], tokeniser: Tokeniser | None
) -> list[dict[str, Any]]:
    tried = []
    for point in BM25_GRID:
        start = time.perf_counter()
        retriever = BM25Retriever(*catalogue, k1=point["k1"], b=point["b"], tokeniser=tokeniser)
        tried.append(_line(BM25, point, summarise([recalls(retriever, one) for one in sets]), start))
    return tried


def _line(name: str, point: Point, metrics: Mapping[str, float], start: float) -> dict[str, Any]:
    console.print(f"[dim]·[/dim] {name} {dict(point)}: {metrics['score']:.4f}")
    return {"point": dict(point), "metrics": dict(metrics), "seconds": round(time.perf_counter() - start, 2)}


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
    """Return the queries that a fold of a mined folder holds out and that have something to find.

    Args:
        mined: a folder of `crops mine`.
        catalogue: ids of what can be found.
        fold: from 0 to `FOLDS` - 1.

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
