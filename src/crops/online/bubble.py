"""The filter bubble day by day: what logs and truth show of it, and the closed loop in which it grows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops.config import ReformulationConfig, RunConfig, TrainingConfig
from crops.database import literal, open_database
from crops.evaluation import recall_at_k
from crops.logs.sql import add_texts
from crops.online.experiment import arm_run, arm_texts, live_through, open_world, train_arm
from crops.outputs import console, unique, write_text
from crops.pipeline import load_retriever, mine_day
from crops.platform import (
    FEED,
    IMPRESSIONS,
    ROUTES,
    SEARCHES,
    Platform,
    day_file,
    day_name,
    same_for_all,
    write_items,
)
from crops.protocols import Retriever
from crops.schema import within_sql
from crops.simulation import Start

_TABLES = """
create view impressions as
    select l.* replace (day::varchar as day, t.query as query)
    from read_parquet({impressions}, hive_partitioning = true) l join texts t on t.raw = l.query;
create table shown as
    select day, query, item_id, count(*) as n, sum((routes >> {route}) & 1) as own
    from impressions where stage = 'exposed' group by all;
create table first_shown as select query, item_id, min(day) as first_day from shown group by all;
create table asked as
    select distinct day, query, search_id from impressions;
create table needs_behind as
    select search_id, need_id from read_parquet({searches}, hive_partitioning = false);
create table meant as
    select need_id, t.query as head, sense from {needs} n join texts t on t.raw = n.head;
create table wanted as
    select distinct day, query, item_id from asked
    join needs_behind using (search_id) join {grades} using (need_id) where grade >= 2;
"""
SHARES = {
    "own": "select day, sum(own) / sum(n), sum(n) from shown group by day",
    "again": """select day, sum(case when day > first_day then n else 0 end) / sum(n), sum(n)
                from shown join first_shown using (query, item_id) group by day""",
    "top": """select day, sum(case when place <= {items} / 100 then n else 0 end) / sum(n), sum(n)
              from (select day, n, row_number() over (partition by day order by n desc) as place
                    from (select day, item_id, sum(n) as n from shown group by all)) group by day""",
    "unseen": """select day, avg(case when first_day <= day then 0 else 1 end), count(*)
                 from wanted left join first_shown using (query, item_id) group by day""",
    "catalogue": """select day, (select count(*) from (select item_id, min(first_day) as first_day
                                 from first_shown group by item_id) f where f.first_day <= d.day)
                          / {items}, {items}
                    from (select distinct day from shown) d""",
    "senses": """select day, avg(senses), count(*) from (
                     select day, query, exp(-sum(p * ln(p))) as senses from (
                         select day, query, sum(n) / sum(sum(n)) over (partition by day, query) as p
                         from shown join {item_needs} using (item_id) join meant s using (need_id)
                         where s.head = query group by day, query, sense)
                     group by day, query) group by day""",
    "satisfied": """select day, avg(satisfied::int), count(*) from {outcomes} group by day""",
    "reformulated": """
        select day,
               avg(coalesce(need_id = next_need and query <> next_query and {soon}, false)::int),
               count(*)
        from (select day, query, need_id, lead(query) over w as next_query,
                     lead(need_id) over w as next_need,
                     searched_at, lead(searched_at) over w as next_at
              from {outcomes} join asked using (search_id, day)
              window w as (partition by user_id, day order by searched_at, search_id)) group by day""",
}
"""SQL of (day, value, number of cases) by observable; the last two need an experiment's truth.

