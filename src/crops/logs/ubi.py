"""UBI, User Behavior Insights: the logging standard of OpenSearch, Elasticsearch and Solr.

Source: the schema 1.3.0 of github.com/o19s/ubi. The hits of a query are its impressions. Clicks and likes are
events that name the query and the object; events that name no query happened outside search: our feed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from crops.database import literal, quoted
from crops.errors import CropsError
from crops.logs.mapped import mapped_table
from crops.logs.mapping import Dataset, Importer, MappedTable, MappingFile, Value, identifier, text, time
from crops.logs.sources import find_files, json_text, json_type, lines_sql, read_sql
from crops.schema import FEED_EVENTS, ITEMS, SEARCH_IMPRESSIONS

_HITS = ("query_response_hit_ids", "query_response_object_ids", "query_response_objects_ids")
"""What the list of hits has been called."""
_QUERY = ("query_id", "client_id", "user_query", "timestamp", *_HITS)
_EVENT = ("action_name", "timestamp", "query_id", "client_id", "user_id", "event_attributes")
_REQUIRED = ("query_id", "user_query", "action_name", "timestamp")
_NESTED = (*_HITS, "event_attributes")
_TITLES = ("name", "title", "object_name")


def ubi(folder: Path, mapping: MappingFile, scratch: Path) -> Dataset:
    """Return the mapping of a folder with UBI queries and events, as JSON lines or Parquet.

    Files or folders whose names hold `queries` and `events`, or JSON lines of both, such as a bulk request:
    they go by the name of their index, or else by having an action_name or a user_query. Item texts come from
    `[items]` of the mapping; without it from `name` or `title`, and `description`, of objects in events.

    Args:
        folder: the folder.
        mapping: `[items]` and `[actions]` are read.
        scratch: folder for clean copies.

    Raises:
        CropsError: a file or column is missing, or a Parquet file is called queries and events.
    """
    queries, events = _files(folder)
    mixed = sorted(set(queries) & set(events))
    others = f"select count(*) from ({lines_sql(mixed, scratch)}) where {_KIND} = ''" if mixed else ""
    items = (
        mapped_table(ITEMS, mapping.items, folder, mapping, scratch) if mapping.items else _items_of_events()
    )
    notes = () if mapping.items else ("item texts are those of the events' objects: map [items] for more",)
    return Dataset(
        (items, _searches(others), _feed()),
        setup=(
            f"create table ubi_events as {_events_sql(events, mapping, scratch, mixed)}",
            f"create table ubi_queries as {_queries_sql(queries, scratch, mixed)}",
            f"create table ubi_actions as {_ACTIONS}",
        ),
        text=mapping.text,
        notes=(*notes, "users are clients: client_id, and user_id where an event has no client"),
    )


def _files(folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return the files with queries and those with events; some may be in both."""
    names = [any(folder.glob(f"*{name}*")) for name in ("queries", "events")]
    if folder.is_dir() and not any(names):
        return (both := find_files(folder, "*json*")), both
    queries, events = (find_files(folder, f"*{name}*") for name in ("queries", "events"))
    both = tuple(sorted(set(queries) & set(events)))
    if both and both[0].suffix == ".parquet":
        raise CropsError(
            f"{both[0]} is called both queries and events and would be read twice: write its queries and its"
            " events into files of their own"
        )
    return queries, events


