"""The rules of a table, from its contract, and the split of its rows by them, in the SQL of DuckDB and Spark.

Rules are about nulls, types, values, days, other tables and other rows. Only rejected rows, and rows that may
repeat or contradict others, are materialised: memory follows the faults, not the logs. The reasons of a row
are a bit mask, in the order of `file_rules`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from crops.database import literal
from crops.logs.days import DAY_US, day_bounds
from crops.logs.files import TableFiles, inspect, list_files
from crops.logs.rows import RowEngine
from crops.logs.sql import table_days
from crops.outputs import link_file, publish, write_manifest
from crops.schema import EARLIEST_US, ITEMS, LATEST_US, LOG_TABLES, STAGES, Agreement, Column, Rule, Table
from crops.text import CONTROL, normalise_query, spaced_sql

KNOWN_ITEMS = "known_items"
"""The table of accepted item ids, `known_id`, which the split joins for `unknown_item`."""
SAME_TEXT = "same_text"
"""The SQL function under which texts that mean the same are equal."""
_BOUNDS = {"INTEGER": (-(2**31), 2**31), "BIGINT": (-(2**63), 2**63)}
_HOUR_US = 3_600_000_000
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

    The predicates read the contract's columns in the types of the files, absent ones as NULL, `_day` and, for
    tables other than items, `known_id` of `KNOWN_ITEMS`.
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
    day. Its predicate reads the split's column `_place`, see `_place_sql`.
    """
    names = ", ".join(table.key)
    kept = (
        "the one with the highest counters was kept"
        if table.latest_by
        else "their signals were merged into the one that was kept"
    )
    return Rule("duplicate_key", names, "_place > 1", f"keep one row per ({names}); {kept}")


def _place_sql(table: Table) -> str:
    """Return the place of a row among those of its key, from 1: those without another fault come first."""
    if table.latest_by:
        others = [name for name in table.names() if name not in (*table.key, *table.latest_by)]
        order = [f"{name} desc nulls last" for name in (*table.latest_by, *others)]
    else:
        order = ["_day nulls last"] if table.partitioned else []
    ordered = ", ".join(["_agreed <> 0", *order, "_file", "_row"])
    return f"row_number() over (partition by {', '.join(table.key)} order by {ordered})"


def merged_sql(column: Column) -> str:
    """Return the SQL aggregate that makes one value of those of rows with one key."""
    if column.merge != "furthest":
        return f"{column.merge}({column.name})"
    ranks = " ".join(f"when '{stage}' then {rank}" for rank, stage in enumerate(STAGES))
    return f"min_by({column.name}, case {column.name} {ranks} end)"


def agreement_rule(agreement: Agreement, time: str | None) -> Rule:
    """Return the rule of an agreement: the earliest row without another fault, by `time`, decides.

    Its predicate reads the split's columns `_mixed` and `_own`, the faults of the row itself, and
    `SAME_TEXT`.
    """
    values = [f"{SAME_TEXT}({name})" if name == "query" else name for name in agreement.columns]
    order = ", ".join(["_own <> 0", *(f"{name} nulls last" for name in [*([time] if time else []), *values])])
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
    for rule in table.rules:
        # DuckDB decides comparisons by the statistics of the files, which leave NaN out.
        compared = re.search(rf"\b{rule.column} (<|>|between )", rule.bad)
        nan = found.get(rule.column) == "float" and compared
        yield replace(rule, bad=f"not isnan({rule.column}) and ({rule.bad})") if nan else rule
    if partitioned and table.time:
        yield _day_rule(table.time)
    if table in LOG_TABLES and table is not ITEMS:
        yield Rule(
            "unknown_item",
            "item_id",
            "item_id is not null and known_id is null",
            "add the item to items, or correct its row there if it was rejected",
        )


def _day_rule(time: str) -> Rule:
    """Return the rule of the partition: local days of all time zones fit, skewed clocks do not."""
    start = f"cast(cast(_day as DATE) - cast('1970-01-01' as DATE) as BIGINT) * {DAY_US}"
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
        yield Rule(f"nan_{name}", name, f"not {_finite(name)}", remedy)
    if column.type in _BOUNDS and found == "float":
        fraction = f"{_finite(name)} and {name} % 1 <> 0"
        yield Rule(
            f"fractional_{name}", name, fraction, f"{name} is a whole number: check its unit and round it"
        )
    if column.type == "INTEGER" or (column.type == "BIGINT" and found == "float"):
        low, high = _BOUNDS[column.type]
        finite = f"{_finite(name)} and " if found == "float" else ""
        outside = f"{finite}({name} < {low} or {name} >= {high})"
        yield Rule(
            f"out_of_range_{name}",
            name,
            outside,
            f"{name} does not fit {column.type}: correct it or make it null",
        )


