"""An encoder without a vocabulary: the mean of the vectors of hashed words and character n-grams.

After fastText (Bojanowski et al. 2017, "Enriching Word Vectors with Subword Information"): each word and
each of its n-grams has a row of one table, found by a hash, so every text of every script has a vector, also
with words that training never saw. The rows start at random, so before any training texts that share n-grams
are near each other; training on logs does the rest.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from torch import Tensor, nn

from crops.text import words

NGRAMS = (3, 4, 5)
"""Lengths of the n-grams of a word between its marks < and >."""
SPACELESS_NGRAMS = (1, 2, 3)
"""Lengths of the n-grams of a run of Chinese, Thai and the like."""
CHARACTERS_PER_TOKEN = 4
"""A text is cut after so many characters for each of `TrainingConfig.max_tokens`."""
_START_SCALE = 0.1


def ngrams(text: str) -> list[str]:
    """Return the words and n-grams of `text`, in order; repeated ones are repeated.

    A word counts as `<word>` with its n-grams of 3 to 5 characters; a run of a script without spaces gives
    its n-grams of 1 to 3 characters; an emoji stands for itself.
    """
    found: list[str] = []
    for match in words(text):
        found += _of_run(match.group()) if match.lastgroup == "spaceless" else _of_word(match.group())
    return found


def _of_run(run: str) -> list[str]:
    return [run[start : start + n] for n in SPACELESS_NGRAMS for start in range(len(run) - n + 1)]


@lru_cache(maxsize=65_536)
def _of_word(word: str) -> tuple[str, ...]:
    marked = f"<{word}>"
    parts = (marked[start : start + n] for n in NGRAMS for start in range(len(marked) - n + 1))
    return marked, *(part for part in parts if part != marked)


class NgramEmbedding(StaticEmbedding):
    """A table of token vectors whose tokens are hashed n-grams; no tokenizer is needed."""

    config_keys = ["rows", "dim", "max_characters"]

    def __init__(self, rows: int, dim: int, max_characters: int, weights: Tensor | None = None) -> None:
        """Make a table [rows, dim], the same at each call; or take its weights."""
        InputModule.__init__(self)  # type: ignore[no-untyped-call]
        self.rows, self.dim, self.max_characters = rows, dim, max_characters
        if weights is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                weights = torch.randn(rows, dim) * _START_SCALE
        self.embedding = nn.EmbeddingBag.from_pretrained(weights, freeze=False)
        self.num_embeddings, self.embedding_dim = rows, dim
        self.tokenizer = None  # type: ignore[assignment]
        self.base_model = None

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: object) -> dict[str, Tensor]:
        """Return the rows of the texts' n-grams, text after text, and where each text begins."""
        texts = [(prompt or "") + text[: self.max_characters] for text in inputs]
        rows = [[zlib.crc32(part.encode()) % self.rows for part in ngrams(text)] for text in texts]
        starts = np.cumsum([0, *map(len, rows[:-1])])
        ids = torch.tensor([row for own in rows for row in own], dtype=torch.long)
        return {"input_ids": ids, "offsets": torch.from_numpy(starts)}

    def save(self, output_path: str, *_: object, safe_serialization: bool = True, **__: object) -> None:
        """Write `config.json` and `model.safetensors`."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, *_: object, **where: Any) -> Self:  # noqa: ANN401
        """Read what `save` wrote."""
        config = cls.load_config(model_name_or_path, **_place(where))
        weights = cls.load_torch_weights(model_name_or_path, **_place(where))
        return cls(**config, weights=weights["embedding.weight"])


def _place(where: dict[str, Any]) -> dict[str, Any]:
    known = ("subfolder", "token", "cache_folder", "revision", "local_files_only")
    return {name: where[name] for name in known if name in where}


def ngram_encoder(dim: int, rows: int, max_tokens: int) -> SentenceTransformer:
    """Return an untrained n-gram encoder, the same at each call.

    Args:
        dim: width of table and output.
        rows: of the table; two n-grams share a row with probability 1 / rows.
        max_tokens: texts are cut after four characters for each.
    """
    table = NgramEmbedding(rows, dim, CHARACTERS_PER_TOKEN * max_tokens)
    return SentenceTransformer(modules=[table, Normalize()], device="cpu")
