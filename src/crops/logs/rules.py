"""The row rules of a table: what its contract says of nulls, values and other tables, as SQL predicates."""

from __future__ import annotations

from collections.abc import Iterator

from crops.logs.files import TableFiles
from crops.schema import Column, Rule

KNOWN_ITEMS = "known_items"
"""The relation of accepted item ids that `unknown_item` looks into."""
_BOUNDS = {"INTEGER": (-(2**31), 2**31), "BIGINT": (-(2**63), 2**63)}


def row_rules(files: TableFiles) -> list[Rule]:
    """Return the rules that a row can break on its own, those of the column types first.

    The predicates read the contract's columns in the types of the files, absent ones as NULL; `KNOWN_ITEMS`
    must exist for tables other than items.
    """
    rules = [rule for column in files.table.columns for rule in _column_rules(files, column)]
    rules += files.table.rules
    if files.table.name != "items":
        rules.append(
            Rule(
                "unknown_item",
                "item_id",
                f"item_id not in (select item_id from {KNOWN_ITEMS})",
                "add the item to items, or mend its row there if it was rejected",
            )
        )
    return rules


def duplicate_rule(files: TableFiles) -> Rule:
    """Return the rule of the table's key: of equal keys the first row without another fault is kept.

    Its predicate reads the split's columns `_repeated`, `_reasons`, `_file` and `_row`.
    """
    key = ", ".join(files.table.key)
    order = "len(_reasons) > 0, _file, _row"
    bad = f"_repeated and row_number() over (partition by {key} order by {order}) > 1"
    return Rule("duplicate_key", key, bad, f"keep one row per ({key}); the first acceptable one was kept")


def _column_rules(files: TableFiles, column: Column) -> Iterator[Rule]:
    name, found = column.name, files.found.get(column.name)
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
