"""`crops import`: a foreign log becomes a logs folder of the contract, in SQL over the source's files.

What is particular to a format its importer says (`crops.logs.mapping.Importer`). The rest is the same for
all: rows are mapped and counted, ids numbered, and what cannot be mapped goes aside with the reason.
"""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from crops.database import (
    Connection,
    count,
    explained,
    interruptible,
    literal,
    open_database,
    parquet,
    quoted,
    write_parquet,
)
from crops.errors import CropsError, nearest
from crops.ids import LEAST_HASHED, number_sql, read_salt, salt_keys, salt_mark, user_sql
from crops.logs.appending import earlier_imports, former_import, join_former
from crops.logs.days import DAY_US, day_of
from crops.logs.files import OPTIONAL_TABLES
from crops.logs.mapped import MAPS, OWN_TABLES, packaged
from crops.logs.mapping import Dataset, Importer, MappedTable, MappingFile, given, load_mapping
from crops.logs.rules import keep_rejects
from crops.logs.sources import LISTS, missing_in_lines, nested_message
from crops.logs.ubi import UBI
from crops.outputs import publish, timed, write_manifest
from crops.plugins import load_object
from crops.schema import Table

IMPORTERS = {importer.name: importer for importer in (*map(packaged, MAPS), UBI, OWN_TABLES)}
"""The formats that `crops import` knows: a new one is a mapping in `maps/`, or an importer here."""
FORMATS = tuple(IMPORTERS)
COMMAND = "import"
_FIRST = ("searched_at", "watched_at", "search_id", "rank")
"""Rows are ordered by these and then by the other columns: equal sources give equal files."""
_LOST = {"rank": "unreadable or of rows that were not shown"}
"""Why a value became null, where it may be for another reason than that it cannot be read."""
KEPT = "kept"
HASHED = "hashed"
SALTED = "salted"
PARTLY = "partly hashed"
_IDS = ("user_id", "item_id", "search_id")


@dataclass(frozen=True)
class ImportCounts:
    """Rows of one table: `rows == imported + rejected`; with `others` they are all that were read."""

    rows: int
    imported: int
    rejected: int
    reasons: Mapping[str, int]
    """Rejected rows by reason; a row may have several."""
    lost: Mapping[str, int]
    """Values of optional columns that are null in rows that were imported, by column: what cannot be read,
    and ranks of what was not shown."""
    others: int = 0
    """Rows of another kind, which the mapping leaves out."""


@dataclass(frozen=True)
class ImportReport:
    """The result of an import."""

    format: str
    tables: Mapping[str, ImportCounts]
    malformed_lines: int
    """Lines that could not be taken apart: wrong number of fields, broken quotes, not UTF-8."""
    ids: Mapping[str, str]
    """By column `kept` (all are whole numbers below 2^62), `partly hashed`, `hashed` or `salted` (users, and
    searches whose id may hold one): see `crops.ids`."""
    text: str
    notes: tuple[str, ...]


