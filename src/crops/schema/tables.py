"""The tables."""

from __future__ import annotations

from crops.schema.contract import (
    MAX_DURATION_MS,
    MAX_QUERY_CHARS,
    REPLACEMENT,
    STAGES,
    Agreement,
    Column,
    Rule,
    Table,
)
from crops.schema.rules import (
    blank,
    count_rule,
    duration_rules,
    optional,
    time_rule,
    unshown_rule,
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
