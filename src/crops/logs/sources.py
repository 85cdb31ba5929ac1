"""Reads the columns that an importer names, and no others, from CSV, TSV, JSON lines and Parquet.

DuckDB gets a clean copy of a text file whose lines it cannot take apart; what is left out is named.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from crops.database import literal, path_literal, quoted
from crops.errors import CropsError, nearest
from crops.logs.tables import distinct_names, refuse_lake_tables, rows_of

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LINES = (".jsonl", ".ndjson", ".json")
MAX_LINE_BYTES = 64_000_000
"""No line and no value in quotes is longer."""
LEFT_OUT = pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string())])
"""Of the tables `left_out_*.parquet` beside the copies; lines are numbered from 1."""
_Lost = list[tuple[int, str]]
LISTS = "lists in "
"""How `_problem` begins where a column holds lists or structs."""


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
        scratch: folder for clean copies, see `clean_csv`.
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
        f" {literal(file)} as _file, cast(null as BIGINT) as _row from {_csv(file, header, scratch)}"
        for file, header in zip(files, headers, strict=True)
    )


def _fields(columns: Mapping[str, str], header: Sequence[str]) -> str:
    present = dict(zip(header, distinct_names(header), strict=True))
    fields = (
        f"cast({quoted(present[column]) if column in present else 'null'} as VARCHAR) as {quoted(name)}"
        for name, column in columns.items()
    )
    return ", ".join(fields)


def _csv(file: Path, header: Sequence[str], scratch: Path) -> str:
    # Without the types and names of a header that was read here, DuckDB would guess them from dirty rows.
    names = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in distinct_names(header))
    delimiter = _DELIMITERS[_kind(file)]
    options = (
        "auto_detect=false, header=true, store_rejects=true, quote='\"', escape='\"',"
        f" delim={literal(delimiter)}, max_line_size={MAX_LINE_BYTES}"
    )
    clean = clean_csv(file, len(header), delimiter, scratch)
    return f"read_csv({path_literal(clean)}, columns={{{names}}}, {options})"


def lines_sql(files: Sequence[Path], scratch: Path) -> str:
    """Return the SELECT of the JSON lines: `doc` (NULL where a line is no JSON object), `_file`, `_row`.

    What exports of OpenSearch wrap in `_source` is unwrapped. Empty lines are none; `_row` counts from 1.
    """
    options = (
        "columns={'line': 'VARCHAR'}, auto_detect=false, header=false, delim='\x01', quote='', escape='',"
        f" comment='', store_rejects=true, max_line_size={MAX_LINE_BYTES}"
    )
    lines = " union all ".join(
        f"select line, {literal(file)} as _file, row_number() over () as _row"
        f" from read_csv({path_literal(clean_json(file, scratch))}, {options})"
        for file in files
    )
    doc = "case when json_valid(line) and json_type(line) = 'OBJECT' then cast(line as JSON) end"
    return (
        "select coalesce(doc->'_source', doc) as doc, _file, _row"
        f" from (select {doc} as doc, _file, _row from ({lines}) where trim(line, ' \t\r') <> '')"
    )


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


# Clean copies.


# Clean copies.
def clean_csv(file: Path, fields: int, delimiter: str, scratch: Path) -> Path:
    """Return a CSV file, or a copy of it where line ends are mixed or a line has an odd number of quotes.

    A quote that is not closed where its value ends costs its line, not the lines behind it: a value in quotes
    goes over several lines only where they make a row of all fields together.

    Args:
        file: UTF-8, may be `.gz`.
        fields: how many a row has.
        delimiter: between them.
        scratch: where the copy goes, and what it leaves out as `LEFT_OUT`.

    Raises:
        CropsError: the file cannot be read.
    """
    if not _dirty(file, quotes=True):
        return file
    lost: _Lost = []
    copy = _place(file, scratch)
    with copy.open("w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows(_rows(file, fields, delimiter, lost))
    return _noted(file, copy, lost)


def clean_json(file: Path, scratch: Path) -> Path:
    """Return a file of JSON lines, or a copy of it where line ends are mixed or a line is not UTF-8.

    Lines keep their numbers. See `clean_csv`.
    """
    if not _dirty(file, quotes=False):
        return file
    lost: _Lost = []
    copy = _place(file, scratch)
    with copy.open("w", encoding="utf-8", newline="") as target:
        for number, line in _lines(file):
            readable = line.isascii() or _utf8(line)
            target.write((line.rstrip("\r\n") if readable else "") + "\n")
            if not readable:
                lost.append((number, "INVALID ENCODING"))
    return _noted(file, copy, lost)


def _opened(file: Path) -> IO[bytes]:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def _dirty(file: Path, *, quotes: bool) -> bool:
    ends = set()
    try:
        with _opened(file) as lines:
            for line in lines:
                end = line[-2:] == b"\r\n"
                ends.add(end if line.endswith(b"\n") else None)
                if line.count(b"\r") > end or {True, False} <= ends:
                    return True
                if quotes and line.count(b'"') % 2:
                    return True
                if not (quotes or line.isascii()):
                    line.decode()
    except UnicodeDecodeError:
        return True
    except (OSError, EOFError) as error:
        raise CropsError(f"{file} is not readable ({error}); write the file again") from error
    return False


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers; any of the three line ends ends one."""
    with _opened(file) as stream:
        yield from enumerate(
            io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=""), 1
        )


