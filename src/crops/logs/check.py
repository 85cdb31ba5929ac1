"""`crops check`: splits logs into the rows that keep the contract and the rows that do not, with reasons."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column as RichColumn
from rich.table import Table as RichTable
from rich.text import Text

from crops.database import explained, literal, open_database
from crops.errors import CropsError
from crops.labels import DEFAULT_LABELS, Source
from crops.logs.days import spans, today
from crops.logs.files import TableFiles
from crops.logs.last import Last
from crops.logs.rows import DuckDBRows, RowEngine
from crops.logs.rules import (
    KNOWN_ITEMS,
    SAME_TEXT,
    Split,
    Taken,
    bits,
    file_rules,
    keep_accepted,
    keep_rejects,
    relative,
    split,
    write_rejects,
)
from crops.logs.tables import Logs, holds_searches_only, open_logs, open_searches, text_kind
from crops.outputs import Scratch, publish, timed, write_manifest
from crops.schema import LOG_TABLES, SEARCHES, STAGES, within_sql
from crops.text import normalise_query

Engine = Callable[[], contextlib.AbstractContextManager[RowEngine]]
"""Opens what the rules run in."""
_EXAMPLE_CHARS = 100
WINDOW_S = 90
"""Other words that come later than this, in seconds, are no rewording: the default of mining."""
MOST = 0.5
"""A table that loses more of its rows is shown in red."""
_STAGE_LABELS = {"unexposed": DEFAULT_LABELS[Source.UNEXPOSED], "filtered": DEFAULT_LABELS[Source.FILTERED]}


@dataclass(frozen=True)
class RowFault:
    """One reason for which rows of a table were rejected."""

    table: str
    reason: str
    column: str
    count: int
    """Rows with this reason; a row may have several."""
    files: int
    """Files with such rows."""
    file: str
    """File of the example, relative to the logs folder."""
    row: int
    """Row number of the example in its file, from 0."""
    example: dict[str, Any]
    """The example's values by contract column, nulls left out."""
    remedy: str
    values: tuple[str, ...] = ()
    """Different values of the column in such rows, the first three; empty where several columns are meant."""


