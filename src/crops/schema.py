"""One definition of every table: columns, types, units and row rules.

`crops check`, the engine, the simulator, the documentation and the tests all read it from here.
Times are integer microseconds UTC, durations integer milliseconds, ids integers.
Types are SQL types known to DuckDB and Spark alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from crops.text import FILLERS

ARROW_TYPES: dict[str, pa.DataType] = {
    "BIGINT": pa.int64(),
    "INTEGER": pa.int32(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "VARCHAR": pa.string(),
}
EARLIEST_US = 631_152_000_000_000
"""1990-01-01 in microseconds: smaller times are in a wrong unit."""
LATEST_US = 4_102_444_800_000_000
"""2100-01-01 in microseconds."""
MAX_QUERY_CHARS = 1000
"""A longer query text is a fault of the logging, not a search."""
MAX_DURATION_MS = 604_800_000
"""Seven days: longer durations are in a wrong unit."""
VISIBLE = rf"[^\s\p{{Z}}\p{{Cc}}\p{{Cf}}\p{{M}}{FILLERS}]"
"""Regular expression (RE2, Java) of a character to read, as in `crops.text.has_text`."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What decoders leave where bytes were not of the encoding they expected."""
STAGES = ("exposed", "unexposed", "filtered")
"""How far a document came for a query: shown; ranked, not shown; filtered between pre-rank and rank."""
Merge = Literal["min", "max", "bool_or", "bit_or", "furthest"]
"""How the values of rows with one key become one: an SQL aggregate, or the stage that came furthest. None
depends on the order of the rows, and nulls are left out."""


@dataclass(frozen=True)
class Column:
    """A column: SQL type, whether it may be null, whether it may be absent, and what it holds."""

    name: str
    type: str
    doc: str
    nullable: bool = False
    optional: bool = False
    prose: bool = False
    """Whether people wrote it: `crops check` turns control characters in it into spaces."""
    merge: Merge = "min"
    own_of: str = ""
    """The id whose text in the source this is, null where that is the number itself: see `crops.ids`."""

    @property
    def sql(self) -> str:
        """The type by the name that DuckDB and Spark both know."""
        return "STRING" if self.type == "VARCHAR" else self.type

    @property
    def measure(self) -> bool:
        """Whether this integer counts something, so that tools may hand it over as floats.

        pandas turns integers with gaps into floats: exact for counts and durations, lossy for ids, times and
        bit masks, which must be integers.
        """
        identifies = self.name.endswith(("_id", "_at")) or self.name == "routes"
        return self.type in ("BIGINT", "INTEGER") and not identifies


@dataclass(frozen=True)
class Rule:
    """A row rule: `bad` is a predicate of DuckDB and Spark that is true where the row must be rejected."""

    reason: str
    column: str
    bad: str
    remedy: str


@dataclass(frozen=True)
class Agreement:
    """Rows of one `key` agree in `columns`; those that differ from the earliest acceptable one are rejected.

    Of rows of one time the one with the lowest values of `columns` counts.
    """

    reason: str
    key: str
    columns: tuple[str, ...]
    remedy: str


@dataclass(frozen=True)
class Table:
    """A table of the contracts."""

    name: str
    doc: str
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()
    key: tuple[str, ...] = ()
    """No two rows share it: those that do become one (see `Column.merge`, or `latest_by`)."""
    latest_by: tuple[str, ...] = ()
    """Counters that only grow: of rows of one key the one with the highest is kept as it is, the others are
    older. Without them rows of one key are merged column by column."""
    agreement: Agreement | None = None
    time: str | None = None
    """The time that gives a row its day: the table is written as hive partitions `day=YYYY-MM-DD/`."""

    @property
    def partitioned(self) -> bool:
        """Whether the table is partitioned by day."""
        return self.time is not None

    @property
    def times(self) -> tuple[str, ...]:
        """The columns that are times."""
        return tuple(column.name for column in self.columns if column.name.endswith("_at"))

    def names(self) -> list[str]:
        """Return the column names in order."""
        return [column.name for column in self.columns]

    def arrow(self, *, own_ids: bool = True) -> pa.Schema:
        """Return the Arrow schema, with or without the columns of the source's own ids."""
        return pa.schema(
            [
                pa.field(column.name, ARROW_TYPES[column.type], column.nullable)
                for column in self.columns
                if own_ids or not column.own_of
            ]
        )


