"""Settings of each method from its stated grid, chosen on the validation part of the training day."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from crops.config import TrainingConfig
from crops.encoders import rendering_for
from crops.outputs import console
from crops.retrieval import BM25Retriever, ExactRetriever
from crops.retrieval.bm25 import Tokeniser
from crops.text import PLAIN, Rendering
from crops.training.groups import Catalogue
from crops.training.methods import (
    Point,
    ValidationSets,
    find_method,
    fit_method,
    load_catalogue,
    recalls,
    summarise,
    validation_sets,
)

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
    tokeniser: Tokeniser = "english",
) -> dict[str, Any]:
    """Try a method's grid on the held-out queries of the mined days and write the outcome as JSON.

    For each fold a point trains without the fold's queries and is judged on them: its score is that of
    `crops.training.methods.summarise`.

    Args:
        name: a key of `crops.training.methods.METHODS`, or `bm25`.
        samples: a folder of `crops mine`.
        out: folder that gets `<name>.json`.
        config: as of `fit_method`.
        seed: of batches and samplers, the same for all points.
        cache: see `crops.encoders.load_encoder`.
        folds: tenths of the queries that are held out, one after the other (at most 10).
        tokeniser: of BM25.

    Returns:
        `method`; `points`, each with `point`, `metrics` and `seconds` (wall); `best`, the point of the
        highest score, the first one of equals.

    Raises:
        CropsError: as `fit_method` and `validation_sets`.
    """
    rendering = PLAIN if name == BM25 else rendering_for(config)
    catalogue = load_catalogue(samples, rendering)
    sets = [validation_sets(samples, catalogue.ids, fold) for fold in range(folds)]
    if name == BM25:
        tried = _tune_bm25(catalogue, sets, tokeniser)
    else:
        train = partial(fit_method, name, samples, config=config, seed=seed, cache=cache)
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
    catalogue: Catalogue, sets: Sequence[ValidationSets], tokeniser: Tokeniser
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