@dataclass(frozen=True)
class TableCounts:
    """Rows of one table: `rows == accepted + rejected`."""

    rows: int
    accepted: int
    rejected: int

    @property
    def share(self) -> float:
        """Share of the rows that were rejected."""
        return self.rejected / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class LogSummary:
    """What the accepted rows hold."""

    searches: int
    searches_without_click: int
    """Valid: reformulation starts there, and shown documents still train as negatives."""
    users: int
    """Users who searched."""
    stages: tuple[str, ...]
    absent_labels: tuple[int, ...]
    """Labels that no row can earn because its stage is not logged."""
    p2: bool
    """Whether there are feed events to mine."""
    search_days: tuple[str, ...]
    feed_days: tuple[str, ...]
    missing_days: dict[str, tuple[str, ...]]
    """Days between the first and the last of the logs on which a table has no rows, by table."""
    absent_columns: dict[str, tuple[str, ...]]
    """Optional columns that no file has, by table."""
    other_case: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Columns that differ from one of those in case only, and are not read, by table."""
    rejected_stages: tuple[str, ...] = ()
    """Stages of rejected rows that no accepted row has."""
    reworded: int | None = None
    """Searches that other words of their user follow in time, of logs without results."""

    def notes(self) -> list[str]:
        """Return the facts as sentences."""
        some = f"searches: {self.searches:,}"
        size = f"users: {self.users:,}; days: {len(self.search_days):,}"
        if self.reworded is not None:
            share = self.reworded / self.searches
            lines = [
                f"{some}; {size}",
                f"followed by other words within {WINDOW_S} s: {self.reworded:,}, {share:.1%}",
                "there is nothing of results: to mine, import items and which of them each search showed",
            ]
            return lines + self._days_that_look_wrong()
        lines = [
            f"{some}, of which {self.searches_without_click:,} without a click (valid); {size}",
            f"stages present: {', '.join(self.stages)}",
        ]
        lines += [
            f"label {label} will be absent: "
            + (
                f"all rows of the stage {stage} were rejected"
                if stage in self.rejected_stages
                else "the logs hold no documents of that stage"
            )
            for stage, label in _STAGE_LABELS.items()
            if label in self.absent_labels
        ]
        if not self.p2:
            lines.append("feed (P2) will be absent: there are no feed events")
        lines += self._days_that_look_wrong()
        lines += [
            f"{table} has no {', '.join(columns)}"
            for table, columns in self.absent_columns.items()
            if columns
        ]
        lines += [
            f"{table}: {', '.join(columns)} not read: the case of column names counts"
            for table, columns in self.other_case.items()
        ]
        return lines

    def _days_that_look_wrong(self) -> list[str]:
        lines = [
            f"{table} has no rows on {spans(days)}: is a day missing?"
            for table, days in self.missing_days.items()
        ]
        return lines + [
            f"{table} has rows after today, {today()}: {spans(days)}: was a clock wrong?"
            for table, days in self._future().items()
        ]

    def _future(self) -> dict[str, list[str]]:
        days = {"search_impressions": self.search_days, "feed_events": self.feed_days}
        future = {table: [day for day in found if day > today()] for table, found in days.items()}
        return {table: found for table, found in future.items() if found}


@dataclass(frozen=True)
class CheckReport:
    """The result of a check."""

    logs: str
    tables: dict[str, TableCounts]
    faults: tuple[RowFault, ...]
    facts: LogSummary
    merged: dict[str, int] = field(default_factory=dict)
    """By table the accepted rows that were merged from several of one key that differed."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each part."""
    control_characters: dict[str, dict[str, int]] = field(default_factory=dict)
    """Accepted rows in which control characters became spaces, by table and column."""
    days: dict[str, dict[str, int]] = field(default_factory=dict)
    """By table how many days were `read`, and how many `taken_over` from the last check; of these, how many
    had to be read `beside` the others. A table that is not in partitions counts as one."""

    @property
    def clean(self) -> bool:
        """Whether every row is accepted as it is."""
        changed = self.merged or self.control_characters
        return not changed and not any(table.rejected for table in self.tables.values())

    def notes(self) -> list[str]:
        """Return what was found, as sentences."""
        changed = [
            f"{table}.{column}: control characters became spaces in {rows:,} rows"
            for table, columns in self.control_characters.items()
            for column, rows in columns.items()
        ]
        changed += [
            f"{count:,} rows of {name} were merged from several of one key that differed"
            for name, count in self.merged.items()
        ]
        return [*self.facts.notes(), *changed]

    def to_json(self) -> str:
        """Return the report as JSON; values that JSON does not know (NaN) are written as text."""
        return json.dumps(_plain(asdict(self)), indent=2) + "\n"


