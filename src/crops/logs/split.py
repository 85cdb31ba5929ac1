"""Finds the rows of one table that break its contract, in DuckDB.

Only rejected rows, and rows that may repeat or contradict others, are materialised: memory follows the
faults, not the logs.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from crops.logs.files import TableFiles
from crops.logs.rules import SAME_TEXT, agreement_rule, duplicate_rule, merged_sql, row_rules
from crops.logs.tables import contract_rows, day_sql, literal, quoted, rows_of, typed
from crops.schema import Rule
from crops.text import normalise_query

_ROWS_PER_PASS = 500_000
_MAX_PASSES = 16
"""Keys are searched for repeats in passes over shards, each of about that many rows: bounded memory."""


@dataclass(frozen=True)
class _Suspects:
    """Rows that may break a rule about several rows: those whose `key` is a `suspect` of the table `name`."""

    name: str
    flag: str
    key: str
    """SQL expression."""
    rule: Rule


def split(connection: duckdb.DuckDBPyConnection, files: TableFiles) -> list[Rule]:
    """Create the table `rejected_<name>`: all columns of the rows, `_file`, `_row` and the list `_reasons`.

    And the table `merged_<name>`: `_file`, `_row`, `_day` and the new values of the rows that are kept of
    several with one key, where these differ. It has no rows where the contract keeps whole rows.

    Tables other than items read the relation `KNOWN_ITEMS` of accepted item ids.

    Returns:
        the rules that were applied, in the order of the reasons.
    """
    name, rules = files.table.name, row_rules(files)
    reasons = ", ".join(f"case when {rule.bad} then {literal(rule.reason)} end" for rule in rules)
    # Contradictions first: a row that one of those rejects must not displace its duplicate.
    suspects = [*_contradictions(connection, files), *_repeats(connection, files)]
    joins = "".join(f" left join {one.name} on {one.key} = {one.name}.suspect" for one in suspects)
    columns = ", ".join(["rows.*", *(one.flag for one in suspects)])
    where = " or ".join([*(f"({rule.bad})" for rule in rules), *(one.flag for one in suspects)])
    connection.execute(
        f"create temp table rejected_{name} as"
        f" select {columns}, list_filter([{reasons}], lambda reason: reason is not null) as _reasons"
        f" from {rows_sql(files)} rows{joins} where {where}"
    )
    for one in suspects:
        more = f"list_append(_reasons, {literal(one.rule.reason)})"
        reasons = f"case when {one.rule.bad} then {more} else _reasons end as _reasons"
        connection.execute(
            f"create or replace temp table rejected_{name} as"
            f" select * exclude ({one.flag}) replace ({reasons}) from rejected_{name}"
        )
    _merge(connection, files)
    if suspects:
        connection.execute(f"delete from rejected_{name} where len(_reasons) = 0")
    return [*rules, *(one.rule for one in suspects)]


def count_rejected(connection: duckdb.DuckDBPyConnection, files: TableFiles) -> int:
    """Return the number of rejected rows of a table that was split."""
    return count(connection, f"rejected_{files.table.name}")


def count(connection: duckdb.DuckDBPyConnection, relation: str) -> int:
    """Return the number of rows of a relation."""
    ((rows,),) = connection.execute(f"select count(*) from {relation}").fetchall()
    return int(rows)


def rows_sql(files: TableFiles) -> str:
    """Return the relation of all rows: the contract's columns as the files type them, absent ones as NULL.

    Besides the columns that the contract does not know, as `extra_0` and so on in the order of `files.extra`,
    it has `_file`, `_row` and, by the table, `_day`.
    """
    read = {name: name for name in files.found}
    read |= {f"extra_{number}": name for number, name in enumerate(files.extra)}
    columns = []
    for column in files.table.columns:
        present = column.name in files.found and column.type != "VARCHAR"
        columns.append(f"{quoted(column.name) if present else typed(files, column)} as {quoted(column.name)}")
    columns += [f"extra_{number}" for number in range(len(files.extra))]
    columns += ["_file", "_row"]
    if files.table.partitioned:
        columns.append(f"{day_sql(files)} as _day")
    return f"(select {', '.join(columns)} from {rows_of(files.files, files.footers, read)})"


def merged_columns(files: TableFiles) -> list[str]:
    """Return the columns in which rows of one key are merged: none where the contract keeps whole rows."""
    table = files.table
    if not table.key or table.latest_by:
        return []
    return [name for name in table.names() if name in files.found and name not in table.key]


def _merge(connection: duckdb.DuckDBPyConnection, files: TableFiles) -> None:
    """Make `merged_<name>` before the rows that are kept leave `rejected_<name>`."""
    table, names = files.table, merged_columns(files)
    if not names:
        columns = "_file VARCHAR, _row BIGINT, _day VARCHAR"
        connection.execute(f"create temp table merged_{table.name} ({columns})")
        return
    # As in `duplicate_rule`: the row that is kept is the first of these.
    first = "min(struct_pack(day := _day, file := _file, row := _row))"
    merged = [f"{merged_sql(column)} as {column.name}" for column in table.columns if column.name in names]
    differ = (f"min({name}) <> max({name}) or count({name}) not in (0, count(*))" for name in names)
    connection.execute(
        f"create temp table merged_{table.name} as"
        f" select kept.file as _file, kept.row as _row, kept.day as _day, {', '.join(names)} from ("
        f" select {first} as kept, {', '.join(merged)} from rejected_{table.name}"
        " where list_has_all(['duplicate_key'], _reasons)"
        f" group by {', '.join(table.key)} having count(*) > 1 and ({' or '.join(differ)}))"
    )


def _contradictions(connection: duckdb.DuckDBPyConnection, files: TableFiles) -> list[_Suspects]:
    """Find the keys whose rows disagree where the table says that they must not."""
    agreement = files.table.agreement
    if agreement is None:
        return []
    name, flag = f"mixed_{files.table.name}", "_mixed"
    differs = " or ".join(f"min(hash({column})) <> max(hash({column}))" for column in agreement.columns)
    connection.execute(
        f"create temp table {name} as select {agreement.key} as suspect, true as {flag}"
        f" from {contract_rows(files)} group by {agreement.key} having {differs}"
    )
    if not count(connection, name):
        return []
    connection.create_function(SAME_TEXT, normalise_query, ["VARCHAR"], "VARCHAR")
    return [_Suspects(name, flag, agreement.key, agreement_rule(agreement, files.table.time))]


def _repeats(connection: duckdb.DuckDBPyConnection, files: TableFiles) -> list[_Suspects]:
    """Find the keys that occur more than once, by their hash: eight bytes a key in memory."""
    if not files.table.key:
        return []
    name, flag, key = f"repeated_{files.table.name}", "_repeated", f"hash({', '.join(files.table.key)})"
    known = " and ".join(f"{column} is not null" for column in files.table.key)
    passes = min(_MAX_PASSES, 1 + files.rows // _ROWS_PER_PASS)
    connection.execute(f"create temp table {name} (suspect UBIGINT, {flag} BOOLEAN)")
    for shard in range(passes):
        connection.execute(
            f"insert into {name} select suspect, true from"
            f" (select {key} as suspect from {contract_rows(files)} where {known})"
            f" where suspect % {passes} = {shard} group by suspect having count(*) > 1"
        )
    return [_Suspects(name, flag, key, duplicate_rule(files.table))] if count(connection, name) else []