own: share of shown results that the route found. again: of those that their query had been shown on an
earlier day. top: share of exposures that goes to the most shown 1 % of the catalogue. unseen: of what answers
the needs behind the day's queries, the share never shown for its query so far. catalogue: share of the
catalogue ever shown. senses: exp of the entropy of exposures over an ambiguous query's senses: as many senses
of equal weight. satisfied: share of searches, by truth. reformulated: share of searches whose next one
by the same user, within 90 s, has another text for the same need, by truth.
"""


@dataclass(frozen=True)
class Measured:
    """An observable on one day."""

    value: float | None
    """None where there is no case."""
    n: int
    """Cases behind it."""


@dataclass(frozen=True)
class SimulatedDays:
    """Where the days are."""

    logs: Path
    searches: Sequence[str]
    """Globs of search_id and need_id by truth."""
    truth: Path
    """Folder of the needs, items and grades."""
    items: int
    """Size of the catalogue."""
    route: int
    """Bit of the route whose share is measured."""
    arm: Path | None = None
    """Folder of simulated days with satisfaction by truth, for the observables that need it."""


def measure_days(days: SimulatedDays, observables: Iterable[str]) -> dict[str, dict[str, Measured]]:
    """Return observables, named as in `SHARES`, by day (YYYY-MM-DD) and name."""
    settings = {
        "impressions": literal(f"{days.logs}/search_impressions/*/*.parquet"),
        "searches": f"[{', '.join(literal(path) for path in days.searches)}]",
        "grades": literal(f"{days.truth}/grades.parquet"),
        "needs": literal(f"{days.truth}/needs.parquet"),
        "item_needs": literal(f"{days.truth}/items.parquet"),
        "outcomes": "(select * replace (day::varchar as day) from "
        f"read_parquet({literal(f'{days.arm}/{SEARCHES}/*/*.parquet')}, hive_partitioning = true))",
        "items": days.items,
        "route": days.route,
        # The next search is soon enough to be a rewording (the engine's window, 90 s).
        "soon": within_sql("searched_at", "next_at", ReformulationConfig().window_s),
    }
    measured: dict[str, dict[str, Measured]] = {}
    with open_database() as db:
        typed = "select query from read_parquet({impressions}) union all select head from {needs}"
        add_texts(db, typed.format(**settings))
        db.execute(_TABLES.format(**settings))
        for name in observables:
            for day, value, n in db.execute(SHARES[name].format(**settings)).fetchall():
                # The order of a parallel sum decides its last bits.
                known = None if value is None else round(float(value), 9)
                measured.setdefault(str(day), {})[name] = Measured(known, int(n))
    return dict(sorted(measured.items()))


# The closed loop: each day users search, the day's logs are mined, a model is trained on them and deployed.
# Each arm is a world of its own with the same people, needs and random numbers; all begin on the same
# morning.

RECALL = "recall"
DEPTH = 100
"""Cut-off of true recall."""
RELEVANT = 2
"""From this grade on an item meets a need."""
_SAMPLE = 2_000
"""Searches per day that true recall is measured on; they are the same in all arms."""


@dataclass(frozen=True)
class Loop:
    """A closed loop on disk: a folder per arm with logs/, truth/, recall.json and the model in use.

    An arm's logs begin with the days before, which all arms share.
    """

    out: Path
    world: Path
    """The days before, with the truth of the world."""
    samples: Mapping[str, Path]
    """By arm; mined from the last of them: what the first model learns from."""
    route: str
    """The text route that the arm's model serves."""
    run: RunConfig
    """Settings of the mining, and the seed."""
    training: TrainingConfig
    generated: Path
    """Documents that an LLM wrote."""


def run_loop(loop: Loop, start: Start, arms: Sequence[str], days: int) -> Iterator[int]:
    """Let all arms live day by day, so that at any time they can be compared; yield each day that is over.

    What is on disk is not done again; a killed run resumes and ends as if it never stopped. `start` is the
    platform before the first day, `arms` are names in `SOURCES`.
    """
    platforms = {arm: start.fork() for arm in arms}
    for arm, platform in platforms.items():
        open_world(loop.out / arm, platform)
        for table in (IMPRESSIONS, FEED):
            for day in range(start.first_day):
                _copy(day_file(loop.world, table, day), day_file(loop.out / arm, table, day))
    for day in range(start.first_day, start.first_day + days):
        for arm, platform in platforms.items():
            folder, routes, model = loop.out / arm, dict(start.deployed), None
            if str(day) not in read_recall(folder):
                routes[loop.route] = model = _model_of(loop, start, arm, platform, day)
            live_through(folder, platform, day, start.sessions, same_for_all(routes, start.users))
            if model is not None:
                known = read_recall(folder) | {str(day): _true_recall(loop, folder, platform, day, model)}
                write_text(folder / "recall.json", json.dumps(known, indent=2) + "\n")
        yield day


