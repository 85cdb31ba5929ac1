"""One experiment from its users' sums: checks, levels, effects, daily looks, and A/A beside them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy  # its submodules load when they are used
from numpy.typing import NDArray
from scipy.special import ndtri

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
        earlier = _user_days(rows, people.users, people.members)
    members = people.members
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
    tested = [one for one in found if one.metric.key in PRIMARY and one.effect]
    both = corrected([one.effect.p for one in tested if one.effect])  # of all treatments together
    adjusted = {
        id(one): replace(one, holm=holm, benjamini_hochberg=fdr)
        for one, holm, fdr in zip(tested, *both, strict=True)
    }
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
        findings=tuple(adjusted.get(id(one), one) for one in found),
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
    members: Mapping[str, NDArray[np.bool_]]
    """Who is in an arm, [n] each."""
    days: tuple[str, ...]
    row_user: Ints
    """Index into `users`, [m]."""
    row_day: Ints
    """Index into `days`, [m]."""
    statistics: Mapping[str, Floats]
    """Name -> [m]."""

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

    Raises:
        CropsError: no user is in an arm of this experiment.
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
    users = np.unique(rows["user_id"].to_numpy())
    own = {arm: pairs.filter(pc.equal(pairs["arm"], arm))["user_id"].to_numpy() for arm in arms}
    return _user_days(rows, users, {arm: np.isin(users, ids) for arm, ids in own.items()})


def everybody(table: pa.Table) -> UserDays:
    """Return all users, whatever their arms: what an experiment could be made of."""
    return _user_days(table, np.unique(table["user_id"].to_numpy()), {})


def _user_days(rows: pa.Table, users: Ints, members: Mapping[str, NDArray[np.bool_]]) -> UserDays:
    days = sorted(pc.unique(rows["day"]).to_pylist())
    names = [name for name in rows.column_names if name not in _KEYS]
    return UserDays(
        users=users,
        members=members,
        days=tuple(days),
        row_user=np.searchsorted(users, rows["user_id"].to_numpy()),
        row_day=pc.index_in(rows["day"], pa.array(days, pa.string())).to_numpy().astype(np.int64),
        statistics={name: rows[name].to_numpy().astype(np.float64) for name in names},
    )


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
    sides = people.members[control], people.members[treatment]
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


# Looking at an experiment every day without fooling oneself: the O'Brien-Fleming boundary. O'Brien & Fleming
# (Biometrics 1979): with K looks planned, look k claims an effect when |Z_k| >= c sqrt(K / k). The constant c
# keeps the chance of any false claim at alpha (Jennison & Turnbull, Group Sequential Methods, 2000, Table
# 2.3). Early looks ask for very much and the last one for little more than a single test would.

_STEPS = 201
"""Points of the numerical integration; the constant is right to 4 digits up to a year of daily looks."""


def looks(planned: int, alpha: float = 0.05) -> list[float]:
    """Return the O'Brien-Fleming boundary: the |z| from which on each equally spaced look claims an effect.

    It holds for cumulated data whose looks bring equal information. Users who come back bring less with each
    day; then the looks are more alike than assumed and the boundary promises less than it keeps. How many are
    `planned` is fixed before the first; `alpha` is the chance of any false claim.

    Raises:
        CropsError: no look, or alpha is not within (0, 0.5].
    """
    if planned < 1 or not 0 < alpha <= 0.5:
        raise CropsError(f"{planned} looks at alpha {alpha}: plan at least one look, alpha within (0, 0.5]")
    constant = obrien_fleming(planned, alpha)
    return [float(constant * np.sqrt(planned / k)) for k in range(1, planned + 1)]


@cache
def obrien_fleming(planned: int, alpha: float) -> float:
    """Return c: the boundary of the last of `planned` equally spaced looks."""
    scale = np.sqrt(planned / np.arange(1, planned + 1))
    least, most = ndtri(1 - alpha / 2) - 1e-6, ndtri(1 - alpha / (2 * planned)) + 1e-6
    return float(scipy.optimize.brentq(lambda constant: crossing(constant * scale) - alpha, least, most))


def crossing(bounds: Sequence[float] | Floats) -> float:
    """Return the chance that |Z_k| reaches its bound at any of the equally spaced looks, without an effect.

    The sum S_k = sqrt(k) Z_k is a random walk with normal steps; its density among those who went on is
    carried from look to look (Armitage, McPherson & Rowe, JRSS A 1969) by Gauss-Legendre quadrature.
    """
    points, weights = np.polynomial.legendre.leggauss(_STEPS)
    reach = float(bounds[0])
    place, weight = reach * points, reach * weights
    density = scipy.stats.norm.pdf(place)
    for k, bound in enumerate(bounds[1:], start=2):
        reach = float(bound) * np.sqrt(k)
        onward = reach * points
        density = scipy.stats.norm.pdf(onward[:, None] - place[None, :]) @ (weight * density)
        place, weight = onward, reach * weights
    return float(1 - (weight * density).sum())
