"""The evidence of a query: why each of its documents is a positive, for whoever may know it.

Everybody asks here: `explain` for one query (`crops explain`), `TrainingEvidence` for all of them (the server
and its explorer). What is told to people who do not own the logs follows one rule, in every report,
page, reply and rating form:

- A query is named and counted if at least k distinct people searched it.
- A trail is all evidence of one query, one item, one source and, for P1, one later query. It is counted, and
  its later query is named, if at least k distinct people are behind that very trail.
- Of the other trails only their source is told: that somebody's behaviour makes the item a positive of the
  query, not how often, by how many, when or under which later query.

People are the distinct `user_id` of the logs, counted over all days mined; what is counted of a query sums up
its told trails, so that no difference of two numbers tells what a single person did.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.database import literal, path_literal
from crops.engine.backend import Backend, DuckDBBackend, id_sql
from crops.engine.events import load_events
from crops.engine.mined import Mined, name_searchers, read_mined
from crops.errors import CropsError
from crops.ids import shown_id
from crops.labels import POSITIVE_LABEL, Source
from crops.logs import Logs
from crops.outputs import read_manifest, recorded
from crops.schema import CONSUMED, within_sql
from crops.text import (
    DOCUMENT_FIELDS,
    Document,
    content_id,
    document_of,
    document_text_sql,
    normalise_query,
)


@dataclass(frozen=True)
class Trail:
    """The events of one kind that speak for a document; counts are None where fewer than k people did it."""

    source: Source
    events: int | None
    users: int | None
    via: tuple[str, ...] = ()
    """P1: the later query, where the trail is told."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Trail:
        """Return a row of `trails` as a trail."""
        via = () if row["via"] is None else (row["via"],)
        return cls(Source(row["source"]), row["events"], row["users"], via)


@dataclass(frozen=True)
class Positive:
    """A positive of the query."""

    item_id: int
    shown: str
    """Its id as the source writes it."""
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

    What is shown stands for at least k people (`engine.k` of the mining), see `crops.engine.evidence`; a
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
        tell_trails(backend, mined, k)
        trails = _trails(backend.rows("select * from trails"))
        positives = tuple(
            Positive(
                **{**row, "sources": Source(row["sources"])},
                trails=trails.get((content_id(text), row["item_id"]), ()),
            )
            for row in backend.rows(_POSITIVES)
        )
        rows = tuple(_log_rows(backend, mined, sources)) if raw else ()
    return Explanation(text, int(known["searches"]), known["users"], mined.config.k, positives, rows)


_POSITIVES = f"""
select s.item_id, max(s.label) as label, bit_or(s.sources) as sources, max(s.weight) as weight,
    max(e.theta) as theta, min(coalesce(i.text, g.text, '')) as text,
    min(coalesce(i.source_id, cast(s.item_id as VARCHAR))) as shown
from samples s join asked a on a.query_id = s.query_id
left join (select item_id, max(theta) as theta from own group by item_id) e on e.item_id = s.item_id
left join (select item_id, source_id, {document_text_sql()} as text from items) i on i.item_id = s.item_id
left join (select item_id, {document_text_sql()} as text from synthetic_items) g on g.item_id = s.item_id
where s.label >= {POSITIVE_LABEL}
group by s.item_id order by label desc, s.item_id
"""


_ALIKE = 0.75
"""Jaro-Winkler similarity of a misspelling; unrelated queries have about 0.5."""


