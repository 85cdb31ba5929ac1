"""Blind sheets and the precision of sources by truth, on tables small enough to count by eye."""

import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.errors import CropsError
from crops.evaluation.raters import (
    COLUMNS,
    GRADE_NAMES,
    agreements,
    common_counts,
    fleiss_kappa,
    key_path,
    middle_grades,
    read_key,
    read_rating_sheet,
    read_ratings,
    write_grades,
    write_rating_sheet,
)
from crops.evaluation.source_precision import Precision, source_precision
from crops.labels import Source
from crops.schema import EVIDENCE, ITEMS, QUERIES, SAMPLES, SYNTHETIC_ITEMS
from crops.text import query_id

CLICKED, FEED, REWORDED, WRITTEN = Source.CLICKED, Source.FEED, Source.REFORMULATION, Source.KNOWLEDGE


def sample(query, item, sources):
    known = {"query_id": query_id(query), "label": 4, "weight": 1.0}
    return {**known, "item_id": item, "sources": int(sources)}


def seen(query, item, source, search, theta=None):
    known = {"query_id": query_id(query), "day": "2024-05-01", "search_id": search, "theta": theta}
    return {**known, "item_id": item, "source": int(source)}


def write(folder, table, rows):
    full = [dict.fromkeys(table.names()) | row for row in rows]
    pq.write_table(pa.Table.from_pylist(full, schema=table.arrow()), folder / f"{table.name}.parquet")


@pytest.fixture
def mined(tmp_path):
    """Jaguar: search 1 wants need 1 (the cat: items 1, 2), search 2 need 2 (the car: item 3)."""
    folder = tmp_path / "mined"
    folder.mkdir()
    users = {"jaguar": 30, "rare": 3}
    queries = [{"query_id": query_id(q), "query": q, "searches": 40, "users": n} for q, n in users.items()]
    write(folder, QUERIES, queries)
    titles = {1: "=cmd|' /c calc'", 2: "Cat cubs", 3: "Fast car", 4: "Cake"}
    for table, texts in ((ITEMS, titles), (SYNTHETIC_ITEMS, {-1: "Spots", -2: "Flour"})):
        own = {4: "=sku-4"}
        rows = [{"item_id": i, "ocr_cover": text, "source_id": own.get(i)} for i, text in texts.items()]
        write(folder, table, rows)
    write(
        folder,
        SAMPLES,
        [
            sample("jaguar", 1, CLICKED | FEED),
            sample("jaguar", 2, REWORDED),
            sample("jaguar", 3, FEED),
            sample("jaguar", 4, FEED | REWORDED),
            sample("jaguar", -1, WRITTEN),
            sample("jaguar", -2, WRITTEN),
            sample("rare", 1, CLICKED),
            {**sample("jaguar", 5, Source.EXPOSED), "label": 3},
        ],
    )
    write(
        folder,
        EVIDENCE,
        [
            seen("jaguar", 1, CLICKED, 1),
            seen("jaguar", 1, FEED, 1, 0.9),
            # The car for who wanted the cat is wrong; the same item after the other search is right.
            seen("jaguar", 2, REWORDED, 2, 0.7),
            seen("jaguar", 3, FEED, 2, 0.5),
            seen("jaguar", 3, FEED, 1, 0.5),
            seen("jaguar", 4, FEED, 1, 0.6),
            seen("jaguar", 4, REWORDED, 1, 0.2),
            {**seen("jaguar", -1, WRITTEN, None)},
        ],
    )
    return folder


@pytest.fixture
def truth(tmp_path):
    folder = tmp_path / "truth"
    folder.mkdir()
    pq.write_table(pa.table({"search_id": [1, 2], "need_id": [1, 2]}), folder / "searches.parquet")
    grades = {"need_id": [1, 1, 2, 1], "item_id": [1, 2, 3, 3], "grade": [3, 2, 3, 1]}
    pq.write_table(pa.table(grades), folder / "grades.parquet")
    return folder


class Nearest:
    """Spots are nearest to the cat (1), flour to the cake (4)."""

    def search(self, queries, k):
        assert k == 1
        ids = [[{"Spots": 1, "Flour": 4}[text]] for text in queries]
        return np.array(ids, np.int64), np.ones((len(ids), 1), np.float32)


