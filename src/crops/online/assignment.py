"""Who is in which arm: a salted hash of the user, cut into buckets, buckets given to arms.

The salt decides the layer. Experiments of different salts are independent: each arm of one holds the same mix
of arms of the other (Tang et al., Overlapping Experiment Infrastructure, KDD 2010). Experiments of one salt
share a layer and must have buckets of their own: then no user is in both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.platform import ROUTES, Served
from crops.platform.world import mix
from crops.protocols import Retriever
from crops.text import content_id

Ints = NDArray[np.int64]
BUCKETS = 10_000
"""Buckets of a layer: shares go in steps of 0.01 %."""
NOBODY = -1
"""The arm of a user who is in none."""


@dataclass(frozen=True)
class Arm:
    """A named range of buckets."""

    name: str
    first: int
    """The first bucket."""
    end: int
    """The bucket behind the last."""


@dataclass(frozen=True)
class Experiment:
    """Arms in a layer; the first arm is the control.

    Raises:
        CropsError: there is no arm, a name comes twice, or a range is empty, outside the layer or overlaps
            another.
    """

    name: str
    salt: str
    arms: tuple[Arm, ...]

    def __post_init__(self) -> None:
        if not self.arms:
            raise CropsError(f"experiment '{self.name}' has no arms; name at least a control and a treatment")
        _refuse_double(f"experiment '{self.name}': arm", [arm.name for arm in self.arms])
        _refuse_overlap([(f"'{arm.name}' of '{self.name}'", arm) for arm in self.arms])


def split(shares: Mapping[str, float]) -> tuple[Arm, ...]:
    """Return arms of the given shares of users, side by side from bucket 0 on.

    Raises:
        CropsError: a share is not in (0, 1] or below one bucket, or the shares sum to more than 1.
    """
    arms: list[Arm] = []
    for name, share in shares.items():
        if not 0 < share <= 1 or round(share * BUCKETS) == 0:
            raise CropsError(
                f"arm '{name}' has share {share}; a share is at least {1 / BUCKETS} and at most 1"
            )
        first = arms[-1].end if arms else 0
        arms.append(Arm(name, first, first + round(share * BUCKETS)))
    if arms and arms[-1].end > BUCKETS:
        total = arms[-1].end / BUCKETS
        raise CropsError(
            f"the shares of {', '.join(shares)} sum to {total:.4g}; more than 1 cannot be given out"
        )
    return tuple(arms)


def check_concurrent(experiments: Sequence[Experiment]) -> None:
    """Make sure that experiments can run at the same time without disturbing one another.

    Raises:
        CropsError: two have one name, or two of one salt overlap in buckets.
    """
    _refuse_double("experiment", [one.name for one in experiments])
    for salt in dict.fromkeys(one.salt for one in experiments):
        layer = [one for one in experiments if one.salt == salt]
        _refuse_overlap([(f"'{arm.name}' of '{one.name}'", arm) for one in layer for arm in one.arms])


def buckets(user_ids: Ints, salt: str) -> Ints:
    """Return the bucket 0..`BUCKETS` - 1 of each user, [users].

    It is splitmix64 of the id, started at 64 bits of the salt's SHA-256: the same on every machine and day.
    """
    hashed = mix(np.array(content_id(salt)), user_ids) % np.uint64(BUCKETS)
    return hashed.astype(np.int64)


def assign(experiment: Experiment, user_ids: Ints) -> Ints:
    """Return the position of each user's arm in `experiment.arms`, `NOBODY` where there is none; [users].

    Raises:
        CropsError: an arm gets no user.
    """
    bucket = buckets(user_ids, experiment.salt)
    result = np.full(len(user_ids), NOBODY, dtype=np.int64)
    for position, arm in enumerate(experiment.arms):
        inside = (bucket >= arm.first) & (bucket < arm.end)
        if not inside.any():
            share = (arm.end - arm.first) / BUCKETS
            raise CropsError(
                f"arm '{arm.name}' of experiment '{experiment.name}' got none of the {len(user_ids):,} users "
                f"with a share of {share:.4g}; about {round(10 / share):,} users would give it ten"
            )
        result[inside] = position
    return result


def _refuse_double(what: str, names: Sequence[str]) -> None:
    double = [name for name, count in Counter(names).items() if count > 1]
    if double:
        raise CropsError(f"{what} '{double[0]}' is named more than once")


def _refuse_overlap(arms: Sequence[tuple[str, Arm]]) -> None:
    for name, arm in arms:
        if not 0 <= arm.first < arm.end <= BUCKETS:
            raise CropsError(f"arm {name} has buckets {arm.first} to {arm.end}; they go from 0 to {BUCKETS}")
    ordered = sorted(arms, key=lambda one: one[1].first)
    for (left, before), (right, after) in zip(ordered, ordered[1:], strict=False):
        if after.first < before.end:
            raise CropsError(
                f"arms {left} and {right} overlap: both have the buckets {after.first} to "
                f"{min(before.end, after.end)}; give them ranges or their experiments salts of their own"
            )


# From arms to recall routes: an arm swaps or adds text routes of the cascade, and changes nothing else.


Routes = Mapping[str, Retriever]


@dataclass(frozen=True)
class Trial:
    """An experiment with what its arms change."""

    experiment: Experiment
    routes: Mapping[str, Routes]
    """By arm: the text routes it swaps or adds, by name; an arm that is not named changes nothing."""


@dataclass(frozen=True)
class Traffic:
    """Who is in which arm of the running experiments, and how everybody is served."""

    served: Served
    experiments: tuple[Experiment, ...]
    arms: tuple[Ints, ...]
    """By experiment: position of each user's arm, `NOBODY` where the user is in none; [users]."""


