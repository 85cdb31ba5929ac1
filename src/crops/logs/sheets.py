"""Looks at the files of an unknown log: which belong together, and the cells of their first rows.

Delimiter, header, lists and times are found out here; what the columns mean, `crops.logs.guess` says.
"""

from __future__ import annotations

import ast
import csv
import gzip
import itertools
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crops.errors import CropsError, nearest_path
from crops.schema import EARLIEST_US, LATEST_US

ROWS = 20_000
"""Rows of a table that are looked at."""
OFTEN = 0.95
"""Share of the values that must agree; the others are dirt."""
NULLS = {"", "\\N", "NULL", "null", "nan", "NaN", "None", "<NA>"}
LINES = (".jsonl", ".ndjson", ".json")
_READ = (".csv", ".tsv", ".txt", ".log", *LINES, ".parquet")
_USUAL = {".csv": ",", ".tsv": "\t"}
_DELIMITERS = (",", "\t", ";", "|", "\x01")
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
WHOLE = re.compile(r"[+-]?\d+(\.0*)?")
ISO = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?.*)?")
_NUMBERS = re.compile(r"\d+([ ,;|]+\d+)*")
_DAYS = ("%Y/%m/%d", "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%d %b %Y", "%b %d, %Y")
_CLOCKS = ("", " %H:%M:%S", " %H:%M", " %I:%M:%S %p", " %I:%M %p", " %H:%M:%S.%f")
_SWAPPED = ("%Y-%d-%m", "%Y/%d/%m", "%Y%d%m")
"""Years first as in ISO 8601, but then the day."""
_FORMATS = (
    *(day + clock for day in (*_DAYS, *_SWAPPED[:2]) for clock in _CLOCKS),
    *(f"%Y-%d-%mT%H:%M:%S{zone}" for zone in ("", "Z")),
    *(
        "%d/%b/%Y:%H:%M:%S %z",
        "%a %b %d %H:%M:%S %z %Y",
        "%a, %d %b %Y %H:%M:%S %z",
        "%Y%m%d%H%M%S",
        "%y%m%d%H%M%S",
        "%Y%m%d",
        "%Y%d%m%H%M%S",
        "%Y%d%m",
    ),
)
_TIMES_OF_DAY = tuple(
    f"{clock}{zone}"
    for clock in ("%H:%M:%S", "%H:%M", "%H:%M:%S.%f", "%I:%M:%S %p", "%I:%M %p", "%I:%M:%S%p", "%I:%M%p")
    for zone in ("", "Z", "%z", " %z")
)
START = "2026-01-01"
"""Times that count from an unknown start count from here."""


