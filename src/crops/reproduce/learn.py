"""The training of a cell: the method's own, or one that is watched on the validation queries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from crops.config import TrainingConfig
from crops.outputs import cache_folder
from crops.reproduce.cells import Cell

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from crops.training import Evaluation

WATCHED_STEPS = 25
"""Steps between two looks at the validation queries."""
SCORE = "score"
"""Mean of validation recall@100 on clicks and on reformulations (`crops.training.validation`)."""


def learn(cell: Cell, samples: Path, model: Path) -> dict[str, Any]:
    """Train a cell's method and write its model.

    A validated cell is trained without the validation queries and evaluated on them every `WATCHED_STEPS`
    (evaluations.jsonl), to the last step.

    Returns:
        What `crops.training.methods.fit_method` returns.

    Raises:
        CropsError: the method is unknown, or its training failed.
    """
    from crops.training.methods import fit_method  # torch takes seconds to import: not for --help

    config = cell.run.training
    watched: dict[str, Any] = {}
    if cell.validated:
        config = config.model_copy(update={"eval_steps": WATCHED_STEPS, "patience": config.steps})
        watched = {"held_out": 0, "evaluation": _evaluation(config, samples)}
    facts = fit_method(
        cell.method,
        samples,
        model,
        config,
        seed=cell.run.seed,
        cache=cache_folder(),
        point=cell.point or None,
        **watched,
    )
    return {**facts, "steps": config.steps}


def _evaluation(config: TrainingConfig, samples: Path) -> Evaluation:
    """Return the evaluation of an encoder on the validation queries."""
    from crops.encoders import rendering_for
    from crops.retrieval import ExactRetriever
    from crops.training import Evaluation
    from crops.training.validation import load_catalogue, validate, validation_sets

    rendering = rendering_for(config)
    catalogue = load_catalogue(samples, rendering)
    sets = validation_sets(samples, catalogue.ids)

    def metrics(encoder: SentenceTransformer) -> dict[str, float]:
        retriever = ExactRetriever(encoder, *catalogue, render_query=rendering.query)
        return validate(retriever, sets)

    return Evaluation(metrics, SCORE)
