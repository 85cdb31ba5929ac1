"""The rules of a table, from its contract, and the split of its rows by them, in DuckDB.

Rules are about nulls, types, values, days, other tables and other rows. Only rejected rows, and rows that may
repeat or contradict others, are materialised: memory follows the faults, not the logs.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from crops.database import Connection, literal, quoted, write_parquet
from crops.logs.days import day_bounds
from crops.logs.tables import (
    TableFiles,
    contract_rows,
    day_sql,
    inspect,
    list_files,
    select_sql,
    table_days,
    table_rows,
    typed,
)
from crops.outputs import publish, write_manifest
from crops.schema import EARLIEST_US, ITEMS, LATEST_US, LOG_TABLES, STAGES, Agreement, Column, Rule, Table
from crops.text import CONTROL, normalise_query

KNOWN_ITEMS = "known_items"
"""The relation of accepted item ids that `unknown_item` looks into."""
SAME_TEXT = "same_text"
"""The SQL function under which texts that mean the same are equal."""
_BOUNDS = {"INTEGER": (-(2**31), 2**31), "BIGINT": (-(2**63), 2**63)}
_HOUR_US = 3_600_000_000
_ROWS_PER_PASS = 500_000
_MAX_PASSES = 16
"""Keys are searched for repeats in passes over shards, each of about that many rows: bounded memory."""
_ADDED = ("reasons", "file", "row")
"""Columns that the rejects add; an own column of such a name, or of one that differs from another's in case
only, gets a `_` behind it."""


def contract_rules(table: Table) -> list[Rule]:
    """Return every rule that a table's contract can reject a row by, for the documentation.

    Predicates are those of files that hand measures over as floats.
    """
    measures = {
        column.name: "float" if column.measure or column.type == "DOUBLE" else "integer"
        for column in table.columns
    }
    return _all_rules(table, list(_rules(table, measures, partitioned=table.partitioned)))


def row_rules(files: TableFiles) -> list[Rule]:
    """Return the rules that a row can break on its own, those of the column types first.

    The predicates read the contract's columns in the types of the files, absent ones as NULL, and `_day`;
    `KNOWN_ITEMS` must exist for tables other than items.
    """
    return list(_rules(files.table, files.found, partitioned=files.partitioned))


def file_rules(files: TableFiles) -> list[Rule]:
    """Return every rule that rows of the files may break, in the order of the reasons."""
    return _all_rules(files.table, row_rules(files))


def _all_rules(table: Table, rules: list[Rule]) -> list[Rule]:
    """Return rules of one row, and those of several."""
    if table.agreement:
        rules.append(agreement_rule(table.agreement, table.time))
    return [*rules, duplicate_rule(table)] if table.key else rules


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
            "add the item to items, or correct its row there if it was rejected",
        )


def _day_rule(time: str) -> Rule:
    """Return the rule of the partition: local days of all time zones fit, skewed clocks do not."""
    start = "epoch_us(cast(_day as timestamp))"
    on_day = f"{time} between {start} - {14 * _HOUR_US} and {start} + {36 * _HOUR_US}"
    return Rule(
        "wrong_day",
        time,
        f"{time} between {EARLIEST_US} and {LATEST_US} and not ({on_day})",
        f"{time} is outside the day of its partition, in any time zone: correct the clock or move the row",
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
            f"out_of_range_{name}",
            name,
            outside,
            f"{name} does not fit {column.type}: correct it or make it null",
        )


@dataclass(frozen=True)
class _Suspects:
    """Rows that may break a rule about several rows: those whose `key` is a `suspect` of the table `name`."""

    name: str
    flag: str
    key: str
    """SQL expression."""
    rule: Rule


def split(db: Connection, files: TableFiles) -> None:
    """Create the table `rejected_<name>`: all columns of the rows, `_file`, `_row` and the list `_reasons`.

    And the table `merged_<name>`: `_file`, `_row`, `_day` and the new values of the rows that are kept of
    several with one key, where these differ. It has no rows where the contract keeps whole rows.

    Tables other than items read the relation `KNOWN_ITEMS` of accepted item ids.
    """
    name, rules = files.table.name, row_rules(files)
    reasons = ", ".join(f"case when {rule.bad} then {literal(rule.reason)} end" for rule in rules)
    # Contradictions first: a row that one of those rejects must not displace its duplicate.
    suspects = [*_contradictions(db, files), *_repeats(db, files)]
    joins = "".join(f" left join {one.name} on {one.key} = {one.name}.suspect" for one in suspects)
    columns = ", ".join(["rows.*", *(one.flag for one in suspects)])
    where = " or ".join([*(f"({rule.bad})" for rule in rules), *(one.flag for one in suspects)])
    db.execute(
        f"create temp table rejected_{name} as"
        f" select {columns}, list_filter([{reasons}], lambda reason: reason is not null) as _reasons"
        f" from {rows_sql(files)} rows{joins} where {where}"
    )
    for one in suspects:
        more = f"list_append(_reasons, {literal(one.rule.reason)})"
        reasons = f"case when {one.rule.bad} then {more} else _reasons end as _reasons"
        db.execute(
            f"create or replace temp table rejected_{name} as"
            f" select * exclude ({one.flag}) replace ({reasons}) from rejected_{name}"
        )
    _merge(db, files)
    if suspects:
        db.execute(f"delete from rejected_{name} where len(_reasons) = 0")


def count(db: Connection, relation: str) -> int:
    """Return the number of rows of a relation."""
    ((rows,),) = db.execute(f"select count(*) from {relation}").fetchall()
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
    return f"(select {', '.join(columns)} from {table_rows(files, read)})"


def merged_columns(files: TableFiles) -> list[str]:
    """Return the columns in which rows of one key are merged: none where the contract keeps whole rows."""
    table = files.table
    if not table.key or table.latest_by:
        return []
    return [name for name in table.names() if name in files.found and name not in table.key]


def _merge(db: Connection, files: TableFiles) -> None:
    """Make `merged_<name>` before the rows that are kept leave `rejected_<name>`."""
    table, names = files.table, merged_columns(files)
    if not names:
        columns = "_file VARCHAR, _row BIGINT, _day VARCHAR"
        db.execute(f"create temp table merged_{table.name} ({columns})")
        return
    # As in `duplicate_rule`: the row that is kept is the first of these.
    first = "min(struct_pack(day := _day, file := _file, row := _row))"
    merged = [f"{merged_sql(column)} as {column.name}" for column in table.columns if column.name in names]
    differ = (f"min({name}) <> max({name}) or count({name}) not in (0, count(*))" for name in names)
    db.execute(
        f"create temp table merged_{table.name} as"
        f" select kept.file as _file, kept.row as _row, kept.day as _day, {', '.join(names)} from ("
        f" select {first} as kept, {', '.join(merged)} from rejected_{table.name}"
        " where list_has_all(['duplicate_key'], _reasons)"
        f" group by {', '.join(table.key)} having count(*) > 1 and ({' or '.join(differ)}))"
    )


def _contradictions(db: Connection, files: TableFiles) -> list[_Suspects]:
    """Find the keys whose rows disagree where the table says that they must not."""
    agreement = files.table.agreement
    if agreement is None:
        return []
    name, flag = f"mixed_{files.table.name}", "_mixed"
    differs = " or ".join(f"min(hash({column})) <> max(hash({column}))" for column in agreement.columns)
    db.execute(
        f"create temp table {name} as select {agreement.key} as suspect, true as {flag}"
        f" from {contract_rows(files)} group by {agreement.key} having {differs}"
    )
    if not count(db, name):
        return []
    db.create_function(SAME_TEXT, normalise_query, ["VARCHAR"], "VARCHAR")
    return [_Suspects(name, flag, agreement.key, agreement_rule(agreement, files.table.time))]


def _repeats(db: Connection, files: TableFiles) -> list[_Suspects]:
    """Find the keys that occur more than once, by their hash: eight bytes a key in memory."""
    if not files.table.key:
        return []
    name, flag, key = f"repeated_{files.table.name}", "_repeated", f"hash({', '.join(files.table.key)})"
    known = " and ".join(f"{column} is not null" for column in files.table.key)
    passes = min(_MAX_PASSES, 1 + files.rows // _ROWS_PER_PASS)
    db.execute(f"create temp table {name} (suspect UBIGINT, {flag} BOOLEAN)")
    for shard in range(passes):
        db.execute(
            f"insert into {name} select suspect, true from"
            f" (select {key} as suspect from {contract_rows(files)} where {known})"
            f" where suspect % {passes} = {shard} group by suspect having count(*) > 1"
        )
    return [_Suspects(name, flag, key, duplicate_rule(files.table))] if count(db, name) else []


# What a split found is written: the accepted rows as a logs folder, the rejected ones with their reasons.


Days = dict[str | None, int]
"""Rows by day; None where the table has no days."""


def keep_accepted(
    db: Connection,
    files: TableFiles,
    folder: Path | None,
    touched: Mapping[str, Days],
) -> dict[str, int]:
    """Create the view `accepted_<name>` over the rows that were not rejected.

    Control characters in what people wrote become spaces.

    Args:
        db: where the table was split.
        files: the table.
        folder: a logs folder to write the rows to; without one the view reads the source again.
        touched: what `controlled` found.

    Returns:
        the rows whose text was changed, by column.
    """
    changed = {name: sum(days.values()) for name, days in touched.items()}
    if folder is None:
        select = _accepted(db, files, changed)
    else:
        _write_accepted(db, files, folder, touched)
        select = select_sql(inspect(folder, files.table)[0])
    db.execute(f"create temp view accepted_{files.table.name} as {select}")
    return changed


def controlled(db: Connection, files: TableFiles) -> dict[str, Days]:
    """Return in how many accepted rows each column of prose has control characters, where it has, by day."""
    prose = [column.name for column in files.table.columns if column.prose and column.name in files.found]
    if not prose:
        return {}
    counts = ", ".join(f"count(*) filter (where regexp_matches({name}, '{CONTROL}'))" for name in prose)
    rows = f"{_with_merged(db, files, None)} rows{_without_rejected(db, files)}"
    day = "_day" if files.table.partitioned else "null"
    found: dict[str, Days] = {}
    for row in db.execute(f"select {day} as on_day, {counts} from {rows} group by on_day").fetchall():
        for name, number in zip(prose, row[1:], strict=True):
            if number:
                found.setdefault(name, {})[row[0]] = number
    return found


def write_rejects(
    db: Connection, files: TableFiles, logs: Path | str, folder: Path, partitioned: bool = False
) -> None:
    """Write the rejected rows in the order of the files, with `reasons`, `file` (below `logs`) and `row`.

    With `partitioned` in folders by day (`none` without one) and by the first of the reasons.
    """
    columns = [quoted(column) for column in files.table.names() if column in files.found]
    columns += [f"extra_{number} as {quoted(name)}" for number, name in enumerate(_extra_names(files))]
    columns += ["_reasons as reasons", f"{relative_sql(logs)} as file", "_row as row"]
    rejected = f"rejected_{files.table.name}"
    select = f"select {', '.join(columns)} from {rejected}"
    if not partitioned:
        write_parquet(db, f"{select} order by _file, _row", folder / "rejects.parquet")
        return
    day = "coalesce(_day, 'none')" if files.table.partitioned else "'none'"
    groups = f"select distinct {day} as day, _reasons[1] as reason from {rejected}"
    for found, reason in db.execute(groups).fetchall():
        where = f"{day} = {literal(found)} and _reasons[1] = {literal(reason)}"
        target = folder / f"day={found}" / f"reason={reason}" / "rejects.parquet"
        write_parquet(db, f"{select} where {where} order by _file, _row", target)


def keep_rejects(staging: Path, out: Path, command: str) -> str:
    """Keep the rejects of an output that fails in `<out>.failed`; return a line that says where, if any."""
    if not (staging / "rejects").exists():
        return ""
    kept = out.with_name(f"{out.name}.failed")
    with publish(kept, command) as folder:
        (staging / "rejects").rename(folder / "rejects")
        write_manifest(folder, command, config={}, seconds={})
    return f"\n  the rejected rows are in {kept / 'rejects'}"


def _extra_names(files: TableFiles) -> list[str]:
    """Return the names that the other columns get in the rejects: no two differ in case only."""
    taken = {*_ADDED, *files.found}
    names = []
    for name in files.extra:
        while not name or name.lower() in taken:
            name += "_"
        taken.add(name.lower())
        names.append(name)
    return names


def _write_accepted(
    db: Connection,
    files: TableFiles,
    folder: Path,
    touched: Mapping[str, Days],
) -> None:
    """Write one file per day: partitioned writes of DuckDB hold every day open and cost twice the CPU.

    Days of a source by URI whose rows are all accepted as they are stay where they are, and are listed.
    """
    table = files.table
    if files.source and not files.renamed:
        if files.partitioned:
            days = {day for day in files.days if day}
            left = {day for day in days if _as_it_is(db, files, touched, day)}
            if left:
                list_files(folder, files.on(left))
            files = files.on(days - left)
        elif _as_it_is(db, files, touched, None):
            list_files(folder, files)
            return
        if not files.files:
            return
    # The rows keep the order of the files: one thread, and no join whose sides are swapped.
    db.execute("set threads=1")
    db.execute("set disabled_optimizers='build_side_probe_side'")
    for day in table_days(files) if table.partitioned else (None,):
        target = folder / (f"{table.name}/day={day}/part-0.parquet" if day else f"{table.name}.parquet")
        part = files.on(day and [day])
        alone = len(part.files) == 1 and (files.partitioned or not day)
        if alone and part.exact and not (files.source or touched) and _as_it_is(db, files, touched, day):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(part.files[0], target)
        elif not write_parquet(db, _accepted(db, files, touched, day), target):
            target.unlink()
    db.execute("reset disabled_optimizers")
    db.execute("reset threads")


def _as_it_is(db: Connection, files: TableFiles, touched: Mapping[str, Days], day: str | None) -> bool:
    """Return whether all rows, or those of a day, are accepted unchanged."""
    tables = (f"{kind}_{files.table.name}{_on(day)}" for kind in ("rejected", "merged"))
    spaced = any(day is None or day in days for days in touched.values())
    return not spaced and not any(count(db, table) for table in tables)


def _accepted(db: Connection, files: TableFiles, changed: Collection[str], day: str | None = None) -> str:
    """Return the SELECT of the accepted rows: of one day, or of all days with the column `day`."""
    columns = []
    for column in files.table.columns:
        if column.name in files.found:
            # The rules left whole numbers only, but DuckDB may cast rows that the join has yet to drop.
            cast = "try_cast" if files.found[column.name] == "float" else "cast"
            value = quoted(column.name)
            if column.name in changed:
                value = f"regexp_replace({value}, '{CONTROL}', ' ', 'g')"
            columns.append(f"{cast}({value} as {column.type}) as {quoted(column.name)}")
    if files.table.partitioned and day is None:
        columns.append("_day as day")
    select = f"select {', '.join(columns)} from {_with_merged(db, files, day)}"
    select += _without_rejected(db, files, day)
    if day and not files.partitioned:
        first, last = day_bounds(day)
        select += f" where {files.table.time} between {first} and {last}"
    return select


def _without_rejected(db: Connection, files: TableFiles, day: str | None = None) -> str:
    """Return the join that leaves the rejected rows out, if there are any."""
    rejected = f"rejected_{files.table.name}{_on(day)}"
    if not count(db, rejected):
        return ""
    return f" anti join (select _file, _row from {rejected}) using (_file, _row)"


def _with_merged(db: Connection, files: TableFiles, day: str | None) -> str:
    """Return the relation of all rows of a day, or of all days, those of several with one key merged."""
    rows, merged = rows_sql(files.on(day and [day])), f"merged_{files.table.name}"
    if not count(db, f"{merged}{_on(day)}"):
        return rows
    values = ", ".join(
        f"case when m._row is null then r.{name} else m.{name} end as {name}"
        for name in merged_columns(files)
    )
    return (
        f"(select r.* replace ({values}) from {rows} r"
        f" left join (select * from {merged}{_on(day)}) m on m._file = r._file and m._row = r._row)"
    )


def _on(day: str | None) -> str:
    return f" where _day = {literal(day)}" if day else ""


def relative_sql(logs: Path | str) -> str:
    """Return the SQL of `_file` as a path below the logs, as it is where it lies elsewhere."""
    below = f"{str(logs).rstrip('/')}/"
    return (
        f"case when starts_with(_file, {literal(below)}) then substr(_file, {len(below) + 1}) else _file end"
    )