def _finite(name: str) -> str:
    """Return whether a number is neither infinite nor NaN; statistics of a file leave NaN out."""
    return f"(not isnan({name}) and abs({name}) < cast('infinity' as DOUBLE))"


Days = dict[str | None, int]
"""Rows by day; None where a row, or the table, has none."""


@dataclass(frozen=True)
class Split:
    """What a split found, beside its tables."""

    rejected: Days
    merged: Days
    """Rows that are kept of several with one key, where these differ."""
    spaced: Mapping[str, Days]
    """Accepted rows with control characters in a column of prose, by column."""

    def touched(self, day: str | None) -> bool:
        """Return whether not all rows, or not all those of a day, are accepted unchanged."""
        return any(_on_day(days, day) for days in (self.rejected, self.merged, *self.spaced.values()))


def _on_day(days: Days, day: str | None) -> int:
    return sum(days.values()) if day is None else days.get(day, 0)


WHOLE = ""
"""The one part of a table whose files are in no partitions by day, where others have days."""


@dataclass(frozen=True)
class Taken:
    """Which days of a table are judged, and what is taken over of the others: see `crops.logs.last`."""

    files: TableFiles
    """The files that are read."""
    read: frozenset[str] = frozenset()
    """The days whose rows are judged."""
    kept: frozenset[str] = frozenset()
    """The days that are taken over; none where all rows are judged."""
    beside: frozenset[str] = frozenset()
    """Those of `kept` whose rows are read, as others are judged by them."""
    accepted: Path = Path()
    """The folder of the accepted rows that days are taken over from."""
    rejected: str = ""
    """The relation of their rejected rows, if there are any."""
    split: Split = field(default_factory=lambda: Split({}, {}, {}))
    """What was found on them, but for `rejected`."""

    def counts(self) -> dict[str, int]:
        """Return how many days were read, taken over, and read beside others."""
        return {"read": len(self.read), "taken_over": len(self.kept), "beside": len(self.beside)}


@dataclass(frozen=True)
class _Suspects:
    """Rows that may break a rule about several rows: those whose `key` is a `suspect` of the table `name`."""

    name: str
    flag: str
    key: str
    """SQL expression."""
    rule: Rule


def bits(files: TableFiles) -> dict[str, int]:
    """Return the bit of each reason in `_faults`."""
    return {rule.reason: 1 << place for place, rule in enumerate(file_rules(files))}


def split(db: RowEngine, files: TableFiles, taken: Taken) -> Split:
    """Create the view `rejected_<name>`: `rejected_columns` of the rows, with the mask `_faults`.

    And, where there are any, the table `merged_<name>`: `_file`, `_row`, `_day` and the new values of the
    rows that are kept of several with one key, where these differ; but for those that are taken over.

    Tables other than items read the table `KNOWN_ITEMS` of accepted item ids.
    """
    name = files.table.name
    merged: Days = {}
    spaced: Mapping[str, Days] = {}
    columns = ", ".join(rejected_columns(files))
    rejects = [f"select {columns} from {taken.rejected}"] if taken.rejected else []
    if taken.files.files:
        repeats = _judge(db, taken.files)
        days = f" and _day in ({', '.join(map(literal, sorted(taken.read)))})" if taken.kept else ""
        rejects.append(f"select {columns} from judged_{name} where _faults <> 0{days}")
        if repeats:
            merged = _merge(db, files, bits(files)["duplicate_key"])
            merged = {day: rows for day, rows in merged.items() if not taken.kept or day in taken.read}
    if rejects:
        db.view(f"rejected_{name}", " union all ".join(rejects))
    rejected = _by_day(db, f"rejected_{name}", files) if rejects else {}
    if taken.files.files:
        spaced = _controlled(db, files.on(taken.read if taken.kept else None), Split(rejected, merged, {}))
    before = taken.split
    both = {
        column: {**before.spaced.get(column, {}), **spaced.get(column, {})}
        for column in files.table.names()
        if column in spaced or column in before.spaced
    }
    return Split(
        rejected, {**before.merged, **merged}, {column: days for column, days in both.items() if days}
    )