def check(
    logs: str | Path,
    out: str | Path | None = None,
    memory: str = "2GB",
    engine: Engine | None = None,
) -> CheckReport:
    """Check every row of a logs folder against the contracts of `crops.schema`.

    Accepted rows become the logs folder `out/accepted`; rejected rows keep all their columns in
    `out/rejects/<table>/`, with `reasons`, `file` and `row` (from 0). Of rows with the same key one is kept,
    with the signals of all that have no other fault (see `Column.merge`): what is accepted does not depend on
    the order of rows and files. A search without any click is valid. Control characters in queries and in
    texts of items become spaces, counted. Of days that did not change since the last check into `out` the
    result is taken over (`crops.logs.last`); it equals that of a check into a new folder.

    Args:
        logs: the logs folder, or logs by URI (`crops.logs.lake`): then days whose rows are all accepted stay
            where they are, and `out/accepted` lists their files.
        out: where to write, whole or not at all; None only reports.
        memory: memory limit of DuckDB, e.g. "2GB"; what does not fit spills to disk.
        engine: opens another engine than DuckDB, such as Spark (`crops.engine.spark_rows`). It accepts and
            rejects the same rows; accepted ones of a day may be several files, in another order.

    Returns:
        the counts, the faults and the facts of the accepted rows.

    Raises:
        CropsError: a file or column is missing, unreadable or of a wrong type, no usable items or impressions
            are left (the rejected rows are then in `<out>.failed/rejects`), or `out` cannot be written.
    """
    out = None if out is None else Path(out)
    source = open_searches(logs) if holds_searches_only(logs) else open_logs(logs)
    seconds: dict[str, float] = {}
    if out is None:
        with Scratch("crops-check-") as spill, _open(engine, source, memory, spill) as db:
            db.prepare(source, None, None, "")
            return _check(db, source, None, seconds, None)
    if isinstance(source.path, Path) and source.path.resolve().is_relative_to(Path(out).resolve()):
        raise CropsError(f"{out} holds the logs that are checked; name another folder for the output")
    with publish(Path(out), "check") as staging:
        with (
            tempfile.TemporaryDirectory(dir=staging) as spill,
            _open(engine, source, memory, spill) as db,
        ):
            last = Last(source, db.made_by, Path(os.path.realpath(out)), staging)
            db.prepare(source, staging, out, last.key)
            try:
                report = _check(db, source, staging, seconds, last)
            except NothingLeftError as error:
                raise NothingLeftError(f"{error}{keep_rejects(staging, out, 'check')}") from error
        last.write()
        (staging / "report.json").write_text(report.to_json())
        rows = {name: vars(counts) for name, counts in report.tables.items()}
        write_manifest(
            staging,
            "check",
            config={"memory": memory},
            seconds=seconds,
            logs=str(source.path),
            rows=rows,
            days=report.days,
            text=text_kind(source.path),
            **({"snapshots": found} if (found := source.snapshots()) else {}),
        )
    return report


def _open(
    engine: Engine | None, source: Logs, memory: str, spill: str
) -> contextlib.AbstractContextManager[RowEngine]:
    return _embedded(source, memory, spill) if engine is None else engine()


@contextlib.contextmanager
def _embedded(source: Logs, memory: str, spill: str) -> Iterator[RowEngine]:
    files = [file for table in source.tables.values() for file in table.files]
    with explained(f"a memory limit of {memory}", files), open_database(memory, spill) as db:
        yield DuckDBRows(db)


def _check(
    db: RowEngine,
    source: Logs,
    staging: Path | None,
    seconds: dict[str, float],
    last: Last | None,
) -> CheckReport:
    tables: dict[str, TableCounts] = {}
    merged: dict[str, int] = {}
    faults: list[RowFault] = []
    control_characters: dict[str, dict[str, int]] = {}
    days: dict[str, dict[str, int]] = {}
    for name, files in source.tables.items():
        if not files.files:
            continue
        with timed(seconds, f"check {name}"):
            taken = last.taken(db, files) if last else Taken(files)
            tables[name], found, changed = _check_table(db, source, files, staging, taken)
            if last:
                last.note(db, files, taken, changed)
                days[name] = taken.counts()
        faults += found
        if changed.spaced:
            control_characters[name] = {column: sum(days.values()) for column, days in changed.spaced.items()}
        if rows := sum(changed.merged.values()):
            merged[name] = rows
        if name != "feed_events" and not tables[name].accepted:
            raise _nothing_left(source, name, tables[name], found)
        if name == "items":
            db.table(KNOWN_ITEMS, "select item_id as known_id from accepted_items")
            if last:
                last.compare_items(db, taken)
    with timed(seconds, "count searches"):
        if "searches" in tables:
            facts = _facts_of_searches(db, source, tables)
        else:
            facts = _facts(db, source, tables)
    changes = (merged, seconds, control_characters)
    return CheckReport(str(source.path), tables, tuple(faults), facts, *changes, days)


