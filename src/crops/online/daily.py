"""The effects of an experiment day by day, with what each look may claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from crops.online.metrics import PRIMARY, Metric
from crops.online.panel import Panel
from crops.online.sequential import looks
from crops.online.statistics import Effect, attempt, effect


@dataclass(frozen=True)
class DayEffect:
    """One planned look: None where the day has too little data."""

    day: str
    alone: Effect | None
    """Of the day."""
    so_far: Effect | None
    """Of the days up to it."""
    bound: float
    """|z| of `so_far` from which on this look claims an effect (O'Brien-Fleming)."""

    @property
    def claims(self) -> bool:
        """Whether whoever looks each day may stop here."""
        if self.so_far is None or not self.so_far.standard_error:
            return False
        return abs(self.so_far.absolute) >= self.bound * self.so_far.standard_error


def daily_effects(
    panel: Panel,
    past: Mapping[str, NDArray[np.float64]] | None,
    metrics: Sequence[Metric],
    control: str,
    treatment: str,
    alpha: float,
) -> dict[str, list[DayEffect]]:
    """Return the looks at the primary metrics, one per day of the experiment.

    Args:
        panel: the users.
        past: their statistics on days before the experiment, for CUPED.
        metrics: those that the logs can tell.
        control: the arm to compare with.
        treatment: the other arm.
        alpha: chance of any false claim about one metric of one treatment.
    """
    primary = [metric for metric in metrics if metric.key in PRIMARY]
    sides = panel.members(control), panel.members(treatment)
    daily: dict[str, list[DayEffect]] = {metric.key: [] for metric in primary}
    for look, day in zip(looks(len(panel.days), alpha), panel.days, strict=True):
        alone, so_far = panel.sums([day]), panel.sums(panel.days[: look.number])
        for metric in primary:
            first, second = (
                attempt(partial(effect, metric, sums, *sides, past))[0] for sums in (alone, so_far)
            )
            daily[metric.key].append(DayEffect(day, first, second, look.z))
    return daily
