"""Reads the columns that an importer names, and no others, from CSV, TSV, JSON lines and Parquet."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crops.database import Connection, literal, path_literal, quoted
from crops.errors import CropsError, nearest
from crops.logs.lines import MAX_LINE_BYTES, clean_csv, clean_json
from crops.logs.tables import refuse_lake_tables, rows_of, told_apart
from crops.schema import Table

_DELIMITERS = {".csv": ",", ".tsv": "\t"}

_LINES = (".jsonl", ".ndjson", ".json")


def find_files(folder: Path, pattern: str) -> tuple[Path, ...]:
    """Return the files of a glob below a folder (absolute, sorted); a folder stands for the files in it.

    Raises:
        CropsError: there are none, they are not of one kind, or they are of a table of Delta Lake, Iceberg
            or Hudi.
    """
    if not folder.is_dir():
        raise CropsError(f"{folder} is not a folder; name the folder that holds {pattern}")
    known = (*_DELIMITERS, *_LINES, ".parquet")
    found: set[Path] = set()
    for path in folder.absolute().glob(pattern):
        inside = path.rglob("*") if path.is_dir() else [path]
        found |= {file for file in inside if file.is_file() and _kind(file) in known}
    kinds = {_kind(file) for file in found}
    if not found:
        hint = nearest(pattern, (path.name for path in folder.iterdir()))
        raise CropsError(f"{folder}: no file matches {pattern} ({', '.join(known)}).{hint}")
    if len(kinds) > 1:
        raise CropsError(f"{folder}: {pattern} matches files of several kinds ({', '.join(sorted(kinds))})")
    refuse_lake_tables(found)
    return tuple(sorted(found))


def read_sql(
    files: Sequence[Path], columns: Mapping[str, str], scratch: Path, optional: Sequence[str] = ()
) -> str:
    """Return the SELECT of the named columns as text, and of `_problem`, `_file` and `_row`.

    Lines that cannot be taken apart go to DuckDB's table `reject_errors`, or beside a clean copy, and are
    left out; `_problem` says of a JSON line why it has no columns. `_row` counts from 0 in Parquet files,
    lines from 1 in JSON lines, and is NULL in others.

    Args:
        files: files of one kind.
        columns: name in the SELECT -> column of the files; in JSON lines a path such as `a.b.c`.
        scratch: folder for clean copies, see `crops.logs.lines`.
        optional: names that the files may lack; they read as NULL.

    Raises:
        CropsError: a file is not readable, lacks a column or has it twice, or the column holds lists.
    """
    kind = _kind(files[0])
    if kind in _LINES:
        fields = [f"{json_text('doc', column)} as {quoted(name)}" for name, column in columns.items()]
        problem = _nested_problem(columns.values())
        fields.append(f"{problem} as _problem")
        return f"select {', '.join(fields)}, _file, _row from ({lines_sql(files, scratch)})"
    parquet = kind == ".parquet"
    schemas = [parquet_schema(file) for file in files] if parquet else []
    headers = [list(schema.names) for schema in schemas] or [_header(file) for file in files]
    wanted = {name: column for name, column in columns.items() if name not in optional}
    for file, header in zip(files, headers, strict=True):
        for column in wanted.values():
            if column not in header:
                raise CropsError(f"{file}: column {column} is missing.{nearest(column, header)}")
        for column in columns.values():
            if header.count(column) > 1:
                raise CropsError(f"{file}: column {column} is there {header.count(column)} times; keep one")
    if parquet:
        for file, schema in zip(files, schemas, strict=True):
            refuse_nested(file, schema, columns.values())
        fields = [f"cast({quoted(name)} as VARCHAR) as {quoted(name)}" for name in columns]
        problem = "cast(null as VARCHAR) as _problem"
        return f"select {', '.join(fields)}, {problem}, _file, _row from {rows_of(files, schemas, columns)}"
    return " union all ".join(
        f"select {_fields(columns, header)}, cast(null as VARCHAR) as _problem,"
        f" {literal(str(file))} as _file, cast(null as BIGINT) as _row from {_csv(file, header, scratch)}"
        for file, header in zip(files, headers, strict=True)
    )


def lines_sql(files: Sequence[Path], scratch: Path) -> str:
    """Return the SELECT of the JSON lines: `doc` (NULL where a line is no JSON object), `_file`, `_row`.

    What exports of OpenSearch wrap in `_source` is unwrapped. Empty lines are none; `_row` counts from 1.
    """
    options = (
        "columns={'line': 'VARCHAR'}, auto_detect=false, header=false, delim='\x01', quote='', escape='',"
        f" comment='', store_rejects=true, max_line_size={MAX_LINE_BYTES}"
    )
    lines = " union all ".join(
        f"select line, {literal(str(file))} as _file, row_number() over () as _row"
        f" from read_csv({path_literal(clean_json(file, scratch))}, {options})"
        for file in files
    )
    doc = "case when json_valid(line) and json_type(line) = 'OBJECT' then cast(line as JSON) end"
    return (
        "select coalesce(doc->'_source', doc) as doc, _file, _row"
        f" from (select {doc} as doc, _file, _row from ({lines}) where trim(line, ' \t\r') <> '')"
    )


LISTS = "lists in "

"""How `_problem` begins where a column holds lists or structs."""


def _nested_problem(columns: Collection[str]) -> str:
    """Return the SQL of what is wrong with a document of these columns."""
    nested = (  # only what may be one is asked for its type: that is faster
        f"when left({json_text('doc', column)}, 1) in ('[', '{{') and {json_type('doc', column)}"
        f" in ('ARRAY', 'OBJECT') then {literal(LISTS + column)}"
        for column in columns
    )
    return f"case when doc is null then 'malformed_json' {' '.join(nested)} end"


def refuse_nested(file: Path, schema: pa.Schema, columns: Collection[str]) -> None:
    """Refuse Parquet columns of lists or structs where one value is wanted.

    Raises:
        CropsError: one of the columns is nested.
    """
    for field in schema:
        if field.name in columns and pa.types.is_nested(field.type):
            raise CropsError(f"{file}: {nested_message(field.name, str(field.type))}")


def nested_message(column: str, found: str) -> str:
    """Return what is wrong with a column of lists or structs, and the remedy."""
    return (
        f"column {column} holds lists or structs ({found}), where one value is wanted in each row:"
        " write one row per element (UNNEST in SQL, explode in pandas and Spark), or map a field of it"
    )


def json_type(doc: str, path: str) -> str:
    """Return the SQL expression of the JSON type at a dotted path of a JSON document."""
    return f"json_type({doc}, {_json_path(path)})"


def json_text(doc: str, path: str) -> str:
    """Return the SQL expression of the text at a dotted path of a JSON document."""
    return f"json_extract_string({doc}, {_json_path(path)})"


def _json_path(path: str) -> str:
    return literal("$." + ".".join(quoted(part) for part in path.split(".")))


def _fields(columns: Mapping[str, str], header: Sequence[str]) -> str:
    present = dict(zip(header, told_apart(header), strict=True))
    fields = (
        f"cast({quoted(present[column]) if column in present else 'null'} as VARCHAR) as {quoted(name)}"
        for name, column in columns.items()
    )
    return ", ".join(fields)


def _csv(file: Path, header: Sequence[str], scratch: Path) -> str:
    # Without the types and names of a header that was read here, DuckDB would guess them from dirty rows.
    names = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in told_apart(header))
    delimiter = _DELIMITERS[_kind(file)]
    options = (
        "auto_detect=false, header=true, store_rejects=true, quote='\"', escape='\"',"
        f" delim={literal(delimiter)}, max_line_size={MAX_LINE_BYTES}"
    )
    clean = clean_csv(file, len(header), delimiter, scratch)
    return f"read_csv({path_literal(clean)}, columns={{{names}}}, {options})"


def _kind(file: Path) -> str:
    suffixes = [suffix for suffix in file.suffixes if suffix != ".gz"]
    return suffixes[-1].lower() if suffixes else ""


def parquet_schema(file: Path) -> pa.Schema:
    """Return the schema of a Parquet file.

    Raises:
        CropsError: it is not readable as one.
    """
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise CropsError(f"{file} is not readable as Parquet ({error}); write the file again") from error


def _header(file: Path) -> list[str]:
    try:
        opener = gzip.open if file.suffix == ".gz" else open
        with opener(file, "rt", encoding="utf-8-sig", errors="replace", newline="") as lines:
            header = next(csv.reader(lines, delimiter=_DELIMITERS[_kind(file)]), [])
    except (OSError, EOFError, csv.Error) as error:
        raise CropsError(f"{file} is not readable ({error}); write the file again") from error
    if any(letter in name for name in header for letter in "\ufffd\0"):
        raise CropsError(f"{file}: its header is not UTF-8; write the file again, as UTF-8")
    return header


# ------------------------------------------------------------------------------
# Numbers for the ids of a source: users always, items and searches where theirs are no fit numbers.


KEPT = "kept"

NUMBERED = "numbered"

_FIT = {"item_id": "[1-9][0-9]*", "search_id": "0|-?[1-9][0-9]*"}

"""What an id must look like to be kept; a user's never is."""