def import_logs(
    format_: str | Importer,
    source: str | Path,
    out: str | Path,
    mapping: str | Path | None = None,
    memory: str = "2GB",
    *,
    salt: str | Path | None = None,
    append: bool = False,
    replace_days: bool = False,
) -> ImportReport:
    """Import a foreign log as a logs folder.

    Rows that cannot be mapped go to `out/rejects/<table>.parquet` with their reasons and the columns that
    were read: they are as sensitive as the source. Lines that cannot be taken apart go to
    `out/rejects/lines.parquet` with their place.

    The number of an item or a search comes from its own id alone (`crops.ids.number_of`), and that id stays
    beside it where it is not the number itself. Users are numbered with a salt; their own ids are not kept.

    Args:
        format_: one of `FORMATS`, or an importer of one's own: the object, or `file.py:NAME` of it.
        source: the folder of the source.
        out: the logs folder to write, whole or not at all.
        mapping: TOML of the columns; `table` needs one, `ubi` can use one.
        memory: memory limit of DuckDB; what does not fit spills to disk next to `out`.
        salt: file of the users' salt, made if it is not there; without one a salt is drawn and forgotten, so
            that users of another import have other numbers.
        append: add the days to those that `out` holds; needs `salt`.
        replace_days: take the new rows of days that `out` holds already.

    Returns:
        what was imported and what was not.

    Raises:
        CropsError: no such format, a mapping that is missing or of no use, a file cannot be read, no row can
            be mapped, no value of a mapped column can be read, a column holds lists, or `out` cannot be
            written.
    """
    source, out = Path(source), Path(out)
    importer = format_ if isinstance(format_, Importer) else find_importer(format_)
    if importer.mapping == "needed" and mapping is None:
        raise CropsError("own tables need --mapping FILE, a TOML that names their columns and units")
    if importer.mapping == "none" and mapping is not None:
        raise CropsError(
            f"{importer.name} has a mapping of its own; leave --mapping out, or import it as `table`"
        )
    columns = load_mapping(Path(mapping)) if mapping else MappingFile()
    append |= replace_days
    key, notes = _salt(out, salt, append=append)
    if source.resolve().is_relative_to(out.resolve()):
        raise CropsError(f"{out} holds the source; name another folder for the output")
    seconds: dict[str, float] = {}
    with publish(out, COMMAND) as staging:
        former = former_import(out, salt_mark(key), append=append)
        with (
            tempfile.TemporaryDirectory(dir=staging) as spill,
            explained(f"a memory limit of {memory}"),
            open_database(memory, spill, file=Path(spill) / "import.db") as db,
        ):
            db.execute("set TimeZone='UTC'")
            dataset = importer.read(source, columns, Path(spill))
            if append:
                _refuse_unlike(out, dataset, former)
            try:
                report = interruptible(
                    db, lambda: _import(db, importer.name, dataset, key, staging, Path(spill), seconds)
                )
            except CropsError as error:
                raise CropsError(f"{error}{_keep_failed(db, dataset, staging, out)}") from error
            if former:
                with timed(seconds, "append"):
                    notes += interruptible(
                        db, lambda: join_former(db, out, staging, replace_days=replace_days)
                    )
        write_manifest(
            staging,
            COMMAND,
            config={"format": importer.name, "memory": memory},
            seconds=seconds,
            source=str(source),
            text=dataset.text,
            rows={table: vars(counts) for table, counts in report.tables.items()},
            malformed_lines=report.malformed_lines,
            ids=report.ids,
            salt=salt_mark(key),
            notes=list(dataset.notes),
            earlier=earlier_imports(former),
        )
    return replace(report, notes=(*report.notes, *notes))


def _refuse_unlike(out: Path, dataset: Dataset, former: Mapping[str, Any]) -> None:
    for mapped in dataset.tables:
        for name in _IDS:
            if _made(mapped, name) == "row":
                raise CropsError(
                    f"[{mapped.table.name}.columns] {name} counts rows, which begins again with each import: "
                    'days cannot be appended; make it of columns: { columns = ["user", "time"] }'
                )
    if former.get("text", dataset.text) != dataset.text:
        raise CropsError(f"{out} holds texts that are {former['text']}, and these are {dataset.text}")


def _salt(out: Path, file: str | Path | None, *, append: bool) -> tuple[bytes, list[str]]:
    """Return the salt of the users' numbers, and what is to be said of it."""
    if file is None:
        if append:
            raise CropsError(
                "--append needs --salt FILE: without it the users of these days would be others than before"
            )
        return secrets.token_bytes(32), [
            "users have numbers that no other import will give them; name a file with --salt to join imports"
        ]
    file = Path(file)
    if file.resolve().is_relative_to(out.resolve()):
        raise CropsError(f"--salt {file}: keep it outside {out}, apart from what it protects")
    salt, made = read_salt(file)
    if not made:
        return salt, []
    return salt, [
        f"made the salt {file}: give it to every import, and keep it safe; once it is lost, the users of "
        "later imports have other numbers, and whoever finds it can tell users by trying ids"
    ]


def _keep_failed(db: Connection, dataset: Dataset, staging: Path, out: Path) -> str:
    """Keep the rows that a failing import has rejected so far; return a line that says where."""
    made = {name for (name,) in db.execute("select table_name from duckdb_tables()").fetchall()}
    for mapped in dataset.tables:
        if f"mapped_{mapped.table.name}" in made:
            _write_rejects(db, mapped.table, _count(db, mapped), staging / "rejects")
    return keep_rejects(staging, out, COMMAND)


def find_importer(name: str) -> Importer:
    """Return an importer by its format, or as "module:NAME" or "file.py:NAME" where it is one's own.

    Raises:
        CropsError: there is none.
    """
    if name in IMPORTERS:
        return IMPORTERS[name]
    if ":" not in name:
        known = ", ".join(FORMATS)
        hint = nearest(name, FORMATS)
        if name in ("csv", "tsv", "json", "jsonl", "ndjson", "parquet", "txt", "log"):
            hint = f" Files of any of these kinds: crops import {OWN_TABLES.name} SRC --mapping MAP.toml"
        raise CropsError(f"no such format: {name}; there are {known}, or FILE.py:NAME.{hint}")
    found = load_object(name)
    if not isinstance(found, Importer):
        raise CropsError(f"{name} is no importer; make it a crops.logs.Importer")
    return found


