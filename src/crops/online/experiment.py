"""An experiment on the simulated platform: who is in which arm, A/B days, and one whole world per arm."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.config import RECIPES, RunConfig, TrainingConfig, with_recipe, with_settings
from crops.errors import CropsError, nearest
from crops.labels import CROPS_SOURCES, SEARCH_SOURCES, SOURCE_GROUPS, Source, parse_sources
from crops.outputs import console, is_done
from crops.pipeline import expand_rewordings, load_documents, train_model
from crops.platform import (
    FEED,
    IMPRESSIONS,
    ROUTES,
    SEARCHES,
    DayLogs,
    Platform,
    Served,
    day_file,
    day_name,
    replay_day,
    same_for_all,
    simulate_day,
    write_items,
)
from crops.platform.day import KeyedDraws
from crops.platform.people import ABUSE_SESSIONS
from crops.platform.world import mix
from crops.protocols import Retriever
from crops.simulation import Start
from crops.text import DOCUMENT_FIELDS, content_id

PREREGISTRATION = "plan.json"
LIVE, PAIRED = "live", "paired"
A_A = "aa"
"""The experiment whose arms change nothing: it runs beside the others, in a layer of its own."""


def in_own_layer(name: str, arms: Sequence[str], share: float, start: Start) -> Experiment:
    """Return an experiment in its own layer, all arms with the same share; the first is the control.

    Raises:
        CropsError: the shares cannot be given out, or an arm gets no user.
    """
    experiment = Experiment(name, f"{name}-{start.platform.seed}", split(dict.fromkeys(arms, share)))
    assign(experiment, np.arange(1, start.users + 1))
    return experiment


def run_live(out: Path, start: Start, trials: Sequence[Trial], days: int) -> None:
    """Run the A/B days: users of different arms on one platform, whose memory learns from all of them.

    `out` gets logs/ (with `exposures`) and truth/. Days that it has already are not simulated again: a killed
    run resumes, and ends as if it never stopped.

    Raises:
        CropsError: see `route_traffic`.
    """
    _live(out, start, route_traffic(start.deployed, trials, start.users), days)


def run_paired(out: Path, start: Start, arms: Mapping[str, Routes], days: int) -> None:
    """Live the same days once per arm, everybody in it: what no real platform can do.

    The same people come for the same needs at the same times with the same random numbers; what differs
    between the copies is caused by the routes, through what they find and what the platform learns from it.
    Each arm, with the text routes that it swaps or adds, gets a folder of its own in `out`.
    """
    for name, routes in arms.items():
        _live(out / name, start, same_for_all({**start.deployed, **routes}, start.users), days)


def _live(folder: Path, start: Start, traffic: Traffic | Served, days: int) -> None:
    open_world(folder, start.platform)
    if day_file(folder, SEARCHES, start.first_day + days - 1).exists():
        return
    platform = start.fork()
    for day in range(start.first_day, start.first_day + days):
        live_through(folder, platform, day, start.sessions, traffic)


EXPOSURES = "logs/exposures"


def online_day(platform: Platform, day: int, sessions: int, served: Served) -> DayLogs:
    """Simulate a day with random numbers that belong to its searches, so that copies of a world compare."""
    everybody = sessions + ABUSE_SESSIONS * int((platform.users.pushes >= 0).sum())
    return simulate_day(platform, day, sessions, served, KeyedDraws(platform.seed, day, everybody))


def live_through(
    folder: Path, platform: Platform, day: int, sessions: int, traffic: Traffic | Served
) -> None:
    """Bring a platform from the end of the day before to that of a day: simulate and write it in `folder`.

    A day that `folder` has is replayed. With `Traffic` the log names the arms and holds the exposures.
    """
    if day_file(folder, SEARCHES, day).exists():
        replay_day(folder, platform, day)
        return
    console.print(f"[dim]·[/dim] {folder.name}: day {day_name(day)}")
    result = online_day(platform, day, sessions, traffic.served if isinstance(traffic, Traffic) else traffic)
    tables = {IMPRESSIONS: result.impressions, FEED: result.feed}
    if isinstance(traffic, Traffic) and traffic.experiments:
        tables[IMPRESSIONS] = set_arms(result.impressions, name_arms(traffic))
        tables[EXPOSURES] = log_exposures(traffic, result.searches)
    tables[SEARCHES] = result.searches
    # All tables are written aside, then moved; what a killed run left is replaced. The last marks the day.
    staging = folder / ".day"
    shutil.rmtree(staging, ignore_errors=True)
    for name, table in tables.items():
        (staging / name).mkdir(parents=True)
        pq.write_table(table, staging / name / "part-0.parquet", compression="zstd")
    for name in tables:
        place = day_file(folder, name, day).parent
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        (staging / name).rename(place)
    shutil.rmtree(staging)


def open_world(folder: Path, platform: Platform) -> None:
    """Write the catalogue, as it is before the first day, beside the logs to come."""
    if not (folder / "logs" / "items.parquet").exists():
        write_items(folder / "logs", platform)


def preregister(out: Path, trials: Sequence[Trial], facts: Mapping[str, Any]) -> None:
    """Write plan.json before the first day; an experiment's `route` is null where no arm changes any.

    Raises:
        CropsError: `out` holds the plan of another experiment.
    """
    experiments = []
    for trial in trials:
        arms = trial.experiment.arms
        changed = sorted({name for routes in trial.routes.values() for name in routes})
        experiments.append(
            {
                "name": trial.experiment.name,
                "salt": trial.experiment.salt,
                "control": arms[0].name,
                "route": "+".join(changed) or None,
                "arms": [asdict(arm) | {"share": (arm.end - arm.first) / BUCKETS} for arm in arms],
            }
        )
    text = json.dumps({**facts, "experiments": experiments}, indent=2) + "\n"
    path = out / PREREGISTRATION
    if path.exists() and json.loads(path.read_text()) != json.loads(text):
        raise CropsError(f"{path} is the plan of another experiment; name another folder, or remove this one")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# What CroPS measured on people (arXiv 2511.15443, Tables 5, 6, 8 and 9), in %, by model type and arm. The
# arms are cumulative. Whether the effects are absolute or relative is not stated.

RATIO_TABLES: Mapping[str, str] = {"dense": "Table 5", "sparse": "Table 8"}
EFFECT_TABLES: Mapping[str, str] = {"dense": "Table 6", "sparse": "Table 9"}

RATIOS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "dense": {"baseline": (29.8, 32.5), "+p1": (34.8, 35.1), "+p2": (38.7, 41.8), "crops": (40.9, 44.3)},
    "sparse": {"baseline": (20.8, 29.1), "+p1": (27.9, 38.7), "+p2": (28.6, 40.6), "crops": (33.8, 44.7)},
}
"""Ratio_rank and Ratio_show."""
EFFECTS: Mapping[str, Mapping[str, tuple[float, float, float]]] = {
    "dense": {
        "+p1": (0.448, 0.222, -0.334),
        "+p2": (0.756, 0.361, -0.487),
        "crops": (0.869, 0.483, -0.646),
    },
    "sparse": {
        "+p1": (0.328, 0.187, -0.297),
        "+p2": (0.573, 0.310, -0.458),
        "crops": (0.783, 0.423, -0.614),
    },
}
"""CTR, LPR and RQR against the baseline."""


# What arms are made of: a choice of sources, and the model trained on them.

BASELINE = "baseline"
_ADDED = [group for group in CROPS_SOURCES if group != "search"]
_ALL = parse_sources(CROPS_SOURCES)
SOURCES = {
    BASELINE: SEARCH_SOURCES,
    **{f"+{_ADDED[n]}": parse_sources(["search", *_ADDED[: n + 1]]) for n in range(len(_ADDED) - 1)},
    "crops": _ALL,
    **{f"-{group}": _ALL & ~SOURCE_GROUPS[group] for group in _ADDED},
    "clicks": Source.CLICKED,
    "click_queries": SEARCH_SOURCES,
    "expanded": SEARCH_SOURCES,
    "recommended": parse_sources(RECIPES["recommended"]["engine.sources"]),
}
"""Arms by name. The baseline is online search alone with its stages as labels (FS-LR); +p1, +p2 and crops add
one source each; -p1, -p2, -p3 are crops without one; clicks is the platform's own recipe: clicked or not;
click_queries and expanded are the baseline, whose texts click queries or those of rewordings join;
recommended is the recipe of that name, expanded too."""
EXPANDED = ("expanded", "recommended")
"""Arms whose texts the queries of rewordings join."""
TEXTS = ("click_queries", *EXPANDED)
"""Arms that change the texts of items."""


def arm_training(arm: str, training: TrainingConfig) -> TrainingConfig:
    """Return the settings that an arm is trained with: `clicks` has its own loss, `recommended` a recipe.

    Raises:
        CropsError: there is no such arm.
    """
    if arm not in SOURCES:
        raise CropsError(f"unknown arm '{arm}'; arms: {', '.join(SOURCES)}.{nearest(arm, SOURCES)}")
    if arm == "clicks":
        return TrainingConfig(**{**training.model_dump(), "loss": "infonce_binary"})
    return arm_run(arm, RunConfig(training=training)).training


def arm_run(arm: str, run: RunConfig) -> RunConfig:
    """Return the settings of an arm: those of the run, with click queries, or of the recipe `recommended`."""
    if arm == "click_queries":
        return with_settings(run, {"document.fields": RECIPES["recommended"]["document.fields"]})
    return with_recipe(run, arm) if arm == "recommended" else run


def train_arm(
    arm: str,
    samples: Path,
    out: Path,
    training: TrainingConfig,
    seed: int,
    fields: Sequence[str] = DOCUMENT_FIELDS,
) -> None:
    """Train the model of an arm (a name in `SOURCES`) on mined samples, unless it is there."""
    if is_done(out):
        return
    console.print(f"[bold]{out.parent.name} {out.name}[/bold]")
    train_model(samples, out, arm_training(arm, training), seed, SOURCES[arm], fields)


def arm_texts(
    arm: str, start: Start, logs: Path, day: int, out: Path, run: RunConfig
) -> tuple[NDArray[np.int64], list[str]]:
    """Return the ids of all items, and what stands for each on the morning of a day.

    In the arms of `EXPANDED` the queries of rewordings join it: of the days in `logs` since the training day,
    at most those that a window of daily builds holds. `out` gets them, unless they are there.

    Raises:
        CropsError: there is no rewording to expand with.
    """
    texts = start.platform.world.corpus.document_texts()
    ids = np.arange(1, len(texts) + 1)
    own = arm_run(arm, run)
    if arm not in EXPANDED:
        plain = own.document.fields == DOCUMENT_FIELDS
        return (ids, texts) if plain else load_documents(logs, own, day_name(day), ids)
    if not is_done(out):
        first = max(start.first_day - 1, day - own.engine.daily.window)
        expand_rewordings(logs, [day_name(one) for one in range(first, day)], out, own)
    return load_documents(logs, own, day_name(day), ids, expanded=out)


# Who is in which arm: a salted hash of the user, cut into buckets, buckets given to arms. The salt decides
# the layer. Experiments of different salts are independent: each arm of one holds the same mix of arms of the
# other (Tang et al., Overlapping Experiment Infrastructure, KDD 2010). Experiments of one salt share a layer
# and must have buckets of their own: then no user is in both.

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
    """Arms in a layer, their ranges apart from one another; the first arm is the control."""

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
    """Refuse experiments that would disturb one another: of one name, or of one salt and common buckets.

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
        CropsError: trials disturb one another (`check_concurrent`; or different layers change one route), or
            an arm or route is not known.
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
    """Return `exposures`: one row per search and experiment that its user is in."""
    user = searches["user_id"].to_numpy() - 1
    parts = []
    for experiment, arms in zip(traffic.experiments, traffic.arms, strict=True):
        inside = np.flatnonzero(arms[user] != NOBODY)
        found = searches.take(inside)
        exposed = {
            "experiment": pa.repeat(pa.scalar(experiment.name), len(inside)),
            "arm": pa.array([arm.name for arm in experiment.arms], pa.string()).take(arms[user[inside]]),
            **{name: found[name] for name in ("user_id", "search_id")},
            "exposed_at": found["searched_at"],
        }
        parts.append(pa.table(exposed))
    return pa.concat_tables(parts)


def set_arms(impressions: pa.Table, names: pa.Array) -> pa.Table:
    """Return `search_impressions` with the `arm` of each row's user; `names` as of `name_arms`."""
    column = names.take(pc.subtract(impressions["user_id"].combine_chunks(), 1))
    return impressions.set_column(impressions.schema.get_field_index("arm"), "arm", column)
