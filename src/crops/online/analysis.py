"""One experiment from its users' sums: checks, levels, effects, daily looks, and A/A beside them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from crops.errors import CropsError, nearest
from crops.online.metrics import PRIMARY, USER_SHARES, Metric, metrics_of
from crops.online.statistics import (
    ALPHA,
    Effect,
    FalsePositives,
    Level,
    SampleCheck,
    attempt,
    corrected,
    effect,
    false_positives,
    level,
    looks,
    paired_effect,
    rerandomised,
    sample_check,
    significant,
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
    """A/A: the control's users re-randomised into two arms."""
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
        table: `crops.online.metrics.user_days` of its days.
        routes: recall routes whose shares were measured.
        before: the same of days before the experiment, for CUPED.
        ratios: promised users per user of the control, by treatment; 1 where not given.
        wanted: relative effect that should have been found; 0.01 is 1 %.
        salts: re-randomised assignments of the A/A beside it; 0 leaves it out.

    Raises:
        CropsError: as `experiment_users`.
    """
    people = experiment_users(table, [control, *treatments])
    earlier = None
    if before is not None and before.num_rows:
        rows = before.filter(pc.is_in(before["user_id"], pa.array(people.users)))
        earlier = _user_days(rows, people.users, people.arm, people.arms)
    members = {arm: people.members(arm) for arm in people.arms}
    users = {arm: int(inside.sum()) for arm, inside in members.items()}
    checks = {
        arm: sample_check(users[control], users[arm], (ratios or {}).get(arm, 1.0)) for arm in treatments
    }
    metrics = metrics_of(routes, tuple(people.statistics))
    family = len(treatments) * sum(metric.key in PRIMARY for metric in metrics)
    sums, past = people.sums(), earlier.sums() if earlier else None
    found = []
    for arm in treatments:
        sides = members[control], members[arm]
        for metric in metrics:
            if not checks[arm].holds:
                found.append(Finding(metric, arm, None, refusal(checks[arm])))
                continue
            one, refused = attempt(partial(effect, metric, sums, *sides, past))
            suffices = None
            if one is not None and wanted and one.control:
                least = min(users[control], users[arm])
                suffices = math.ceil(least * (one.mde / (wanted * one.control)) ** 2)
            found.append(Finding(metric, arm, one, refused, suffices=suffices))
    gaps: dict[str, str] = {}
    levels: dict[str, dict[str, Level]] = {arm: {} for arm in members}
    for arm, inside in members.items():
        own = _of(sums, inside)
        for metric in metrics:
            value, why = attempt(partial(level, metric, own))
            if value is None:
                gaps[f"level: {metric.label} of {arm}"] = why or ""
            else:
                levels[arm][metric.key] = value
    return Analysis(
        name=name,
        control=control,
        treatments=tuple(treatments),
        days=people.days,
        pre_days=earlier.days if earlier else (),
        users=users,
        checks=checks,
        metrics=metrics,
        levels=levels,
        findings=tuple(_correct(found)),
        daily={
            arm: _daily_effects(people, past, metrics, control, arm, ALPHA / family)
            for arm in treatments
            if checks[arm].holds
        },
        false_positives=_a_a_tests(people, metrics, members[control], past, salts, gaps),
        wanted=wanted,
        gaps=gaps,
    )


def with_pairs(analysis: Analysis, control: pa.Table, worlds: Mapping[str, pa.Table]) -> Analysis:
    """Add the paired effects of copies of the world; of each its `user_days` on the experiment's days."""
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
    people = everybody(table)
    union = np.union1d(people.users, np.unique(other["user_id"].to_numpy()))
    place = np.searchsorted(union, people.users)
    sums = {}
    for key, values in people.sums().items():
        sums[key] = np.zeros(len(union))
        sums[key][place] = values
    return sums


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


def _a_a_tests(
    people: UserDays,
    metrics: Sequence[Metric],
    control: NDArray[np.bool_],
    past: Mapping[str, Floats] | None,
    salts: int,
    gaps: dict[str, str],
) -> tuple[FalsePositives, ...]:
    sums, names = _of(people.sums(), control), [f"aa-{salt}" for salt in range(salts)]
    before = _of(past, control) if past is not None else None
    found = []
    for metric in metrics if salts else ():
        test, why = attempt(partial(rerandomised, metric, sums, people.users[control], names, before=before))
        if test is None:
            gaps[f"A/A of {metric.label}"] = why or ""
        else:
            found.append(false_positives(metric.key, significant(test)))
    return tuple(found)


# The users of an experiment with their sums, and what is wrong with their assignment.


Ints = NDArray[np.int64]
Sums = dict[str, Floats]
"""Statistic -> its sum per user, [users]."""
_KEYS = ("user_id", "arm", "day")