def _import(
    db: Connection,
    name: str,
    dataset: Dataset,
    salt: bytes,
    staging: Path,
    scratch: Path,
    seconds: dict[str, float],
) -> ImportReport:
    tables, notes = {}, [*dataset.notes]
    for statement in dataset.setup:
        db.execute(statement)
    for mapped in dataset.tables:
        with timed(seconds, f"read {mapped.table.name}"):
            for statement in mapped.setup:
                db.execute(statement)
            _read(db, mapped)
            _refuse_lists(db, mapped)
            notes += _demand_columns(db, mapped, scratch)
            _demand_values(db, mapped)
            tables[mapped.table.name] = _count(db, mapped)
        _demand_rows(db, mapped, tables[mapped.table.name], scratch)
    with timed(seconds, "number the ids"):
        ids = _number_ids(db, dataset.tables, salt)
    for mapped in dataset.tables:
        with timed(seconds, f"write {mapped.table.name}"):
            _write(db, mapped, ids, staging)
            _write_rejects(db, mapped.table, tables[mapped.table.name], staging / "rejects")
    lines = _write_lines(db, scratch, staging / "rejects")
    return ImportReport(name, tables, lines, ids, dataset.text, tuple(notes))


def _read(db: Connection, mapped: MappedTable) -> None:
    """Make `mapped_<name>`: the columns of the contract and what was found out about each row.

    `_reasons` says why it is rejected; `_given` names the columns whose texts say something, `_lost` those of
    them whose value became NULL or false, and `_unread` those that cannot be read; `_source` is what was read
    of a rejected row, as JSON; and there are `_file` and `_row`.
    """
    required = {column.name for column in mapped.table.columns if not column.nullable}
    values = ", ".join(f"{quoted(name)} := {value.sql}" for name, value in mapped.columns.items())
    refused = [_case(bad, reason) for reason, bad in mapped.refused.items()]
    raw = {name: value for name, value in mapped.columns.items() if value.raw}
    said = [_case(given(value.raw or ""), name) for name, value in raw.items()]
    odd = [_case(value.unread, name) for name, value in raw.items() if value.unread]
    lacking = [
        _case(f"v.{quoted(name)} is null", f"unmapped_{name}") for name in mapped.columns if name in required
    ]
    none = {name: f"v.{quoted(name)} is null and list_contains(_given, {literal(name)})" for name in raw}
    named = {name: f"list_contains(odd, {literal(name)})" for name, value in raw.items() if value.unread}
    lost = [_case(f"({none[name]} or {named.get(name, 'false')})", name) for name in raw]
    unread = [_case(named.get(name, none[name]), name) for name in raw]
    columns = ", ".join(f"v.{quoted(name)} as {quoted(name)}" for name in mapped.columns)
    db.execute(f"""
        create table mapped_{mapped.table.name} as
        select {columns}, _reasons, _given, {_present(lost)} as _lost, {_present(unread)} as _unread,
            case when len(_reasons) > 0 then to_json(_source_row) end as _source, _file, _row
        from (
            select *, list_concat(
                refused,
                case when list_contains(refused, 'malformed_json') then [] else {_present(lacking)} end
            ) as _reasons
            from (
                select struct_pack({values}) as v, {_present(refused)} as refused,
                    {_present(said)} as _given, {_present(odd)} as odd, _source_row,
                    _source_row._file, _source_row._row
                from ({mapped.rows}) _source_row
            )
        )""")


def _case(condition: str, word: str) -> str:
    return f"case when {condition} then {literal(word)} end"


def _present(words: list[str]) -> str:
    """Return the SQL list of those words that are not NULL."""
    return f"list_filter([{', '.join(words)}]::VARCHAR[], lambda word: word is not null)"


def _refuse_lists(db: Connection, mapped: MappedTable) -> None:
    for reason in mapped.refused:
        if not reason.startswith(LISTS):
            continue
        found = db.execute(
            f"select _file, _row, _source ->> {literal(reason.removeprefix(LISTS))}"
            f" from mapped_{mapped.table.name} where list_contains(_reasons, {literal(reason)}) limit 1"
        ).fetchall()
        for file, row, value in found:
            raise CropsError(
                f"{file}, line {row}: {nested_message(reason.removeprefix(LISTS), _short(value))}"
            )


