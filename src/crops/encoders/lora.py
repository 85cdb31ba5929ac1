"""LoRA: train small low-rank additions to the weights of a transformer (Hu et al. 2021), through `peft`."""

from __future__ import annotations

import importlib.util

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer

from crops.errors import CropsError, MissingExtraError


def attach_lora(encoder: SentenceTransformer, rank: int) -> None:
    """Freeze the transformers of `encoder` and add adapters of `rank` to all their linear layers, in place.

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