def rejected_columns(files: TableFiles) -> list[str]:
    """Return the columns of `rejected_<name>`: all of the rows, where they are, and their faults."""
    extra = [f"extra_{number}" for number in range(len(files.extra))]
    return [
        *files.table.names(),
        *extra,
        "_file",
        "_row",
        *(["_day"] if files.table.partitioned else []),
        "_faults",
    ]


def _judge(db: RowEngine, files: TableFiles) -> bool:
    """Make `judged_<name>`: the rows that break a rule, or may; return whether keys are repeated."""
    name, rules, bit = files.table.name, row_rules(files), bits(files)
    # Contradictions first: a row that one of those rejects must not displace its duplicate.
    suspects = [*_contradictions(db, files), *_repeats(db, files)]
    joins = "".join(f" left join {one.name} on {one.key} = {one.name}.suspect" for one in suspects)
    columns = ["r.*", *(one.flag for one in suspects)]
    if files.table in LOG_TABLES and files.table is not ITEMS:
        joins += f" left join {KNOWN_ITEMS} on item_id = known_id"
    faults = " + ".join(["cast(0 as BIGINT)", *(_fault(rule, bit) for rule in rules)])
    where = " or ".join([*(f"({rule.bad})" for rule in rules), *(one.flag for one in suspects)])
    found = f"select {', '.join(columns)}, {faults} as _own from {db.relation(files)} r{joins} where {where}"
    by_flag = {one.flag: one.rule for one in suspects}
    mixed, repeated = by_flag.get("_mixed"), by_flag.get("_repeated")
    agreed = f"_own + {_fault(mixed, bit)}" if mixed else "_own"
    place = f"case when _repeated then {_place_sql(files.table)} end" if repeated else "cast(null as INTEGER)"
    all_faults = f"_agreed + {_fault(repeated, bit)}" if repeated else "_agreed"
    found = f"select q.*, {agreed} as _agreed from ({found}) q"
    found = f"select q.*, {place} as _place from ({found}) q"
    db.table(f"judged_{name}", f"select q.*, {all_faults} as _faults from ({found}) q")
    return repeated is not None


def _fault(rule: Rule, bit: Mapping[str, int]) -> str:
    return f"case when {rule.bad} then {bit[rule.reason]} else 0 end"


def reasons_sql(files: TableFiles) -> str:
    """Return the SQL expression of the list of reasons that `_faults` stands for."""
    names = (f"case when _faults & {bit} <> 0 then {literal(name)} end" for name, bit in bits(files).items())
    return f"split(concat_ws(' ', {', '.join(names)}), ' ')"


def _by_day(db: RowEngine, relation: str, files: TableFiles) -> Days:
    day = "_day" if files.table.partitioned else "cast(null as STRING)"
    rows = db.rows(f"select {day} as on_day, count(*) as n from {relation} group by {day}")
    return {row["on_day"]: row["n"] for row in rows}


def merged_columns(files: TableFiles) -> list[str]:
    """Return the columns in which rows of one key are merged: none where the contract keeps whole rows."""
    table = files.table
    if not table.key or table.latest_by:
        return []
    return [name for name in table.names() if name in files.found and name not in table.key]


def _merge(db: RowEngine, files: TableFiles, duplicate: int) -> Days:
    """Make `merged_<name>` where the contract merges rows; `duplicate` is the bit of one that is left out."""
    table, names = files.table, merged_columns(files)
    if not names:
        return {}
    kept = [f"min_by({name}, _place) as {name}" for name in ("_file", "_row", "_day")]
    merged = [f"{merged_sql(column)} as {column.name}" for column in table.columns if column.name in names]
    differ = (f"min({name}) <> max({name}) or count({name}) not in (0, count(*))" for name in names)
    db.table(
        f"merged_{table.name}",
        f"select {', '.join([*kept, *merged])} from judged_{table.name} where _faults in (0, {duplicate})"
        f" and _place is not null group by {', '.join(table.key)}"
        f" having count(*) > 1 and ({' or '.join(differ)})",
    )
    return _by_day(db, f"merged_{table.name}", files)


