"""Reads the columns that an importer names, and no others, from delimited text, JSON and Parquet.

DuckDB gets a clean copy of a text file whose lines it cannot take apart; what is left out is named.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from crops.database import Connection, failing_as, literal, open_database, path_literal, quoted
from crops.errors import CropsError, nearest, nearest_path
from crops.logs.files import refuse_lake_tables
from crops.logs.sql import distinct_names, rows_of

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LINES = (".jsonl", ".ndjson", ".json")
_PLAIN = (".txt", ".log")
_ARRAY = rb"\[\s*\{"
"""How a file of one JSON array of objects begins."""
_BULK = rb'\{\s*"(index|create)"\s*:\s*\{'
"""How a file begins that says line by line what a bulk request does with the next one."""
MAX_LINE_BYTES = 64_000_000
"""No line and no value in quotes is longer."""
LEFT_OUT = pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string())])
"""Of the tables `left_out_*.parquet` beside the copies; lines are numbered from 1."""
_Lost = list[tuple[int, str]]
LISTS = "lists in "
"""How `_problem` begins where a column holds lists or structs."""


@dataclass(frozen=True)
class Layout:
    """How delimited text is written."""

    delimiter: str | None = None
    """One character; None: as the file is called, `.csv` or `.tsv`."""
    names: tuple[str, ...] = ()
    """Of the columns, where the files have no header line."""
    quote: str = '"'
    """Around values, or an empty text where quotes are letters."""


_LAYOUT = Layout()


def find_files(folder: Path, pattern: str) -> tuple[Path, ...]:
    """Return the files of a glob below a folder (absolute, sorted); a folder stands for the files in it.

    Files called `.txt` and `.log` count where the pattern finds no others.

    Raises:
        CropsError: there are none, they are not of one kind, or they are of a table of Delta Lake, Iceberg
            or Hudi.
    """
    if not folder.is_dir():
        wrong = "is not a folder" if folder.exists() else "does not exist"
        raise CropsError(f"{folder} {wrong}; name the folder that holds {pattern}{nearest_path(folder)}")
    known = (*_DELIMITERS, *_LINES, ".parquet", *_PLAIN)
    found: set[Path] = set()
    for path in folder.absolute().glob(pattern):
        inside = path.rglob("*") if path.is_dir() else [path]
        found |= {file for file in inside if file.is_file() and _suffix(file) in known}
    found = {file for file in found if _suffix(file) not in _PLAIN} or found
    kinds = {_suffix(file) for file in found}
    if not found:
        hint = nearest(pattern, (path.name for path in folder.iterdir()))
        raise CropsError(f"{folder}: no file matches {pattern} ({', '.join(known)}).{hint}")
    if len(kinds) > 1:
        raise CropsError(f"{folder}: {pattern} matches files of several kinds ({', '.join(sorted(kinds))})")
    refuse_lake_tables(found)
    return tuple(sorted(found))


def read_sql(
    files: Sequence[Path],
    columns: Mapping[str, str],
    scratch: Path,
    optional: Collection[str] = (),
    nested: Collection[str] = (),
    layout: Layout = _LAYOUT,
) -> str:
    """Return the SELECT of the named columns as text, and of `_problem`, `_file` and `_row`.

    Lines that cannot be taken apart go to DuckDB's table `reject_errors`, or beside a clean copy, and are
    left out; `_problem` says of a JSON line why it has no columns. `_row` counts from 0 in Parquet files,
    lines from 1 in JSON lines and elements in JSON arrays, and is NULL in others.

    Args:
        files: files of one kind.
        columns: name in the SELECT -> column of the files, or a path such as `a.b.c` through JSON, JSON text
            in a column and structs; see `path_text`.
        scratch: folder for clean copies, see `clean_csv`.
        optional: names that the files may lack; they read as NULL.
        nested: names that may hold lists and structs; they are read as their JSON text.
        layout: of delimited text.

    Raises:
        CropsError: a file is not readable, lacks a column or has it twice, or a column holds lists or structs
            and is not named in `nested`.
    """
    kind = _kind(files[0], layout)
    if kind == "json":
        fields = [f"{path_text('doc', column)} as {quoted(name)}" for name, column in columns.items()]
        problem = _nested_problem([column for name, column in columns.items() if name not in nested])
        fields.append(f"{problem} as _problem")
        return f"select {', '.join(fields)}, _file, _row from ({lines_sql(files, scratch)})"
    schemas = [parquet_schema(file) for file in files] if kind == "parquet" else []
    headers = [list(schema.names) for schema in schemas] or [_header(file, layout) for file in files]
    for file, header in zip(files, headers, strict=True):
        for name, column in columns.items():
            found = _column_of(column, header)
            if found is None and name not in optional:
                raise CropsError(f"{file}: column {column} is missing.{nearest(column, header)}")
            if found is not None and header.count(found) > 1:
                raise CropsError(f"{file}: column {found} is there {header.count(found)} times; keep one")
    if not schemas:
        return " union all ".join(
            f"select {_fields(columns, header)}, cast(null as VARCHAR) as _problem, {literal(file)} as _file,"
            f" cast(null as BIGINT) as _row from {_csv(file, header, scratch, layout)}"
            for file, header in zip(files, headers, strict=True)
        )
    for file, schema in zip(files, schemas, strict=True):
        refuse_nested(file, schema, [column for name, column in columns.items() if name not in nested])
        demand_fields(file, schema, [column for name, column in columns.items() if name not in optional])
    present = [_column_of(column, header) or column for column in columns.values() for header in headers]
    structs = {field.name for schema in schemas for field in schema if pa.types.is_nested(field.type)}
    names = {column: quoted(column) for column in present}
    names |= {column: f"to_json({quoted(column)})" for column in structs}
    texts = {column: f"cast({value} as VARCHAR)" for column, value in names.items()}
    rows = rows_of(files, schemas, {column: column for column in dict.fromkeys(present)})
    fields = [
        f"{_inside(column, _column_of(column, [*texts]) or column, texts)} as {quoted(name)}"
        for name, column in columns.items()
    ]
    return f"select {', '.join(fields)}, cast(null as VARCHAR) as _problem, _file, _row from {rows}"


def missing_in_lines(
    db: Connection, origins: Mapping[str, tuple[tuple[Path, ...], str]], scratch: Path
) -> dict[str, str]:
    """Return what to say of the columns of JSON that no line has, with the nearest name that one has.

    Of other files `read_sql` knows it beforehand.

    Args:
        db: where it is counted.
        origins: name -> files and path, see `crops.logs.mapping.MappedTable`.
        scratch: folder for clean copies.
    """
    keys: dict[tuple[Path, ...], list[str]] = {}
    said = {}
    for name, (files, path) in origins.items():
        if _kind(files[0]) != "json":
            continue
        if files not in keys:
            found = f"select distinct unnest(json_keys(doc)) as key from ({lines_sql(files, scratch)})"
            keys[files] = [key for (key,) in db.execute(f"{found} order by key").fetchall()]
        if _column_of(path, keys[files]) is None:
            of = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
            said[name] = f"{of}: column {path} is missing: no line has it.{nearest(path, keys[files])}"
    return said


def _column_of(path: str, header: Collection[str]) -> str | None:
    """Return the column that a path begins with: the longest name that fits."""
    parts = path.split(".")
    names = (".".join(parts[:size]) for size in range(len(parts), 0, -1))
    return next((name for name in names if name in header), None)


def _inside(path: str, column: str, texts: Mapping[str, str]) -> str:
    """Return the SQL of what a path says below the text of its column."""
    return text_inside(texts[column], path[len(column) + 1 :])


def _fields(columns: Mapping[str, str], header: Sequence[str]) -> str:
    present = dict(zip(header, distinct_names(header), strict=True))
    fields = []
    for name, path in columns.items():
        column = _column_of(path, header)
        text = text_inside(quoted(present[column]), path[len(column) + 1 :]) if column else "null"
        fields.append(f"cast({text} as VARCHAR) as {quoted(name)}")
    return ", ".join(fields)


def _csv(file: Path, header: Sequence[str], scratch: Path, layout: Layout) -> str:
    # Without the types and names of a header that was read here, DuckDB would guess them from dirty rows.
    names = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in distinct_names(header))
    clean = clean_csv(file, len(header), _delimiter(file, layout), scratch, layout.quote)
    quote = layout.quote if clean == file else '"'
    options = (
        f"auto_detect=false, header={'false' if layout.names else 'true'}, store_rejects=true,"
        f" quote={literal(quote)}, escape={literal(quote)}, delim={literal(_delimiter(file, layout))},"
        f" max_line_size={MAX_LINE_BYTES}, buffer_size={MAX_LINE_BYTES}"
    )
    return f"read_csv({path_literal(clean)}, columns={{{names}}}, {options})"


def lines_sql(files: Sequence[Path], scratch: Path) -> str:
    """Return the SELECT of JSON lines: `doc` (NULL where one is no JSON object), `_index`, `_file`, `_row`.

    What exports of OpenSearch wrap in `_source` is unwrapped, and lines that say what a bulk request does
    with the next one are left out; `_index` is the index that either names. Empty lines are none; `_row`
    counts from 1. A file that begins with `[` is one array, whose elements are its lines.

    Raises:
        CropsError: an array cannot be read to its end.
    """
    options = (
        "columns={'line': 'VARCHAR'}, auto_detect=false, header=false, delim='\x01', quote='', escape='',"
        f" comment='', store_rejects=true, max_line_size={MAX_LINE_BYTES}, buffer_size={MAX_LINE_BYTES}"
    )
    lines = " union all ".join(
        f"select line, {literal(file)} as _file, row_number() over () as _row from "
        + (
            _array(file)
            if _begins(file, _ARRAY)
            else f"read_csv({path_literal(clean_json(file, scratch))}, {options})"
        )
        for file in files
    )
    doc = "case when json_valid(line) and json_type(line) = 'OBJECT' then cast(line as JSON) end"
    rows = f"select {doc} as doc, _file, _row from ({lines}) where trim(line, ' \t\r') <> ''"
    if not any(_begins(file, _BULK) for file in files):
        source = "coalesce(doc->'_source', doc) as doc, doc->>'_index' as _index"
        return f"select {source}, _file, _row from ({rows})"
    action = "coalesce(doc->'index', doc->'create')"
    before = f"lag({action} ->> '_index') over (partition by _file order by _row)"
    alone = f"json_type({action}) = 'OBJECT' and len(json_keys(doc)) = 1"
    rows = f"select *, {before} as _index, {alone} as _action from ({rows})"
    return f"select doc, _index, _file, _row from ({rows}) where _action is not true"


def _array(file: Path) -> str:
    lines = (
        "(select cast(json as VARCHAR) as line from read_json("
        f"{path_literal(file)}, format='array', records='false', columns={{json: 'JSON'}},"
        f" maximum_object_size={MAX_LINE_BYTES}))"
    )
    remedy = "is no JSON array that can be read; write one object per line"
    with failing_as(f"{file} {remedy}"), open_database() as db:
        db.execute(f"select count(line) from {lines}")
    return lines


def _begins(file: Path, pattern: bytes) -> bool:
    """Return whether a text file begins with a pattern, white space and a byte order mark left out."""
    try:
        with _opened(file) as stream:
            head = stream.read(1_000).removeprefix(b"\xef\xbb\xbf").lstrip()
    except (OSError, EOFError) as error:
        raise CropsError(f"{file} is not readable ({error}); write the file again") from error
    return re.match(pattern, head) is not None


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


def demand_fields(file: Path, schema: pa.Schema, paths: Collection[str]) -> None:
    """Refuse paths through Parquet structs, or lists of them, that have no such field.

    Raises:
        CropsError: one has none.
    """
    for path in paths:
        column = _column_of(path, schema.names) or path
        type_ = schema.field(column).type
        for part in filter(None, path[len(column) + 1 :].split(".")):
            while pa.types.is_list(type_) or pa.types.is_large_list(type_):
                type_ = type_.value_type
            if not pa.types.is_struct(type_):
                break
            known = [field.name for field in type_]
            if part not in known and not part.isdigit() and "key" not in known:
                raise CropsError(
                    f"{file}: {column} holds no field {part} (it is {type_}).{nearest(part, known)}"
                )
            type_ = type_.field(part).type if part in known else pa.string()


def nested_message(column: str, found: str) -> str:
    """Return what is wrong with a column of lists or structs, and the remedy."""
    return (
        f"column {column} holds lists or structs ({found}), where one value is wanted in each row:"
        f' make one row per element (explode = "{column}" in the mapping), or map a field of it'
    )


def json_type(doc: str, path: str) -> str:
    """Return the SQL expression of the JSON type at a dotted path of a JSON document."""
    return f"json_type({doc}, {_json_path(path)})"


def json_text(doc: str, path: str) -> str:
    """Return the SQL expression of the text at a dotted path of a JSON document."""
    return f"json_extract_string({doc}, {_json_path(path)})"


def path_text(doc: str, path: str) -> str:
    """Return the SQL of the text at a path of a JSON document, and of what is written in one.

    `a.b` is the field `b` of `a`, also where `a` is the text of a JSON document; the field that is called
    `a.b`; and the value of the pair with the key `b` where `a` is a list of pairs of `key` and `value`, whose
    value may be a struct of one value per type. A number is a place in a list, from 0.
    """
    parent, _, last = path.rpartition(".")
    if not parent:
        return json_text(doc, path)
    pairs = f"json_extract({doc}, {_json_path(parent)})"
    first, _, rest = path.partition(".")
    text = json_text(doc, first)
    is_text = f"{json_type(doc, first)} = 'VARCHAR' and json_valid({text})"
    written = f"case when {is_text} then {json_text(text, rest)} end"
    named = f"json_extract_string({doc}, {literal('$.' + quoted(path))})"
    return f"coalesce({json_text(doc, path)}, {named}, {_of_pair(pairs, last)}, {written})"


def text_inside(text: str, path: str) -> str:
    """Return the SQL of what a path says below a text, which is itself where the path is empty."""
    if not path:
        return text
    found = (
        path_text(text, path) if "." in path else f"coalesce({json_text(text, path)}, {_of_pair(text, path)})"
    )
    return f"case when json_valid({text}) then {found} end"


def _of_pair(pairs: str, key: str) -> str:
    """Return the SQL of the value of a key in a list of pairs, as GA4 writes its parameters."""
    value = (
        f"list_filter(cast({pairs} as JSON[]), lambda pair: pair ->> 'key' = {literal(key)})[1] -> 'value'"
    )
    typed = ", ".join(f"({value}) ->> '{kind}_value'" for kind in ("string", "int", "double", "float"))
    plain = f"case when json_type({value}) <> 'OBJECT' then ({value}) ->> '$' end"
    return f"case when json_type({pairs}) = 'ARRAY' then coalesce({typed}, {plain}) end"


def _json_path(path: str) -> str:
    parts = (f"[{part}]" if part.isdigit() else f".{quoted(part)}" for part in path.split("."))
    return literal("$" + "".join(parts))


def _suffix(file: Path) -> str:
    suffixes = [suffix for suffix in file.suffixes if suffix != ".gz"]
    return suffixes[-1].lower() if suffixes else ""


def _kind(file: Path, layout: Layout = _LAYOUT) -> str:
    """Return `parquet`, `json` or `text`."""
    suffix = _suffix(file)
    if suffix == ".parquet":
        return "parquet"
    plain = suffix in _PLAIN and layout == _LAYOUT and _begins(file, rb"\{|" + _ARRAY)
    return "json" if suffix in _LINES or plain else "text"


def _delimiter(file: Path, layout: Layout) -> str:
    found = layout.delimiter or _DELIMITERS.get(_suffix(file))
    if found is None:
        raise CropsError(f'{file}: say what parts its columns, e.g. delimiter = "\\t" in the mapping')
    return found


def parquet_schema(file: Path) -> pa.Schema:
    """Return the schema of a Parquet file.

    Raises:
        CropsError: it is not readable as one.
    """
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise CropsError(f"{file} is not readable as Parquet ({error}); write the file again") from error


def _header(file: Path, layout: Layout) -> list[str]:
    delimiter = _delimiter(file, layout)
    try:
        opener = gzip.open if file.suffix == ".gz" else open
        with opener(file, "rt", encoding="utf-8-sig", errors="replace", newline="") as lines:
            header = next(csv.reader(lines, **_dialect(delimiter, layout.quote)), [])
    except (OSError, EOFError, csv.Error) as error:
        raise CropsError(f"{file} is not readable ({error}); write the file again") from error
    if layout.names:
        if len(header) != len(layout.names):
            raise CropsError(
                f"{file}: its first line has {len(header)} values ({_short(header)}), and the mapping names"
                f" {len(layout.names)}: name each column, in order, or correct the delimiter ({delimiter!r})"
            )
        return list(layout.names)
    if any(letter in name for name in header for letter in "\ufffd\0"):
        raise CropsError(f"{file}: its header is not UTF-8; write the file again, as UTF-8")
    return header


def _short(values: Sequence[str]) -> str:
    shown = ", ".join(repr(value[:20]) for value in values[:3])
    return shown + (", ..." if len(values) > 3 else "")


def _dialect(delimiter: str, quote: str) -> dict[str, Any]:
    quoting = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
    return {"delimiter": delimiter, **quoting}


# Clean copies.


def clean_csv(file: Path, fields: int, delimiter: str, scratch: Path, quote: str = '"') -> Path:
    """Return a CSV file, or a copy of it where line ends are mixed or a line has an odd number of quotes.

    A quote that is not closed where its value ends costs its line, not the lines behind it: a value in quotes
    goes over several lines only where they make a row of all fields together.

    Args:
        file: UTF-8, may be `.gz`.
        fields: how many a row has.
        delimiter: between them.
        scratch: where the copy goes, and what it leaves out as `LEFT_OUT`.
        quote: around values, or an empty text where quotes are letters; a copy has `"` around all.

    Raises:
        CropsError: the file cannot be read.
    """
    if not _dirty(file, quotes=bool(quote)):
        return file
    lost: _Lost = []
    copy = _place(file, scratch)
    with copy.open("w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows(_rows(file, fields, _dialect(delimiter, quote), lost))
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


def _rows(file: Path, fields: int, dialect: dict[str, Any], lost: _Lost) -> Iterator[list[str]]:
    csv.field_size_limit(MAX_LINE_BYTES)
    coming = _lines(file)
    back: deque[tuple[int, str]] = deque()
    while True:
        number, line = back.popleft() if back else next(coming, (0, ""))
        if not number:
            return
        row, fault = _row([line], dialect)
        if fault == "unexpected end of data":
            ahead = _to_the_quote(back, coming, len(line))
            row, fault = _row([line, *(text for _, text in ahead)], dialect)
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


def _row(lines: list[str], dialect: dict[str, Any]) -> tuple[list[str], str]:
    """Return the row that lines make, or why they make none."""
    try:
        rows = list(csv.reader(lines, **dialect, strict=True))
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