def _rows(file: Path, fields: int, delimiter: str, lost: _Lost) -> Iterator[list[str]]:
    csv.field_size_limit(MAX_LINE_BYTES)
    coming = _lines(file)
    back: deque[tuple[int, str]] = deque()
    while True:
        number, line = back.popleft() if back else next(coming, (0, ""))
        if not number:
            return
        row, fault = _row([line], delimiter)
        if fault == "unexpected end of data":
            ahead = _to_the_quote(back, coming, len(line))
            row, fault = _row([line, *(text for _, text in ahead)], delimiter)
            if fault or len(row) != fields:
                back.extendleft(reversed(ahead))
                row, fault = [], "unclosed quote"
        if not fault and row and len(row) != fields:
            fault = "MISSING COLUMNS" if len(row) < fields else "TOO MANY COLUMNS"
        if not fault and not (line.isascii() or all(map(_utf8, row))):
            fault = "INVALID ENCODING"
        if fault:
            lost.append((number, "UNQUOTED VALUE" if fault[0].islower() else fault))
        elif row:
            yield row


def _row(lines: list[str], delimiter: str) -> tuple[list[str], str]:
    """Return the row that lines make, or why they make none."""
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error as error:
        return [], str(error)
    return (rows[0] if rows else [], "") if len(rows) < 2 else ([], "several rows")


def _to_the_quote(
    back: deque[tuple[int, str]], coming: Iterator[tuple[int, str]], size: int
) -> list[tuple[int, str]]:
    """Return the lines up to the next one with an odd number of quotes."""
    ahead: list[tuple[int, str]] = []
    while size < MAX_LINE_BYTES and (one := back.popleft() if back else next(coming, None)):
        ahead.append(one)
        size += len(one[1])
        if one[1].count('"') % 2:
            break
    return ahead


def _utf8(text: str) -> bool:
    return not any("\udc80" <= letter <= "\udcff" for letter in text)


def _place(file: Path, scratch: Path) -> Path:
    return scratch / f"clean_{len(list(scratch.glob('clean_*')))}{file.with_suffix('').suffix or file.suffix}"


def _noted(file: Path, copy: Path, lost: _Lost) -> Path:
    table = pa.table(
        [[str(file)] * len(lost), *(map(list, zip(*lost, strict=True)) if lost else [[], []])],
        schema=LEFT_OUT,
    )
    pq.write_table(table, copy.with_name(f"left_out_{copy.stem}.parquet"))
    return copy
