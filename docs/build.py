"""Write docs/tables.md from the one definition of the tables (run by `make docs`)."""

from __future__ import annotations

from pathlib import Path

from crops.logs.rules import contract_rules
from crops.schema import (
    EVIDENCE,
    FEED_EVENTS,
    ITEMS,
    LOG_TABLES,
    QUERIES,
    SAMPLES,
    SEARCH_IMPRESSIONS,
    SEARCHES,
    STAGES,
    SYNTHETIC_ITEMS,
    Table,
)

HEAD = """# Tables

Generated from `src/crops/schema.py` by `make docs`. Times are integer microseconds UTC, durations integer
milliseconds, ids integers. Optional columns may be absent; other columns may have any name.

Control characters in queries and in texts of items become spaces, counted. A text has something to read if
one of its characters is no white space, control character, format character (zero-width space, byte order
mark), combining mark or filler.
"""


MERGED = {
    "bool_or": "true if it is in any",
    "furthest": f"the one that came furthest ({', '.join(STAGES)})",
    "bit_or": "the bits of all",
    "max": "the largest (play times are reported again as they grow: a sum would count them twice)",
    "min": "the smallest: the first time, the best place",
}


def merging(table: Table) -> str:
    """Return how rows of one key become one, in words."""
    key = ", ".join(f"`{name}`" for name in table.key)
    if table.latest_by:
        counters = ", ".join(f"`{name}`" for name in table.latest_by)
        return f"Of rows of one {key} the one with the highest {counters}, in this order, is kept whole."
    how: dict[str, list[str]] = {}
    for column in table.columns:
        if column.name not in table.key:
            how.setdefault(column.merge, []).append(f"`{column.name}`")
    parts = [f"{', '.join(how[merge])}: {words}" for merge, words in MERGED.items() if merge in how]
    rest = "; ".join(parts)
    return f"Rows of one ({key}) become one, whatever their order, nulls left out. {rest}."


def section(table: Table) -> str:
    """Return the Markdown of one table: its columns and its row rules."""
    lines = [f"\n## {table.name}\n", table.doc, ""]
    if table.partitioned:
        parts = f"{table.name}/day=YYYY-MM-DD/*.parquet"
        lines += [f"Partitioned by day: `{parts}`, or one `{table.name}.parquet`.", ""]
    lines += ["| column | type | | meaning |", "|---|---|---|---|"]
    for column in table.columns:
        kind = "optional" if column.optional else "nullable" if column.nullable else ""
        meaning = column.doc.replace("|", "\\|")
        lines.append(f"| `{column.name}` | {column.type} | {kind} | {meaning} |")
    if table in LOG_TABLES:
        lines += ["", merging(table)]
    if rules := contract_rules(table) if table in LOG_TABLES else table.rules:
        lines += ["", "| rejected because | column | remedy |", "|---|---|---|"]
        remedies = [(rule, rule.remedy.replace("|", "\\|")) for rule in rules]
        lines += [f"| `{rule.reason}` | `{rule.column}` | {remedy} |" for rule, remedy in remedies]
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    tables = (ITEMS, SEARCH_IMPRESSIONS, FEED_EVENTS, SEARCHES, QUERIES, SAMPLES, EVIDENCE, SYNTHETIC_ITEMS)
    text = HEAD + "\n".join(section(table) for table in tables) + "\n"
    (Path(__file__).parent / "tables.md").write_text(text)


if __name__ == "__main__":
    main()
