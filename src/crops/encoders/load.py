"""Which encoder a run trains, how the static one is distilled, and how an encoder is saved."""

from __future__ import annotations

import re
import time
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from crops.config import PRESET_TRAINING, TrainingConfig
from crops.encoders.ngrams import ngram_encoder
from crops.encoders.towers import attach_lora, freeze_documents, input_modules, merge_lora, separate_towers
from crops.encoders.two_tower import FEATURES, hide_ids, rendering_of, two_tower
from crops.errors import CropsError, nearest
from crops.outputs import BusyError, cache_folder, console, progress, publish, timed, write_manifest
from crops.relevance.encode import is_ngram_folder, local_folder, model_hash
from crops.text import PLAIN, Rendering

BASE = "minilm"
"""What the static encoder is distilled from."""
TWO_TOWER = "two_tower"
STATIC, NGRAMS = "static", "ngrams"
UNTRAINED = (TWO_TOWER, NGRAMS)
"""Presets that start from no weights."""
DECODERS = {"qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B"}
"""Presets that are language models, with their names on the Hub: a text is its last token."""
SIF_COEFFICIENT = 1e-4
"""a of the smooth inverse frequency weight a / (a + p) (Arora et al. 2017)."""
BATCH = 1024
"""Tokens per pass of the base: large, as each is a short pass."""
_UNUSED = re.compile(r"\[unused\d+\]")


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
        CropsError: there is no such model, or it is an untrained encoder, which has no weights.
    """
    cache = None if cache is None else Path(cache)
    if config.init is None and config.encoder in UNTRAINED:
        raise CropsError(f"{config.encoder} is an untrained encoder; train one and name its folder")
    if config.init is None and config.encoder == STATIC:
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
    if config.init is None and config.encoder == NGRAMS:
        return ngram_encoder(config.dim, config.id_table, config.max_tokens)
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
    """Return the folder of the distilled encoder, distilled once per base model, width and length.

    Where another process is at it, this one waits for it.
    """
    base = local_folder(BASE)
    key = f"static-{model_hash(base)[:12]}-{config.dim}-{config.max_tokens}"
    kept = (cache or cache_folder()) / key
    waiting = False
    while not kept.exists():
        seconds: dict[str, float] = {}
        try:
            with publish(kept, "distill") as staging:
                with timed(seconds, "distill the static encoder (once)"):
                    encoder = distill(_load(base), config.dim, config.max_tokens)
                encoder.save(str(staging), create_model_card=False)
                write_manifest(
                    staging, "distill", config=config.model_dump(exclude_none=True), seconds=seconds
                )
        except BusyError as error:
            if not waiting:
                console.print(f"[dim]·[/dim] {error}")
            waiting = True
            time.sleep(0.2)
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
    if (folder / "current").is_file():
        raise CropsError(
            f"{folder} is an index and no model; `crops serve {folder}`, or name the model behind it"
        )
    try:
        ours = is_ngram_folder(folder)
        encoder = SentenceTransformer(str(folder), local_files_only=True, trust_remote_code=ours)
    except (OSError, ValueError, KeyError) as error:
        raise CropsError(f"{folder} is not a model that sentence-transformers can load: {error}") from error
    try:
        encoder.encode("text")
    except KeyError as error:
        raise CropsError(f"the encoder in {folder} has no pooling layer: a text gets no {error}") from error
    return encoder


def distill(base: SentenceTransformer, dim: int, max_tokens: int) -> SentenceTransformer:
    """Return a static encoder of width `dim` with the vocabulary of `base`.

    A text is the mean of its tokens' vectors, which trains in seconds on a CPU. Its first weights are
    distilled the model2vec way (Tulkens & van Dongen 2024): every token of the vocabulary goes through a
    transformer on its own, principal components reduce the width, and frequent tokens are weighted down.

    Args:
        base: a transformer encoder with a fast tokenizer, its vocabulary in order of frequency.
        dim: output width, at most that of `base`.
        max_tokens: longer texts are cut; kept in the tokenizer, so that the saved model does the same.

    Raises:
        CropsError: `dim` exceeds the width of `base`, or its tokenizer is not a fast one.
    """
    tokenizer = base.tokenizer
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CropsError(f"the tokenizer of the base model ({type(tokenizer).__name__}) is not a fast one")
    width = base.get_embedding_dimension() or 0
    if dim > width:
        raise CropsError(f"dim = {dim} exceeds the {width} dimensions of the base model; lower training.dim")
    used = _used_tokens(tokenizer)
    vectors = _principal_components(_embed_tokens(base, used), dim) * _inverse_frequency(len(used))[:, None]
    weights = torch.zeros(len(tokenizer), dim)
    weights[used] = vectors / vectors.norm(dim=1).mean()
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.enable_truncation(max_tokens)
    return SentenceTransformer(modules=[StaticEmbedding(backend, weights), Normalize()], device="cpu")


def _used_tokens(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return the ids that texts can hold, in the order of the vocabulary."""
    framing = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return torch.tensor(
        [i for i, name in enumerate(names) if i not in framing and not _UNUSED.fullmatch(name)]
    )


def _embed_tokens(base: SentenceTransformer, used: Tensor) -> Tensor:
    """Return the pooled output [len(used), width] of each token alone between the framing tokens."""
    frame = base.tokenizer(base.tokenizer.unk_token)["input_ids"]
    inputs = torch.tensor(frame).repeat(len(used), 1)
    inputs[:, frame.index(base.tokenizer.unk_token_id)] = used
    parts = []
    with torch.inference_mode(), progress() as display:
        for batch in display.track(torch.split(inputs, BATCH), description="distilling the vocabulary"):
            features = {
                "input_ids": batch.to(base.device),
                "attention_mask": torch.ones_like(batch).to(base.device),
            }
            parts.append(base(features)["sentence_embedding"].float().cpu())
    return torch.cat(parts).clone()


def _principal_components(vectors: Tensor, dim: int) -> Tensor:
    """Return the centred vectors on their `dim` main axes; the largest entry of an axis is positive."""
    centred = (vectors - vectors.mean(dim=0)).double()
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :dim]
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    components: Tensor = centred @ (axes * largest.sign())
    return components.float()


def _inverse_frequency(tokens: int) -> Tensor:
    """Return the weight of each token: frequencies follow Zipf's law in the order of the vocabulary."""
    frequency = 1 / torch.arange(2, tokens + 2)
    weight: Tensor = SIF_COEFFICIENT / (SIF_COEFFICIENT + frequency / frequency.sum())
    return weight
