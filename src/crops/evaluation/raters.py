"""The sheet that people fill, and how far they agree: one CSV of pairs in a blind order, one per rater back.

The key next to the sheet says where each pair comes from, so that raters do not know it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crops.database import failing_as, open_database, parquet, pattern
from crops.engine.evidence import told_queries_sql
from crops.engine.mined import mined_folder
from crops.errors import CropsError
from crops.labels import POSITIVE_LABEL, POSITIVE_ORIGINS, Source
from crops.outputs import write_text
from crops.retrieval.catalogue import own_ids
from crops.schema import ITEMS

GRADE_NAMES = ("irrelevant", "relevant", "very relevant")
"""What a rater writes; a grade is its place, 0 to 2, and may be written as that number too."""
COLUMNS = ("pair", "query", "users", "title", "description", "keywords", "grade")
SOURCES = {row.name: row.bit for row in POSITIVE_ORIGINS}
"""The sources of positives that are judged."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A cell that starts so is a formula to a spreadsheet; texts of creators may be hostile."""

_SQL = """
with told as ({told}), docs as (
    select item_id, ocr_cover, photo_caption, keyword from read_parquet($items)
    union all select item_id, ocr_cover, photo_caption, keyword from read_parquet($synthetic)
), positives as (
    select s.query_id, s.item_id, s.sources, q.query, q.users from read_parquet($samples) s
    join told q using (query_id) where s.label >= $positive
), placed as (
    select p.*, row_number() over (
        partition by b.bit order by md5(concat_ws(' ', $seed, p.query_id, p.item_id))
    ) as place
    from positives p join (select unnest($bits) as bit) b on p.sources & b.bit <> 0
), drawn as (
    select distinct query_id, item_id, sources, query, users from placed where place <= $each
)
select query, users, ocr_cover, photo_caption, keyword, query_id, item_id, sources
from drawn join docs using (item_id) order by md5(concat_ws(' ', $seed, 'order', query_id, item_id))
"""


@dataclass(frozen=True)
class RatedPair:
    """A pair as raters see it."""

    pair: str
    query: str
    users: int
    title: str
    description: str
    keywords: str
    grade: int | None


def key_path(sheet: Path) -> Path:
    """Return the key that belongs to a sheet."""
    return sheet.with_name(f"{sheet.stem}.key.csv")


def write_rating_sheet(samples: Path, sheet: Path, *, each: int, k: int, seed: int) -> int:
    """Draw positives of a mining into a blind rating sheet, and write its key next to it.

    Raters see queries of at least k people, how many those are, and texts of documents; that somebody's
    behaviour makes a pair a positive is all that a sheet tells of a trail, whoever stands behind it.

    Args:
        samples: output of `crops mine`, daily or not.
        sheet: CSV for the raters, replaced when it exists without a grade.
        each: pairs drawn of every source that has any; a pair of two sources counts for both.
        k: only queries of at least this many users are shown to raters.

    Returns:
        The number of pairs.

    Raises:
        CropsError: `samples` is no output of a mining, nothing can be drawn, or `sheet` holds grades.
    """
    if sheet.exists() and any(row.grade is not None for row in read_rating_sheet(sheet)):
        raise CropsError(f"{sheet} holds grades already; name another file")
    rows = _draw(samples, each, k, seed)
    if not rows:
        raise CropsError(
            f"{samples}: no positive of a query with at least {k} users; lower engine.k (--config)"
        )
    own = own_ids(mined_folder(samples) / f"{ITEMS.name}.parquet")
    names = [f"{number:04d}" for number in range(1, len(rows) + 1)]
    shown = [
        (name, _harmless(row[0]), row[1], *(_harmless(text or "") for text in row[2:5]), "")
        for name, row in zip(names, rows, strict=True)
    ]
    _write(sheet, COLUMNS, shown)
    _write(
        key_path(sheet),
        ("pair", "query_id", "item_id", "sources"),
        [
            (name, query, _harmless(own[item]) if item in own else item, sources)
            for name, (*_, query, item, sources) in zip(names, rows, strict=True)
        ],
    )
    return len(rows)


def _draw(samples: Path, each: int, k: int, seed: int) -> list[tuple[Any, ...]]:
    folder = mined_folder(samples)
    tables = {name: pattern(folder / f"{name}.parquet") for name in ("items", "samples")}
    queries = parquet(folder / "queries.parquet")
    values: dict[str, object] = {
        **tables,
        "synthetic": pattern(folder / "synthetic_items.parquet"),
        "positive": POSITIVE_LABEL,
        "bits": [int(source) for source in SOURCES.values()],
        "each": each,
        "seed": seed,
    }
    with failing_as(f"{samples} is not an output of `crops mine`"), open_database() as connection:
        return connection.execute(_SQL.format(told=told_queries_sql(k, queries)), values).fetchall()


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _shown(text: str) -> str:
    """Return the text that `_harmless` was given."""
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA) else text