def theta(batches):
    for batch in batches:
        scores = [{"Spots": 0.65, "Flour": 0.3}[text] for text in batch.column("right").to_pylist()]
        yield batch.append_column("score", pa.array(scores, pa.float64()))


def test_precision_by_hand(mined, truth):
    found = source_precision(mined, truth, [0.6], catalogue=Nearest(), theta=theta)
    assert found == [
        Precision("clicks", None, 1, 1, 1),
        # P1: item 2 was consumed by who wanted the car: wrong for them, right for the query, as others wanted
        # the cat; item 4 is wrong. Above .6 only item 2.
        Precision("P1", None, 2, 0, 1),
        Precision("P1", 0.6, 1, 0, 1),
        # P2: items 1 and 3 right, 4 wrong; the comparison is strict, so above .6 only item 1.
        Precision("P2", None, 3, 2, 2),
        Precision("P2", 0.6, 1, 1, 1),
        # P3: Spots stands for item 1, which somebody wanted; Flour for 4, which nobody did.
        Precision("P3", None, 2, 1, 1),
        Precision("P3", 0.6, 1, 1, 1),
    ]
    assert found[3].share == pytest.approx(2 / 3)
    assert found[1].share_for_query == pytest.approx(1 / 2)
    rows = source_precision(mined, truth, [0.99])
    assert {row.source for row in rows} == {"clicks", "P1", "P2"}  # without a catalogue P3 is left out
    assert [row.share for row in rows if row.alpha == 0.99] == [None, None]  # nothing is above it
    with pytest.raises(CropsError, match="no output of a mining or a simulation"):
        source_precision(truth, truth, [0.6])
    write(mined, EVIDENCE, [seen("jaguar", 1, FEED, 1)])
    with pytest.raises(CropsError, match="P2 was mined without theta"):
        source_precision(mined, truth, [0.6])


def test_a_sheet_is_blind_and_its_key_is_not(mined, tmp_path):
    sheet = tmp_path / "sheet.csv"
    assert write_rating_sheet(mined, sheet, each=10, k=20, seed=0) == 6
    rows = read_rating_sheet(sheet)
    assert {row.query for row in rows} == {"jaguar"}  # rare has too few users
    assert sorted(row.title for row in rows) == [
        "=cmd|' /c calc'", "Cake", "Cat cubs", "Fast car", "Flour", "Spots",
    ]  # fmt: skip
    with sheet.open(encoding="utf-8-sig") as file:
        assert not any(cell.startswith("=") for row in csv.reader(file) for cell in row)
        assert "item_id" not in sheet.read_text()
    key = read_key(key_path(sheet))
    by_title = {row.title: key[row.pair] for row in rows}
    assert by_title["Spots"] == WRITTEN
    assert by_title["Cake"] == FEED | REWORDED
    with key_path(sheet).open(encoding="utf-8-sig") as file:  # own ids, harmless to a spreadsheet
        assert {row["item_id"] for row in csv.DictReader(file)} == {"1", "2", "3", "'=sku-4", "-1", "-2"}


def test_every_source_gets_its_pairs_and_the_draw_is_seeded(mined, tmp_path):
    paths = [tmp_path / f"{name}.csv" for name in "abc"]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        write_rating_sheet(mined, path, each=1, k=1, seed=seed)
    masks = read_key(key_path(paths[0])).values()
    assert all(any(mask & source for mask in masks) for source in (CLICKED, FEED, REWORDED, WRITTEN))
    assert len(masks) <= 4
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert key_path(paths[0]).read_bytes() != key_path(paths[2]).read_bytes()
    with pytest.raises(CropsError, match="lower engine.k"):
        write_rating_sheet(mined, tmp_path / "sheet.csv", each=1, k=1000, seed=0)
    write_rating_sheet(mined, paths[0], each=10, k=20, seed=1)
    write_grades(paths[0], paths[0], {"0001": 2})
    with pytest.raises(CropsError, match="holds grades already"):  # a filled sheet is not overwritten
        write_rating_sheet(mined, paths[0], each=10, k=20, seed=0)


