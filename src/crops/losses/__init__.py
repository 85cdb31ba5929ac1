"""Losses over ragged groups "a query and its graded documents": pure functions of embeddings and labels."""

from crops.losses.identity import hidden_pairs
from crops.losses.infonce import Reduction, h_infonce, infonce_binary

__all__ = ["Reduction", "h_infonce", "hidden_pairs", "infonce_binary"]