@dataclass(frozen=True)
class UserDays:
    """n users, and m rows of one user's day each: `crops.online.metrics.user_days` as arrays."""

    users: Ints
    """user_id, sorted, [n]."""
    arms: tuple[str, ...]
    arm: Ints
    """Index into `arms` per user, -1 = in none, [n]."""
    days: tuple[str, ...]
    row_user: Ints
    """Index into `users`, [m]."""
    row_day: Ints
    """Index into `days`, [m]."""
    statistics: Mapping[str, Floats]
    """Name -> [m]."""

    def members(self, arm: str) -> NDArray[np.bool_]:
        """Return who is in an arm, [n]."""
        chosen: NDArray[np.bool_] = self.arm == self.arms.index(arm)
        return chosen

    def sums(self, days: Collection[str] | None = None) -> Sums:
        """Return the sums per user over some days (all when None), with those of `USER_STATISTICS`."""
        wanted = np.array([days is None or day in days for day in self.days], dtype=bool)
        rows = wanted[self.row_day]
        place, n = self.row_user[rows], len(self.users)
        sums: Sums = {
            name: np.bincount(place, values[rows], minlength=n).astype(np.float64)
            for name, values in self.statistics.items()
        }
        for key, (numerator, denominator) in USER_SHARES.items():
            parts, whole = sums[numerator], sums[denominator]
            has = whole > 0
            sums[f"{key}_own"] = np.divide(parts, whole, out=np.zeros_like(parts), where=has)
            sums[f"{key}_has"] = has.astype(np.float64)
            sums[f"{key}_ever"] = (parts > 0).astype(np.float64)
        return sums


def arms_of(table: pa.Table, experiment: str) -> pa.Table:
    """Return the output of `user_days` with the arms of one experiment, where `arm` names several.

    "a=x;b=y" is arm x of experiment a and arm y of experiment b; null where a user is in none of its arms.
    """
    logged = pc.unique(table["arm"]).to_pylist()
    named = {
        arms: dict(part.split("=", 1) for part in arms.split(";") if "=" in part) for arms in logged if arms
    }
    known = sorted({name for arms in named.values() for name in arms})
    if experiment not in known:
        raise CropsError(
            f"search_impressions, column arm: no arm of experiment '{experiment}'; the experiments there: "
            f"{', '.join(known) or 'none'}.{nearest(experiment, known)}"
        )
    arm = [named.get(arms, {}).get(experiment) for arms in table["arm"].to_pylist()]
    place = table.column_names.index("arm")
    return table.set_column(place, "arm", pa.array(arm, pa.string()))


def experiment_users(table: pa.Table, arms: Sequence[str]) -> UserDays:
    """Return the users of some arms, the control first, on the days on which those arms ran.

    Raises:
        CropsError: an arm is named twice or has no user, no row has an arm, or a user is in two arms.
    """
    if len(set(arms)) < len(arms):
        raise CropsError(
            f"the arms {', '.join(arms)} overlap: name each arm once, the control is no treatment"
        )
    there = sorted(pc.unique(table["arm"].drop_null()).to_pylist())
    if not there:
        raise CropsError(
            "search_impressions, column arm: no search has an arm; log the arm with every search of the "
            "experiment's users"
        )
    for arm in arms:
        if arm not in there:
            raise CropsError(
                f"arm '{arm}' has no user; the arms in these logs: {', '.join(there)}.{nearest(arm, there)}"
            )
    rows = table.filter(pc.is_in(table["arm"], pa.array(list(arms))))
    pairs = rows.group_by(["user_id", "arm"], use_threads=False).aggregate([])
    counts = pairs.group_by("user_id", use_threads=False).aggregate([("arm", "count")])
    double = counts.filter(pc.greater(counts["arm_count"], 1))["user_id"]
    if len(double):
        example = min(double.to_pylist())
        both = sorted(pairs.filter(pc.equal(pairs["user_id"], example))["arm"].to_pylist())
        raise CropsError(
            f"search_impressions, column arm: {len(double):,} of {len(counts):,} users are in two arms, e.g. "
            f"user {example} in {' and '.join(both)}; assign by user, and log the arm of the user's hash"
        )
    return _user_days(rows, pairs["user_id"].to_numpy(), _codes(pairs["arm"], arms), arms)


def everybody(table: pa.Table) -> UserDays:
    """Return all users, whatever their arms: what an experiment could be made of."""
    users = np.unique(table["user_id"].to_numpy())
    return _user_days(table, users, np.full(len(users), -1), ())


def _user_days(rows: pa.Table, users: Ints, arm: Ints, arms: Sequence[str]) -> UserDays:
    order = np.argsort(users)
    users = users[order].astype(np.int64)
    days = sorted(pc.unique(rows["day"]).to_pylist())
    names = [name for name in rows.column_names if name not in _KEYS]
    return UserDays(
        users=users,
        arms=tuple(arms),
        arm=np.asarray(arm)[order],
        days=tuple(days),
        row_user=np.searchsorted(users, rows["user_id"].to_numpy()),
        row_day=_codes(rows["day"], days),
        statistics={name: rows[name].to_numpy().astype(np.float64) for name in names},
    )


def _codes(column: pa.ChunkedArray, values: Sequence[str]) -> Ints:
    codes: Ints = pc.index_in(column, pa.array(list(values), pa.string())).to_numpy().astype(np.int64)
    return codes


def _daily_effects(
    people: UserDays,
    past: Mapping[str, Floats] | None,
    metrics: Sequence[Metric],
    control: str,
    treatment: str,
    alpha: float,
) -> dict[str, list[DayEffect]]:
    """Return the looks at the primary metrics, one per day; alpha is that of one metric and treatment."""
    primary = [metric for metric in metrics if metric.key in PRIMARY]
    sides = people.members(control), people.members(treatment)
    daily: dict[str, list[DayEffect]] = {metric.key: [] for metric in primary}
    bounds = looks(len(people.days), alpha)
    for n, (day, bound) in enumerate(zip(people.days, bounds, strict=True), start=1):
        alone, so_far = people.sums([day]), people.sums(people.days[:n])
        for metric in primary:
            first, second = (
                attempt(partial(effect, metric, sums, *sides, past))[0] for sums in (alone, so_far)
            )
            daily[metric.key].append(DayEffect(day, first, second, bound))
    return daily
