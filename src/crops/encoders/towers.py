"""The sides of a dual encoder: modules and prompts of queries and documents, adapters, widths, tokens."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule, Module, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding
from torch import Tensor, nn
from torch.nn.functional import normalize

from crops.errors import CropsError, MissingExtraError

Role = Literal["query", "document"]
ROLES: tuple[Role, ...] = ("query", "document")
ID_ROWS = "id_rows"
"""Attribute of a table of token vectors: which rows training may hide (see `two_tower.hide_ids`)."""
_PROMPT_NAMES: dict[Role, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
}
"""Where SentenceTransformer.encode_query and encode_document look for their prompts."""


def input_module(encoder: SentenceTransformer, role: Role) -> Any:  # noqa: ANN401  (Transformer, StaticEmbedding)
    """Return the module that reads the texts of a role."""
    first = encoder[0]
    return cast(nn.Sequential, first.sub_modules[role])[0] if isinstance(first, Router) else first


def input_modules(encoder: SentenceTransformer) -> list[Any]:
    """Return the distinct modules that read texts: one, or one per tower."""
    distinct = {id(module): module for module in (input_module(encoder, role) for role in ROLES)}
    return list(distinct.values())


def prompt_of(encoder: SentenceTransformer, role: Role) -> str | None:
    """Return what `encode_query` or `encode_document` puts before each text."""
    for name in (*_PROMPT_NAMES[role], encoder.default_prompt_name):
        if name in encoder.prompts:
            return encoder.prompts[name] or None
    return None


def skipped_prompt_tokens(encoder: SentenceTransformer, role: Role) -> int | None:
    """Return how many tokens of the prompt the pooling leaves out, None where it leaves out none."""
    pools = [module for module in encoder.modules() if isinstance(module, Pooling)]
    prompt = prompt_of(encoder, role)
    if prompt is None or all(pool.include_prompt for pool in pools):
        return None
    return cast("int | None", encoder.preprocess([""], prompt=prompt, task=role).get("prompt_length"))


def asymmetric(encoder: SentenceTransformer) -> bool:
    """Return whether one text may have two embeddings: separate towers, or different prompts."""
    return isinstance(encoder[0], Router) or prompt_of(encoder, "query") != prompt_of(encoder, "document")


def separate_towers(encoder: SentenceTransformer) -> SentenceTransformer:
    """Return an encoder with a tower for queries and one for documents, both starting as `encoder`.

    The result is a sentence-transformers `Router`, used through `encode_query` and `encode_document`; an
    encoder that has two towers already is returned as it is.

    Raises:
        CropsError: `encoder` has a Router of other routes, or does not begin with a module that reads texts.
    """
    if isinstance(encoder[0], Router):
        if set(encoder[0].sub_modules) == set(ROLES):
            return encoder
        raise CropsError(
            f"towers = separate: the model has the routes {', '.join(encoder[0].sub_modules)}, not query and "
            "document; use towers = shared"
        )
    if not isinstance(encoder[0], InputModule):
        raise CropsError(
            f"towers = separate: the model begins with {type(encoder[0]).__name__}, which reads no texts; "
            "use towers = shared"
        )
    query = [cast(Module, module) for module in encoder if not isinstance(module, Normalize)]
    router = Router.for_query_document(query, copy.deepcopy(query))
    return SentenceTransformer(
        modules=[router, Normalize()],
        prompts={name: prompt for name, prompt in encoder.prompts.items() if prompt is not None},
        default_prompt_name=encoder.default_prompt_name,
        similarity_fn_name=encoder.similarity_fn_name,
        truncate_dim=encoder.truncate_dim,
        device=str(encoder.device),
    )


def freeze_documents(encoder: SentenceTransformer) -> None:
    """Let the documents' tower learn nothing more.

    Raises:
        CropsError: queries and documents share one tower.
    """
    if not isinstance(encoder[0], Router):
        raise CropsError("train_documents = false: queries share the documents' tower; set towers = separate")
    encoder[0].sub_modules["document"].requires_grad_(False)


def attach_lora(encoder: SentenceTransformer, rank: int) -> None:
    """Freeze the transformers of `encoder` and add LoRA adapters to all their linear layers, in place.

    LoRA trains small low-rank additions to the weights (Hu et al. 2021), here through `peft`.

    The additions start at zero and are scaled by alpha / rank = 2; their other factor has a fixed seed.

    Raises:
        MissingExtraError: `peft` is not installed.
        CropsError: the encoder has no transformer.
    """
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("peft", "lora")
    import peft  # an optional dependency, and slow to import

    transformers = [module for module in encoder.modules() if isinstance(module, Transformer)]
    if not transformers:
        raise CropsError("lora_rank: this encoder has no transformer to adapt; set lora_rank = 0")
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
    for module in transformers:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module.model = peft.get_peft_model(module.model, config)


def merge_lora(encoder: SentenceTransformer) -> None:
    """Add the adapters to the weights, in place; an encoder without adapters stays as it is."""
    for module in encoder.modules():
        if isinstance(module, Transformer) and hasattr(module.model, "merge_and_unload"):
            module.model = module.model.merge_and_unload()


def over_dims(loss: Callable[..., Tensor], dims: Sequence[int]) -> Callable[..., Tensor]:
    """Return the sum of `loss` on the full embeddings and on their first `dims` numbers, made unit length.

    So the first numbers become embeddings too (Kusupati et al. 2022, Matryoshka representations).

    Args:
        loss: called as loss(query_emb [Q, d], doc_emb [N, d], *args, **options), like `h_infonce`.
        dims: widths below the full one; the loss is returned as it is when there are none.

    Returns:
        A loss of the same signature, which raises CropsError for a width that is not below d.
    """
    if not dims:
        return loss

    def summed(query_emb: Tensor, doc_emb: Tensor, *args: Any, **options: Any) -> Tensor:  # noqa: ANN401
        width = query_emb.shape[1]
        if max(dims) >= width:
            raise CropsError(
                f"matryoshka_dims: {max(dims)} is not below the {width} dimensions of the encoder"
            )
        total = loss(query_emb, doc_emb, *args, **options)
        for dim in dims:
            query, doc = (normalize(embeddings[:, :dim], dim=1) for embeddings in (query_emb, doc_emb))
            total = total + loss(query, doc, *args, **options)
        return total

    return summed


# Texts tokenised once, encoded whenever a batch needs them.


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
