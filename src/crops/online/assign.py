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
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.platform.noise import mix
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