def _copy(file: Path, target: Path) -> None:
    """Copy a file, whole or not at all, unless it is there."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = unique(target, "tmp")
        shutil.copyfile(file, staging)
        staging.replace(target)


def _model_of(loop: Loop, start: Start, arm: str, platform: Platform, day: int) -> Retriever:
    """Return the model trained on the logs of the day before; make it unless it is there, drop older ones."""
    folder, own = loop.out / arm, arm_run(arm, loop.run)
    logs, model = folder / "logs", folder / "models" / day_name(day)
    if not model.exists():
        samples = loop.samples[arm]
        if day > start.first_day:
            samples = folder / "samples"
            write_items(logs, platform)
            mine_day(logs, day_name(day - 1), samples, own, loop.generated)
        console.print(f"[bold]{arm}, {day_name(day)}[/bold]")
        train_arm(arm, samples, model, loop.training, loop.run.seed, own.document.fields)
    expanded = folder / "expanded"
    for old in ("models/{}", "expanded/{}", "expanded/{}-rewordings"):
        shutil.rmtree(folder / old.format(day_name(day - 1)), ignore_errors=True)
    ids, texts = arm_texts(arm, start, logs, day, expanded / day_name(day), loop.run)
    return load_retriever(model, ids, texts, logs)


def read_recall(folder: Path) -> dict[str, dict[str, float | None]]:
    """Return the true recall of an arm's models by day number: mean (None of none) and n searches."""
    path = folder / "recall.json"
    found: dict[str, dict[str, float | None]] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _true_recall(
    loop: Loop, folder: Path, platform: Platform, day: int, model: Retriever
) -> dict[str, float | None]:
    """Return the mean of |top 100 that meets the need| / min(100, |all that does|) over first searches."""
    truth = pq.read_table(day_file(folder, SEARCHES, day), partitioning=None)
    truth = truth.filter(pc.equal(truth["step"], 0))
    truth = truth.take(np.random.default_rng([platform.seed, day]).permutation(len(truth))[:_SAMPLE])
    needs = dict(zip(truth["search_id"].to_pylist(), truth["need_id"].to_pylist(), strict=True))
    columns = ["search_id", "query"]
    logged = pq.read_table(day_file(folder, IMPRESSIONS, day), columns=columns, partitioning=None)
    logged = logged.filter(pc.is_in(logged["search_id"], truth["search_id"].combine_chunks()))
    logged = logged.group_by("search_id").aggregate([("query", "min")]).sort_by("search_id")

    # The items that were online and meet each need.
    grades = pq.read_table(loop.world / "truth" / "grades.parquet")
    live = np.flatnonzero(platform.world.corpus.uploaded_day <= day) + 1
    good = pc.and_(pc.greater_equal(grades["grade"], RELEVANT), pc.is_in(grades["item_id"], pa.array(live)))
    grades = grades.filter(good).sort_by([("need_id", "ascending")])
    ids, first = np.unique(grades["need_id"].to_numpy(), return_index=True)
    relevant = dict(zip(ids.tolist(), np.split(grades["item_id"].to_numpy(), first[1:]), strict=True))

    wanted = [
        relevant.get(needs[search], np.zeros(0, np.int64)) for search in logged["search_id"].to_pylist()
    ]
    found, _ = model.search(logged["query_min"].to_pylist(), DEPTH)
    recall = recall_at_k(found, wanted, DEPTH, capped=True)
    known = recall[~np.isnan(recall)]
    return {"mean": float(known.mean()) if len(known) else None, "n": len(known)}


def read_days(loop: Loop, start: Start, arm: str) -> dict[str, dict[str, Measured]]:
    """Return all observables of an arm's days, by day and name; `recall` is that of the day's model."""
    folder = loop.out / arm
    simulated = SimulatedDays(
        logs=folder / "logs",
        searches=(f"{loop.world}/truth/searches.parquet", f"{folder}/{SEARCHES}/*/*.parquet"),
        truth=loop.world / "truth",
        items=len(start.platform.world.corpus),
        route=ROUTES.index(loop.route),
        arm=folder,
    )
    measured = measure_days(simulated, SHARES)
    for day, recall in read_recall(folder).items():
        measured[day_name(int(day))][RECALL] = Measured(recall["mean"], int(recall["n"] or 0))
    return {day: row for day, row in measured.items() if RECALL in row}
