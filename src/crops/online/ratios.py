"""A ratio metric of one group of users, and the effect that only a simulator can see: the paired one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from crops.online.metrics import Metric
from crops.online.statistics import ALPHA, Effect, check_sums

Floats = NDArray[np.float64]

REACH = float(norm.ppf(1 - ALPHA / 2))
"""Standard errors on either side of an interval."""


@dataclass(frozen=True)
class Level:
    """A metric of one arm and its 95 % interval (user-level delta method)."""

    value: float
    low: float
    high: float


def level(metric: Metric, sums: Mapping[str, Floats]) -> Level:
    """Return a metric over users, from their statistics [users] each.

    Raises:
        CropsError: fewer than `crops.online.statistics.MIN_USERS` users, or the metric's denominator is 0.
    """
    value, parts = _linear(metric, sums, "arm")
    half = REACH * _standard_error(parts)
    return Level(value, value - half, value + half)


def paired_effect(metric: Metric, control: Mapping[str, Floats], treatment: Mapping[str, Floats]) -> Effect:
    """Return the effect between two copies of one world: same users, same random numbers, one arm each.

    With R the ratio of an arm, a user adds (n - R d) / mean(d) to it (delta method). A user's two
    contributions are subtracted before their spread is measured: what the user would have done anyway leaves.
    The interval is about other users of the same two worlds: users share a world, and what one of them
    teaches the platform reaches the others.

    Args:
        metric: the metric.
        control: statistics per user in the control's world, [users] each.
        treatment: the same users, in the same order, in the treatment's.

    Raises:
        CropsError: fewer than `crops.online.statistics.MIN_USERS` users, or the metric's denominator is 0.
    """
    before, from_control = _linear(metric, control, "control")
    after, from_treatment = _linear(metric, treatment, "treatment")
    error = _standard_error(from_treatment - from_control)
    relative, stretch = math.nan, math.nan
    if before and after:
        relative = after / before - 1
        stretch = math.exp(REACH * _standard_error(from_treatment / after - from_control / before))
    gap = after - before
    return Effect(
        control=before,
        treatment=after,
        absolute=gap,
        low=gap - REACH * error,
        high=gap + REACH * error,
        relative=relative,
        relative_low=(1 + relative) / stretch - 1,
        relative_high=(1 + relative) * stretch - 1,
        p=float(2 * norm.sf(abs(gap) / error)) if error else float(gap == 0),
        standard_error=error,
    )


def _linear(metric: Metric, sums: Mapping[str, Floats], arm: str) -> tuple[float, Floats]:
    """Return the ratio and the users' contributions to its error, [users]."""
    check_sums(metric, sums, arm)
    numerator, denominator = sums[metric.numerator], sums[metric.denominator]
    ratio = float(numerator.sum() / denominator.sum())
    return ratio, (numerator - ratio * denominator) / denominator.mean()


def _standard_error(values: Floats) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))
