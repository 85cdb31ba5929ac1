"""Texts tokenised once, encoded whenever a batch needs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import Tensor

from crops.encoders.towers import ID_ROWS, Role, input_module, prompt_of, skipped_prompt_tokens

TOKENISE_BATCH = 4096
ENCODE_BATCH = 1024
"""Texts of similar length that share one padded transformer pass."""


@dataclass(frozen=True)
class TokenisedTexts:
    """The token ids of many texts in one array."""

    ids: NDArray[np.int64]
    """[tokens] all ids, text after text."""
    offsets: NDArray[np.int64]
    """[texts + 1] where each text begins."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of tokens of the given texts."""
        return np.asarray(self.offsets[rows + 1] - self.offsets[rows])

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids of the given texts, text after text."""
        lengths = self.lengths(rows)
        shift = np.repeat(self.offsets[rows] - (np.cumsum(lengths) - lengths), lengths)
        ids: NDArray[np.int64] = self.ids[np.arange(len(shift)) + shift]
        return ids


def tokenise(encoder: SentenceTransformer, texts: Sequence[str], role: Role = "document") -> TokenisedTexts:
    """Tokenise texts for `encoder`, behind its prompt for their role and cut to its maximum length.

    A text of which the tokenizer makes nothing gets no ids, those of prompt and marks neither: it cannot be
    encoded.
    """
    parts, lengths = [], []
    fewest = len(_ids(encoder, [""], role)[0])
    for start in range(0, len(texts), TOKENISE_BATCH):
        batch = list(texts[start : start + TOKENISE_BATCH])
        ids, sizes = _ids(encoder, batch, role)
        kept = np.ones(len(batch), dtype=np.bool_)
        for row in np.flatnonzero(sizes <= fewest):
            kept[row] = _has_token(encoder, batch[row], role)
        parts.append(ids[np.repeat(kept, sizes)])
        lengths.append(sizes * kept)
    sizes = np.concatenate(lengths) if lengths else np.empty(0, dtype=np.int64)
    return TokenisedTexts(
        np.concatenate([*parts, np.empty(0, np.int64)]), np.concatenate([[0], np.cumsum(sizes)])
    )


def longest(encoder: SentenceTransformer) -> int | None:
    """Return the most tokens of a document that an encoder reads; None where it does not count tokens."""
    module = input_module(encoder, "document")
    if isinstance(module, StaticEmbedding):
        truncation = getattr(module.tokenizer, "truncation", None)  # n-grams have no tokenizer
        return None if truncation is None else int(truncation["max_length"])
    return module.max_seq_length if isinstance(module, Transformer) else None


def _ids(
    encoder: SentenceTransformer, texts: list[str], role: Role
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ids of texts with their prompt, text after text, and how many each has."""
    features = encoder.preprocess(texts, prompt=prompt_of(encoder, role), task=role)
    ids = features["input_ids"].numpy().astype(np.int64)
    if "offsets" in features:
        return ids, np.diff(features["offsets"].numpy(), append=len(ids))
    mask = features["attention_mask"].numpy().astype(bool)
    return ids[mask], mask.sum(axis=1)


def _has_token(encoder: SentenceTransformer, text: str, role: Role) -> bool:
    """Return whether a text has a token of its own, besides prompt and marks."""
    module = input_module(encoder, role)
    if isinstance(module, StaticEmbedding):
        return len(module.preprocess([text])["input_ids"]) > 0
    tokenizer = module.tokenizer
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) > 0


@contextlib.contextmanager
def only_used_tokens(
    encoder: SentenceTransformer, texts: TokenisedTexts, role: Role = "document"
) -> Iterator[TokenisedTexts]:
    """Shrink a table of token vectors to the tokens of `texts` inside the block.

    Yields the texts in its numbering. An optimiser then spends nothing on rows that get no gradient. At the
    end all tokens are back, the used ones with what they learned. An encoder without such a table, a
    transformer, is left as it is. With separate towers, that of `role` shrinks.
    """
    module = input_module(encoder, role)
    if not isinstance(module, StaticEmbedding):
        yield texts
        return
    whole, id_rows = module.embedding, getattr(module, ID_ROWS, None)
    used, ids = np.unique(texts.ids, return_inverse=True)
    rows = torch.from_numpy(used).to(whole.weight.device)
    frozen = not whole.weight.requires_grad
    module.embedding = torch.nn.EmbeddingBag.from_pretrained(whole.weight.detach()[rows], freeze=frozen)
    if id_rows is not None:
        setattr(module, ID_ROWS, id_rows[rows])
    try:
        yield TokenisedTexts(ids, texts.offsets)
    finally:
        whole.weight.data[rows] = module.embedding.weight.detach().to(rows.device)
        module.embedding = whole
        if id_rows is not None:
            setattr(module, ID_ROWS, id_rows)


def encode(
    encoder: SentenceTransformer, texts: TokenisedTexts, rows: NDArray[np.int64], role: Role = "document"
) -> Tensor:
    """Return the embeddings [len(rows), d] of the given texts, with gradients if they are enabled.

    Args:
        encoder: the model that `texts` were tokenised for.
        rows: which of them, in which order.
        role: what they were tokenised as; decides the tower where there are two.
    """
    if isinstance(input_module(encoder, role), StaticEmbedding):
        lengths = texts.lengths(rows)
        offsets = torch.from_numpy(np.cumsum(lengths) - lengths)
        features = {"input_ids": torch.from_numpy(texts.gather(rows)), "offsets": offsets}
        return _forward(encoder, features, role)
    order = np.argsort(texts.lengths(rows), kind="stable")
    parts = [
        _forward(encoder, _padded(encoder, texts, rows[order[start : start + ENCODE_BATCH]], role), role)
        for start in range(0, len(rows), ENCODE_BATCH)
    ]
    return torch.cat(parts)[torch.from_numpy(np.argsort(order)).to(encoder.device, non_blocking=True)]


def _padded(
    encoder: SentenceTransformer, texts: TokenisedTexts, rows: NDArray[np.int64], role: Role
) -> dict[str, Any]:
    tokenizer = input_module(encoder, role).tokenizer
    lengths = texts.lengths(rows)
    mask = np.arange(lengths.max()) < lengths[:, None]
    if tokenizer.padding_side == "left":
        mask = mask[:, ::-1]
    ids = np.full(mask.shape, tokenizer.pad_token_id, dtype=np.int64)
    ids[mask] = texts.gather(rows)
    features: dict[str, Any] = {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
    }
    skipped = skipped_prompt_tokens(encoder, role)
    return features if skipped is None else features | {"prompt_length": skipped}


def _forward(encoder: SentenceTransformer, features: dict[str, Any], role: Role) -> Tensor:
    placed = {
        name: value.to(encoder.device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in features.items()
    }
    embedding: Tensor = encoder(placed, task=role)["sentence_embedding"]
    return embedding