def _write(path: Path, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    write_text(path, "\ufeff" + text.getvalue())


def read_rating_sheet(path: Path) -> list[RatedPair]:
    """Read a rating sheet, filled or not.

    Raises:
        CropsError: the file is unreadable, lacks a column, repeats a pair, or a grade is none of the rubric.
    """
    rows, seen = [], set()
    for line, row in enumerate(_read(path, COLUMNS), 2):
        if row["pair"] in seen:
            raise CropsError(f"{path}, line {line}: pair {row['pair']} is there already; keep one of the two")
        seen.add(row["pair"])
        if not row["users"].isdecimal():
            raise CropsError(f"{path}, line {line}: users is '{row['users']}', not a number")
        grade = _grade(row["grade"], f"{path}, line {line}")
        query, title, about, keywords = (
            _shown(row[name]) for name in ("query", "title", "description", "keywords")
        )
        rows.append(RatedPair(row["pair"], query, int(row["users"]), title, about, keywords, grade))
    return rows


def _grade(text: str, where: str) -> int | None:
    text = text.strip().casefold()
    if not text:
        return None
    if text in GRADE_NAMES:
        return GRADE_NAMES.index(text)
    if text in ("0", "1", "2"):
        return int(text)
    raise CropsError(
        f"{where}: grade '{text}' is none of the rubric; write {', '.join(GRADE_NAMES)}, or 0, 1, 2"
    )


def read_ratings(sheet: Path) -> Ratings:
    """Return the grades of a filled sheet by pair; pairs without one are left out.

    Raises:
        CropsError: as `read_rating_sheet`, or no pair has a grade.
    """
    grades = {row.pair: row.grade for row in read_rating_sheet(sheet) if row.grade is not None}
    if not grades:
        raise CropsError(f"{sheet}: no pair has a grade yet; fill the column 'grade'")
    return grades


def write_grades(sheet: Path, out: Path, grades: Ratings) -> None:
    """Write a copy of a sheet with these grades, as words, and no others."""
    rows = [
        (
            row.pair,
            _harmless(row.query),
            row.users,
            *(_harmless(text) for text in (row.title, row.description, row.keywords)),
            GRADE_NAMES[grades[row.pair]] if row.pair in grades else "",
        )
        for row in read_rating_sheet(sheet)
    ]
    _write(out, COLUMNS, rows)


def read_key(path: Path) -> dict[str, Source]:
    """Return the sources of each pair of a sheet.

    Raises:
        CropsError: the file is unreadable, lacks a column, or a mask is no number.
    """
    try:
        return {row["pair"]: Source(int(row["sources"])) for row in _read(path, ("pair", "sources"))}
    except ValueError as error:
        raise CropsError(f"{path}: a value of 'sources' is no bit mask ({error})") from error


def _read(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="", strict=True)  # else an open quote takes in the rest
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise CropsError(f"{path}: no column {', '.join(missing)}; keep the columns of the sheet")
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CropsError(f"{path}: cannot read the sheet: {error}; save it as CSV in UTF-8") from error


Ratings = Mapping[str, int]
"""Grades by the name of the pair."""


@dataclass(frozen=True)
class Agreement:
    """Two raters on the pairs that both graded; kappas are None where chance alone would agree."""

    first: str
    second: str
    pairs: int
    same: float
    """Share of equal grades."""
    kappa: float | None
    """Cohen 1960."""
    weighted_kappa: float | None
    """With quadratic weights (Cohen 1968): a step of two counts four times a step of one."""


def agreements(raters: Mapping[str, Ratings]) -> list[Agreement]:
    """Return the agreement of every two raters that share a pair, in their order."""
    found = []
    for (first, ours), (second, theirs) in combinations(raters.items(), 2):
        shared = sorted(ours.keys() & theirs.keys())
        if shared:
            a, b = [ours[name] for name in shared], [theirs[name] for name in shared]
            same = float(np.mean(np.equal(a, b)))
            found.append(
                Agreement(first, second, len(shared), same, _kappa(a, b, None), _kappa(a, b, "quadratic"))
            )
    return found


def _kappa(a: Sequence[int], b: Sequence[int], weights: str | None) -> float | None:
    if len({*a, *b}) == 1:
        return None
    from sklearn.metrics import cohen_kappa_score  # slow to import: not for --help

    return float(cohen_kappa_score(a, b, weights=weights))


def fleiss_kappa(counts: NDArray[np.int64]) -> float | None:
    """Return the agreement of many raters (Fleiss 1971); None where all grades are equal.

    Args:
        counts: how many raters gave each pair each grade, [pairs, grades]; at least two, equally many for
            each pair.
    """
    raters = counts[0].sum()
    shares = counts.sum(axis=0) / counts.sum()
    chance = float((shares**2).sum())
    if chance == 1.0:
        return None
    observed = float(((counts**2).sum(axis=1) - raters).mean() / (raters * (raters - 1)))
    return (observed - chance) / (1 - chance)


def common_counts(raters: Mapping[str, Ratings], grades: int) -> NDArray[np.int64]:
    """Return the counts for `fleiss_kappa` over the pairs that every rater graded, [pairs, grades]."""
    shared = sorted(set.intersection(*(set(ratings) for ratings in raters.values())))
    table = np.zeros((len(shared), grades), np.int64)
    for row, name in enumerate(shared):
        for ratings in raters.values():
            table[row, ratings[name]] += 1
    return table


def middle_grades(raters: Sequence[Ratings]) -> dict[str, int]:
    """Return the median grade of each pair, the lower one of two middle ones."""
    names = sorted(set().union(*raters))
    return {name: median_low(own[name] for own in raters if name in own) for name in names}
