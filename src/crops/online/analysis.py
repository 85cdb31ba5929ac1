"""One experiment from its users' sums: checks, levels, effects, daily looks, and A/A beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.online.daily import DayEffect, daily_effects
from crops.online.metrics import PRIMARY, Metric, metrics_of
from crops.online.panel import Panel, everybody, experiment_panel, pre_panel
from crops.online.planning import SampleCheck, sample_check
from crops.online.ratios import Level, level, paired_effect
from crops.online.resalt import FalsePositives, false_positives, resalted, significant
from crops.online.statistics import (
    ALPHA,
    Effect,
    attempt,
    corrected,
    effect,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Finding:
    """What one treatment does to one metric."""

    metric: Metric
    treatment: str
    effect: Effect | None
    refused: str | None = None
    """Why there is no effect."""
    holm: float | None = None
    benjamini_hochberg: float | None = None
    """p after correction; None beyond the family of primary metrics."""
    suffices: int | None = None
    """Users per arm that find the effect that was asked for."""
    paired: Effect | None = None
    """Of copies of the world, where there are any."""

    @property
    def verdict(self) -> str:
        """`refused`, `better`, `worse`, `differs` or `no effect shown`."""
        if self.effect is None:
            return "refused"
        p = self.effect.p if self.holm is None else self.holm
        if p >= ALPHA:
            return "no effect shown"
        if not self.metric.better:
            return "differs"
        return "better" if self.effect.absolute * self.metric.better > 0 else "worse"


@dataclass(frozen=True)
class Analysis:
    """An experiment."""

    name: str
    control: str
    treatments: tuple[str, ...]
    days: tuple[str, ...]
    pre_days: tuple[str, ...]
    users: Mapping[str, int]
    """By arm."""
    checks: Mapping[str, SampleCheck]
    """By treatment."""
    metrics: tuple[Metric, ...]
    levels: Mapping[str, Mapping[str, Level]]
    """By arm, then metric key; a metric without a value is left out."""
    findings: tuple[Finding, ...]
    daily: Mapping[str, Mapping[str, Sequence[DayEffect]]]
    """By treatment, then primary metric; empty where the verdict is refused."""
    false_positives: tuple[FalsePositives, ...] = ()
    """A/A: the control's users re-salted into two arms."""
    wanted: float | None = None
    """Relative effect that was asked for."""
    gaps: Mapping[str, str] = field(default_factory=dict)
    """Why a level or an A/A test is not there, by what it is."""
    reach: Mapping[str, float] = field(default_factory=dict)
    """Share of the creators that was shown to as many users of each arm."""

    def of(self, treatment: str, metric: str) -> Finding:
        """Return the finding of a treatment and a metric's key."""
        return next(
            found for found in self.findings if (found.treatment, found.metric.key) == (treatment, metric)
        )


def analyse(
    table: pa.Table,
    control: str,
    treatments: Sequence[str],
    *,
    routes: Sequence[str] = (),
    before: pa.Table | None = None,
    ratios: Mapping[str, float] | None = None,
    wanted: float | None = None,
    salts: int = 1000,
    name: str = "",
) -> Analysis:
    """Analyse one experiment.

    Args:
        table: `crops.online.userdays.user_days` of its days.
        control: the arm to compare with.
        treatments: the other arms.
        routes: recall routes whose shares were measured.
        before: the same of days before the experiment, for CUPED.
        ratios: promised users per user of the control, by treatment; 1 where not given.
        wanted: relative effect that should have been found; 0.01 is 1 %.
        salts: re-salted assignments of the A/A beside it; 0 leaves it out.
        name: what to call it.

    Raises:
        CropsError: arms overlap, have no user or share users (see `experiment_panel`).
        MissingExtraError: tea-tasting is not installed.
    """
    panel = experiment_panel(table, [control, *treatments])
    earlier = pre_panel(before, panel) if before is not None and before.num_rows else None
    members = {arm: panel.members(arm) for arm in panel.arms}
    users = {arm: int(inside.sum()) for arm, inside in members.items()}
    checks = {
        arm: sample_check(users[control], users[arm], (ratios or {}).get(arm, 1.0)) for arm in treatments
    }
    metrics = metrics_of(routes, tuple(panel.statistics))
    sums, past = panel.sums(), earlier.sums() if earlier else None
    gaps: dict[str, str] = {}
    found = [
        _finding(metric, sums, past, members[control], members[arm], arm, checks[arm], wanted)
        for arm in treatments
        for metric in metrics
    ]
    return Analysis(
        name=name,
        control=control,
        treatments=tuple(treatments),
        days=panel.days,
        pre_days=earlier.days if earlier else (),
        users=users,
        checks=checks,
        metrics=metrics,
        levels={arm: _levels(metrics, _of(sums, inside), arm, gaps) for arm, inside in members.items()},
        findings=tuple(_correct(found)),
        daily={
            arm: daily_effects(panel, past, metrics, control, arm, ALPHA / _family(metrics, treatments))
            for arm in treatments
            if checks[arm].holds
        },
        false_positives=_resalt(panel, metrics, members[control], past, salts, gaps),
        wanted=wanted,
        gaps=gaps,
    )


