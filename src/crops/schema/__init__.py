"""One definition of every table: columns, types, units and row rules.

`crops check`, the engine, the simulator, the documentation and the tests all read it from here.
Times are integer microseconds UTC, durations integer milliseconds, ids integers.
Types are SQL types known to DuckDB and Spark alike.
"""

from crops.schema.contract import (
    ARROW_TYPES,
    EARLIEST_US,
    LATEST_US,
    MAX_DURATION_MS,
    MAX_QUERY_CHARS,
    REPLACEMENT,
    STAGES,
    Agreement,
    Column,
    Rule,
    Table,
)
from crops.schema.tables import (
    EVIDENCE,
    FEED_EVENTS,
    ITEMS,
    LOG_TABLES,
    QUERIES,
    SAMPLES,
    SEARCH_IMPRESSIONS,
    SYNTHETIC_ITEMS,
)

__all__ = [
    "ARROW_TYPES",
    "EARLIEST_US",
    "LATEST_US",
    "MAX_DURATION_MS",
    "MAX_QUERY_CHARS",
    "REPLACEMENT",
    "STAGES",
    "Agreement",
    "Column",
    "Rule",
    "Table",
    "EVIDENCE",
    "FEED_EVENTS",
    "ITEMS",
    "LOG_TABLES",
    "QUERIES",
    "SAMPLES",
    "SEARCH_IMPRESSIONS",
    "SYNTHETIC_ITEMS",
]
