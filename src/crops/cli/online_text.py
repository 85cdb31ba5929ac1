"""How the tables of an experiment write numbers."""

from __future__ import annotations

import math

from crops.errors import CropsError
from crops.online.experiment import A_A
from crops.online.metrics import Metric
from crops.online.statistics import Effect


def titled(experiment: str) -> str:
    """Write the name of an experiment; the one without a difference by what it is."""
    return "A/A" if experiment == A_A else experiment


def value(metric: Metric, number: float) -> str:
    """Write a value: shares in %."""
    return f"{100 * number:.2f}" if metric.share else f"{number:.3f}"


def change(metric: Metric, number: float) -> str:
    """Write a difference: of shares in points."""
    return signed(100 * number, 2) if metric.share else signed(number, 3)


def interval(metric: Metric, found: Effect) -> str:
    """Write the interval of an absolute effect."""
    return f"[{change(metric, found.low)}, {change(metric, found.high)}]"


def relative(found: Effect) -> str:
    """Write a relative effect with its interval, in %; a dash and the reason where there is none."""
    if not math.isfinite(found.relative):
        nothing = [name for name, mean in (("control", found.control), ("arm", found.treatment)) if not mean]
        return f"relative – ({' and '.join(nothing)} at 0)" if nothing else "relative – (too near 0)"
    ends = f"[{signed(100 * found.relative_low, 1)}, {signed(100 * found.relative_high, 1)}]"
    return f"{signed(100 * found.relative, 2)} % {ends}"


def signed(number: float, decimals: int) -> str:
    """Write a number with its sign, a true minus."""
    return f"{number:+.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def p_text(p: float | None) -> str:
    """Write a p-value."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def checked_effect(effect: float | None) -> float | None:
    """Return the relative effect that was asked for.

    Raises:
        CropsError: it is none that an experiment could look for.
    """
    if effect is not None and not 1e-6 <= abs(effect) <= 1e6:
        raise CropsError(f"--effect {effect:g}: give the relative effect that matters, e.g. 0.01 for 1 %")
    return effect