_FILES = {"user_id": "users", "item_id": "items", "search_id": "searches"}


def number_ids(connection: Connection, tables: Sequence[Table]) -> dict[str, str]:
    """Make `ids_<column>(original, number)` for the ids that are replaced.

    Numbers run from 1 in the order of the originals, whole numbers first: equal sources get equal numbers.

    Args:
        connection: holds `mapped_<table>` of each table.
        tables: the tables with ids.

    Returns:
        `kept` or `numbered`, by column.
    """
    kinds = {}
    for column in _FILES:
        parts = [
            f"select {column} as original from mapped_{table.name} where len(_reasons) = 0"
            for table in tables
            if column in table.names()
        ]
        originals = f"select distinct original from ({' union all '.join(parts)})"
        kinds[column] = KEPT if _fit(connection, column, originals) else NUMBERED
        if kinds[column] == NUMBERED:
            order = "try_cast(original as HUGEINT) nulls last, original"
            connection.execute(
                f"create table ids_{column} as"
                f" select original, row_number() over (order by {order}) as number from ({originals})"
            )
    return kinds


def id_sql(kinds: Mapping[str, str], column: str, table: str) -> tuple[str, str]:
    """Return the SQL of a column of `mapped_<table>` with its ids replaced, and the join that it needs."""
    original = f"mapped_{table}.{quoted(column)}"
    if kinds.get(column) != NUMBERED:
        return original, ""
    return f"ids_{column}.number", f" join ids_{column} on ids_{column}.original = {original}"


def write_maps(connection: Connection, kinds: Mapping[str, str], folder: Path) -> None:
    """Write `<ids>.parquet(original, number)` for the ids that were replaced."""
    folder.mkdir()
    for column, kind in kinds.items():
        if kind == NUMBERED:
            target = literal(str(folder / f"{_FILES[column]}.parquet"))
            select = f"select original, number from ids_{column} order by number"
            connection.execute(f"copy ({select}) to {target} (format parquet)")


def _fit(connection: Connection, column: str, originals: str) -> bool:
    if column not in _FIT:
        return False
    fits = f"regexp_full_match(original, '{_FIT[column]}') and try_cast(original as BIGINT) is not null"
    ((fit,),) = connection.execute(f"select bool_and({fits}) from ({originals})").fetchall()
    return bool(fit)
