"""Every rule of a table, from its contract: nulls, types, values, days, other tables, other rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from crops.logs.files import TableFiles
from crops.schema import EARLIEST_US, ITEMS, LATEST_US, LOG_TABLES, STAGES, Agreement, Column, Rule, Table

KNOWN_ITEMS = "known_items"
"""The relation of accepted item ids that `unknown_item` looks into."""
SAME_TEXT = "same_text"
"""The SQL function under which texts that mean the same are equal."""
_BOUNDS = {"INTEGER": (-(2**31), 2**31), "BIGINT": (-(2**63), 2**63)}
_HOUR_US = 3_600_000_000


def contract_rules(table: Table) -> list[Rule]:
    """Return every rule that a table's contract can reject a row by, for the documentation.

    Predicates are those of files that hand measures over as floats.
    """
    measures = {
        column.name: "float" if column.measure or column.type == "DOUBLE" else "integer"
        for column in table.columns
    }
    rules = list(_rules(table, measures, partitioned=table.partitioned))
    if table.agreement:
        rules.append(agreement_rule(table.agreement, table.time))
    return [*rules, duplicate_rule(table)] if table.key else rules


def row_rules(files: TableFiles) -> list[Rule]:
    """Return the rules that a row can break on its own, those of the column types first.

    The predicates read the contract's columns in the types of the files, absent ones as NULL, and `_day`;
    `KNOWN_ITEMS` must exist for tables other than items.
    """
    return list(_rules(files.table, files.found, partitioned=files.partitioned))


def duplicate_rule(table: Table) -> Rule:
    """Return the rule of a table's key: of equal keys one row without another fault is kept.

    Which one does not depend on the order of the files: the latest one by `Table.latest_by`, or any, since
    its values are merged with those of the others (see `merged_sql`); it is then the first of the earliest
    day. Its predicate reads the split's columns `_repeated`, `_reasons`, `_file`, `_row` and, by the table,
    `_day`.
    """
    names = ", ".join(table.key)
    if table.latest_by:
        others = [name for name in table.names() if name not in (*table.key, *table.latest_by)]
        order = [f"{name} desc nulls last" for name in (*table.latest_by, *others)]
        remedy = f"keep one row per ({names}); the one with the highest counters was kept"
    else:
        order = ["_day"] if table.partitioned else []
        remedy = f"keep one row per ({names}); their signals were merged into the one that was kept"
    ordered = ", ".join(["len(_reasons) > 0", *order, "_file", "_row"])
    bad = f"_repeated and row_number() over (partition by {names} order by {ordered}) > 1"
    return Rule("duplicate_key", names, bad, remedy)


def merged_sql(column: Column) -> str:
    """Return the SQL aggregate that makes one value of those of rows with one key."""
    if column.merge != "furthest":
        return f"{column.merge}({column.name})"
    ranks = " ".join(f"when '{stage}' then {rank}" for rank, stage in enumerate(STAGES))
    return f"min_by({column.name}, case {column.name} {ranks} end)"


def agreement_rule(agreement: Agreement, time: str | None) -> Rule:
    """Return the rule of an agreement: the earliest row without another fault, by `time`, decides.

    Its predicate reads the split's columns `_mixed` and `_reasons`, and `SAME_TEXT`.
    """
    values = [f"{SAME_TEXT}({name})" if name == "query" else name for name in agreement.columns]
    order = ", ".join(["len(_reasons) > 0", *([time] if time else []), *values])
    window = f"(partition by {agreement.key} order by {order})"
    differs = " or ".join(f"{value} is distinct from first_value({value}) over {window}" for value in values)
    return Rule(
        agreement.reason,
        ", ".join((agreement.key, *agreement.columns)),
        f"_mixed and ({differs})",
        agreement.remedy,
    )


def _rules(table: Table, found: Mapping[str, str], *, partitioned: bool) -> Iterator[Rule]:
    for column in table.columns:
        yield from _column_rules(column, found.get(column.name))
    yield from table.rules
    if partitioned and table.time:
        yield _day_rule(table.time)
    if table in LOG_TABLES and table is not ITEMS:
        yield Rule(
            "unknown_item",
            "item_id",
            f"item_id not in (select item_id from {KNOWN_ITEMS})",
            "add the item to items, or mend its row there if it was rejected",
        )


def _day_rule(time: str) -> Rule:
    """Return the rule of the partition: local days of all time zones fit, skewed clocks do not."""
    start = "epoch_us(cast(_day as timestamp))"
    on_day = f"{time} between {start} - {14 * _HOUR_US} and {start} + {36 * _HOUR_US}"
    return Rule(
        "wrong_day",
        time,
        f"{time} between {EARLIEST_US} and {LATEST_US} and not ({on_day})",
        f"{time} lies outside the day of its partition, in any time zone: correct the clock or move the row",
    )


def _column_rules(column: Column, found: str | None) -> Iterator[Rule]:
    name = column.name
    if not column.nullable:
        yield Rule(f"null_{name}", name, f"{name} is null", f"every row needs {name}: {column.doc}")
    if found == "float":
        remedy = f"leave {name} null where it is not known" if column.nullable else f"give {name} a number"
        yield Rule(f"nan_{name}", name, f"not isfinite({name})", remedy)
    if column.type in _BOUNDS and found == "float":
        fraction = f"isfinite({name}) and {name} <> floor({name})"
        yield Rule(
            f"fractional_{name}", name, fraction, f"{name} is a whole number: check its unit and round it"
        )
    if column.type == "INTEGER" or (column.type == "BIGINT" and found == "float"):
        low, high = _BOUNDS[column.type]
        finite = f"isfinite({name}) and " if found == "float" else ""
        outside = f"{finite}({name} < {low} or {name} >= {high})"
        yield Rule(
            f"out_of_range_{name}", name, outside, f"{name} does not fit {column.type}: mend or null it"
        )
