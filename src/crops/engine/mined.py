"""Reading a mined folder back, with the logs it came from."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crops.config import EngineConfig
from crops.engine.backend import Backend, DuckDBBackend
from crops.engine.daily import REPORT, WINDOW
from crops.engine.report import BOT_LIKE, share, stage_of
from crops.errors import CropsError
from crops.labels import POSITIVE_LABEL, POSITIVE_ORIGINS, SEARCH_STAGES, Source
from crops.logs import Logs, open_logs
from crops.outputs import RESOLVED_CONFIG, read_manifest, recorded
from crops.schema import EVIDENCE, ITEMS, QUERIES, SAMPLES, SYNTHETIC_ITEMS

TABLES = (SAMPLES, QUERIES, EVIDENCE, ITEMS, SYNTHETIC_ITEMS)


@dataclass(frozen=True)
class Mined:
    """A mined folder: a single mining, a day or the window of a daily build."""

    folder: Path
    config: EngineConfig
    report: dict[str, Any]
    logs: dict[str, list[str]]
    """Days by the logs folder they were mined from."""

    @property
    def by_event(self) -> bool:
        """Whether a group is one query event, and `query_id` a search_id."""
        return self.config.group_by == "event"

    def open(self, backend: Backend) -> None:
        """Name the tables of the folder."""
        for table in TABLES:
            backend.read_parquet(table.name, [self.folder / f"{table.name}.parquet"], table.arrow())

    def open_logs(self, logs: Path | None) -> list[tuple[Logs, list[str]]]:
        """Return the logs with their days.

        Args:
            logs: where they are now; where they were at the mining when None.

        Raises:
            CropsError: they are not there.
        """
        found = []
        for path, days in [(str(logs), self.report["days"])] if logs else self.logs.items():
            if not Path(path).is_dir():
                raise CropsError(f"{path}: the logs of {self.folder} are not there any more; give --logs")
            found.append((open_logs(Path(path)), days))
        return found


def read_mined(out: Path) -> Mined:
    """Return what is in the folder of a mining; of a daily build, its window.

    Raises:
        CropsError: `out` is no mining, or one of an older version.
    """
    folder = mined_folder(out)
    manifest = read_manifest(folder, "mine")
    run = tomllib.loads((folder / RESOLVED_CONFIG).read_text())
    report = json.loads((folder / REPORT).read_text())
    if "pairs" not in report:
        raise CropsError(f"{folder} was mined by an older version; mine it again")
    logs: dict[str, list[str]] = {}
    of_days = manifest.get("logs_of_days") or {day: manifest["logs"] for day in report["days"]}
    for day, path in of_days.items():
        now = str(recorded(path, folder, manifest.get("made_in")))
        logs.setdefault(now, []).append(day)
    return Mined(folder, EngineConfig.model_validate(run["engine"]), report, logs)


def mined_folder(out: Path) -> Path:
    """Return the folder that holds the tables: `out`, or its window if it is a daily build.

    Raises:
        CropsError: `out` is neither.
    """
    for folder in (out, out / WINDOW):
        if (folder / f"{SAMPLES.name}.parquet").exists():
            return folder
    raise CropsError(f"{out} is not an output of `crops mine` (no {SAMPLES.name}.parquet in it)")


def name_searchers(backend: Backend, logs: Iterable[tuple[Logs, list[str]]]) -> None:
    """Make `searchers(search_id, day, user_id, searched_at)` of the searches that evidence is credited to."""
    for number, (source, days) in enumerate(logs):
        backend.read_logs(f"log_{number}", source, "search_impressions", days)
        backend.append(
            "searchers",
            f"""
            select l.search_id, l.day, min(l.user_id) as user_id, min(l.searched_at) as searched_at
            from log_{number} l join (select distinct search_id, day from evidence) e
                on e.search_id = l.search_id and e.day = l.day
            group by l.search_id, l.day
            """,
        )


# ------------------------------------------------------------------------------
# What a mining did, beyond its own counts: coverage, disagreements, influence (`crops engine-report`).


POSITIVES = {row.key: row.bit for row in POSITIVE_ORIGINS}

"""The sources of positives by their short names."""

BLOCKS = 5

TOP_USERS = 20


def insights(out: Path, logs: Path | None = None, *, owner: bool = False) -> dict[str, Any]:
    """Return the report of a mining with `disagreements`, `coverage` and `influence`.

    `disagreements`: for each source of positives, how many of its pairs another source makes positive too,
    and the highest stage they reached in search (`nothing`: the system did not consider them).
    `coverage`: share of the queries with a positive, by source, of the frequent ones that make a third of all
    searches (head), the next third (torso) and the rest (tail); queries of equal frequency stay together.
    `influence`: how the positives spread over the users whose behaviour they rest on, the most influential
    first, in blocks of k.

    For others than the owner of the logs, k (`engine.k` of the mining) people must have searched, and k must
    stand behind the positives of each source that found any; otherwise there is no report. Then totals over
    all queries are counted whole. A row of `coverage` has no share of a source unless k people stand behind
    that, and no counts unless k stand behind every row; `influence` has rows of k users and none for fewer;
    who was left out as bot-like is not counted. The owner sees all, and the ids of the most influential
    users.

    Args:
        out: folder of a mining, or of a daily build.
        logs: the accepted logs, where they are not where the mining found them.
        owner: whether the reader owns the logs.

    Raises:
        CropsError: `out` is no mining, its logs are gone, or it stands for fewer than k users and the reader
            is not the owner.
    """
    mined = read_mined(out)
    k = 1 if owner else mined.config.k
    with DuckDBBackend(mined.config.memory) as backend:
        mined.open(backend)
        name_searchers(backend, mined.open_logs(logs))
        backend.table("voices", _VOICES)
        backend.table("spoken", "select distinct query_id, item_id, user_id from voices")
        if few := _few(backend, mined, k):
            raise CropsError(
                f"{mined.folder}: fewer than k = {k} users {few}: its report is for the owner of the logs "
                "only (--owner)"
            )
        coverage, influence = _coverage(backend, k), _influence(backend, mined.config.k, k)
        if owner:
            # As text: many readers of JSON round numbers above 2^53.
            influence["top"] = backend.rows(
                "select * replace (cast(user_id as VARCHAR) as user_id) from influential "
                f"where place <= {TOP_USERS} order by place"
            )
    return {
        **(mined.report if owner else _without_bots(mined.report)),
        "k": k,
        "disagreements": _disagreements(mined),
        "coverage": coverage,
        "influence": influence,
    }


_VOICES = """
select distinct e.query_id, e.item_id, e.source, s.user_id
from evidence e join searchers s on s.search_id = e.search_id and s.day = e.day
"""


def _few(backend: Backend, mined: Mined, k: int) -> str:
    """Return what fewer than k users did, as the end of a sentence; empty where there is no such thing."""
    if mined.report["input"]["users"] < k:
        return "searched"
    rows = backend.rows("select source, count(distinct user_id) as users from voices group by source")
    users = {row["source"]: row["users"] for row in rows}
    sources = mined.report["sources"]
    found = {
        "p0": sources["search"]["clicked"]["candidates"],
        "p1": sources["p1"]["candidates"],
        "p2": sources["p2"]["candidates"],
    }
    few = [name for name, count in found.items() if count and users.get(POSITIVES[name].value, 0) < k]
    return f"stand behind the positives of {', '.join(few)}" if few else ""


def _without_bots(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report that does not count what single users did who were left out, as bot-like or by name."""
    counts = {name: value for name, value in report["input"].items() if name not in ("bots", "without")}
    return {**report, "input": counts, "notes": [one for one in report["notes"] if BOT_LIKE not in one]}


