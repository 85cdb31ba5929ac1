"""From arms to recall routes: an arm swaps or adds text routes of the cascade, and changes nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crops.errors import CropsError
from crops.online.assign import NOBODY, Experiment, Ints, assign, check_concurrent
from crops.platform import ROUTES, Served
from crops.protocols import Retriever

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
    _check_routes(trials)
    ids = np.arange(1, users + 1)
    arms = tuple(assign(trial.experiment, ids) for trial in trials)
    served = _serve(deployed, trials, np.stack([np.full(users, NOBODY), *arms], axis=1))
    return Traffic(served, tuple(trial.experiment for trial in trials), arms)


def _check_routes(trials: Sequence[Trial]) -> None:
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
        traffic: the running experiments.
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
