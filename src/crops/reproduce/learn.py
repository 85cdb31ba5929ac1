"""The training of a cell: the method's own, or one that is watched on the validation queries."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crops.labels import DEFAULT_LABELS, Source
from crops.outputs import cache_folder
from crops.reproduce.cells import Cell

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

WATCHED_STEPS = 25
"""Steps between two looks at the validation queries."""
SCORE = "score"
"""Mean of validation recall@100 on clicks and on reformulations (`crops.training.validation`)."""


def learn(cell: Cell, samples: Path, model: Path) -> dict[str, Any]:
    """Train a cell's method and write its model.

    Returns:
        What `crops.training.methods.fit_method` returns.

    Raises:
        CropsError: the method is unknown, or its training failed.
    """
    from crops.training.methods import fit_method  # torch takes seconds to import: not for --help

    if cell.validated:
        return _watched(cell, samples, model)
    return fit_method(
        cell.method,
        samples,
        model,
        cell.run.training,
        seed=cell.run.seed,
        cache=cache_folder(),
        point=cell.point or None,
    )


def _watched(cell: Cell, samples: Path, model: Path) -> dict[str, Any]:
    """Train without the validation queries and evaluate on them every `WATCHED_STEPS` (evaluations.jsonl)."""
    from crops import training
    from crops.encoders import rendering_for
    from crops.retrieval import ExactRetriever
    from crops.training.methods import BUDGET_SOURCES, documents_per_step, find_method
    from crops.training.mining import Mining
    from crops.training.validation import is_validation, load_catalogue, validate, validation_sets

    method, config = find_method(cell.method), cell.run.training
    settings = method.settings(cell.point or None)
    rendering = rendering_for(config)

    def read(keep: Source, labels: Mapping[Source, int]) -> training.TrainingData:
        data = training.load_samples(samples, keep, labels, rendering)
        return data.select(~is_validation(data.query_id))

    catalogue = load_catalogue(samples, rendering)
    sets = validation_sets(samples, catalogue.ids)

    def metrics(encoder: SentenceTransformer) -> dict[str, float]:
        retriever = ExactRetriever(encoder, *catalogue, render_query=rendering.query)
        return validate(retriever, sets)

    changes = {
        "loss": method.loss,
        "learning_rate": config.learning_rate * settings["learning_rate_scale"],
        "temperature": settings["temperature"],
        "docs_per_source": settings["docs_per_source"],
        "eval_steps": WATCHED_STEPS,
        "patience": config.steps,
    }
    # Random documents fill a step up, as in `fit_method`: the steps of both cost the same.
    documents = documents_per_step(read(BUDGET_SOURCES, DEFAULT_LABELS), config, cell.run.seed)
    fill = Mining(catalogue, documents, None, None)
    data = read(method.keep, method.labels or DEFAULT_LABELS)
    start = time.process_time()
    facts = training.train(
        data,
        model,
        config.model_copy(update=changes),
        seed=cell.run.seed,
        cache=cache_folder(),
        evaluation=training.Evaluation(metrics, SCORE),
        mining=fill,
        fresh=True,
    )
    return {**facts, "steps": config.steps, "cpu_seconds": time.process_time() - start}
