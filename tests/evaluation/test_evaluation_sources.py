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


def write(folder, table, rows):
    full = [dict.fromkeys(table.names()) | row for row in rows]
    pq.write_table(pa.Table.from_pylist(full, schema=table.arrow()), folder / f"{table.name}.parquet")


def sample(query, item, sources):
    return {
        "query_id": query_id(query),
        "item_id": item,
        "label": 4,
        "sources": int(sources),
        "weight": 1.0,
    }


def seen(query, item, source, search, theta=None):
    return {
        "query_id": query_id(query),
        "item_id": item,
        "source": int(source),
        "search_id": search,
        "theta": theta,
        "day": "2024-05-01",
    }


@pytest.fixture
def mined(tmp_path):
    """Jaguar: search 1 wants need 1 (the cat: items 1, 2), search 2 need 2 (the car: item 3)."""
    folder = tmp_path / "mined"
    folder.mkdir()
    users = {"jaguar": 30, "rare": 3}
    write(
        folder,
        QUERIES,
        [{"query_id": query_id(q), "query": q, "searches": 40, "users": n} for q, n in users.items()],
    )
    titles = {1: "=cmd|' /c calc'", 2: "Cat cubs", 3: "Fast car", 4: "Cake"}
    write(folder, ITEMS, [{"item_id": item, "ocr_cover": title} for item, title in titles.items()])
    write(
        folder,
        SYNTHETIC_ITEMS,
        [{"item_id": -1, "ocr_cover": "Spots"}, {"item_id": -2, "ocr_cover": "Flour"}],
    )
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
        Precision("clicks", None, 1, 1),
        # P1: item 2 was consumed by who wanted the car: wrong; item 4 is wrong. Above .6 only item 2.
        Precision("P1", None, 2, 0),
        Precision("P1", 0.6, 1, 0),
        # P2: items 1 and 3 right, 4 wrong; the comparison is strict, so above .6 only item 1.
        Precision("P2", None, 3, 2),
        Precision("P2", 0.6, 1, 1),
        # P3: Spots stands for item 1, which somebody wanted; Flour for 4, which nobody did.
        Precision("P3", None, 2, 1),
        Precision("P3", 0.6, 1, 1),
    ]
    assert found[3].share == pytest.approx(2 / 3)


def test_without_a_catalogue_p3_is_left_out(mined, truth):
    assert {row.source for row in source_precision(mined, truth, [])} == {"clicks", "P1", "P2"}


def test_nothing_above_a_threshold_has_no_precision(mined, truth):
    rows = source_precision(mined, truth, [0.99])
    assert [row.share for row in rows if row.alpha == 0.99] == [None, None]


def test_a_mining_without_theta_is_refused(mined, truth):
    write(mined, EVIDENCE, [seen("jaguar", 1, FEED, 1)])
    with pytest.raises(CropsError, match="P2 was mined without theta"):
        source_precision(mined, truth, [0.6])


def test_other_folders_are_named(tmp_path):
    with pytest.raises(CropsError, match="no output of a mining or a simulation"):
        source_precision(tmp_path, tmp_path, [0.6])


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


def test_every_source_gets_its_pairs_and_the_draw_is_seeded(mined, tmp_path):
    paths = [tmp_path / f"{name}.csv" for name in "abc"]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        write_rating_sheet(mined, path, each=1, k=1, seed=seed)
    masks = read_key(key_path(paths[0])).values()
    assert all(any(mask & source for mask in masks) for source in (CLICKED, FEED, REWORDED, WRITTEN))
    assert len(masks) <= 4
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert key_path(paths[0]).read_bytes() != key_path(paths[2]).read_bytes()


