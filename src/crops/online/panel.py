"""The users of an experiment with their sums, and what is wrong with their assignment."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from crops.errors import CropsError, nearest
from crops.online.metrics import USER_SHARES

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Sums = dict[str, Floats]
"""Statistic -> its sum per user, [users]."""

_KEYS = ("user_id", "arm", "day")


@dataclass(frozen=True)
class Panel:
    """n users, and m rows of one user's day each: `crops.online.userdays.user_days` as arrays."""

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
        return {**sums, **own_shares(sums)}


def own_shares(sums: Mapping[str, Floats]) -> Sums:
    """Return the `USER_STATISTICS`: a user's own share, whether there is one, whether it is above 0."""
    shares: Sums = {}
    for key, (numerator, denominator) in USER_SHARES.items():
        parts, whole = sums[numerator], sums[denominator]
        has = whole > 0
        shares[f"{key}_own"] = np.divide(parts, whole, out=np.zeros_like(parts), where=has)
        shares[f"{key}_has"] = has.astype(np.float64)
        shares[f"{key}_ever"] = (parts > 0).astype(np.float64)
    return shares


def arms_of(table: pa.Table, experiment: str) -> pa.Table:
    """Return the output of `user_days` with the arms of one experiment, where `arm` names several.

    Args:
        table: `arm` is written "a=x;b=y": arm x of experiment a and arm y of experiment b.
        experiment: whose arms to keep; null where a user is in none of them.

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


def experiment_panel(table: pa.Table, arms: Sequence[str]) -> Panel:
    """Return the panel of the users of some arms, on the days on which those arms ran.

    Args:
        table: of `user_days`.
        arms: control first.

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
            known = ", ".join(there)
            raise CropsError(
                f"arm '{arm}' has no user; the arms in these logs: {known}.{nearest(arm, there)}"
            )
    rows = table.filter(pc.is_in(table["arm"], pa.array(list(arms))))
    pairs = rows.group_by(["user_id", "arm"], use_threads=False).aggregate([])
    _refuse_two_arms(pairs)
    return _panel(rows, pairs["user_id"].to_numpy(), _codes(pairs["arm"], arms), arms)


def pre_panel(table: pa.Table, panel: Panel) -> Panel:
    """Return the panel of the same users on days before the experiment; most of their arms are none there."""
    rows = table.filter(pc.is_in(table["user_id"], pa.array(panel.users)))
    return _panel(rows, panel.users, panel.arm, panel.arms)


def everybody(table: pa.Table) -> Panel:
    """Return the panel of all users, whatever their arms: what an experiment could be made of."""
    users = np.unique(table["user_id"].to_numpy())
    return _panel(table, users, np.full(len(users), -1), ())


def _panel(rows: pa.Table, users: Ints, arm: Ints, arms: Sequence[str]) -> Panel:
    order = np.argsort(users)
    users = users[order].astype(np.int64)
    days = sorted(pc.unique(rows["day"]).to_pylist())
    names = [name for name in rows.column_names if name not in _KEYS]
    return Panel(
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


def _refuse_two_arms(pairs: pa.Table) -> None:
    counts = pairs.group_by("user_id", use_threads=False).aggregate([("arm", "count")])
    double = counts.filter(pc.greater(counts["arm_count"], 1))["user_id"]
    if len(double):
        example = min(double.to_pylist())
        arms = sorted(pairs.filter(pc.equal(pairs["user_id"], example))["arm"].to_pylist())
        raise CropsError(
            f"search_impressions, column arm: {len(double):,} of {len(counts):,} users are in two arms, e.g. "
            f"user {example} in {' and '.join(arms)}; assign by user, and log the arm of the user's hash"
        )
