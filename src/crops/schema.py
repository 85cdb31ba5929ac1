"""One definition of every table: columns, types, units and row rules.

`crops check`, the engine, the simulator, the documentation and the tests all read it from here.
Times are integer microseconds UTC, durations integer milliseconds, ids integers.
Types are SQL types known to DuckDB and Spark alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

ARROW_TYPES: dict[str, pa.DataType] = {
    "BIGINT": pa.int64(),
    "INTEGER": pa.int32(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "VARCHAR": pa.string(),
}

EARLIEST_US = 946_684_800_000_000
"""2000-01-01 in microseconds: smaller times are in a wrong unit."""
LATEST_US = 4_102_444_800_000_000
"""2100-01-01 in microseconds."""
MAX_QUERY_CHARS = 1000
"""A longer query text is a fault of the logging, not a search."""

VISIBLE = r"[^\s\p{Z}\x{0B}\x{1C}-\x{1F}\x{85}]"
"""Regular expression of a character that query normalisation does not strip."""

STAGES = ("exposed", "unexposed", "filtered")
"""How far a document came for a query: shown; ranked, not shown; filtered between pre-rank and rank."""


@dataclass(frozen=True)
class Column:
    """A column: SQL type, whether it may be null, whether it may be absent, and what it holds."""

    name: str
    type: str
    doc: str
    nullable: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Rule:
    """A row rule: `bad` is a DuckDB predicate that is true where the row must be rejected."""

    reason: str
    column: str
    bad: str
    remedy: str


@dataclass(frozen=True)
class Table:
    """A table of the contracts."""

    name: str
    doc: str
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()
    key: tuple[str, ...] = ()
    partitioned: bool = False
    """Written as hive partitions `day=YYYY-MM-DD/`."""

    def names(self) -> list[str]:
        """Return the column names in order."""
        return [column.name for column in self.columns]

    def arrow(self) -> pa.Schema:
        """Return the Arrow schema."""
        return pa.schema(
            [pa.field(column.name, ARROW_TYPES[column.type], column.nullable) for column in self.columns]
        )


def _optional(name: str, type_: str, doc: str) -> Column:
    return Column(name, type_, doc, nullable=True, optional=True)


def _time_rule(column: str) -> Rule:
    return Rule(
        "time_unit",
        column,
        f"{column} < {EARLIEST_US} or {column} > {LATEST_US}",
        f"give {column} in integer microseconds since 1970 UTC (seconds times 1000000, ms times 1000)",
    )


def _negative_rule(column: str) -> Rule:
    return Rule(
        f"negative_{column}", column, f"{column} < 0", f"{column} counts milliseconds and cannot be negative"
    )


ITEMS = Table(
    "items",
    "The catalogue; counters and click_query are as of the end of the training day.",
    (
        Column("item_id", "BIGINT", "id of the item, positive"),
        _optional("ocr_cover", "VARCHAR", "title: the text on the cover"),
        _optional("photo_caption", "VARCHAR", "description"),
        _optional("keyword", "VARCHAR", "tags, separated by spaces"),
        _optional("click_query", "VARCHAR", "queries that led to clicks, separated by '|'"),
        _optional("play_cnt", "BIGINT", "plays so far"),
        _optional("like_cnt", "BIGINT", "likes so far"),
        _optional("long_view_cnt", "BIGINT", "long plays so far"),
        _optional("download_cnt", "BIGINT", "downloads so far"),
        _optional("duration_ms", "BIGINT", "length in milliseconds"),
        _optional("uploaded_at", "BIGINT", "upload time, microseconds UTC"),
        _optional("author_id", "BIGINT", "id of the creator"),
        _optional("category", "VARCHAR", "category"),
    ),
    (
        Rule(
            "item_id_not_positive",
            "item_id",
            "item_id <= 0",
            "ids of real items are positive; negative ids are kept for generated ones",
        ),
        Rule(
            "no_text",
            "ocr_cover",
            f"not regexp_matches(concat_ws('', ocr_cover, photo_caption, keyword), '{VISIBLE}')",
            "give at least one of ocr_cover, photo_caption, keyword",
        ),
        _time_rule("uploaded_at"),
        _negative_rule("duration_ms"),
    ),
    key=("item_id",),
)

SEARCH_IMPRESSIONS = Table(
    "search_impressions",
    "One row per document considered for one query event; the ranked set is exposed + unexposed.",
    (
        Column("user_id", "BIGINT", "who searched"),
        Column("search_id", "BIGINT", "the query event"),
        Column("query", "VARCHAR", "query text as typed"),
        Column("searched_at", "BIGINT", "time of the query event, microseconds UTC"),
        Column("item_id", "BIGINT", "the document"),
        Column("stage", "VARCHAR", "exposed | unexposed | filtered"),
        _optional("rank", "INTEGER", "1-based position in the shown list, null unless exposed"),
        _optional("pre_score", "DOUBLE", "score of the pre-ranker"),
        _optional("routes", "BIGINT", "bit mask of the recall routes that found it (names in the manifest)"),
        _optional("arm", "VARCHAR", "arm of a running experiment"),
        Column("clicked", "BOOLEAN", "clicked in this event"),
        _optional("liked", "BOOLEAN", "liked in this event"),
        _optional("play_ms", "BIGINT", "time played, milliseconds"),
        _optional("duration_ms", "BIGINT", "length of the item, milliseconds"),
    ),
    (
        Rule(
            "empty_query",
            "query",
            f"not regexp_matches(query, '{VISIBLE}')",
            "drop the row or log the text that was typed",
        ),
        Rule(
            "query_too_long",
            "query",
            f"length(query) > {MAX_QUERY_CHARS}",
            f"cut or drop queries of more than {MAX_QUERY_CHARS} characters",
        ),
        Rule(
            "unknown_stage",
            "stage",
            "stage not in ({})".format(", ".join(f"'{stage}'" for stage in STAGES)),
            f"stage is one of {', '.join(STAGES)}",
        ),
        Rule("rank_not_positive", "rank", "rank < 1", "rank is 1-based: add 1 to zero-based positions"),
        Rule(
            "rank_of_unshown",
            "rank",
            "rank is not null and stage <> 'exposed'",
            "rank is null unless the document was shown",
        ),
        Rule(
            "clicked_unshown",
            "clicked",
            "clicked and stage <> 'exposed'",
            "only shown documents can be clicked: correct stage or clicked",
        ),
        _time_rule("searched_at"),
        _negative_rule("play_ms"),
        _negative_rule("duration_ms"),
    ),
    key=("search_id", "item_id"),
    partitioned=True,
)

FEED_EVENTS = Table(
    "feed_events",
    "One row per item that the recommendation feed showed to a user.",
    (
        Column("user_id", "BIGINT", "who watched"),
        Column("item_id", "BIGINT", "the item"),
        Column("watched_at", "BIGINT", "time of the exposure, microseconds UTC"),
        _optional("play_ms", "BIGINT", "time played, milliseconds"),
        _optional("duration_ms", "BIGINT", "length of the item, milliseconds"),
        _optional("liked", "BOOLEAN", "liked"),
        _optional("clicked", "BOOLEAN", "opened, where the feed has covers to click"),
    ),
    (_time_rule("watched_at"), _negative_rule("play_ms"), _negative_rule("duration_ms")),
    partitioned=True,
)

QUERIES = Table(
    "queries",
    "The distinct normalised queries.",
    (
        Column("query_id", "BIGINT", "signed 64 bits of the SHA-256 of the normalised text"),
        Column("query", "VARCHAR", "normalised text"),
        Column("searches", "BIGINT", "query events"),
        Column("users", "BIGINT", "distinct users"),
    ),
    key=("query_id",),
)

SAMPLES = Table(
    "samples",
    "The labelled documents of each query; a training group is all rows of one query.",
    (
        Column("query_id", "BIGINT", "the query"),
        Column("item_id", "BIGINT", "the document; negative ids are in synthetic_items"),
        Column("label", "INTEGER", "highest label of its sources"),
        Column("sources", "BIGINT", "bit mask of crops.labels.Source"),
        Column("weight", "DOUBLE", "weight of the pair"),
    ),
    key=("query_id", "item_id"),
)

EVIDENCE = Table(
    "evidence",
    "Why a pair is positive: one row per event that speaks for it.",
    (
        Column("query_id", "BIGINT", "the query"),
        Column("item_id", "BIGINT", "the document"),
        Column("source", "BIGINT", "one bit of crops.labels.Source"),
        Column("search_id", "BIGINT", "the query event it is credited to", nullable=True),
        Column("via_query_id", "BIGINT", "the later query it was consumed under (P1)", nullable=True),
        Column("watched_at", "BIGINT", "feed time (P2), microseconds UTC", nullable=True),
        Column("theta", "DOUBLE", "calibrated P(relevant) of the pair", nullable=True),
        Column("day", "VARCHAR", "day of the event, YYYY-MM-DD"),
    ),
)

SYNTHETIC_ITEMS = Table(
    "synthetic_items",
    "Documents written by an LLM: training positives only, never indexed.",
    ITEMS.columns,
    (Rule("item_id_not_negative", "item_id", "item_id >= 0", "ids of generated items are negative"),),
    key=("item_id",),
)

LOG_TABLES = (ITEMS, SEARCH_IMPRESSIONS, FEED_EVENTS)
"""What a team brings; feed_events may be absent (then P2 is)."""