def _contradictions(db: RowEngine, files: TableFiles) -> list[_Suspects]:
    """Find the keys whose rows disagree where the table says that they must not."""
    agreement = files.table.agreement
    if agreement is None:
        return []
    name, hashed = f"mixed_{files.table.name}", [f"{db.hash}({column})" for column in agreement.columns]
    differs = " or ".join(f"min({one}) <> max({one})" for one in hashed)
    db.table(
        name,
        f"select {agreement.key} as suspect, true as _mixed from {db.relation(files)} r"
        f" group by {agreement.key} having {differs}",
    )
    if not db.count(name):
        return []
    db.function(SAME_TEXT, normalise_query)
    return [_Suspects(name, "_mixed", agreement.key, agreement_rule(agreement, files.table.time))]


def _repeats(db: RowEngine, files: TableFiles) -> list[_Suspects]:
    """Find the keys that occur more than once, by their hash: eight bytes a key in memory."""
    if not files.table.key:
        return []
    name, key = f"repeated_{files.table.name}", f"{db.hash}({', '.join(files.table.key)})"
    known = " and ".join(f"{column} is not null" for column in files.table.key)
    passes = db.passes(files.rows)
    for shard in range(passes):
        db.table(
            f"{name}_{shard}",
            f"select suspect, true as _repeated from (select {key} as suspect from {db.relation(files)} r"
            f" where {known}) q where suspect % {passes} = {shard} group by suspect having count(*) > 1",
        )
    db.view(name, " union all ".join(f"select * from {name}_{shard}" for shard in range(passes)))
    return [_Suspects(name, "_repeated", key, duplicate_rule(files.table))] if db.count(name) else []


def _controlled(db: RowEngine, files: TableFiles, found: Split) -> dict[str, Days]:
    """Return in how many accepted rows each column of prose has control characters, where it has, by day."""
    prose = [column.name for column in files.table.columns if column.prose and column.name in files.found]
    if not prose:
        return {}
    counts = ", ".join(
        f"count(*) filter (where regexp_extract({name}, '{CONTROL}', 0) <> '') as {name}" for name in prose
    )
    rows = f"{_with_merged(db, files, found, None)} r{_without_rejected(files, found, None)}"
    day = "_day" if files.table.partitioned else "cast(null as STRING)"
    spaced: dict[str, Days] = {}
    for row in db.rows(f"select {day} as on_day, {counts} from {rows} group by {day}"):
        for name in prose:
            if row[name]:
                spaced.setdefault(name, {})[row["on_day"]] = row[name]
    return spaced


# What a split found is written: the accepted rows as a logs folder, the rejected ones with their reasons.


def keep_accepted(db: RowEngine, files: TableFiles, folder: Path | None, found: Split, taken: Taken) -> int:
    """Name `accepted_<name>`, the rows that were not rejected; return how many there are.

    Control characters in what people wrote become spaces.

    Args:
        db: where the table was split.
        files: the table.
        folder: a logs folder to write the rows to; without one the source is read again.
        found: what the split found.
        taken: what is taken over, where there is a folder.
    """
    name = f"accepted_{files.table.name}"
    if folder is None:
        db.view(name, _accepted(db, files, found))
        return db.count(name)
    _write_accepted(db, files, folder, found, taken)
    written = inspect(folder, files.table)[0]
    db.read(name, written)
    return written.rows


def write_rejects(
    db: RowEngine, files: TableFiles, logs: Path | str, folder: Path, partitioned: bool = False
) -> None:
    """Write the rejected rows in the order of the files, with `reasons`, `file` (below `logs`) and `row`.

    With `partitioned` in folders by day (`none` without one) and by the first of the reasons.
    """
    columns = {column: column for column in files.table.names() if column in files.found}
    columns |= {name: f"extra_{number}" for number, name in enumerate(_extra_names(files))}
    columns |= {"reasons": reasons_sql(files), "file": relative_sql(logs), "row": "_row"}
    rejected = f"rejected_{files.table.name}"
    if not partitioned:
        db.write_rejects(columns, rejected, folder / "rejects.parquet")
        return
    day = "coalesce(_day, 'none')" if files.table.partitioned else "'none'"
    first = "_faults & (0 - _faults)"
    names = {bit: reason for reason, bit in bits(files).items()}
    for row in db.rows(f"select distinct {day} as on_day, {first} as bit from {rejected}"):
        where = f"{day} = {literal(row['on_day'])} and {first} = {row['bit']}"
        part = f"(select * from {rejected} where {where}) q"
        target = folder / f"day={row['on_day']}" / f"reason={names[row['bit']]}" / "rejects.parquet"
        db.write_rejects(columns, part, target)


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


