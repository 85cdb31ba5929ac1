"""Dual encoders: presets, towers, prompts, adapters, the two-tower on ids; texts tokenised once."""

from crops.encoders.load import distill, encoder_folder, load_encoder, rendering_for, save_encoder
from crops.encoders.towers import (
    Role,
    TokenisedTexts,
    asymmetric,
    encode,
    longest,
    only_used_tokens,
    over_dims,
    tokenise,
)
from crops.encoders.two_tower import rendering_of

__all__ = [
    "Role",
    "TokenisedTexts",
    "asymmetric",
    "distill",
    "encode",
    "encoder_folder",
    "load_encoder",
    "longest",
    "only_used_tokens",
    "over_dims",
    "rendering_for",
    "rendering_of",
    "save_encoder",
    "tokenise",
]
