"""Why a document is a positive of a query: its evidence trail (`crops explain`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crops.engine.backend import Backend, DuckDBBackend, id_sql
from crops.engine.disclosure import Trail, tell_trails, told_queries_sql
from crops.engine.mined import Mined, name_searchers, read_mined
from crops.errors import CropsError
from crops.labels import POSITIVE_LABEL, Source
from crops.logs import Logs
from crops.logs.tables import literal
from crops.signals import CONSUMED, within_sql
from crops.text import content_id, document_text_sql, normalise_query

_SUGGESTIONS = 3


@dataclass(frozen=True)
class Positive:
    """A positive of the query."""

    item_id: int
    text: str
    label: int
    sources: Source
    weight: float
    theta: float | None
    trails: tuple[Trail, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """All positives of a query, highest label first."""

    query: str
    searches: int
    users: int
    """Of several days, those of the day with the most."""
    k: int
    positives: tuple[Positive, ...]
    rows: tuple[dict[str, Any], ...] = field(default=())
    """With `raw`: the rows of the logs behind each event."""


def explain(query: str, out: Path, logs: Path | None = None, *, raw: bool = False) -> Explanation:
    """Return the evidence of every positive of a query.

    What is shown stands for at least k people (`engine.k` of the mining), see `crops.engine.disclosure`; a
    query that fewer searched is answered as one that nobody searched.

    Args:
        query: any spelling of it.
        out: folder of a mining, or of a daily build.
        logs: the accepted logs, where they are not where the mining found them.
        raw: for the owner of the logs: every count, and the rows of the logs.

    Raises:
        CropsError: `out` is no mining, its logs are gone, or fewer than k people searched the query (the
            nearest ones are named).
    """
    mined = read_mined(out)
    k = 1 if raw else mined.config.k
    sources = mined.open_logs(logs)
    with DuckDBBackend(mined.config.memory) as backend:
        mined.open(backend)
        text = normalise_query(query)
        backend.table("asked", f"select * from queries where query = {literal(text)}")
        known = backend.rows("select sum(searches) as searches, max(users) as users from asked")[0]
        if known["searches"] is None or known["users"] < k:
            raise CropsError(_unknown(backend, text, k))
        # From here on, evidence is that of this query, of all its events.
        backend.table(
            "own",
            f"select e.* replace ({id_sql(content_id(text))} as query_id) "
            "from evidence e join asked a on a.query_id = e.query_id",
        )
        backend.view("evidence", "select * from own")
        name_searchers(backend, sources)
        trails = _trails(backend, mined, k)
        positives = tuple(_positive(row, trails) for row in backend.rows(_POSITIVES))
        rows = tuple(_log_rows(backend, mined, sources)) if raw else ()
    return Explanation(text, int(known["searches"]), known["users"], mined.config.k, positives, rows)


def _unknown(backend: Backend, text: str, k: int) -> str:
    nearest = backend.rows(
        f"""
        select query, max(jaro_winkler_similarity(query, {literal(text)})) as alike
        from ({told_queries_sql(k)}) q group by query order by alike desc, query limit {_SUGGESTIONS}
        """
    )
    hint = ", ".join(f"'{row['query']}'" for row in nearest)
    near = f"; the nearest queries: {hint}" if hint else ""
    if k == 1:
        return f"nobody searched '{text}' on the days mined{near}"
    return (
        f"'{text}' is no query of at least {k} users on the days mined{near}; --raw, for the owner of the "
        "logs only, knows all"
    )


_POSITIVES = f"""
select s.item_id, max(s.label) as label, bit_or(s.sources) as sources, max(s.weight) as weight,
    max(e.theta) as theta, min(coalesce(i.text, g.text, '')) as text
from samples s join asked a on a.query_id = s.query_id
left join (select item_id, max(theta) as theta from own group by item_id) e on e.item_id = s.item_id
left join (select item_id, {document_text_sql()} as text from items) i on i.item_id = s.item_id
left join (select item_id, {document_text_sql()} as text from synthetic_items) g on g.item_id = s.item_id
where s.label >= {POSITIVE_LABEL}
group by s.item_id order by label desc, s.item_id
"""


def _positive(row: dict[str, Any], trails: dict[int, list[Trail]]) -> Positive:
    values = {**row, "sources": Source(row["sources"])}
    return Positive(**values, trails=tuple(trails.get(row["item_id"], ())))


def _trails(backend: Backend, mined: Mined, k: int) -> dict[int, list[Trail]]:
    """Return the trails by item, highest source and most people first."""
    tell_trails(backend, mined, k)
    trails: dict[int, list[Trail]] = {}
    for row in backend.rows("select * from trails order by item_id, source desc, users desc, via"):
        trails.setdefault(row["item_id"], []).append(Trail.of(row))
    return trails


def _log_rows(backend: Backend, mined: Mined, sources: list[tuple[Logs, list[str]]]) -> list[dict[str, Any]]:
    """Return the impressions and feed events that made each item a positive."""
    window_s = mined.config.reformulation.window_s
    of_source = {
        Source.CLICKED: "l.search_id = s.search_id",
        Source.REFORMULATION: within_sql("s.searched_at", "l.searched_at", window_s),
        Source.FEED: "l.watched_at = e.watched_at",
    }
    selects = []
    for number, (logs, days) in enumerate(sources):
        backend.read_logs(f"feed_{number}", logs, "feed_events", days)
        for source, when in of_source.items():
            feed = source == Source.FEED
            log, columns = (f"feed_{number}", _WATCHED) if feed else (f"log_{number}", _SHOWN)
            selects.append(
                f"select distinct e.source, e.via_query_id, l.user_id, {columns}, l.item_id, l.clicked, "
                "l.liked, l.play_ms, l.duration_ms from own e "
                "join searchers s on s.search_id = e.search_id and s.day = e.day "
                f"join {log} l on l.user_id = s.user_id and l.item_id = e.item_id and {when} "
                f"where e.source = {source.value} and {CONSUMED}"
            )
    rows = backend.rows(
        f"select * from ({' union all '.join(selects)}) r "
        "order by item_id, source desc, seen_at, user_id, search_id"
    )
    return [row for row in rows if _is_via(row)]


_SHOWN = "l.search_id, l.query, l.searched_at as seen_at"
_WATCHED = "s.search_id, cast(null as VARCHAR) as query, l.watched_at as seen_at"


def _is_via(row: dict[str, Any]) -> bool:
    """Take the later query off a row; return whether it is the one that the row's search asked."""
    via = row.pop("via_query_id")
    return via is None or content_id(normalise_query(row["query"])) == via