def _unknown(backend: Backend, text: str, k: int) -> str:
    nearest = backend.rows(
        f"""
        select query, max(jaro_winkler_similarity(query, {literal(text)})) as alike
        from ({told_queries_sql(k)}) q
        group by query having alike >= {_ALIKE} order by alike desc, query limit 3
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


def _log_rows(backend: Backend, mined: Mined, sources: list[tuple[Logs, list[str]]]) -> list[dict[str, Any]]:
    """Return the impressions and feed events that made each item a positive."""
    of_source = {
        Source.CLICKED: "l.search_id = s.search_id",
        Source.REFORMULATION: within_sql(
            "s.searched_at", "l.searched_at", mined.config.reformulation.window_s
        ),
        Source.FEED: "l.watched_at = e.watched_at",
    }
    shown = "l.search_id, l.source_search_id, l.query, l.searched_at as seen_at"
    none = "cast(null as VARCHAR)"
    watched = f"s.search_id, {none} as source_search_id, {none} as query, l.watched_at as seen_at"
    selects = []
    for number, (logs, days) in enumerate(sources):
        backend.read_logs(f"feed_{number}", logs, "feed_events", days)
        for source, when in of_source.items():
            feed = source == Source.FEED
            log, columns = (f"feed_{number}", watched) if feed else (f"log_{number}", shown)
            selects.append(
                f"select distinct e.source, e.via_query_id, l.user_id, {columns}, l.item_id, "
                "l.source_item_id, l.clicked, l.liked, l.play_ms, l.duration_ms from own e "
                "join searchers s on s.search_id = e.search_id and s.day = e.day "
                f"join {log} l on l.user_id = s.user_id and l.item_id = e.item_id and {when} "
                f"where e.source = {source.value} and {CONSUMED}"
            )
    rows = backend.rows(
        f"select * from ({' union all '.join(selects)}) r "
        "order by item_id, source desc, seen_at, user_id, search_id"
    )
    for row in rows:
        for name in ("search_id", "item_id"):
            row[name] = row.pop(f"source_{name}") or row[name]
    # Of the searches in the window of a P1 event, the one that asked its later query.
    events = [(row, row.pop("via_query_id")) for row in rows]
    return [row for row, via in events if via is None or content_id(normalise_query(row["query"])) == via]


@dataclass(frozen=True)
class SourceCounts:
    """What a source says about a training query, over its told trails; None where there is none."""

    source: Source
    items: int | None
    events: int | None
    users: int | None


@dataclass(frozen=True)
class TrainingQuery:
    """A training query of at least k users."""

    query_id: int
    text: str
    searches: int
    users: int
    by_source: tuple[SourceCounts, ...] = ()
    rewordings: tuple[str, ...] = ()
    """Later queries of its told trails (P1), most frequent first."""


@dataclass(frozen=True)
class Pair:
    """A query with one of its training documents."""

    query_id: int
    item_id: int
    shown: str
    """The id of the item as the source writes it."""
    label: int
    sources: Source
    document: Document
    model: str | None
    """The language model that wrote the document; None for what people made."""
    trails: tuple[Trail, ...] = ()

    @property
    def hidden(self) -> bool:
        """Whether fewer than k people are behind some of it."""
        return any(trail.events is None for trail in self.trails)


_POSITIVES_OF_A_QUERY = 60
"""Positives of a training query that are looked at: of the highest labels and weights."""
_REWORDINGS = 3
_GROUP = 400
"""Documents of a training group that are shown."""


class TrainingEvidence:
    """The evidence of a mining for the training queries of at least k users; threads may share it."""

    def __init__(
        self, samples: Path, logs: Path | None = None, *, k: int | None = None, limit: int = 20_000
    ) -> None:
        """Read a mined folder and its logs once.

        Args:
            samples: folder of a mining, or of a daily build.
            logs: the accepted logs, where they are not where the mining found them.
            k: users behind whatever is shown; `engine.k` of the mining when None.
            limit: training queries to know, the most searched ones.

        Raises:
            CropsError: there is no mining, its logs are gone, or its groups are single events.
        """
        mined = read_mined(samples)
        if mined.by_event:
            raise CropsError(
                f"{samples}: mined with group_by = 'event'; evidence is shown for whole queries only"
            )
        self.k = k or mined.config.k
        self._lock = threading.Lock()
        self._backend = DuckDBBackend(mined.config.memory)
        _read_logs(self._backend, mined, logs)
        _read_samples(self._backend, mined, self.k, limit)
        self.queries = _training_queries(self._backend)
        self._by_id = {query.query_id: query for query in self.queries}
        self._positives = _positives(self._backend)
        self.asked: int = self._backend.rows("select count(distinct query_id) as n from queries")[0]["n"]
        """Training queries, those of fewer people too."""
        self.totals = tuple(
            SourceCounts(Source(row["source"]), row["items"], row["events"], row["users"])
            for row in self._backend.rows("select * from totals order by source desc")
        )
        """What each source says about all of them together; of a source of k people."""

    def close(self) -> None:
        """Close the database."""
        self._backend.__exit__(None, None, None)

    def query(self, query_id: int) -> TrainingQuery | None:
        """Return a training query of at least k users with what each source says about it."""
        return self._by_id.get(query_id)

    def positives(self, query_id: int) -> NDArray[np.int64]:
        """Return the items [n] that are the most telling positives of a training query."""
        return self._positives.get(query_id, np.empty(0, dtype=np.int64))

    def pairs(self, wanted: Collection[tuple[int, int]]) -> dict[tuple[int, int], Pair]:
        """Return pairs of training queries and their items, with their trails."""
        if not wanted:
            return {}
        queries, items = ({pair[place] for pair in wanted} for place in (0, 1))
        found = self._pairs(f"query_id in ({_listed(queries)}) and item_id in ({_listed(items)})")
        pairs = {(pair.query_id, pair.item_id): pair for pair in found}
        return {pair: pairs[pair] for pair in wanted}

    def written(self, items: Collection[int]) -> dict[int, Document]:
        """Return generated documents."""
        if not items:
            return {}
        rows = self._rows(f"select * from written where item_id in ({_listed(items)})")
        return {row["item_id"]: document_of(row) for row in rows}

    def group(self, query_id: int) -> list[Pair]:
        """Return the training group of a query, highest label first."""
        return self._pairs(f"query_id = {id_sql(query_id)}", f"and place <= {_GROUP}")

    def stages(self, query_id: int) -> dict[int, Source] | None:
        """Return how far the old system let each item come; None for a query of fewer than k users."""
        if query_id not in self._by_id:
            return None
        rows = self._rows(f"select item_id, source from stages where query_id = {id_sql(query_id)}")
        return {row["item_id"]: Source(row["source"]) for row in rows}

    def labels(self, query_id: int, items: Collection[int]) -> dict[int, int]:
        """Return the labels of those items that are training documents of a query."""
        where = f"query_id = {id_sql(query_id)} and item_id in ({_listed(items)})"
        rows = self._rows(f"select item_id, label from members where {where}") if items else []
        return {row["item_id"]: row["label"] for row in rows}

    def _pairs(self, wanted: str, more: str = "") -> list[Pair]:
        """Return the pairs that meet conditions, the second of them on the place in the group."""
        rows = self._rows(f"select * from members where {wanted} {more}")
        trails = _trails(self._rows(f"select * from trails where {wanted}"))
        return [
            Pair(
                row["query_id"],
                row["item_id"],
                shown_id(row),
                row["label"],
                Source(row["sources"]),
                document_of(row),
                (row["model"] or "a language model") if row["item_id"] < 0 else None,
                trails.get((row["query_id"], row["item_id"]), ()),
            )
            for row in sorted(rows, key=lambda row: (row["query_id"], row["place"]))
        ]

    def _rows(self, sql: str) -> list[dict[str, Any]]:
        with self._lock:
            return self._backend.rows(sql)


def _listed(ids: Collection[int]) -> str:
    return ", ".join(id_sql(one) for one in sorted(ids))


def _trails(rows: list[dict[str, Any]]) -> dict[tuple[int, int], tuple[Trail, ...]]:
    """Return the trails of each query and item, the highest source first, then the most people."""
    found: dict[tuple[int, int], tuple[Trail, ...]] = {}
    for row in sorted(rows, key=lambda row: (-row["source"], -(row["users"] or 0), row["via"] or "")):
        pair = row["query_id"], row["item_id"]
        found[pair] = (*found.get(pair, ()), Trail.of(row))
    return found


def _training_queries(backend: DuckDBBackend) -> tuple[TrainingQuery, ...]:
    """Return the queries of `asked` with what is told of each, the most searched first."""
    counts: dict[int, list[SourceCounts]] = {}
    for row in backend.rows("select * from source_counts order by source desc"):
        of_source = SourceCounts(Source(row["source"]), row["items"], row["events"], row["users"])
        counts.setdefault(row["query_id"], []).append(of_source)
    later: dict[int, list[str]] = {}
    for row in backend.rows(
        f"""
        select query_id, via from (
            select query_id, via,
                row_number() over (partition by query_id order by sum(events) desc, via) as place
            from trails where via is not null group by query_id, via
        ) t where place <= {_REWORDINGS} order by query_id, place
        """
    ):
        later.setdefault(row["query_id"], []).append(row["via"])
    return tuple(
        TrainingQuery(
            row["query_id"],
            row["query"],
            row["searches"],
            row["users"],
            tuple(counts.get(row["query_id"], ())),
            tuple(later.get(row["query_id"], ())),
        )
        for row in backend.rows("select * from asked order by searches desc, query")
    )


def _positives(backend: DuckDBBackend) -> dict[int, NDArray[np.int64]]:
    """Return the first positives of each training query."""
    rows = backend.arrow(
        "select query_id, item_id from members "
        f"where label >= {POSITIVE_LABEL} and place <= {_POSITIVES_OF_A_QUERY} order by query_id, place"
    )
    queries, starts = np.unique(rows["query_id"].to_numpy(), return_index=True)
    items = np.split(rows["item_id"].to_numpy(), starts[1:])
    return dict(zip(queries.tolist(), items, strict=False))


def _read_logs(backend: DuckDBBackend, mined: Mined, logs: Path | None) -> None:
    """Make `searchers(search_id, day, user_id)` and `seen(query_id, item_id, source)` of the days mined."""
    for source, days in mined.open_logs(logs):
        load_events(backend, source, days, mined.config.bots, keep=False)
        backend.append("searchers", "select search_id, day, user_id from searches")
        backend.append(
            "seen",
            "select group_id as query_id, item_id, max(source) as source from impressions group by all",
        )
        backend.drop_tables("queries", "searches")  # the mining, and the next logs, have their own


def _read_samples(backend: DuckDBBackend, mined: Mined, k: int, limit: int) -> None:
    """Make the tables that are looked up, and drop what they were made of."""
    mined.open(backend)
    tell_queries(backend, mined, k, limit)
    backend.table(
        "stages",
        "select s.query_id, item_id, max(source) as source from seen s "
        "join asked a on a.query_id = s.query_id group by s.query_id, item_id order by s.query_id",
    )
    _name_writers(backend, mined)
    backend.table("members", f"{_MEMBERS} order by s.query_id")  # so that a look-up skips the other queries
    backend.table("trails", "select * from trails order by query_id")
    backend.table(
        "totals",
        "select source, count(distinct (e.query_id, e.item_id)) as items, count(*) as events, "
        "count(distinct s.user_id) as users from evidence e "
        "left join searchers s on s.search_id = e.search_id and s.day = e.day "
        f"group by source having count(distinct s.user_id) >= {k}",
    )
    backend.drop_tables("searchers", "seen", "own", "counted")
    backend.table(
        "written",
        f"select item_id, {', '.join(DOCUMENT_FIELDS)} from synthetic_items "
        "where item_id in (select item_id from members)",
    )


_TEXTS = ", ".join(f"coalesce(i.{name}, g.{name}) as {name}" for name in DOCUMENT_FIELDS)

_MEMBERS = f"""
select s.query_id, s.item_id, s.label, s.sources, {_TEXTS}, i.category, i.source_id, w.model,
    row_number() over (
        partition by s.query_id order by s.label desc, s.sources desc, s.weight desc, s.item_id
    ) as place
from samples s join asked a on a.query_id = s.query_id
left join items i on i.item_id = s.item_id
left join synthetic_items g on g.item_id = s.item_id
left join writers w on w.item_id = s.item_id
"""


def _name_writers(backend: DuckDBBackend, mined: Mined) -> None:
    """Make `writers(item_id, model)`: who wrote each generated document, where that is known."""
    backend.table(
        "writers", "select item_id, cast(null as VARCHAR) as model from synthetic_items where 1 = 0"
    )
    manifest = read_manifest(mined.folder, "mine")
    if manifest.get("generated") is None:
        return
    generated = recorded(manifest["generated"], mined.folder, manifest.get("made_in"))
    if not generated.is_file():
        return
    columns = ", ".join(f"{name}: 'VARCHAR'" for name in (*DOCUMENT_FIELDS, "model"))
    source = f"read_json({path_literal(generated)}, format = 'newline_delimited', columns = {{{columns}}})"
    same = " and ".join(f"coalesce(g.{name}, '') = coalesce(i.{name}, '')" for name in DOCUMENT_FIELDS)
    backend.append(
        "writers",
        "select i.item_id, min(g.model) as model "
        f"from synthetic_items i join {source} g on {same} group by i.item_id",
    )


def tell_queries(backend: Backend, mined: Mined, k: int, limit: int | None = None) -> None:
    """Make `asked`, the queries of at least k people, and what may be told of each (see `tell_trails`).

    Args:
        backend: holds the tables of the mining and `searchers`.
        mined: the mining.
        k: people behind whatever is told.
        limit: the most searched ones only.
    """
    most = "" if limit is None else f"order by searches desc, query limit {limit}"
    backend.table("asked", f"{told_queries_sql(k)} {most}")
    backend.table("own", "select e.* from evidence e join asked a on a.query_id = e.query_id")
    tell_trails(backend, mined, k)


def told_queries_sql(k: int, queries: str = "queries") -> str:
    """Return the SELECT of the queries that at least k people searched.

    Args:
        k: people behind whatever is told.
        queries: the table; over several days its `users` are those of the busiest day, a lower bound.
    """
    return f"select * from {queries} where users >= {k}"


def tell_trails(backend: Backend, mined: Mined, k: int) -> None:
    """Make `trails` and `source_counts` of the evidence in `own`.

    `trails(query_id, item_id, source, via, events, users)`: a row for each trail that is told, and a row
    without counts and later query for a source of a pair none of whose trails is.

    `source_counts(query_id, source, items, events, users)`: of the told trails of a query; counts are null
    where none is. What a language model wrote stands for nobody: its documents are always counted.

    Args:
        backend: holds `own` (rows of the evidence), `searchers` and `queries`.
        mined: the mining they come from.
        k: people behind whatever is told.
    """
    name_later_queries(backend, mined)
    backend.table("counted", _COUNTED.format(k=k))
    backend.table("trails", _TRAILS)
    backend.table("source_counts", _SOURCE_COUNTS)


_KEY = "{0}.query_id = {1}.query_id and {0}.item_id = {1}.item_id and {0}.source = {1}.source"
_COUNTED = """
select o.query_id, o.item_id, o.source, o.via_query_id, count(*) as events,
    count(distinct s.user_id) as users, count(distinct s.user_id) >= {k} as told
from own o left join searchers s on s.search_id = o.search_id and s.day = o.day
group by o.query_id, o.item_id, o.source, o.via_query_id
"""

_TRAILS = f"""
select c.query_id, c.item_id, c.source, v.query as via, c.events, c.users
from counted c left join via v on v.query_id = c.via_query_id where c.told
union all
select distinct c.query_id, c.item_id, c.source, cast(null as VARCHAR), cast(null as BIGINT),
    cast(null as BIGINT)
from counted c
where not exists (select 1 from counted t where t.told and {_KEY.format("t", "c")})
"""

_SOURCE_COUNTS = f"""
select c.query_id, c.source,
    nullif(count(distinct case when c.free then o.item_id end), 0) as items,
    nullif(count(case when c.free then 1 end), 0) as events,
    case when count(case when c.free then 1 end) > 0
        then count(distinct case when c.free then s.user_id end) end as users
from (select *, told or source = {Source.KNOWLEDGE.value} as free from counted) c
join own o on {_KEY.format("o", "c")} and o.via_query_id is not distinct from c.via_query_id
left join searchers s on s.search_id = o.search_id and s.day = o.day
group by c.query_id, c.source
"""


def name_later_queries(backend: Backend, mined: Mined) -> None:
    """Make `via(query_id, query)`: the later queries of the evidence."""
    if not mined.by_event:
        backend.view("via", "select query_id, query from queries")
        return
    # There a group is an event: the id of a later query is the hash of its text.
    wanted = {row["id"] for row in backend.rows("select distinct via_query_id as id from own")}
    schema = pa.schema([("query_id", pa.int64()), ("query", pa.string())])
    texts = [row["query"] for row in backend.rows("select distinct query from queries")]
    rows = [{"query_id": content_id(text), "query": text} for text in texts]
    found = [row for row in rows if row["query_id"] in wanted]
    backend.load("via", schema, [pa.RecordBatch.from_pylist(found, schema=schema)])