def _write_accepted(db: RowEngine, files: TableFiles, folder: Path, found: Split, taken: Taken) -> None:
    """Write each day by itself: partitioned writes of DuckDB hold every day open and cost twice the CPU.

    Days of a source by URI whose rows are all accepted as they are stay where they are, and are listed; of
    those that are taken over the files get a second name.
    """
    table = files.table
    if files.source and not files.renamed:
        if files.partitioned:
            days = {day for day in files.days if day}
            left = {day for day in days if not found.touched(day)}
            if left:
                list_files(folder, files.on(left))
            files = files.on(days - left)
        elif not found.touched(None):
            list_files(folder, files)
            return
        if not files.files:
            return
    if WHOLE in taken.kept:
        _take_over(taken.accepted, [table.name, f"{table.name}.parquet"], folder)
        return
    for day in table_days(files) if table.partitioned else (None,):
        if day in taken.kept:
            _take_over(taken.accepted, [f"{table.name}/day={day}"], folder)
            continue
        target = folder / (f"{table.name}/day={day}/part-0.parquet" if day else f"{table.name}.parquet")
        part = files.on(day and [day])
        alone = len(part.files) == 1 and (files.partitioned or not day)
        if alone and part.exact and not (files.source or found.spaced or found.touched(day)):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(part.files[0], target)
        else:
            db.write_accepted(_accepted(db, files, found, day), target)


def _take_over(accepted: Path, names: list[str], folder: Path) -> None:
    """Give the files, or those below folders, of the last accepted rows a second name."""
    for path in (accepted / name for name in names):
        for file in sorted(path.rglob("*.parquet")) if path.is_dir() else filter(Path.exists, [path]):
            link_file(file, folder / file.relative_to(accepted))


def _accepted(db: RowEngine, files: TableFiles, found: Split, day: str | None = None) -> str:
    """Return the SELECT of the accepted rows: of one day, or of all days with the column `day`."""
    columns = []
    for column in files.table.columns:
        if column.name in files.found:
            # The rules left whole numbers only, but DuckDB may cast rows that the join has yet to drop.
            cast = "try_cast" if files.found[column.name] == "float" else "cast"
            value = spaced_sql(column.name) if column.name in found.spaced else column.name
            columns.append(f"{cast}({value} as {column.sql}) as {column.name}")
    if files.table.partitioned and day is None:
        columns.append("_day as day")
    select = f"select {', '.join(columns)} from {_with_merged(db, files, found, day)} r"
    select += _without_rejected(files, found, day)
    if day and not files.partitioned:
        first, last = day_bounds(day)
        select += f" where {files.table.time} between {first} and {last}"
    return select


def _without_rejected(files: TableFiles, found: Split, day: str | None) -> str:
    """Return the join that leaves the rejected rows out, if there are any."""
    if not _on_day(found.rejected, day):
        return ""
    rejected = f"select _file as in_file, _row as in_row from rejected_{files.table.name}{_on(day)}"
    return f" anti join ({rejected}) rejected on _file = in_file and _row = in_row"


def _with_merged(db: RowEngine, files: TableFiles, found: Split, day: str | None) -> str:
    """Return the relation of all rows of a day, or of all days, those of several with one key merged."""
    rows = db.relation(files.on(day and [day]))
    if not _on_day(found.merged, day):
        return rows
    merged = merged_columns(files)
    either = "case when m._row is null then r.{0} else m.{0} end as {0}"
    names = [*files.table.names(), "_file", "_row", "_day"]
    values = [either.format(name) if name in merged else f"r.{name}" for name in names]
    return (
        f"(select {', '.join(values)} from {rows} r left join"
        f" (select * from merged_{files.table.name}{_on(day)}) m on m._file = r._file and m._row = r._row)"
    )


def _on(day: str | None) -> str:
    return f" where _day = {literal(day)}" if day else ""


def relative(file: str, logs: Path | str) -> str:
    """Return a `_file` as a path below the logs, as it is where it lies elsewhere."""
    return file.removeprefix(_below(logs))


def relative_sql(logs: Path | str) -> str:
    """Return the SQL of `relative`."""
    below = _below(logs)
    inside = f"substr(_file, 1, {len(below)}) = {literal(below)}"
    return f"case when {inside} then substr(_file, {len(below) + 1}) else _file end"


def _below(logs: Path | str) -> str:
    return f"{str(logs).rstrip('/')}/"
