"""The sides of a dual encoder, which module and prompt serve queries and documents; adapters and widths."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule, Module, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
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
