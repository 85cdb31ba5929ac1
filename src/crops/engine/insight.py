"""What a mining did, beyond its own counts: coverage, disagreements, influence (`crops engine-report`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crops.engine.backend import Backend, DuckDBBackend
from crops.engine.census import STAGES, stage_of
from crops.engine.mined import Mined, name_searchers, read_mined
from crops.engine.report import share
from crops.errors import CropsError
from crops.labels import POSITIVE_LABEL, Source

POSITIVES = {
    "p0": Source.CLICKED,
    "p1": Source.REFORMULATION,
    "p2": Source.FEED,
    "p3": Source.KNOWLEDGE,
}
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

    What is shown stands for at least k users (`engine.k` of the mining): a row of `coverage` that fewer
    users' behaviour made has no shares, and `influence` no row for a single user. The owner of the logs sees
    all, and the ids of the most influential users.

    Args:
        out: folder of a mining, or of a daily build.
        logs: the accepted logs, where they are not where the mining found them.
        owner: whether the reader owns the logs.

    Raises:
        CropsError: `out` is no mining, its logs are gone, or there are fewer than k users and the reader is
            not the owner.
    """
    mined = read_mined(out)
    k = 1 if owner else mined.config.k
    if mined.report["input"]["users"] < k:
        raise CropsError(
            f"{mined.folder} stands for {mined.report['input']['users']} users, fewer than k = {k}: "
            "its report is for the owner of the logs only (--owner)"
        )
    with DuckDBBackend(mined.config.memory) as backend:
        mined.open(backend)
        name_searchers(backend, mined.open_logs(logs))
        backend.table("spoken", _SPOKEN)
        coverage, influence = _coverage(backend, k), _influence(backend, mined.config.k)
        if owner:
            influence["top"] = backend.rows(f"select * from influential where place <= {TOP_USERS}")
    return {
        **mined.report,
        "k": k,
        "disagreements": _disagreements(mined),
        "coverage": coverage,
        "influence": influence,
    }


_SPOKEN = """
select distinct e.query_id, e.item_id, s.user_id
from evidence e join searchers s on s.search_id = e.search_id and s.day = e.day
"""


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
            for stage in (*STAGES, Source(0))
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
    rows = backend.rows(
        f"""
        select f.part, count(*) as queries, sum(f.searches) as searches, max(f.searches) as most,
            min(f.searches) as least, min(u.users) as users, {counts}
        from frequencies f
        left join ({_POSITIVE_BITS}) p on p.query = f.query
        left join ({_SPEAKERS}) u on u.part = f.part
        group by f.part order by most desc
        """
    )
    return [_coverage_row(row, list(covered), k) for row in rows]


def _coverage_row(row: dict[str, Any], names: list[str], k: int) -> dict[str, Any]:
    users = row["users"] or 0
    shares = {name: share(int(row[f"{name}_queries"]), row["queries"]) for name in names}
    counted = {name: int(row[name]) for name in ("queries", "searches", "most", "least")}
    return {"part": row["part"], **counted, "shares": shares if users >= k else None}


_FREQUENCIES = """
select query, searches, case
    when 3 * more_frequent < total then 'head' when 3 * more_frequent < 2 * total then 'torso' else 'tail'
    end as part
from (
    select query, searches, sum(searches) over () as total,
        sum(searches) over (order by searches desc) - sum(searches) over (partition by searches)
            as more_frequent
    from (select query, cast(sum(searches) as BIGINT) as searches from queries group by query) q
) w
"""

_POSITIVE_BITS = f"""
select q.query, bit_or(s.sources) as bits
from samples s join queries q on q.query_id = s.query_id
where s.label >= {POSITIVE_LABEL} group by q.query
"""

_SPEAKERS = """
select f.part, count(distinct s.user_id) as users
from spoken s join queries q on q.query_id = s.query_id join frequencies f on f.query = q.query
group by f.part
"""


def _influence(backend: Backend, k: int) -> dict[str, Any]:
    backend.table("influential", _INFLUENTIAL)
    total = backend.rows(
        """
        select (select count(*) from influential) as users, count(*) as pairs,
            sum(case when users = 1 then 1 else 0 end) as of_one_user, sum(users) as contributions
        from (select query_id, item_id, count(*) as users from spoken group by query_id, item_id) p
        """
    )[0]
    blocks = backend.rows(
        f"""
        select min(place) as first, max(place) as last, sum(pairs) as contributions
        from influential where place <= {BLOCKS * k}
        group by floor((place - 1) / {k}) having count(*) = {k} order by first
        """
    )
    numbers = {name: int(value or 0) for name, value in total.items()}
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