def test_grades_are_words_or_numbers(mined, tmp_path):
    sheet, filled = tmp_path / "sheet.csv", tmp_path / "filled.csv"
    write_rating_sheet(mined, sheet, each=10, k=20, seed=0)
    write_grades(sheet, filled, {"0001": 2, "0002": 0})
    filled.write_text(filled.read_text(encoding="utf-8-sig").replace("very relevant", " Very Relevant "))
    assert read_ratings(filled) == {"0001": 2, "0002": 0}
    filled.write_text(filled.read_text().replace(" Very Relevant ", "1"))
    assert read_ratings(filled)["0001"] == 1
    assert GRADE_NAMES[1] == "relevant"


HEAD = ",".join(COLUMNS)
ROWS = "".join(f"{pair:04d},q,9,t,d,k,1\n" for pair in range(3))


@pytest.mark.parametrize(("content", "message"), [
    ("pair,query\n1,a\n", "no column users, title"),
    (f"{HEAD}\n1,a,30,t,,,good\n", "line 2: grade 'good'"),
    (f"{HEAD}\n1,a,30,t,,,1\n1,a,30,t,,,1\n", "there already"),
    (f"{HEAD}\n1,a,many,t,,,1\n", "users is 'many'"),
    (f"{HEAD}\n1,a,30,t,,,\n", "no pair has a grade"),
    *(
        (
            f"{HEAD}\n{ROWS}0009,q,9,t,d,{fault}\n0010,q,9,t,d,k,1\n",
            "cannot read the sheet: .*; save it as CSV",
        )
        for fault in ('"open,1', '"closed" too soon,1')
    ),
])  # fmt: skip
def test_bad_sheets_are_named(tmp_path, content, message):
    (tmp_path / "sheet.csv").write_text(content)
    with pytest.raises(CropsError, match=message):
        read_ratings(tmp_path / "sheet.csv")


def test_cohens_kappa_by_hand():
    # 4 pairs: the same grade on 3. First gives 0, 0, 1, 2; second 0, 0, 1, 1.
    # Chance: 0: .5 * .5, 1: .25 * .5, 2: .25 * 0 = .375; kappa = (.75 - .375) / .625 = .6.
    # Quadratic: observed disagreement 1/4 of 1; expected: sum p_i q_j (i - j)^2
    #   = .5*.5*1 + .25*.5*1 + .25*(.5*4 + .5*1) = .25 + .125 + .625 = 1; kappa = 1 - .25 / 1 = .75.
    first = {"a": 0, "b": 0, "c": 1, "d": 2, "only first": 1}
    second = {"a": 0, "b": 0, "c": 1, "d": 1}
    (one,) = agreements({"x": first, "y": second})
    assert (one.first, one.second, one.pairs, one.same) == ("x", "y", 4, 0.75)
    assert one.kappa == pytest.approx(0.6)
    assert one.weighted_kappa == pytest.approx(0.75)
    (one,) = agreements({"x": {"a": 2, "b": 2}, "y": {"a": 2, "b": 2}})
    assert (one.same, one.kappa, one.weighted_kappa) == (1.0, None, None)  # chance alone would agree
    assert agreements({"x": {"a": 1}, "y": {"b": 1}}) == []
    raters = {"x": {"a": 0, "b": 2}, "y": {"a": 0, "b": 1, "c": 1}, "z": {"a": 2, "b": 1}}
    np.testing.assert_array_equal(common_counts(raters, 3), [[2, 0, 1], [0, 2, 1]])


def test_fleiss_kappa_of_his_own_example():
    # Fleiss 1971: 10 subjects, 14 raters, 5 categories; kappa .210 as recomputed in the literature.
    rows = (
        "0 0 0 0 14/0 2 6 4 2/0 0 3 5 6/0 3 9 2 0/2 2 8 1 1/7 7 0 0 0/3 2 6 3 0/2 5 3 2 2/6 5 2 1 0/0 2 2 3 7"
    )
    counts = np.array([row.split() for row in rows.split("/")], dtype=int)
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa(np.array([[0, 0, 3], [0, 0, 3]])) is None  # of one grade


def test_middle_grade_is_the_lower_of_two():
    raters = [{"a": 0, "b": 2, "c": 1}, {"a": 2, "b": 1}, {"a": 2}]
    assert middle_grades(raters) == {"a": 2, "b": 1, "c": 1}
