"""A seeded random order that every SQL engine computes alike."""

from __future__ import annotations

import numpy as np

PRIME = 2_147_483_647
"""2^31 - 1: products of two residues stay below 2^62, so no engine overflows."""


def random_order(query: str, item: str, seed: int) -> str:
    """Return the SQL of a pseudo-random key that orders the items of a query, another order for each query.

    item * a mod p with a multiplier a in 1..p-1 drawn by query and seed: the universal hash family of Carter
    and Wegman (1979). Items whose ids differ by a multiple of p tie; order by id next.

    Args:
        query: SQL of the query id, any signed 64-bit integer.
        item: SQL of the item id, likewise.
        seed: another seed gives other multipliers.
    """
    shift = int(np.random.default_rng(seed).integers(PRIME))
    multiplier = f"(1 + ({_residue(query)} + {shift}) % {PRIME - 1})"
    return f"({_residue(item)} * {multiplier}) % {PRIME}"


def _residue(value: str) -> str:
    # SQL's % keeps the sign of the dividend, and ids may be negative.
    return f"(({value} % {PRIME} + {PRIME}) % {PRIME})"