def _queries_sql(files: Sequence[Path], scratch: Path, mixed: Collection[Path]) -> str:
    listed = " ".join(
        f"when {name} <> '[]' and json_valid({name}) and json_type({name}) = 'ARRAY'"
        f" then cast({name} as JSON[])"
        for name in _HITS
    )
    documents = _documents(files, _QUERY, scratch, "queries", mixed)
    # A later line of a query is a further page, unless it is of another text or user, or the same hits.
    return f"""
        select * exclude (again, first_query, first_client) replace (case
                when problem is null and query_id is not null and page > 1 and (
                    again > 1 or user_query is distinct from first_query
                    or client_id is distinct from first_client
                ) then 'repeated_query_id' else problem end as problem)
        from (
            select *, row_number() over lines as page, first_value(user_query) over lines as first_query,
                first_value(client_id) over lines as first_client,
                row_number() over (
                    partition by problem, query_id, hits
                    order by "timestamp", client_id, user_query, _file, _row) as again
            from (
                select d.* exclude ({", ".join(_HITS)}), case {listed} else seen.hits end as hits
                from ({documents}) d left join ({_SEEN}) seen using (query_id))
            window lines as (
                partition by problem, query_id
                order by "timestamp", client_id, user_query, hits, _file, _row))"""


def _events_sql(files: Sequence[Path], mapping: MappingFile, scratch: Path, mixed: Collection[Path]) -> str:
    attributes = "case when json_valid(event_attributes) then cast(event_attributes as JSON) end"
    title = ", ".join(json_text("attributes", f"object.{name}") for name in _TITLES)
    documents = _documents(files, _EVENT, scratch, "events", mixed)
    return f"""
        select * exclude (event_attributes, attributes),
            {json_text("attributes", "object.object_id")} as object_id,
            try_cast({json_text("attributes", "position.ordinal")} as BIGINT) as ordinal,
            coalesce({title}) as title, {json_text("attributes", "object.description")} as description,
            action_name in ({_words(mapping.actions.click)}) as clicked,
            action_name in ({_words(mapping.actions.like)}) as liked,
            action_name in ({_words(mapping.actions.impression)}) as seen
        from (select *, {attributes} as attributes from ({documents}))"""


_KIND = f"""case when _index ilike '%queries%' then 'queries' when _index ilike '%events%' then 'events'
    when {json_text("doc", "action_name")} is not null then 'events'
    when doc is null or {json_text("doc", "user_query")} is not null then 'queries' else '' end"""
"""Of a line of a file with both: as its index is called, or as its fields are; no JSON is a query."""
_SEEN = """
    select query_id, list(to_json(object_id) order by place, time, object_id) as hits
    from (
        select query_id, object_id, min(case when ordinal > 0 then ordinal end) as place,
            min("timestamp") as time
        from ubi_events where seen and query_id is not null and object_id is not null
        group by query_id, object_id
    ) group by query_id
"""
"""What impressions show of a query: its hits where it has no list of them."""

_ACTIONS = """
    select query_id, object_id, bool_or(clicked) as clicked, bool_or(liked) as liked,
        min(case when ordinal > 0 then ordinal end) as ordinal, min(_file) as _file, min(_row) as _row
    from ubi_events where query_id is not null and object_id is not null and (clicked or liked)
    group by query_id, object_id
"""

_SHOWN = """
    select *, sum(case when turn > 1 and object_id is not null then 0 else 1 end) over (
            partition by query_id order by page, position) as rank
    from (
        select *, row_number() over (partition by query_id, object_id order by page, position) as turn
        from (
            select query_id, page, position, _file, _row,
                case when json_type(hit) not in ('ARRAY', 'OBJECT') then hit ->> '$' end as object_id
            from (
                select query_id, page, unnest(hits) as hit, generate_subscripts(hits, 1) as position,
                    _file, _row
                from ubi_queries where problem is null
            )
        )
    )
"""
"""Hits in the order of pages and lists; `turn` counts those of one object, `rank` the different ones."""