def _check_table(
    db: RowEngine, source: Logs, files: TableFiles, staging: Path | None, taken: Taken
) -> tuple[TableCounts, list[RowFault], Split]:
    name = files.table.name
    found = split(db, files, taken)
    accepted = keep_accepted(db, files, staging and staging / "accepted", found, taken)
    counts = TableCounts(files.rows, accepted, sum(found.rejected.values()))
    if counts.rows != counts.accepted + counts.rejected:
        raise CropsError(
            f"{source.path}: of {counts.rows} rows of {name} {counts.accepted} were accepted"
            f" and {counts.rejected} rejected; did the files change meanwhile? check again"
            + (", into a new folder" if taken.kept else "")
        )
    if not counts.rejected:
        return counts, [], found
    if staging:
        parted = bool(files.source)
        write_rejects(db, files, source.path, staging / "rejects" / name, parted)
    return counts, _row_faults(db, files, source.path), found


class NothingLeftError(CropsError):
    """No row of a table that is needed keeps the contract."""


def _nothing_left(source: Logs, name: str, counts: TableCounts, faults: list[RowFault]) -> NothingLeftError:
    lines = [
        f"{source.path}: nothing usable is left: {counts.rejected} of {counts.rows} rows of {name} rejected"
    ]
    return NothingLeftError("\n  ".join(lines + [explain(fault) for fault in faults]))


def _row_faults(db: RowEngine, files: TableFiles, logs: Path | str) -> list[RowFault]:
    """Return the count of each reason with its first row by file and row number as the example."""
    rejected = f"rejected_{files.table.name}"
    groups = db.rows(
        f"select _faults, _file, count(*) as n, min(_row) as first from {rejected} group by _faults, _file"
    )
    having = {
        reason: found
        for reason, bit in bits(files).items()
        if (found := [row for row in groups if row["_faults"] & bit])
    }
    places = {reason: min((row["_file"], row["first"]) for row in found) for reason, found in having.items()}
    where = " or ".join(f"_file = {literal(file)} and _row = {row}" for file, row in {*places.values()})
    names = ", ".join(["_file", "_row", *files.table.names()])
    examples = {
        (row.pop("_file"), row.pop("_row")): {
            name: _cut(value) for name, value in row.items() if value is not None
        }
        for row in db.rows(f"select {names} from {rejected} where {where}")
    }
    values = _values(db, files, having)
    faults = []
    for rule in file_rules(files):
        if rule.reason in having:
            found = having[rule.reason]
            rows, n_files = sum(row["n"] for row in found), len({row["_file"] for row in found})
            file, row = place = places[rule.reason]
            counted = (rows, n_files, relative(file, logs), row, examples[place])
            shown = values.get(rule.reason, ())
            faults.append(RowFault(files.table.name, rule.reason, rule.column, *counted, rule.remedy, shown))
    return faults