def blank(text: str) -> str:
    """Return the predicate of a text without a character to read (`crops.text.has_text`).

    It looks at the first character before it asks the regular expression, at a hundredth of the cost: all
    are to be read between "!" and "~", and between the first and the last Chinese character of U+3400 to
    U+9FFF.
    """
    visible = f"({text} >= '!' and {text} < chr(127) or {text} >= '\u3400' and {text} < '\ua000')"
    return f"not {visible} and regexp_extract({text}, '{VISIBLE}', 0) = ''"


def optional(name: str, type_: str, doc: str, merge: Merge = "min", *, prose: bool = False) -> Column:
    """Return a column that may be absent, and null where present."""
    return Column(name, type_, doc, nullable=True, optional=True, prose=prose, merge=merge)


def own_id(name: str, id_: str) -> Column:
    """Return the column of the texts that the numbers of an id were made from; `crops import` fills it."""
    doc = f"{id_} as the source writes it; null where that is the number itself"
    return Column(name, "VARCHAR", doc, nullable=True, optional=True, own_of=id_)


def time_rule(column: str) -> Rule:
    """Return the rule that a time is in microseconds UTC."""
    return Rule(
        "time_unit",
        column,
        f"{column} < {EARLIEST_US} or {column} > {LATEST_US}",
        f"give {column} in integer microseconds since 1970 UTC (seconds times 1000000, ms times 1000)",
    )


def duration_rules(column: str) -> tuple[Rule, Rule]:
    """Return the rules that a duration is in milliseconds and not negative."""
    return (
        Rule(
            f"negative_{column}",
            column,
            f"{column} < 0",
            f"{column} counts milliseconds and cannot be negative",
        ),
        Rule(
            f"unit_{column}",
            column,
            f"{column} > {MAX_DURATION_MS} and {column} < {2**63}",
            f"give {column} in milliseconds: more than seven days is a wrong unit",
        ),
    )


def count_rule(column: str) -> Rule:
    """Return the rule that a count is not negative."""
    return Rule(f"negative_{column}", column, f"{column} < 0", f"{column} is a count and cannot be negative")


def unshown_rule(column: str, reason: str, done: str) -> Rule:
    """Return the rule that only what was shown can be acted on; `done` is the predicate of the act."""
    return Rule(
        reason,
        column,
        f"{done} and stage <> 'exposed'",
        f"only shown documents can be {reason.removesuffix('_unshown')}: correct stage or {column}",
    )


ITEMS = Table(
    "items",
    "The catalogue; counters and click_query are as of the end of the training day.",
    (
        Column("item_id", "BIGINT", "id of the item, positive"),
        optional("ocr_cover", "VARCHAR", "title: the text on the cover", prose=True),
        optional("photo_caption", "VARCHAR", "description", prose=True),
        optional("keyword", "VARCHAR", "tags, separated by spaces", prose=True),
        optional("click_query", "VARCHAR", "queries that led to clicks, separated by '|'", prose=True),
        optional("play_cnt", "BIGINT", "plays so far"),
        optional("like_cnt", "BIGINT", "likes so far"),
        optional("long_view_cnt", "BIGINT", "long plays so far"),
        optional("download_cnt", "BIGINT", "downloads so far"),
        optional("duration_ms", "BIGINT", "length in milliseconds; 0 is unknown"),
        optional("uploaded_at", "BIGINT", "upload time, microseconds UTC"),
        optional("author_id", "BIGINT", "id of the creator"),
        optional("category", "VARCHAR", "category"),
        own_id("source_id", "item_id"),
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
            blank("concat_ws('', ocr_cover, photo_caption, keyword)"),
            "give at least one of ocr_cover, photo_caption, keyword a character to read",
        ),
        *(count_rule(column) for column in ("play_cnt", "like_cnt", "long_view_cnt", "download_cnt")),
        time_rule("uploaded_at"),
        *duration_rules("duration_ms"),
    ),
    key=("item_id",),
    latest_by=("play_cnt", "like_cnt", "long_view_cnt", "download_cnt"),
)

