"""An encoder as ONNX graphs that hold all of it: token ids in, unit vectors out."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerFast

from crops.encoders.lora import merge_lora
from crops.encoders.onnx_encoder import INPUTS, OUTPUT, SETTINGS, OnnxEncoder, Side
from crops.encoders.towers import ROLES, Role, input_module, prompt_of, skipped_prompt_tokens
from crops.encoders.two_tower import FEATURES, item_features, query_features, rendering_of
from crops.errors import CropsError, MissingExtraError

LOWEST_COSINE = 0.9999
"""What every test text must reach between the graph and torch."""
_SAMPLES = ("cat", "how to water a ficus in winter", "red shoes " * 40)
"""Texts of different lengths, so that the comparison sees padding and truncation."""


def export_onnx(encoder: SentenceTransformer, folder: Path) -> float:
    """Write the graphs, tokenizers and settings of `encoder`, and compare them with torch.

    Pooling, normalisation and a truncation to `truncate_dim` are in the graph. An encoder whose queries and
    documents differ has a graph of its own for each. `OnnxEncoder` reads the folder.

    Args:
        encoder: LoRA adapters in it are merged, in place.
        folder: an existing, empty folder.

    Returns:
        The lowest cosine between a vector of the graph and of torch, over a few texts.

    Raises:
        MissingExtraError: the packages of the [onnx] extra are not installed.
        CropsError: the tokenizer is no fast one, or a cosine is below `LOWEST_COSINE`.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "onnx")
    merge_lora(encoder)
    sides: dict[Role, Side] = {}
    for role in ROLES:
        name = "model" if _same_graph(encoder) else role
        sides[role] = Side(name, prompt_of(encoder, role) or "", _adds_special_tokens(encoder, role))
        if not (folder / f"{name}.onnx").exists():
            _tokenizer(encoder, role).save(str(folder / f"{name}.tokenizer.json"))
            _write_graph(_Graph(encoder, role).eval(), folder / f"{name}.onnx")
    settings = {role: side._asdict() for role, side in sides.items()}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    return _compare(encoder, OnnxEncoder(folder))


class _MaskedMean(nn.Module):
    """An embedding bag over padded rows."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = features["attention_mask"].unsqueeze(-1).to(self.weight.dtype)
        total = (nn.functional.embedding(features["input_ids"], self.weight) * mask).sum(dim=1)
        return {**features, "sentence_embedding": total / mask.sum(dim=1).clamp(min=1)}


class _Graph(nn.Module):
    """The whole way of one role, as a function of padded token ids."""

    def __init__(self, encoder: SentenceTransformer, role: Role) -> None:
        super().__init__()
        first = encoder[0]
        head = list(cast(nn.Sequential, first.sub_modules[role])) if isinstance(first, Router) else [first]
        if isinstance(head[0], StaticEmbedding):
            head[0] = _MaskedMean(head[0].embedding.weight)
        self.steps = nn.ModuleList([*head, *list(encoder)[1:]])
        self.truncate_dim = encoder.truncate_dim
        self.prompt_length = skipped_prompt_tokens(encoder, role)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return unit vectors [batch, d] of ids and mask [batch, tokens]."""
        features: dict[str, Tensor | int] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.prompt_length is not None:
            features["prompt_length"] = self.prompt_length
        for step in self.steps:
            features = step(features)
        embedding = cast(Tensor, features["sentence_embedding"])
        return normalize(embedding[:, : self.truncate_dim], dim=1)


def _write_graph(graph: _Graph, path: Path) -> None:
    # It warns at each export that torchvision, which no encoder of texts needs, is not installed.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    ids = torch.ones(2, 4, dtype=torch.int64)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    torch.onnx.export(
        graph,
        (ids, torch.ones_like(ids)),
        str(path),
        input_names=list(INPUTS),
        output_names=[OUTPUT],
        dynamic_shapes=dict.fromkeys(INPUTS, axes),
        dynamo=True,
        verbose=False,
    )


def _same_graph(encoder: SentenceTransformer) -> bool:
    lengths = {skipped_prompt_tokens(encoder, role) for role in ROLES}
    return not isinstance(encoder[0], Router) and len(lengths) == 1


def _adds_special_tokens(encoder: SentenceTransformer, role: Role) -> bool:
    return not isinstance(input_module(encoder, role), StaticEmbedding)


def _tokenizer(encoder: SentenceTransformer, role: Role) -> Tokenizer:
    """Return a tokenizer that cuts and pads as the encoder does."""
    module = input_module(encoder, role)
    if isinstance(module, StaticEmbedding):
        tokenizer = Tokenizer.from_str(module.tokenizer.to_str())
        tokenizer.enable_padding()
        return tokenizer
    if not isinstance(module.tokenizer, PreTrainedTokenizerFast):
        raise CropsError(
            f"the tokenizer of this encoder ({type(module.tokenizer).__name__}) is no fast one: the exported "
            "folder could not hold it"
        )
    tokenizer = Tokenizer.from_str(module.tokenizer.backend_tokenizer.to_str())
    tokenizer.enable_truncation(module.max_seq_length)
    tokenizer.enable_padding(
        direction=module.tokenizer.padding_side,
        pad_id=module.tokenizer.pad_token_id,
        pad_token=module.tokenizer.pad_token,
    )
    return tokenizer


def _compare(encoder: SentenceTransformer, exported: OnnxEncoder) -> float:
    queries = documents = list(_SAMPLES)
    if rendering_of(encoder) is FEATURES:
        queries = [query_features(text) for text in queries]
        documents = [item_features({"item_id": 1, "keyword": text}) for text in documents]
    pairs = (
        (encoder.encode_query(queries, normalize_embeddings=True), exported.encode_query(queries)),
        (encoder.encode_document(documents, normalize_embeddings=True), exported.encode_document(documents)),
    )
    lowest = min(float((np.asarray(torch_) * onnx).sum(axis=1).min()) for torch_, onnx in pairs)
    if lowest < LOWEST_COSINE:
        raise CropsError(
            f"the exported graph differs from the model: cosine {lowest:.6f}, at least {LOWEST_COSINE} is "
            "asked; the installed torch does not export this architecture faithfully"
        )
    return lowest
