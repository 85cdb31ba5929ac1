"""Reads the columns that an importer names, and no others, from CSV, TSV, JSON lines and Parquet."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crops.errors import CropsError, nearest
from crops.logs.files import refuse_lake_tables
from crops.logs.tables import literal, path_literal, quoted, rows_of

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LINES = (".jsonl", ".ndjson", ".json")
_MAX_LINE_BYTES = 64_000_000


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


def read_sql(files: Sequence[Path], columns: Mapping[str, str], optional: Sequence[str] = ()) -> str:
    """Return the SELECT of the named columns as text, and of `_file` and `_row`.

    Lines that cannot be taken apart go to DuckDB's table `reject_errors` and are left out. `_row` counts from
    0 in Parquet files and is NULL in others.

    Args:
        files: files of one kind.
        columns: name in the SELECT -> column of the files; in JSON lines a path such as `a.b.c`.
        optional: names that the files may lack; they read as NULL.

    Raises:
        CropsError: a file is not readable, or lacks a column.
    """
    kind = _kind(files[0])
    if kind in _LINES:
        fields = [f"{json_text('doc', column)} as {quoted(name)}" for name, column in columns.items()]
        return f"select {', '.join(fields)}, _file, _row from ({lines_sql(files)}) where doc is not null"
    parquet = kind == ".parquet"
    schemas = [parquet_schema(file) for file in files] if parquet else []
    headers = [list(schema.names) for schema in schemas] or [_header(file) for file in files]
    wanted = {name: column for name, column in columns.items() if name not in optional}
    for file, header in zip(files, headers, strict=True):
        for column in wanted.values():
            if column not in header:
                raise CropsError(f"{file}: column {column} is missing.{nearest(column, header)}")
    if parquet:
        fields = [f"cast({quoted(name)} as VARCHAR) as {quoted(name)}" for name in columns]
        return f"select {', '.join(fields)}, _file, _row from {rows_of(files, schemas, columns)}"
    return " union all ".join(
        f"select {_fields(columns, header)}, _file, cast(null as BIGINT) as _row from {_csv(file, header)}"
        for file, header in zip(files, headers, strict=True)
    )


def lines_sql(files: Sequence[Path]) -> str:
    """Return the SELECT of the JSON lines: `doc` (NULL where a line is no JSON object), `_file`, `_row`.

    What exports of OpenSearch wrap in `_source` is unwrapped.
    """
    names = ", ".join(path_literal(file) for file in files)
    options = (
        "columns={'line': 'VARCHAR'}, auto_detect=false, header=false, delim='\x01', quote='', escape='',"
        f" comment='', store_rejects=true, filename='_file', max_line_size={_MAX_LINE_BYTES}"
    )
    doc = "case when json_valid(line) and json_type(line) = 'OBJECT' then cast(line as JSON) end"
    return (
        "select coalesce(doc->'_source', doc) as doc, _file, cast(null as BIGINT) as _row"
        f" from (select {doc} as doc, _file from read_csv([{names}], {options}))"
    )


def json_text(doc: str, path: str) -> str:
    """Return the SQL expression of the text at a dotted path of a JSON document."""
    return f"json_extract_string({doc}, {literal('$.' + '.'.join(quoted(part) for part in path.split('.')))})"


def _fields(columns: Mapping[str, str], present: Collection[str]) -> str:
    fields = (
        f"cast({quoted(column) if column in present else 'null'} as VARCHAR) as {quoted(name)}"
        for name, column in columns.items()
    )
    return ", ".join(fields)


def _csv(file: Path, header: Sequence[str]) -> str:
    # Without the types and names of a header that was read here, DuckDB would guess them from dirty rows.
    names = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in header)
    options = (
        "auto_detect=false, header=true, store_rejects=true, quote='\"', escape='\"', filename='_file',"
        f" delim={literal(_DELIMITERS[_kind(file)])}, max_line_size={_MAX_LINE_BYTES}"
    )
    return f"read_csv({path_literal(file)}, columns={{{names}}}, {options})"


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
        with opener(file, "rt", encoding="utf-8-sig", newline="") as lines:
            return next(csv.reader(lines, delimiter=_DELIMITERS[_kind(file)]), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CropsError(f"{file} is not readable ({error}); write the file again, as UTF-8") from error