def test_grades_are_words_or_numbers(mined, tmp_path):
    sheet, filled = tmp_path / "sheet.csv", tmp_path / "filled.csv"
    write_rating_sheet(mined, sheet, each=10, k=20, seed=0)
    write_grades(sheet, filled, {"0001": 2, "0002": 0})
    filled.write_text(filled.read_text(encoding="utf-8-sig").replace("very relevant", " Very Relevant "))
    assert read_ratings(filled) == {"0001": 2, "0002": 0}
    filled.write_text(filled.read_text().replace(" Very Relevant ", "1"))
    assert read_ratings(filled)["0001"] == 1
    assert GRADE_NAMES[1] == "relevant"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("pair,query\n1,a\n", "no column users, title"),
        ("pair,query,users,title,description,keywords,grade\n1,a,30,t,,,good\n", "line 2: grade 'good'"),
        ("pair,query,users,title,description,keywords,grade\n1,a,30,t,,,1\n1,a,30,t,,,1\n", "there already"),
        ("pair,query,users,title,description,keywords,grade\n1,a,many,t,,,1\n", "users is 'many'"),
        ("pair,query,users,title,description,keywords,grade\n1,a,30,t,,,\n", "no pair has a grade"),
    ],
)
def test_bad_sheets_are_named(tmp_path, content, message):
    (tmp_path / "sheet.csv").write_text(content)
    with pytest.raises(CropsError, match=message):
        read_ratings(tmp_path / "sheet.csv")


def test_a_filled_sheet_is_not_overwritten(mined, tmp_path):
    sheet = tmp_path / "sheet.csv"
    write_rating_sheet(mined, sheet, each=10, k=20, seed=0)
    write_rating_sheet(mined, sheet, each=10, k=20, seed=1)
    write_grades(sheet, sheet, {"0001": 2})
    with pytest.raises(CropsError, match="holds grades already"):
        write_rating_sheet(mined, sheet, each=10, k=20, seed=0)


def test_nothing_to_draw_is_an_error(mined, tmp_path):
    with pytest.raises(CropsError, match="lower engine.k"):
        write_rating_sheet(mined, tmp_path / "sheet.csv", each=1, k=1000, seed=0)


@pytest.mark.parametrize("fault", ['"open,1', '"closed" too soon,1'])
def test_a_quote_that_breaks_a_sheet_is_refused(tmp_path, fault):
    sheet = tmp_path / "sheet.csv"
    lines = [",".join(COLUMNS), *(f"{pair:04d},q,9,t,d,k,1" for pair in range(3)), f"0009,q,9,t,d,{fault}"]
    sheet.write_text("\n".join([*lines, "0010,q,9,t,d,k,1", ""]))
    with pytest.raises(CropsError, match=r"sheet\.csv: cannot read the sheet: .*; save it as CSV in UTF-8"):
        read_rating_sheet(sheet)


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


def test_no_kappa_where_chance_alone_would_agree():
    (one,) = agreements({"x": {"a": 2, "b": 2}, "y": {"a": 2, "b": 2}})
    assert (one.same, one.kappa, one.weighted_kappa) == (1.0, None, None)


def test_raters_without_a_common_pair_have_no_agreement():
    assert agreements({"x": {"a": 1}, "y": {"b": 1}}) == []


def test_fleiss_kappa_of_his_own_example():
    # Fleiss 1971: 10 subjects, 14 raters, 5 categories; kappa .210 as recomputed in the literature.
    counts = np.array(
        [
            [0, 0, 0, 0, 14],
            [0, 2, 6, 4, 2],
            [0, 0, 3, 5, 6],
            [0, 3, 9, 2, 0],
            [2, 2, 8, 1, 1],
            [7, 7, 0, 0, 0],
            [3, 2, 6, 3, 0],
            [2, 5, 3, 2, 2],
            [6, 5, 2, 1, 0],
            [0, 2, 2, 3, 7],
        ]
    )
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)


def test_fleiss_kappa_needs_two_grades():
    assert fleiss_kappa(np.array([[0, 0, 3], [0, 0, 3]])) is None


def test_common_counts_cover_the_pairs_that_all_graded():
    raters = {"x": {"a": 0, "b": 2}, "y": {"a": 0, "b": 1, "c": 1}, "z": {"a": 2, "b": 1}}
    np.testing.assert_array_equal(common_counts(raters, 3), [[2, 0, 1], [0, 2, 1]])


def test_middle_grade_is_the_lower_of_two():
    raters = [{"a": 0, "b": 2, "c": 1}, {"a": 2, "b": 1}, {"a": 2}]
    assert middle_grades(raters) == {"a": 2, "b": 1, "c": 1}