@dataclass(frozen=True, eq=False)
class Column:
    """A column as it was looked at."""

    name: str
    cells: tuple[Any, ...]
    """A text, a list of texts or of objects, or None."""

    @cached_property
    def texts(self) -> list[str]:
        """The texts that say something."""
        return [cell for cell in self.cells if isinstance(cell, str)]

    @cached_property
    def distinct(self) -> set[str]:
        """The different texts; whole numbers in one form."""
        return {plain(text) for text in self.texts}

    @cached_property
    def lists(self) -> bool:
        """Whether the cells are lists."""
        given = [isinstance(cell, list) for cell in self.cells if cell is not None]
        return bool(given) and sum(given) >= OFTEN * len(given)

    @cached_property
    def letters(self) -> float:
        """Share of the texts with a letter."""
        return self.share(lambda text: any(map(str.isalpha, text)))

    @cached_property
    def tokens(self) -> bool:
        """Whether the cells are lists of whole numbers, or texts of them."""
        if not self.lists:
            several = self.share(lambda text: not text.isdigit()) > 0.1
            return several and self.share(_NUMBERS.fullmatch) >= OFTEN
        return all(isinstance(one, str) and one.isdigit() for cell in self.cells for one in cell or ())

    @cached_property
    def times(self) -> list[dict[str, str]]:
        """What a map may say of the texts as times: nothing, one reading, or several that fit alike."""
        return _times(self.texts[:: max(1, len(self.texts) // 300)])

    @cached_property
    def clock(self) -> str | None:
        """The format of texts that are times of day."""
        some = self.texts[:: max(1, len(self.texts) // 300)]
        fits = (one for one in _TIMES_OF_DAY if some and _parses(f"2026 {some[0]}", f"%Y {one}"))
        enough = OFTEN * len(some)
        return next(
            (f for f in fits if sum(_parses(f"2026 {text}", f"%Y {f}") for text in some) >= enough), None
        )

    @cached_property
    def days(self) -> bool:
        """Whether the texts are days without a time of day."""
        one = self.times[0] if self.times else {"unit": "s"}
        if "format" in one:
            return not re.search("%[HI]", one["format"])
        return one["unit"] == "iso" and max(map(len, self.texts)) <= 10

    def share(self, test: Callable[[str], object]) -> float:
        """Share of the texts that pass a test."""
        return sum(bool(test(text)) for text in self.texts) / max(1, len(self.texts))

    def samples(self) -> str:
        """Three values to see."""
        given = (one_line(cell) for cell in self.cells if cell is not None)
        return ", ".join(
            text if len(text) < 30 else f"{text[:27]}..." for text in list(dict.fromkeys(given))[:3]
        )


@dataclass(frozen=True, eq=False)
class Sheet:
    """Files of one table."""

    files: str
    """Pattern below the folder."""
    layout: dict[str, Any]
    """What a map says of the files besides: `delimiter`, `names`, `quote`."""
    columns: dict[str, Column]
    explode: str | list[str] | None = None
    origin: tuple[int, ...] = ()
    """Row in the source of each exploded one."""

    @property
    def bare(self) -> bool:
        """Whether there is no header."""
        return "names" in self.layout

    @property
    def shown(self) -> str | None:
        """The list of what was shown."""
        return self.explode[0] if isinstance(self.explode, list) else self.explode

    @property
    def rows(self) -> int:
        """How many were looked at."""
        return max(len(column.cells) for column in self.columns.values())


def inside(source: Path) -> list[Path]:
    """Return the files of a folder, or the file itself, without hidden ones."""
    folder = source if source.is_dir() else source.parent
    found = sorted(source.rglob("*")) if source.is_dir() else [source]
    return [path for path in found if path.is_file() and path.relative_to(folder).parts[0][0] not in "._"]


def look(source: Path) -> list[Sheet]:
    """Return the tables of a folder, or of one file, as far as `ROWS` rows tell.

    Raises:
        CropsError: there is no file to read, or one cannot be read.
    """
    if not source.exists():
        raise CropsError(
            f"{source} does not exist; name the folder or the file of your logs"
            f"{nearest_path(source, files=True)}"
        )
    folder, there = source if source.is_dir() else source.parent, inside(source)
    if not there:
        raise CropsError(f"{source}: no files; name the folder or the file that holds your logs")
    files = [path for path in there if _kind(path) in _READ]
    if not files:
        kinds = Counter(_kind(path) or "without an ending" for path in there).most_common(4)
        found = ", ".join(f"{n} {kind}" for kind, n in kinds)
        raise CropsError(
            f"{source}: no file that crops reads ({found}); write your logs as one of {', '.join(_READ)}"
        )
    groups: dict[Any, list[Path]] = defaultdict(list)
    opened = {file: _opened(file) for file in files}
    for file, (layout, names) in opened.items():
        alike = names or re.sub(r"[\d_.-]+", "", file.name)  # objects of JSON say their names line by line
        groups[_kind(file), alike, json.dumps(layout)].append(file)
    sheets = []
    for group in groups.values():
        layout, names = opened[group[0]]
        coming = itertools.chain.from_iterable(_records(file, layout, names) for file in group)
        rows = [dict(_flat(row)) for row in itertools.islice(coming, ROWS)]
        named = dict.fromkeys(name for row in rows for name in row if name)
        if named:
            columns = {name: _listed(Column(name, tuple(row.get(name) for row in rows))) for name in named}
            sheets.append(Sheet(_pattern(group, files, folder), layout, columns))
    if not sheets:
        raise CropsError(
            f"{files[0]}: no rows{', nor in any other file' * (len(files) > 1)}; export the logs again"
        )
    return sheets


def _kind(file: Path) -> str:
    return next((one.lower() for one in reversed(file.suffixes) if one.lower() != ".gz"), "")


def _pattern(group: Sequence[Path], files: Sequence[Path], folder: Path) -> str:
    """Return a pattern of exactly these files."""
    names = [str(file.relative_to(folder)) for file in group]
    ending = group[0].name[group[0].name.lower().rindex(_kind(group[0])) :]
    start = os.path.commonprefix(names)
    top = start[: start.rfind("/") + 1]
    for pattern in (
        names[0],
        f"{top}*{ending}",
        f"{start}*{ending}",
        f"{top}**/*{ending}",
        f"{start}*/**/*{ending}",
    ):
        if set(folder.glob(pattern)) & set(files) == set(group):
            return pattern
    raise CropsError(
        f"{group[0]} and files beside it have different columns, and no pattern of names parts them: put each"
        " table into a folder of its own"
    )


def _opened(file: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what a map says of a file, and its columns (none for JSON)."""
    try:
        if _kind(file) == ".parquet":
            return {}, tuple(pq.read_schema(file).names)
        with _stream(file) as stream:
            head = stream.read(200_000)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise CropsError(f"{file} is not readable ({error}); write the file again") from error
    if "\0" in head or head.count("\ufffd") > len(head) / 100:
        raise CropsError(f"{file} is not text in UTF-8; write it as CSV in UTF-8, or as Parquet")
    lines = [line for line in head.splitlines()[: None if len(head) < 200_000 else -1] if line][:200]
    return ({}, ()) if _kind(file) in LINES or not lines else _dialect(file, lines)


def _stream(file: Path) -> Any:  # noqa: ANN401 (a stream of text)
    opener = gzip.open if file.suffix == ".gz" else open
    return opener(file, "rt", encoding="utf-8-sig", errors="replace", newline="")


def _dialect(file: Path, lines: list[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    usual, fits = _USUAL.get(_kind(file), ""), {}
    for delimiter in _DELIMITERS:
        widths = [len(row) for row in csv.reader(lines, delimiter=delimiter)]
        even = widths[0] > 1 and widths.count(widths[0]) >= 0.9 * len(widths)
        fits[delimiter] = (even, delimiter == usual, widths[0])
    delimiter = max(fits, key=lambda one: fits[one])
    if not fits[delimiter][0]:
        raise CropsError(
            f"{file}: it reads as one column (tried comma, TAB, ; and |), such as {lines[0][:60]!r};"
            " write it with one of these between its columns: query, user, time, item and click at least"
        )
    layout: dict[str, Any] = {} if delimiter == usual else {"delimiter": delimiter}
    parsed = list(csv.reader(lines, delimiter=delimiter))
    bare = [line.split(delimiter) for line in lines]
    if len(parsed) < len(lines) and len(set(map(len, bare))) == 1:
        layout["quote"], parsed = "", bare
    first, rest = parsed[0], parsed[1:]
    if not _is_header(first, rest):
        layout["names"] = [f"c{n + 1}" for n in range(len(first))]
        return layout, tuple(layout["names"])
    twice = [name for name, times in Counter(filter(None, first)).items() if times > 1]
    if twice:
        raise CropsError(f"{file}: column {twice[0]} is there twice; rename one")
    return layout, tuple(first)


def _is_header(first: list[str], rest: list[list[str]]) -> bool:
    """Return whether no cell of the first line is a value: a number, a time, a list or what comes again."""
    said = {n: cell.strip() for n, cell in enumerate(first) if cell.strip()}
    if any(NUMBER.fullmatch(cell) or ISO.fullmatch(cell) or cell[0] in "[{" for cell in said.values()):
        return False
    again = sum(any(cell == row[n].strip() for row in rest if n < len(row)) for n, cell in said.items())
    return again < len(said) / 2


def _records(file: Path, layout: dict[str, Any], names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file; lines that cannot be taken apart are left out."""
    if _kind(file) == ".parquet":
        for batch in pq.ParquetFile(file).iter_batches(2_000):
            yield from batch.to_pylist()
        return
    with _stream(file) as stream:
        if _kind(file) in LINES:
            array = stream.read(1) == "["
            stream.seek(0)
            rows = _json(stream.read()) if array else map(_json, stream)
            yield from (row.get("_source", row) for row in rows or () if isinstance(row, dict))
            return
        quoting: Any = csv.QUOTE_NONE if "quote" in layout else csv.QUOTE_MINIMAL
        delimiter = layout.get("delimiter", _USUAL.get(_kind(file), ","))
        reader = csv.reader(stream, delimiter=delimiter, quoting=quoting)
        for cells in itertools.islice(reader, 0 if "names" in layout else 1, None):
            if len(cells) == len(names):
                yield dict(zip(names, cells, strict=True))


def _json(text: str) -> Any:  # noqa: ANN401 (any JSON)
    try:
        return json.loads(text)
    except ValueError:
        return None


def _flat(row: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the cells of a row; those of objects by their paths."""
    for name, value in row.items():
        cell = cell_of(value)
        if isinstance(cell, dict):
            yield from _flat(cell, f"{above}{name}.")
        else:
            yield f"{above}{name}", cell


def cell_of(value: Any) -> Any:  # noqa: ANN401 (whatever a file holds)
    """Return a text, a list, an object or None; texts in brackets are taken apart."""
    if isinstance(value, str):
        value = value.strip()
        return None if value in NULLS else _nested(value) if value[0] in "[{" else value
    if isinstance(value, list):
        if value and all(
            isinstance(one, dict) and set(one) == {"key", "value"} for one in value
        ):  # as in GA4
            return {one["key"]: _given(one["value"]) for one in value}
        return [one if isinstance(one, dict) else cell_of(one) for one in value]
    if value is None or isinstance(value, dict):
        return value
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return None if text in NULLS else text


def _given(value: Any) -> Any:  # noqa: ANN401
    return (
        next((one for one in value.values() if one is not None), None) if isinstance(value, dict) else value
    )


def _nested(text: str) -> Any:  # noqa: ANN401
    """Return the list or object in a text, as JSON, Python, Postgres or numpy write it; or the text."""
    found = _json(text)
    if found is None and not re.search(r"['\"\d]\s+['\"\d]", text):
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            found = None
    if found is None:
        ended = text[-1] == {"[": "]", "{": "}"}[text[0]]
        return re.findall(r"[^\s,'\"]+", text[1:-1]) if ended else text
    return cell_of(list(found) if isinstance(found, tuple | set) else found)


def _listed(column: Column) -> Column:
    """Return a column of several numbers in a cell, such as `12 7 31`, as one of lists."""
    several = column.share(lambda text: len(re.findall(r"\d+", text)) > 2)
    if several < 0.3 or column.share(_NUMBERS.fullmatch) < OFTEN:
        return column
    return Column(
        column.name, tuple(re.findall(r"\d+", one) if isinstance(one, str) else one for one in column.cells)
    )


def one_line(value: Any) -> str:  # noqa: ANN401 (any JSON)
    """Return a value as JSON that may stand in a TOML file, also behind a `#`."""
    return json.dumps(value, ensure_ascii=False).encode(errors="replace").decode().replace("\x7f", "\\u007f")


def plain(text: str) -> str:
    """Return an id, whole numbers in one form."""
    return text.split(".")[0] if WHOLE.fullmatch(text) else text


def _times(texts: list[str]) -> list[dict[str, str]]:
    enough = OFTEN * max(1, len(texts))
    numbers = sorted(float(text) for text in texts if NUMBER.fullmatch(text))
    if len(numbers) >= enough:
        middle = numbers[len(numbers) // 2]
        for unit, factor in (("s", 1e6), ("ms", 1e3), ("us", 1), ("ns", 1e-3)):
            if EARLIEST_US <= middle * factor <= LATEST_US:
                return [{"unit": unit}]
        if len(str(int(middle))) not in (8, 12, 14):
            return [{"unit": "s", "since": START}] if numbers[0] >= 0 else []
    likely = [one for one in _FORMATS if texts and all(_parses(text, one) for text in texts[:3])]
    found = {one: read for one in likely if len(read := _read(texts, one)) >= enough}
    swapped = [one for one in found if one.startswith(_SWAPPED)]
    usual = [({"format": one}, _span(read)) for one, read in found.items() if one not in swapped]
    if sum(bool(ISO.fullmatch(text)) for text in texts) >= enough:
        days = _read([text[:10] for text in texts], "%Y-%m-%d")
        usual = [({"unit": "iso"}, _span(days))] if len(days) >= enough or not swapped else []
    # The days of a log are near each other: months that follow each other may be days, the other way round.
    nearer = (one for one in swapped if all(_span(found[one]) < span for _, span in usual))
    return [*(one for one, _ in usual), *({"format": one} for one in nearer)]


def _read(texts: Sequence[str], format_: str) -> list[datetime]:
    return [datetime.strptime(one, format_) for one in texts if _parses(one, format_)]  # noqa: DTZ007


def _span(read: Sequence[datetime]) -> timedelta:
    return max(read) - min(read) if read else timedelta(0)


def _parses(text: str, format_: str) -> bool:
    parts = format_.replace("%", "")
    if parts.isalpha() and len(text) != sum(4 if one == "Y" else 2 for one in parts):
        return False  # 20260105 is no time of 2020
    try:
        return 2000 <= datetime.strptime(text, format_).year < 2100  # noqa: DTZ007 (any zone)
    except ValueError:
        return False