def _demand_columns(db: Connection, mapped: MappedTable, scratch: Path) -> list[str]:
    """Refuse a required column that no line of JSON has; return what to say of the other ones."""
    said_in = _words(db, mapped, "_given")
    required = {column.name for column in mapped.table.columns if not column.nullable}
    notes = []
    for name, value in mapped.columns.items():
        if value.raw is None or name in said_in:
            continue
        read = {path: mapped.origins[path] for path in _paths(value.raw) if path in mapped.origins}
        for said in missing_in_lines(db, read, scratch).values():
            if name in required and count(db, f"mapped_{mapped.table.name}"):
                raise CropsError(said)
            notes.append(said)
    return notes


def _paths(raw: str) -> list[str]:
    """Return the columns that a text is made of."""
    return list(dict.fromkeys(re.findall('"([^"]+)"', raw)))


def _demand_values(db: Connection, mapped: MappedTable) -> None:
    """Refuse a column that says something in some rows and can be read in none."""
    said_in = _words(db, mapped, "_given")
    columns = {column.name: column for column in mapped.table.columns}
    for name, rows in _words(db, mapped, "_unread").items():
        value = mapped.columns[name]
        if value.raw is None or rows < said_in[name]:
            continue
        found = db.execute(
            f"select {value.raw} as raw, min(_file) from ({mapped.rows}) where {given(value.raw)}"
            " group by raw order by raw limit 3"
        ).fetchall()
        source = ", ".join(_paths(value.raw)) or value.raw
        raise CropsError(
            f"{mapped.table.name}: no value for {name} can be read, of {rows:,}, such as"
            f" {', '.join(repr(_short(raw)) for raw, _ in found)} in {found[0][1]}, column {source};"
            f" expected: {value.expected or columns[name].doc}: correct the column or its unit in the"
            " mapping, or leave the column out if it is optional"
        )


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _words(db: Connection, mapped: MappedTable, words: str, where: str = "true") -> dict[str, int]:
    """Return in how many rows each word of a list is."""
    rows = f"select unnest({words}) as word from mapped_{mapped.table.name} where {where}"
    return dict(db.execute(f"select word, count(*) from ({rows}) group by word order by word").fetchall())


def _count(db: Connection, mapped: MappedTable) -> ImportCounts:
    kept = "len(_reasons) = 0"
    rows, imported = (count(db, f"mapped_{mapped.table.name} where {one}") for one in ("true", kept))
    ((others,),) = db.execute(mapped.others or "select 0").fetchall()
    reasons, lost = _words(db, mapped, "_reasons"), _words(db, mapped, "_lost", kept)
    return ImportCounts(rows, imported, rows - imported, reasons, lost, others)


def _demand_rows(db: Connection, mapped: MappedTable, counts: ImportCounts, scratch: Path) -> None:
    table = mapped.table
    if counts.imported or table.name in OPTIONAL_TABLES:
        return
    for said in missing_in_lines(db, mapped.origins, scratch).values():
        raise CropsError(said)
    found = [f"{reason} ({rows:,} rows)" for reason, rows in counts.reasons.items()]
    found += [f"{counts.others:,} rows of another kind"] if counts.others else []
    why = ", ".join(found) or "no rows"
    raise CropsError(f"nothing of {table.name} can be imported: {why}; is this the right format?")


def _number_ids(db: Connection, tables: Sequence[MappedTable], salt: bytes) -> dict[str, str]:
    """Make `ids_<column>(original, number)` where an id is not its own number.

    Args:
        db: holds `mapped_<table>` of each table.
        tables: the tables with ids.
        salt: of the users' numbers.

    Returns:
        `kept`, `partly hashed`, `hashed` or `salted`, by column.

    Raises:
        CropsError: two ids get one number.
    """
    kinds = {}
    for column in _IDS:
        parts = [
            f"select {column} as original from mapped_{mapped.table.name} where len(_reasons) = 0"
            for mapped in tables
            if column in mapped.columns
        ]
        if not parts:
            continue
        made = column == "search_id" and any(_made(mapped, column) == "columns" for mapped in tables)
        salted = made or column == "user_id"  # who is among the columns could be found by trying
        number = user_sql("original") if salted else number_sql("original")
        db.execute(
            f"create table ids_{column} as select original, {number} as number"
            f" from (select distinct original from ({' union all '.join(parts)}))",
            salt_keys(salt) if salted else {},
        )
        ((ids, hashed),) = db.execute(
            f"select count(*), count(*) filter (where number >= {LEAST_HASHED}) from ids_{column}"
        ).fetchall()
        kinds[column] = SALTED if salted else KEPT if not hashed else HASHED if hashed == ids else PARTLY
        for number, first, second in db.execute(
            f"select number, min(original), max(original) from ids_{column} group by number"
            " having count(*) > 1 limit 1"
        ).fetchall():
            remedy = "name another --salt" if salted else "write one of them otherwise in the source"
            raise CropsError(f"{column}: {first!r} and {second!r} get one number, {number}; {remedy}")
    return kinds


