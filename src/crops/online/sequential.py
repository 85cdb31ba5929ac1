"""Looking at an experiment every day without fooling oneself: the O'Brien-Fleming boundary.

O'Brien & Fleming (Biometrics 1979): with K looks planned, look k claims an effect when |Z_k| >= c
sqrt(K / k). The constant c keeps the chance of any false claim at alpha (Jennison & Turnbull, Group
Sequential Methods, 2000, Table 2.3). Early looks ask for very much and the last one for little more than a
single test would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from crops.errors import CropsError

Floats = NDArray[np.float64]
_STEPS = 201
"""Points of the numerical integration; the constant is right to 4 digits up to a year of daily looks."""


@dataclass(frozen=True)
class Look:
    """One planned look."""

    number: int
    z: float
    """|Z| from which on an effect is claimed."""
    p: float
    """The same as a two-sided p-value."""


def looks(planned: int, alpha: float = 0.05) -> tuple[Look, ...]:
    """Return the O'Brien-Fleming boundary of equally spaced looks.

    It holds for cumulated data whose looks bring equal information. Users who come back bring less with each
    day; then the looks are more alike than assumed and the boundary promises less than it keeps.

    Args:
        planned: how many looks there will be; fixed before the first.
        alpha: chance of any false claim.

    Raises:
        CropsError: no look, or alpha is not within (0, 0.5].
    """
    if planned < 1 or not 0 < alpha <= 0.5:
        raise CropsError(f"{planned} looks at alpha {alpha}: plan at least one look, alpha within (0, 0.5]")
    constant = obrien_fleming(planned, alpha)
    bounds = [constant * np.sqrt(planned / k) for k in range(1, planned + 1)]
    return tuple(Look(k, float(z), float(2 * norm.sf(z))) for k, z in enumerate(bounds, start=1))


@cache
def obrien_fleming(planned: int, alpha: float) -> float:
    """Return c: the boundary of the last of `planned` equally spaced looks."""

    def excess(constant: float) -> float:
        return crossing(constant * np.sqrt(planned / np.arange(1, planned + 1))) - alpha

    return float(brentq(excess, norm.ppf(1 - alpha / 2) - 1e-6, norm.ppf(1 - alpha / (2 * planned)) + 1e-6))


def crossing(bounds: Sequence[float] | Floats) -> float:
    """Return the chance that |Z_k| reaches its bound at any of the equally spaced looks, without an effect.

    The sum S_k = sqrt(k) Z_k is a random walk with normal steps; its density among those who went on is
    carried from look to look (Armitage, McPherson & Rowe, JRSS A 1969) by Gauss-Legendre quadrature.
    """
    points, weights = np.polynomial.legendre.leggauss(_STEPS)
    reach = float(bounds[0])
    place, weight = reach * points, reach * weights
    density = norm.pdf(place)
    for k, bound in enumerate(bounds[1:], start=2):
        reach = float(bound) * np.sqrt(k)
        onward = reach * points
        density = norm.pdf(onward[:, None] - place[None, :]) @ (weight * density)
        place, weight = onward, reach * weights
    return float(1 - (weight * density).sum())
