"""Which encoder a run trains, and how it is saved."""

from __future__ import annotations

from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers.utils import logging as transformers_logging

from crops.config import PRESET_TRAINING, TrainingConfig
from crops.encoders.static import distill
from crops.encoders.towers import attach_lora, freeze_documents, input_modules, merge_lora, separate_towers
from crops.encoders.two_tower import FEATURES, hide_ids, rendering_of, two_tower
from crops.errors import CropsError, nearest
from crops.outputs import cache_folder, publish, timed, write_manifest
from crops.relevance.encode import local_folder, model_hash
from crops.text import PLAIN, Rendering

BASE = "minilm"
"""What the static encoder is distilled from."""
TWO_TOWER = "two_tower"
DECODERS = {"qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B"}
"""Presets that are language models, with their names on the Hub: a text is its last token."""


def load_encoder(config: TrainingConfig, cache: str | Path | None = None) -> SentenceTransformer:
    """Return the encoder that `config` names, in single precision and with unit-length output.

    Args:
        config: `encoder` = a preset or any SentenceTransformer path or name; `init` = a model folder to
            continue from instead; `towers`, `train_documents`, the prompts, `lora_rank`, `dim`, `max_tokens`
            and the settings of the two-tower encoder.
        cache: folder that keeps the distilled static encoder; `crops.outputs.cache_folder()` when None.

    Raises:
        CropsError: the model cannot be loaded or does not embed texts, or cannot have the towers, prompts or
            adapters asked for; a MissingExtraError names the extra.
    """
    cache = None if cache is None else Path(cache)
    encoder = _as_asked(_base(config, cache).float(), config)
    if not config.train_documents:
        freeze_documents(encoder)
    return encoder


def _as_asked(encoder: SentenceTransformer, config: TrainingConfig) -> SentenceTransformer:
    """Return the encoder with the towers, prompts, adapters and lengths that the settings name."""
    if rendering_of(encoder) is FEATURES:
        return _for_features(encoder, config)
    for module in input_modules(encoder):
        if isinstance(module, Transformer):
            module.max_seq_length = min(config.max_tokens, module.max_seq_length or config.max_tokens)
    if not isinstance(encoder[-1], Normalize):
        encoder.append(Normalize())
    if config.towers == "separate":
        encoder = separate_towers(encoder)
    for name, prompt in (("query", config.query_prompt), ("document", config.doc_prompt)):
        if prompt is not None:
            encoder.prompts[name] = prompt
    if config.lora_rank:
        attach_lora(encoder, config.lora_rank)
    return encoder


def rendering_for(config: TrainingConfig) -> Rendering:
    """Return what the encoder that `config` names reads; loads it only where it has two towers.

    Raises:
        CropsError: there is no such model.
    """
    if config.init is None and config.encoder in PRESET_TRAINING:
        return FEATURES if config.encoder == TWO_TOWER else PLAIN
    folder = _folder(config.init or config.encoder)
    return rendering_of(_load(folder)) if (folder / Router.config_file_name).exists() else PLAIN


def encoder_folder(config: TrainingConfig, cache: str | Path | None = None) -> Path:
    """Return the folder of the weights that `load_encoder` loads for `config`.

    Args:
        config: `encoder` or `init`.
        cache: as in `load_encoder`.

    Raises:
        CropsError: there is no such model, or it is the untrained two-tower encoder, which has no weights.
    """
    cache = None if cache is None else Path(cache)
    if config.init is None and config.encoder == TWO_TOWER:
        raise CropsError("two_tower is an untrained encoder; train one and name its folder")
    if config.init is None and config.encoder == "static":
        return _static_folder(config, cache)
    return _folder(config.init or DECODERS.get(config.encoder, config.encoder))


def save_encoder(encoder: SentenceTransformer, folder: str | Path) -> None:
    """Write a plain SentenceTransformer folder; LoRA adapters are merged into the weights first, in place."""
    folder = Path(folder)
    merge_lora(encoder)
    encoder.save(str(folder), create_model_card=False)


def _base(config: TrainingConfig, cache: Path | None) -> SentenceTransformer:
    if config.init is None and config.encoder == TWO_TOWER:
        return two_tower(config.dim, config.id_table)
    folder = encoder_folder(config, cache)
    return _decoder(folder) if config.init is None and config.encoder in DECODERS else _load(folder)


def _for_features(encoder: SentenceTransformer, config: TrainingConfig) -> SentenceTransformer:
    """Refuse what a two-tower encoder cannot have, and let it train without ids now and then."""
    asked = {
        "towers = shared": config.encoder == TWO_TOWER and config.towers == "shared",
        "query_prompt": bool(config.query_prompt),
        "doc_prompt": bool(config.doc_prompt),
        "lora_rank": config.lora_rank > 0,
    }
    if refused := [name for name, wanted in asked.items() if wanted]:
        raise CropsError(
            f"{', '.join(refused)}: not for a two_tower encoder, which reads ids and not texts; "
            "leave the setting out"
        )
    hide_ids(encoder, config.id_dropout)
    return encoder


def _static_folder(config: TrainingConfig, cache: Path | None) -> Path:
    """Return the folder of the distilled encoder, distilled once per base model, width and length."""
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
    return kept


def _decoder(folder: Path) -> SentenceTransformer:
    """Return a language model as an encoder that pools the last token."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformer = Transformer(str(folder))
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken")
    return SentenceTransformer(modules=[transformer, pooling])


def _folder(name: str) -> Path:
    """Return the folder of a model; a name that is near a preset's gets a hint."""
    try:
        return local_folder(name)
    except CropsError as error:
        raise CropsError(f"{error}{nearest(name, PRESET_TRAINING)}") from error


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
