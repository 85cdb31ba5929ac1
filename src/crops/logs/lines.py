"""Text files whose lines DuckDB cannot take apart: it gets a clean copy, and what is left out is named."""

from __future__ import annotations

import csv
import gzip
import io
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from crops.errors import CropsError

MAX_LINE_BYTES = 64_000_000
"""No line and no value in quotes is longer."""
LEFT_OUT = pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string())])
"""Of the tables `left_out_*.parquet` beside the copies; lines are numbered from 1."""
_Lost = list[tuple[int, str]]


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