def _searches(others: str) -> MappedTable:
    # Hits, then what was clicked beyond them (on a further page), then queries that showed nothing.
    rows = f"""
        with shown as ({_SHOWN}),
        considered as (
            select query_id, object_id, rank, _file, _row,
                case when turn > 1 and object_id is not null then 'repeated_hit' end as problem
            from shown
            union all
            select query_id, object_id, ordinal as rank, _file, _row, null
            from ubi_actions a anti join shown using (query_id, object_id)
        )
        select h.query_id, q.client_id, q.user_query, q."timestamp", h.object_id, h.rank,
            coalesce(a.clicked, false) as clicked, coalesce(a.liked, false) as liked,
            case when q.query_id is null then 'unknown_query' else h.problem end as problem, h._file, h._row
        from considered h left join ubi_actions a using (query_id, object_id)
            left join (select * from ubi_queries where problem is null and page = 1) q
                on q.query_id = h.query_id
        union all
        select query_id, client_id, user_query, "timestamp", null, null, false, false,
            coalesce(problem, 'no_hits'), _file, _row
        from ubi_queries where problem is not null or hits is null or len(hits) = 0"""
    return MappedTable(
        SEARCH_IMPRESSIONS,
        rows,
        {
            "user_id": identifier("client_id"),
            "search_id": identifier("query_id"),
            "query": text("user_query"),
            "searched_at": time('"timestamp"', "any"),
            "item_id": identifier("object_id"),
            "stage": Value("'exposed'"),
            "rank": Value("try_cast(rank as INTEGER)"),
            "clicked": Value("clicked"),
            "liked": Value("liked"),
        },
        {
            reason: f"problem = '{reason}'"
            for reason in ("malformed_json", "repeated_query_id", "repeated_hit", "unknown_query", "no_hits")
        },
        others=others,
    )


def _feed() -> MappedTable:
    rows = """
        select coalesce(client_id, user_id) as client_id, object_id, "timestamp", clicked, liked, problem,
            _file, _row
        from ubi_events
        where problem is not null or ((query_id is null or object_id is null) and (clicked or liked))"""
    return MappedTable(
        FEED_EVENTS,
        rows,
        {
            "user_id": identifier("client_id"),
            "item_id": identifier("object_id"),
            "watched_at": time('"timestamp"', "any"),
            "liked": Value("liked"),
            "clicked": Value("clicked"),
        },
        {"malformed_json": "problem is not null"},
    )


def _items_of_events() -> MappedTable:
    rows = """
        select object_id, max(title) as title, max(description) as description, min(_file) as _file,
            min(_row) as _row
        from ubi_events where object_id is not null group by object_id"""
    columns = {
        "item_id": identifier("object_id"),
        "ocr_cover": text("title"),
        "photo_caption": text("description"),
    }
    return MappedTable(ITEMS, rows, columns, {"no_text": "title is null and description is null"})


def _documents(
    files: Sequence[Path], names: Sequence[str], scratch: Path, which: str, mixed: Collection[Path]
) -> str:
    """Return the SELECT of the named fields as text, `problem` (of a line that is no JSON), `_file`, `_row`.

    Of `mixed` files only the lines of one kind, `queries` or `events`, are chosen.

    Raises:
        CropsError: a Parquet file is not readable or lacks a required field.
    """
    if files[0].suffix != ".parquet":
        fields = ", ".join(f"{_json_value(name)} as {quoted(name)}" for name in names)
        problem = "case when doc is null then 'malformed_json' end as problem"
        select = f"select {fields}, {problem}, _file, _row from ({lines_sql(files, scratch)})"
        called = ", ".join(literal(file) for file in files if file not in mixed)
        return f"{select} where {_KIND} = '{which}' or _file in ({called or 'null'})" if mixed else select
    optional = [name for name in names if name not in _REQUIRED]
    rows = read_sql(files, {name: name for name in names}, scratch, optional, _NESTED)
    return f"select * rename (_problem as problem) from ({rows})"


def _json_value(name: str) -> str:
    """Return the SQL of a field of `doc` as text; a list or struct is no value where one is wanted."""
    if name in _NESTED:
        return json_text("doc", name)
    return f"case when {json_type('doc', name)} not in ('ARRAY', 'OBJECT') then {json_text('doc', name)} end"


def _words(words: Sequence[str]) -> str:
    return ", ".join(literal(word) for word in words) or "''"


UBI = Importer("ubi", ubi, mapping="optional")