SEARCH_IMPRESSIONS = Table(
    "search_impressions",
    "One row per document considered for one query event; the ranked set is exposed + unexposed.",
    (
        Column("user_id", "BIGINT", "who searched"),
        Column("search_id", "BIGINT", "the query event"),
        Column("query", "VARCHAR", "query text as typed", prose=True),
        Column("searched_at", "BIGINT", "time of the query event, microseconds UTC"),
        Column("item_id", "BIGINT", "the document"),
        Column("stage", "VARCHAR", "exposed | unexposed | filtered", merge="furthest"),
        optional("rank", "INTEGER", "1-based position in the shown list, null unless exposed"),
        optional("pre_score", "DOUBLE", "score of the pre-ranker", "max"),
        optional(
            "routes",
            "BIGINT",
            "bit mask of the recall routes that found it (names in the manifest)",
            "bit_or",
        ),
        optional("arm", "VARCHAR", "arm of a running experiment"),
        Column("clicked", "BOOLEAN", "clicked in this event", merge="bool_or"),
        optional("liked", "BOOLEAN", "liked in this event", "bool_or"),
        optional("play_ms", "BIGINT", "time played, milliseconds", "max"),
        optional("duration_ms", "BIGINT", "length of the item, milliseconds; 0 is unknown", "max"),
        own_id("source_search_id", "search_id"),
        own_id("source_item_id", "item_id"),
    ),
    (
        Rule(
            "empty_query",
            "query",
            blank("query"),
            "drop the row, or log the text that was typed: it has nothing to read",
        ),
        Rule(
            "query_too_long",
            "query",
            f"length(query) > {MAX_QUERY_CHARS}",
            f"cut or drop queries of more than {MAX_QUERY_CHARS} characters",
        ),
        Rule(
            "broken_encoding",
            "query",
            f"contains(query, '{REPLACEMENT}')",
            "decode the text in the encoding that it was written in: U+FFFD marks bytes that were lost",
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
            "negative_routes",
            "routes",
            "routes < 0",
            "routes is a bit mask: leave it null where it is not known",
        ),
        unshown_rule("clicked", "clicked_unshown", "clicked"),
        unshown_rule("liked", "liked_unshown", "liked"),
        unshown_rule("play_ms", "played_unshown", f"play_ms between 1 and {MAX_DURATION_MS}"),
        time_rule("searched_at"),
        *duration_rules("play_ms"),
        *duration_rules("duration_ms"),
    ),
    key=("search_id", "item_id"),
    agreement=Agreement(
        "mixed_search",
        "search_id",
        ("user_id", "query"),
        "a search_id is one query event of one user: give each event its own id",
    ),
    time="searched_at",
)

SEARCHES = Table(
    "searches",
    "One row per query event of logs that say nothing of results; `crops check` counts what was reworded.",
    (*SEARCH_IMPRESSIONS.columns[:4], own_id("source_search_id", "search_id")),
    tuple(rule for rule in SEARCH_IMPRESSIONS.rules if rule.column in ("query", "searched_at")),
    key=("search_id",),
    time="searched_at",
)

FEED_EVENTS = Table(
    "feed_events",
    "One row per item that the recommendation feed showed to a user.",
    (
        Column("user_id", "BIGINT", "who watched"),
        Column("item_id", "BIGINT", "the item"),
        Column("watched_at", "BIGINT", "time of the exposure, microseconds UTC"),
        optional("play_ms", "BIGINT", "time played, milliseconds", "max"),
        optional("duration_ms", "BIGINT", "length of the item, milliseconds; 0 is unknown", "max"),
        optional("liked", "BOOLEAN", "liked", "bool_or"),
        optional("clicked", "BOOLEAN", "opened, where the feed has covers to click", "bool_or"),
        own_id("source_item_id", "item_id"),
    ),
    (time_rule("watched_at"), *duration_rules("play_ms"), *duration_rules("duration_ms")),
    key=("user_id", "item_id", "watched_at"),
    time="watched_at",
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


# What people did with a result, and how their searches follow each other: one definition each, as SQL over
# rows of the logs (DuckDB and Spark).

LONG_PLAY_MS = 18_000
"""A play of this length, or of the whole item if that is shorter, is consumption."""
MICROSECONDS = 1_000_000
"""In a second."""
LONG_PLAY = f"""coalesce(play_ms >= case
    when duration_ms > 0 and duration_ms <= {LONG_PLAY_MS} then duration_ms
    else {LONG_PLAY_MS} end, false)"""
"""Whether a play is long. A length of 0 is as unknown as none: it asks for 18 s, or every exposure of the
item would be consumed."""
CONSUMED = f"(coalesce(clicked, false) or coalesce(liked, false) or {LONG_PLAY})"
"""Whether a result or a feed item was clicked, liked or played long; none is no signal."""


def within_sql(earlier: str, later: str, window_s: float) -> str:
    """Return whether a search is soon enough after another to be its rewording: 0 < t_i - t_q <= window.

    Args:
        earlier: SQL of the time t_q of the one.
        later: SQL of the time t_i of the other.
        window_s: in seconds.
    """
    return f"({later} > {earlier} and {later} <= {earlier} + {round(window_s * MICROSECONDS)})"
