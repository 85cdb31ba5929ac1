"""Dual encoders over texts: presets, the distilled static encoder, texts tokenised once."""

from crops.encoders.load import load_encoder
from crops.encoders.static import distill
from crops.encoders.texts import TokenisedTexts, encode, only_used_tokens, tokenise

__all__ = ["TokenisedTexts", "distill", "encode", "load_encoder", "only_used_tokens", "tokenise"]
