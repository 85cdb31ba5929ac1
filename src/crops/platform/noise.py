"""Fixed random numbers for pairs of keys: the same pair always gets the same number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crops.platform.world import Floats, Ints


def mix(left: Ints, right: Ints) -> NDArray[np.uint64]:
    """Return 64 well-mixed bits per pair (splitmix64); the arguments broadcast."""
    with np.errstate(over="ignore"):
        x = left.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + right.astype(np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(left: Ints, right: Ints) -> Floats:
    """Return one number in [0, 1) per pair."""
    drawn: Floats = (mix(left, right) >> np.uint64(11)).astype(np.float64) / 2**53
    return drawn


def normal(left: Ints, right: Ints) -> Floats:
    """Return one nearly normal number, mean 0 and variance 1, per pair (sum of four uniforms)."""
    x = mix(left, right)
    parts = [((x >> np.uint64(16 * i)) & np.uint64(0xFFFF)).astype(np.float64) / 65535 for i in range(4)]
    drawn: Floats = (sum(parts) - 2.0) * np.sqrt(3.0)
    return drawn