def _values(db: RowEngine, files: TableFiles, found: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the first three different values of the column of each rule that rejected rows.

    Of ids, those of the source.
    """
    bit = bits(files)
    rules = [rule for rule in file_rules(files) if rule.reason in found and ", " not in rule.column]
    if not rules:
        return {}
    numbers = ", ".join(f"(cast({bit[rule.reason]} as BIGINT))" for rule in rules)
    own = {column.own_of: column.name for column in files.table.columns if column.own_of}
    said = {
        rule.column: ", ".join(filter(None, (own.get(rule.column), f"cast({rule.column} as STRING)")))
        for rule in rules
    }
    cases = " ".join(f"when {bit[rule.reason]} then coalesce({said[rule.column]})" for rule in rules)
    rows = db.rows(f"""
        with rejected as (
            select bit, case bit {cases} end as value, _file, _row
            from rejected_{files.table.name} join (values {numbers}) bits(bit) on _faults & bit <> 0),
        firsts as (
            select *, row_number() over (partition by bit, value order by _file, _row) as place
            from rejected where value is not null),
        numbered as (
            select *, row_number() over (partition by bit order by _file, _row) as number
            from firsts where place = 1)
        select bit, value from numbered where number <= 3 order by bit, number""")
    values: dict[str, tuple[str, ...]] = {}
    for rule in rules:
        texts = [row["value"] for row in rows if row["bit"] == bit[rule.reason]]
        if files.found.get(rule.column) == "float":  # which engines write each in their own way
            texts = [str(float(text)) for text in texts]
        values[rule.reason] = tuple(str(_cut(text)) for text in texts)
    return values


def _cut(value: object) -> object:
    """Return an example's value, long texts cut."""
    return f"{value[:_EXAMPLE_CHARS]}..." if isinstance(value, str) and len(value) > _EXAMPLE_CHARS else value


def _facts(db: RowEngine, source: Logs, tables: dict[str, TableCounts]) -> LogSummary:
    (row,) = db.rows("""
        select count(*) as searches, count(*) filter (where not clicked) as unclicked,
            count(distinct user_id) as users
        from (select search_id, min(user_id) as user_id, bool_or(clicked) as clicked
              from accepted_search_impressions group by search_id) q""")
    seen = db.rows("select distinct stage, day from accepted_search_impressions")
    stages = {one["stage"] for one in seen}
    lost = tables["search_impressions"].rejected
    refused = db.rows("select distinct stage from rejected_search_impressions") if lost else []
    rejected = {one["stage"] for one in refused} - stages
    feed = "feed_events" in tables and tables["feed_events"].accepted > 0
    found = db.rows("select distinct day from accepted_feed_events") if feed else []
    days = {
        "search_impressions": tuple(sorted({one["day"] for one in seen})),
        "feed_events": tuple(sorted(one["day"] for one in found)),
    }
    return LogSummary(
        searches=row["searches"],
        searches_without_click=row["unclicked"],
        users=row["users"],
        stages=tuple(stage for stage in STAGES if stage in stages),
        absent_labels=tuple(label for stage, label in _STAGE_LABELS.items() if stage not in stages),
        p2=feed,
        search_days=days["search_impressions"],
        feed_days=days["feed_events"],
        missing_days=_missing_days(days),
        absent_columns=source.absent(),
        other_case=_other_case(source),
        rejected_stages=tuple(stage for stage in STAGES if stage in rejected),
    )


def _facts_of_searches(db: RowEngine, source: Logs, tables: dict[str, TableCounts]) -> LogSummary:
    """Return the facts of searches without results; of a run of one text, as of paging, the last counts."""
    db.function(SAME_TEXT, normalise_query)
    db.table("distinct_queries", "select distinct query as raw from accepted_searches")
    db.table("texts", f"select raw, {SAME_TEXT}(raw) as said from distinct_queries")
    (row,) = db.rows(f"""
        with typed as (
            select user_id, searched_at, search_id, said
            from accepted_searches join texts on raw = query where said <> ''),
        runs as (
            select *, lead(said) over (partition by user_id order by searched_at, search_id) as next,
                lead(searched_at) over (partition by user_id order by searched_at, search_id) as next_at
            from typed)
        select (select count(distinct user_id) from typed) as users, count(*) as reworded from runs
        where next <> said and {within_sql("searched_at", "next_at", WINDOW_S)}""")
    found = db.rows("select distinct day from accepted_searches")
    days = tuple(sorted(one["day"] for one in found))
    return LogSummary(
        searches=tables["searches"].accepted,
        searches_without_click=0,
        users=row["users"],
        stages=(),
        absent_labels=(),
        p2=False,
        search_days=days,
        feed_days=(),
        missing_days=_missing_days({"searches": days}),
        absent_columns=source.absent(),
        other_case=_other_case(source),
        reworded=row["reworded"],
    )


def _other_case(source: Logs) -> dict[str, tuple[str, ...]]:
    found = {}
    for table, absent in source.absent().items():
        named = tuple(name for name in source.tables[table].extra if name.lower() in absent)
        if named:
            found[table] = named
    return found


def _missing_days(days: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return the days within the logs on which a table that has rows has none."""
    present = [day for table in days.values() for day in table]
    first, last = (date.fromisoformat(day) for day in (min(present), max(present)))
    within = [(first + timedelta(days=i)).isoformat() for i in range((last - first).days + 1)]
    missing = {
        name: tuple(day for day in within if day not in table) for name, table in days.items() if table
    }
    return {name: table for name, table in missing.items() if table}


def explain(fault: RowFault) -> str:
    """Return a fault as one line."""
    return (
        f"{fault.table}: {fault.reason} ({fault.column}): {fault.count:,} rows,"
        f" e.g. {fault.file} row {fault.row}: {_example(fault)}; {_remedy(fault)}"
    )


def render(report: CheckReport) -> RenderableType:
    """Return the report for a terminal: the balance of rows first, then faults and facts."""
    counts = RichTable(
        "table", *(_right(name) for name in ("rows", "accepted", "rejected", "%")), title=report.logs
    )
    for name, table in report.tables.items():
        cells = (f"{table.rows:,}", f"{table.accepted:,}", f"{table.rejected:,}", f"{100 * table.share:.1f}")
        counts.add_row(name, *cells, style="bold red" if table.share > MOST else None)
    parts: list[RenderableType] = [counts]
    parts += [
        Text(f"Most rows of {name} are lost: {table.rejected:,} of {table.rows:,}", style="bold red")
        for name, table in report.tables.items()
        if table.share > MOST
    ]
    parts += [
        Text(f"{name}: {_taken_over(**days)}") for name, days in report.days.items() if days["taken_over"]
    ]
    parts += [_told(fault) for fault in report.faults]
    parts.append(Text("\n".join(f"· {note}" for note in report.notes())))
    return Group(*parts)


def _taken_over(read: int, taken_over: int, beside: int) -> str:
    if read + taken_over == 1:
        return "taken over from the last check"
    more = f", read beside these: {beside:,}" if beside else ""
    return f"days taken over from the last check: {taken_over:,}, read: {read:,}{more}"


def _told(fault: RowFault) -> Text:
    more = f" (and {fault.files - 1} more)" if fault.files > 1 else ""
    head = f"{fault.table}, {fault.column}: {fault.count:,} rows {fault.reason}"
    return Text.assemble(
        (head, "bold"),
        f"\n  {fault.file}{more}, row {fault.row}: {_example(fault)}\n  {_remedy(fault)}",
        overflow="fold",
    )


def _remedy(fault: RowFault) -> str:
    """Return the remedy with the values that it is about."""
    if len(fault.values) < 2:
        return fault.remedy
    return f"{fault.remedy}; found: {', '.join(fault.values)}"


def _example(fault: RowFault) -> str:
    """Return the value of the faulty column, and what identifies the row, ids as the source writes them."""
    faulty = fault.column.split(", ")
    known = [name for name in ("search_id", "user_id", "item_id") if name in fault.example]
    (table,) = (one for one in (*LOG_TABLES, SEARCHES) if one.name == fault.table)
    own = {c.own_of: fault.example[c.name] for c in table.columns if c.own_of and c.name in fault.example}
    shown = {**fault.example, **own}
    return ", ".join(f"{name}={shown.get(name)!r}" for name in dict.fromkeys([*faulty, *known]))


def _right(name: str) -> RichColumn:
    return RichColumn(name, justify="right")


def _plain(value: object) -> object:
    """Return `value` with ids and numbers that are not finite as text: many readers round above 2^53."""
    if isinstance(value, dict):
        ids = {key: str(part) for key, part in value.items() if key.endswith("_id") and isinstance(part, int)}
        return {key: _plain(part) for key, part in value.items()} | ids
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