def with_pairs(analysis: Analysis, control: pa.Table, worlds: Mapping[str, pa.Table]) -> Analysis:
    """Add the paired effects of copies of the world.

    Args:
        analysis: the experiment.
        control: `user_days` of the control's world, on the days of the experiment.
        worlds: the same of each treatment's.
    """
    pairs = {
        arm: (_aligned(control, table), _aligned(table, control))
        for arm, table in worlds.items()
        if arm in analysis.treatments
    }
    findings = [
        replace(found, paired=attempt(partial(paired_effect, found.metric, *pairs[found.treatment]))[0])
        if found.treatment in pairs
        else found
        for found in analysis.findings
    ]
    return replace(analysis, findings=tuple(findings))


def _aligned(table: pa.Table, other: pa.Table) -> dict[str, Floats]:
    """Return the sums of the users of both tables, in the order of user_id; 0 where a table lacks one."""
    panel = everybody(table)
    union = np.union1d(panel.users, np.unique(other["user_id"].to_numpy()))
    place = np.searchsorted(union, panel.users)
    sums = {}
    for key, values in panel.sums().items():
        sums[key] = np.zeros(len(union))
        sums[key][place] = values
    return sums


def _finding(
    metric: Metric,
    sums: Mapping[str, Floats],
    past: Mapping[str, Floats] | None,
    control: NDArray[np.bool_],
    treatment: NDArray[np.bool_],
    name: str,
    check: SampleCheck,
    wanted: float | None,
) -> Finding:
    if not check.holds:
        return Finding(metric, name, None, refusal(check))
    found, refused = attempt(partial(effect, metric, sums, control, treatment, past))
    suffices = None
    if found is not None and wanted and found.control:
        least = min(int(control.sum()), int(treatment.sum()))
        suffices = math.ceil(least * (found.mde / (wanted * found.control)) ** 2)
    return Finding(metric, name, found, refused, suffices=suffices)


def _family(metrics: Sequence[Metric], treatments: Sequence[str]) -> int:
    """Return how many tests of primary metrics there are."""
    return len(treatments) * sum(metric.key in PRIMARY for metric in metrics)


def refusal(check: SampleCheck) -> str:
    """Return why a sample ratio that does not hold forbids a verdict."""
    promised = (check.control + check.treatment) * check.expected / (1 + check.expected)
    return (
        f"unbalanced sample: {check.treatment:,} users in the treatment where the split promises "
        f"{promised:,.0f} beside {check.control:,} in the control (p = {check.p:.2g}); assignment or logging "
        "loses users of one arm, so whatever differs may come from that"
    )


def _correct(findings: Sequence[Finding]) -> list[Finding]:
    """Correct the p-values of the primary metrics of all treatments together."""
    family = [found for found in findings if found.metric.key in PRIMARY and found.effect]
    both = corrected([found.effect.p for found in family if found.effect])
    adjusted = {
        id(found): replace(found, holm=holm, benjamini_hochberg=fdr)
        for found, holm, fdr in zip(family, *both, strict=True)
    }
    return [adjusted.get(id(found), found) for found in findings]


def _of(sums: Mapping[str, Floats], inside: NDArray[np.bool_]) -> dict[str, Floats]:
    return {name: values[inside] for name, values in sums.items()}


def _levels(
    metrics: Sequence[Metric], sums: Mapping[str, Floats], arm: str, gaps: dict[str, str]
) -> dict[str, Level]:
    levels = {}
    for metric in metrics:
        try:
            levels[metric.key] = level(metric, sums)
        except CropsError as why:
            gaps[f"level: {metric.label} of {arm}"] = str(why)
    return levels


def _resalt(
    panel: Panel,
    metrics: Sequence[Metric],
    control: NDArray[np.bool_],
    past: Mapping[str, Floats] | None,
    salts: int,
    gaps: dict[str, str],
) -> tuple[FalsePositives, ...]:
    sums, names = _of(panel.sums(), control), [f"aa-{salt}" for salt in range(salts)]
    before = _of(past, control) if past is not None else None
    found = []
    for metric in metrics if salts else ():
        try:
            test = resalted(metric, sums, panel.users[control], names, before=before)
        except CropsError as why:
            gaps[f"A/A of {metric.label}"] = str(why)
            continue
        found.append(false_positives(metric.key, significant(test)))
    return tuple(found)