def _disagreements(mined: Mined) -> list[dict[str, Any]]:
    rows = []
    for name, source in POSITIVES.items():
        own = [row for row in mined.report["pairs"] if row["sources"] & source]
        also = {
            other: sum(row["pairs"] for row in own if row["sources"] & bit)
            for other, bit in POSITIVES.items()
            if other != name
        }
        reached = {
            str(stage.name).lower() if stage else "nothing": sum(
                row["pairs"] for row in own if stage_of(Source(row["considered"])) == stage
            )
            for stage in (*SEARCH_STAGES, Source(0))
        }
        rows.append(
            {"source": name, "positives": sum(row["pairs"] for row in own), "also": also, "search": reached}
        )
    return rows


def _coverage(backend: Backend, k: int) -> list[dict[str, Any]]:
    backend.table("frequencies", _FREQUENCIES)
    bits = {name: f"(bits & {source.value}) <> 0" for name, source in POSITIVES.items()}
    covered = {**bits, "any": " or ".join(bits.values())}
    counts = ", ".join(
        f"sum(case when {test} then 1 else 0 end) as {name}_queries" for name, test in covered.items()
    )
    people = ", ".join(
        f"count(distinct case when v.source = {source.value} then v.user_id end) as {name}_users"
        for name, source in POSITIVES.items()
    )
    known = ", ".join(f"min(u.{name}_users) as {name}_users" for name in (*POSITIVES, "any"))
    rows = backend.rows(
        f"""
        select f.part, count(*) as queries, sum(f.searches) as searches, max(f.searches) as most,
            min(f.searches) as least, max(f.users) as users,
            max(case when f.users >= {k} then f.searches end) as told_most,
            min(case when f.users >= {k} then f.searches end) as told_least, {known}, {counts}
        from frequencies f
        left join ({_POSITIVE_BITS}) p on p.query = f.query
        left join (
            select f.part, count(distinct v.user_id) as any_users, {people}
            from voices v join queries q on q.query_id = v.query_id join frequencies f on f.query = q.query
            group by f.part
        ) u on u.part = f.part
        group by f.part order by max(f.searches) desc
        """
    )
    # A row that is missing from the total would be told by the others.
    told = all(max(row["users"], row["any_users"] or 0) >= k for row in rows)
    return [_coverage_row(row, list(covered), k, told=told) for row in rows]