def route_traffic(deployed: Routes, trials: Sequence[Trial], users: int) -> Traffic:
    """Assign users 1..`users` to the arms of all trials, and lay the arms' routes over the deployed ones.

    Raises:
        CropsError: trials disturb one another (`check_concurrent`; or different layers change one route), an
            arm or route is not known, or an arm gets no user.
    """
    check_concurrent([trial.experiment for trial in trials])
    owner: dict[str, Experiment] = {}
    for trial in trials:
        known = {arm.name for arm in trial.experiment.arms}
        for arm, routes in trial.routes.items():
            if arm not in known:
                raise CropsError(f"experiment '{trial.experiment.name}' has no arm '{arm}'")
            for route in routes:
                if route not in ROUTES:
                    raise CropsError(f"arm '{arm}': no route '{route}'; routes: {', '.join(ROUTES)}")
                other = owner.setdefault(route, trial.experiment)
                if other.salt != trial.experiment.salt:
                    raise CropsError(
                        f"experiments '{other.name}' and '{trial.experiment.name}' both change route "
                        f"'{route}' in different layers; give them one salt and buckets of their own"
                    )
    arms = tuple(assign(trial.experiment, np.arange(1, users + 1)) for trial in trials)
    served = _serve(deployed, trials, np.stack([np.full(users, NOBODY), *arms], axis=1))
    return Traffic(served, tuple(trial.experiment for trial in trials), arms)


def _serve(deployed: Routes, trials: Sequence[Trial], arms: Ints) -> Served:
    """Return the distinct ways; combinations of arms that change nothing different are one."""
    combinations, inverse = np.unique(arms, axis=0, return_inverse=True)
    ways: dict[tuple[tuple[str, int], ...], tuple[int, Routes]] = {}
    way = np.zeros(len(combinations), dtype=np.int64)
    for row, combination in enumerate(combinations[:, 1:].tolist()):
        routes = dict(deployed)
        for trial, position in zip(trials, combination, strict=True):
            if position != NOBODY:
                routes |= trial.routes.get(trial.experiment.arms[position].name, {})
        key = tuple((name, id(retriever)) for name, retriever in sorted(routes.items()))
        way[row], _ = ways.setdefault(key, (len(ways), routes))
    return Served(tuple(routes for _, routes in ways.values()), way[inverse.ravel()])


def name_arms(traffic: Traffic) -> pa.Array:
    """Return the `arm` of each user's log rows: `name=arm` of all experiments, `;` between; null for none."""
    names = []
    for user in range(len(traffic.served.way)):
        parts = [
            f"{experiment.name}={experiment.arms[arms[user]].name}"
            for experiment, arms in zip(traffic.experiments, traffic.arms, strict=True)
            if arms[user] != NOBODY
        ]
        names.append(";".join(parts) or None)
    return pa.array(names, pa.string())


def log_exposures(traffic: Traffic, searches: pa.Table) -> pa.Table:
    """Return `exposures`: one row per search and experiment that its user is in.

    Args:
        searches: search_id, user_id and searched_at of all searches of a day.
    """
    user = searches["user_id"].to_numpy() - 1
    parts = []
    for experiment, arms in zip(traffic.experiments, traffic.arms, strict=True):
        inside = np.flatnonzero(arms[user] != NOBODY)
        found = searches.select(["user_id", "search_id", "searched_at"]).take(inside)
        names = pa.array([arm.name for arm in experiment.arms], pa.string()).take(arms[user[inside]])
        exposed = found.rename_columns(["user_id", "search_id", "exposed_at"])
        exposed = exposed.add_column(0, "arm", names)
        parts.append(exposed.add_column(0, "experiment", pa.repeat(pa.scalar(experiment.name), len(inside))))
    return pa.concat_tables(parts)


def set_arms(impressions: pa.Table, names: pa.Array) -> pa.Table:
    """Return `search_impressions` with the `arm` of each row's user; `names` as of `name_arms`."""
    column = names.take(pc.subtract(impressions["user_id"].combine_chunks(), 1))
    return impressions.set_column(impressions.schema.get_field_index("arm"), "arm", column)
