"""The texts of the training data: tokenised once, in memory or memory-mapped, and embedded batch by batch.

A step's texts are embedded with little padding, and in as little memory as is asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from crops.encoders import Role, TokenisedTexts, asymmetric, encode, only_used_tokens, tokenise
from crops.encoders.towers import input_module, input_modules
from crops.errors import CropsError
from crops.training.buckets import Lanes
from crops.training.groups import GroupStore
from crops.training.samples import Wordless

IN_MEMORY = 256 * 2**20
"""Token ids of more bytes than this stay on disk, memory-mapped."""
_IDS, _LENGTHS = "ids.bin", "lengths.npy"


class Side(NamedTuple):
    """The texts of one role, or of both where an encoder treats them alike."""

    role: Role
    tokens: TokenisedTexts
    first: int
    """Row of the pool that its first text is."""


@dataclass(frozen=True)
class TextPool:
    """All texts of the training data, numbered: the query texts, then the documents'."""

    sides: tuple[Side, ...]
    """In the order of their rows."""

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of tokens of texts whose rows ascend."""
        return np.concatenate([side.tokens.lengths(own) for side, own in self.split(rows)])

    def split(self, rows: NDArray[np.int64]) -> list[tuple[Side, NDArray[np.int64]]]:
        """Return each side with its own rows among `rows`, which ascend."""
        cuts = np.searchsorted(rows, [side.first for side in self.sides[1:]])
        return [(side, own - side.first) for side, own in zip(self.sides, np.split(rows, cuts), strict=True)]


def tokenise_pool(encoder: SentenceTransformer, source: GroupStore | Lanes, folder: Path) -> TextPool:
    """Tokenise the texts of a source, a batch at a time; those without a token have length 0.

    The folder keeps the token ids, and is read instead, without tokenising, if it has them.

    Raises:
        CropsError: the folder is damaged.
    """
    if not (folder / _LENGTHS).exists():
        folder.mkdir(parents=True, exist_ok=True)
        sizes = []
        by_role: tuple[tuple[Role, Iterator[list[str]]], ...] = (
            ("query", source.query_texts()),
            ("document", source.doc_texts()),
        )
        with (folder / _IDS).open("wb") as file:
            for role, batches in by_role:
                for texts in batches:
                    tokens = tokenise(encoder, texts, role)
                    file.write(tokens.ids.astype(np.int32).tobytes())
                    sizes.append(np.diff(tokens.offsets))
        # Renamed last: its presence says that the ids are whole.
        staging = folder / f"staged-{_LENGTHS}"
        np.save(staging, np.concatenate(sizes))
        staging.rename(folder / _LENGTHS)
    lengths, size = np.load(folder / _LENGTHS), (folder / _IDS).stat().st_size
    if size != 4 * lengths.sum():
        raise CropsError(
            f"{folder / _IDS} is damaged: {size:,} bytes for {lengths.sum():,} tokens; remove it"
        )
    ids: NDArray[Any] = np.memmap(folder / _IDS, np.int32, "r")
    if size <= IN_MEMORY:
        ids = np.fromfile(folder / _IDS, np.int32).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if not asymmetric(encoder):
        return TextPool((Side("document", TokenisedTexts(ids, offsets), 0),))
    # Offsets count from the beginning of the ids, so the sides can share them.
    query = Side("query", TokenisedTexts(ids, offsets[: source.groups + 1]), 0)
    document = Side("document", TokenisedTexts(ids, offsets[source.groups :]), source.groups)
    return TextPool((query, document))


def wordless_texts(source: GroupStore | Lanes, pool: TextPool) -> Wordless | None:
    """Return the texts of a source that have no token, None where all have one."""
    rows = np.flatnonzero(np.concatenate([np.diff(side.tokens.offsets) for side in pool.sides]) == 0)
    if len(rows) == 0:
        return None
    queries = rows < source.groups
    return Wordless(
        _texts_at(source.query_texts(), rows[queries]),
        _texts_at(source.doc_texts(), rows[~queries] - source.groups),
    )


def _texts_at(batches: Iterable[list[str]], rows: NDArray[np.int64]) -> frozenset[str]:
    """Return the texts of ascending rows, counted through all batches."""
    found, start = set(), 0
    for texts in batches:
        here = rows[(rows >= start) & (rows < start + len(texts))] - start
        found |= {texts[row] for row in here.tolist()}
        start += len(texts)
    return frozenset(found)


class UsedTokens:
    """Tables of token vectors shrunk to the tokens of a pool, while the context lasts.

    An optimiser then spends nothing on rows that get no gradient. Transformers, and tables whose tokens are
    too many to be in memory, stay as they are.
    """

    def __init__(self, encoder: SentenceTransformer, pool: TextPool, *, whole: bool = False) -> None:
        """Shrink nothing yet; `whole`: never, as other processes have other tokens."""
        self._encoder, self._pool, self._stack = encoder, pool, ExitStack()
        modules = input_modules(encoder)
        self._tables = [module for module in modules if isinstance(module, StaticEmbedding)]
        on_disk = any(isinstance(side.tokens.ids, np.memmap) for side in pool.sides)
        # Two sides on one table (prompts that differ) would each shrink it to their own tokens.
        self._possible = len(modules) == len(pool.sides) and not on_disk and not whole

    def __enter__(self) -> TextPool:
        if not self._possible:
            return self._pool
        sides = []
        for side in self._pool.sides:
            first, last = side.tokens.offsets[[0, -1]]
            own = TokenisedTexts(side.tokens.ids[first:last], side.tokens.offsets - first)
            used = self._stack.enter_context(only_used_tokens(self._encoder, own, side.role))
            sides.append(side._replace(tokens=used))
        return TextPool(tuple(sides))

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """Inside the block the tables are whole, with what they have learned."""
        learned = [table.embedding for table in self._tables]
        self._stack.close()
        try:
            yield
        finally:
            self.__enter__()
            for table, embedding in zip(self._tables, learned, strict=True):
                table.embedding = embedding


CPU_TOKENS, TOKEN_BYTES = 512, 2 * 2**20


def tokens_per_pass(device: torch.device) -> int:
    """Return how many tokens, padding included, one pass through a transformer holds.

    On a CPU small passes stay in the cache and need little padding: MiniLM took 1.86 s for a batch in one
    pass of 2,496 tokens, 1.41 s in four of 512 and 1.49 s in seven of 256. A GPU gets one per 2 MiB of its
    memory (80 GiB: 40,960): a token of a model of 0.5 B weights keeps about 1.5 MB of activations in
    bfloat16, so that a pass fits, as it must with `encode_chunk`. The rule is computed, not measured.
    """
    if device.type != "cuda":
        return CPU_TOKENS
    return max(CPU_TOKENS, int(torch.cuda.get_device_properties(device).total_memory // TOKEN_BYTES))


def compile_transformers(encoder: SentenceTransformer) -> None:
    """Compile the transformers of an encoder in place, for passes of any shape.

    Raises:
        CropsError: it has none.
    """
    found = [module for module in input_modules(encoder) if isinstance(module, Transformer)]
    if not found:
        raise CropsError("compile: this encoder has no transformer to compile; leave the setting out")
    for module in found:
        module.model.compile(dynamic=True)


def embed(encoder: SentenceTransformer, pool: TextPool, rows: NDArray[np.int64], chunk: int | None) -> Tensor:
    """Return the embeddings [len(rows), d] of texts, with gradients if they are enabled.

    Texts of similar length share a pass. With `chunk`, activations are not kept: each chunk is computed
    again when its gradient is due, with the same dropout (the gradient cache of Gao et al. 2021,
    arXiv 2101.06983, by activation checkpointing), so that memory does not grow with the batch. `rows`
    ascend; `chunk` is the most texts whose activations are held at a time, all of them when None.
    """
    return torch.cat([_embed_side(encoder, side, own, chunk) for side, own in pool.split(rows) if len(own)])


def _embed_side(
    encoder: SentenceTransformer, side: Side, rows: NDArray[np.int64], chunk: int | None
) -> Tensor:
    lengths = side.tokens.lengths(rows)
    order = np.argsort(lengths, kind="stable")
    unpadded = isinstance(input_module(encoder, side.role), StaticEmbedding)
    parts = []
    for part in _passes(lengths[order], chunk, None if unpadded else tokens_per_pass(encoder.device)):
        chosen = rows[order[part]]
        if chunk is None or not torch.is_grad_enabled():
            parts.append(encode(encoder, side.tokens, chosen, side.role))
        else:
            parts.append(checkpoint(encode, encoder, side.tokens, chosen, side.role, use_reentrant=False))
    return torch.cat(parts)[torch.from_numpy(np.argsort(order)).to(encoder.device, non_blocking=True)]


def _passes(lengths: NDArray[np.int64], chunk: int | None, budget: int | None) -> Iterator[slice]:
    """Cut texts of ascending lengths where a pass holds `chunk` texts, or `budget` tokens with padding."""
    start = 0
    while start < len(lengths):
        end = min(start + (chunk or len(lengths)), len(lengths))
        if budget is not None:
            padded = lengths[start:end] * np.arange(1, end - start + 1)
            end = start + max(1, int(np.searchsorted(padded, budget, side="right")))
        yield slice(start, end)
        start = end
