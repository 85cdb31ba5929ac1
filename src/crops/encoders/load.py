"""Which encoder a run trains."""

from __future__ import annotations

from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from transformers.utils import logging as transformers_logging

from crops.config import TrainingConfig
from crops.encoders.static import distill
from crops.errors import CropsError
from crops.outputs import cache_folder, publish, timed, write_manifest
from crops.relevance.models import local_folder, model_hash

BASE = "minilm"
"""What the static encoder is distilled from."""


def load_encoder(config: TrainingConfig, cache: Path | None = None) -> SentenceTransformer:
    """Return the encoder that `config` names, with unit-length output.

    Args:
        config: `encoder` = `static`, `minilm` or any SentenceTransformer path or name; `init` = a model
            folder to continue from instead; `dim` and `max_tokens`.
        cache: folder that keeps the distilled static encoder; `crops.outputs.cache_folder()` when None.

    Raises:
        CropsError: the model cannot be loaded or does not embed texts; a MissingExtraError names the extra.
    """
    if config.init is None and config.encoder == "static":
        return _static(config, cache)
    encoder = _load(local_folder(config.init or config.encoder))
    if not isinstance(encoder[0], StaticEmbedding):
        encoder.max_seq_length = min(config.max_tokens, encoder.max_seq_length or config.max_tokens)
    if not isinstance(encoder[-1], Normalize):
        encoder.append(Normalize())
    return encoder


def _static(config: TrainingConfig, cache: Path | None) -> SentenceTransformer:
    """Return the distilled encoder, distilled once per base model, width and length."""
    base = local_folder(BASE)
    key = f"static-{model_hash(base)[:12]}-{config.dim}-{config.max_tokens}"
    kept = (cache or cache_folder()) / key
    if not kept.exists():
        seconds: dict[str, float] = {}
        with publish(kept, "distill") as staging:
            with timed(seconds, "distill the static encoder (once)"):
                encoder = distill(_load(base), config.dim, config.max_tokens)
            encoder.save(str(staging), create_model_card=False)
            write_manifest(staging, "distill", config=config.model_dump(exclude_none=True), seconds=seconds)
    return _load(kept)


def _load(folder: Path) -> SentenceTransformer:
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        encoder = SentenceTransformer(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CropsError(f"{folder} is not a model that sentence-transformers can load: {error}") from error
    try:
        encoder.encode("text")
    except KeyError as error:
        raise CropsError(f"the encoder in {folder} has no pooling layer: a text gets no {error}") from error
    return encoder