def _coverage_row(row: dict[str, Any], names: list[str], k: int, *, told: bool) -> dict[str, Any]:
    """Return a row of `coverage`; None stands for what fewer than k users are behind.

    `most` and `least` are each of one query.
    """
    users = {name: row[f"{name}_users"] or 0 for name in names}
    counted = {name: int(row[name]) if told else None for name in ("queries", "searches")}
    ends = {name: row[name] if row[name] == row[f"told_{name}"] else None for name in ("most", "least")}
    shares = {
        name: None if 0 < users[name] < k else share(int(row[f"{name}_queries"]), row["queries"])
        for name in names
    }
    return {"part": row["part"], **counted, **ends, "shares": shares}


_FREQUENCIES = """
select query, searches, users, case
    when 3 * more_frequent < total then 'head' when 3 * more_frequent < 2 * total then 'torso' else 'tail'
    end as part
from (
    select query, searches, users, sum(searches) over () as total,
        sum(searches) over (order by searches desc) - sum(searches) over (partition by searches)
            as more_frequent
    from (
        select query, cast(sum(searches) as BIGINT) as searches, max(users) as users
        from queries group by query
    ) q
) w
"""

_POSITIVE_BITS = f"""
select q.query, bit_or(s.sources) as bits
from samples s join queries q on q.query_id = s.query_id
where s.label >= {POSITIVE_LABEL} group by q.query
"""


def _influence(backend: Backend, size: int, k: int) -> dict[str, Any]:
    """Return how positives spread over users, in blocks of `size`; counts of fewer than k are None."""
    backend.table("influential", _INFLUENTIAL)
    total = backend.rows(
        """
        select (select count(*) from influential) as users, count(*) as pairs,
            sum(case when users = 1 then 1 else 0 end) as of_one_user, sum(users) as contributions,
            (select count(*) from influential where alone > 0) as lonely
        from (select query_id, item_id, count(*) as users from spoken group by query_id, item_id) p
        """
    )[0]
    blocks = backend.rows(
        f"""
        select min(place) as first, max(place) as last, sum(pairs) as contributions
        from influential where place <= {BLOCKS * size}
        group by floor((place - 1) / {size}) having count(*) = {size} order by first
        """
    )
    numbers: dict[str, Any] = {name: int(value or 0) for name, value in total.items()}
    if 0 < numbers.pop("lonely") < k:
        numbers["of_one_user"] = None
    if blocks and 0 < numbers["users"] - blocks[-1]["last"] < k:
        blocks.pop()  # or the total less the blocks would be the share of the few that are left
    rows = [{name: int(value) for name, value in block.items()} for block in blocks]
    shares = [{**row, "share": share(row["contributions"], numbers["contributions"])} for row in rows]
    return {**numbers, "blocks": shares}


_INFLUENTIAL = """
select u.user_id, u.pairs, coalesce(a.alone, 0) as alone,
    row_number() over (order by u.pairs desc, u.user_id) as place
from (select user_id, count(*) as pairs from spoken group by user_id) u
left join (
    select s.user_id, count(*) as alone
    from spoken s join (
        select query_id, item_id from spoken group by query_id, item_id having count(*) = 1
    ) o on o.query_id = s.query_id and o.item_id = s.item_id
    group by s.user_id
) a on a.user_id = u.user_id
order by place
"""