def _made(mapped: MappedTable, column: str) -> str:
    return mapped.columns[column].made if column in mapped.columns else ""


def _id_sql(kinds: Mapping[str, str], column: str, table: str) -> tuple[str, str]:
    """Return the SQL of a column of `mapped_<table>` with its ids replaced, and the join that it needs."""
    original = f"mapped_{table}.{quoted(column)}"
    if kinds.get(column, KEPT) == KEPT:
        return original, ""
    return f"ids_{column}.number", f" join ids_{column} on ids_{column}.original = {original}"


def _write(db: Connection, mapped: MappedTable, ids: Mapping[str, str], staging: Path) -> None:
    name, time = mapped.table.name, mapped.table.time
    columns, joins = [], ""
    for column in mapped.table.columns:
        if column.name in mapped.columns:
            value, join = _id_sql(ids, column.name, name)
            columns.append(f"cast({value} as {column.type}) as {quoted(column.name)}")
            joins += join
        elif column.own_of in mapped.columns and ids[column.own_of] in (HASHED, PARTLY):
            number, _ = _id_sql(ids, column.own_of, name)
            original = f"mapped_{name}.{column.own_of}"
            columns.append(f"nullif({original}, cast({number} as VARCHAR)) as {column.name}")
    order = ", ".join(quoted(column) for column in sorted(mapped.columns, key=_place))
    rows = f"from mapped_{name}{joins} where len(_reasons) = 0"
    select = f"select {', '.join(columns)} {rows}"
    if time is None:
        write_parquet(db, f"select * from ({select}) order by {order}", staging / f"{name}.parquet")
        return
    at = f"mapped_{name}.{time} // {DAY_US}"
    for (number,) in db.execute(f"select distinct {at} {rows} order by all").fetchall():
        query = f"select * from ({select} and {at} = {number}) order by {order}"
        write_parquet(db, query, staging / name / f"day={day_of(number)}" / "part-0.parquet")


def _place(column: str) -> int:
    return _FIRST.index(column) if column in _FIRST else len(_FIRST)


def _write_rejects(db: Connection, table: Table, counts: ImportCounts, folder: Path) -> None:
    if counts.rejected:
        select = "select _reasons as reasons, _file as file, _row as row, _source as source"
        where = f"from mapped_{table.name} where len(_reasons) > 0 order by all"
        write_parquet(db, f"{select} {where}", folder / f"{table.name}.parquet")


def _write_lines(db: Connection, scratch: Path, folder: Path) -> int:
    """Write the places of the lines that could not be taken apart, not their texts; return how many."""
    parts = [f"select * from {parquet(one)}" for one in scratch.glob("left_out_*.parquet")]
    tables = "select count(*) from duckdb_tables() where table_name = 'reject_errors'"
    if db.execute(tables).fetchall() != [(0,)]:
        parts.append("""
            select s.file_path as file, e.line, cast(e.error_type as VARCHAR) as reason
            from reject_errors e join reject_scans s using (scan_id, file_id)""")
    if not parts:
        return 0
    db.execute(
        "create table malformed as select file, line, min(reason) as reason"
        f" from ({' union all '.join(parts)}) group by file, line"
    )
    lines = count(db, "malformed")
    if lines:
        write_parquet(db, "select * from malformed order by file, line", folder / "lines.parquet")
    return lines


def render_import(report: ImportReport) -> RenderableType:
    """Return the report as a rich table with its notes."""
    counts = (Column(name, justify="right") for name in ("rows", "imported", "rejected"))
    table = RichTable("table", *counts, Column("why, and values lost", overflow="fold"), title=report.format)
    for name, one in report.tables.items():
        why = [f"{reason} {rows:,}" for reason, rows in one.reasons.items()]
        why += [f"{column} {_LOST.get(column, 'unreadable')} {rows:,}" for column, rows in one.lost.items()]
        why += [f"rows of another kind {one.others:,}"] if one.others else []
        table.add_row(name, f"{one.rows:,}", f"{one.imported:,}", f"{one.rejected:,}", ", ".join(why))
    ids = ", ".join(f"{column} {kind}" for column, kind in report.ids.items())
    notes = [f"ids: {ids}", f"texts: {report.text}", *report.notes]
    if report.malformed_lines:
        notes.insert(0, f"{report.malformed_lines:,} lines could not be taken apart (rejects/lines.parquet)")
    return Group(table, Text("\n".join(f"· {note}" for note in notes)))
