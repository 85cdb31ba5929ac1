"""The simulated editor: grades by query, errors and a budget, and never a truth."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from crops.errors import CropsError
from crops.labels import Source
from crops.platform import annotate, query_grades
from crops.platform.annotator import draw_pairs
from crops.schema import QUERIES, SAMPLES
from crops.text import query_id

DAY, NOON = "2026-01-05", 1_767_614_400_000_000
JAGUAR = query_id("jaguar")


@pytest.fixture
def world(tmp_path, write_logs):
    """Jaguar was searched for the cat (need 1) and for the car (need 2), on another day for the team (3)."""
    searches = [(1, "Jaguar", NOON), (2, "jaguar ", NOON), (3, "jaguar", NOON + 86_400_000_000)]
    rows = [{"search_id": s, "query": q, "searched_at": at, "item_id": 1} for s, q, at in searches]
    logs, truth = write_logs(tmp_path / "logs", None, rows), tmp_path / "truth"
    truth.mkdir()
    pq.write_table(pa.table({"search_id": [1, 2, 3], "need_id": [1, 2, 3]}), truth / "searches.parquet")
    grades = {"need_id": [1, 2, 1, 3], "item_id": [10, 10, 11, 12], "grade": [1, 3, 2, 3]}
    pq.write_table(pa.table(grades), truth / "grades.parquet")
    return logs, truth


def write_mined(folder, rows):
    folder.mkdir()
    columns = dict(zip(SAMPLES.names(), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(columns).cast(SAMPLES.arrow()), folder / "samples.parquet")
    queries = {"query_id": [JAGUAR], "query": ["jaguar"], "searches": [2], "users": [2]}
    pq.write_table(pa.table(queries).cast(QUERIES.arrow()), folder / "queries.parquet")
    return folder


def test_an_editors_grade_is_the_best_for_any_need_of_the_query_on_the_days(world):
    found = query_grades(world[0], [DAY], world[1]).to_pylist()
    assert found == [
        {"query_id": JAGUAR, "query": "jaguar", "item_id": 10, "grade": 3},
        {"query_id": JAGUAR, "query": "jaguar", "item_id": 11, "grade": 2},
    ]


def test_every_origin_is_judged_alike_and_generated_documents_are_not(tmp_path):
    """90 filtered, 6 clicked, 4 of the feed (filtered too) and a written one: 12 are 4 of each."""
    rows = [(JAGUAR, item, 1, int(Source.FILTERED), 1.0) for item in range(1, 91)]
    rows += [(JAGUAR, item, 4, int(Source.CLICKED), 1.0) for item in range(91, 97)]
    rows += [(JAGUAR, item, 4, int(Source.FEED | Source.FILTERED), 1.0) for item in range(97, 101)]
    rows += [(JAGUAR, -1, 4, int(Source.KNOWLEDGE), 1.0)]
    mined = write_mined(tmp_path / "mined", rows)
    drawn = draw_pairs(mined, 12, seed=0)["item_id"].to_numpy()
    assert len(set(drawn.tolist())) == 12
    assert [((drawn >= low) & (drawn <= high)).sum() for low, high in ((1, 90), (91, 96), (97, 100))] == [
        4,
        4,
        4,
    ]
    assert draw_pairs(mined, 12, seed=0).equals(draw_pairs(mined, 12, seed=0))
    assert not draw_pairs(mined, 12, seed=1).equals(draw_pairs(mined, 12, seed=0))
    assert len(draw_pairs(mined, 1000, seed=0)) == 100


def test_a_tenth_of_the_grades_is_wrong_and_no_file_lies_in_the_truth(tmp_path, world):
    rows = [(JAGUAR, item, 1, int(Source.FILTERED), 1.0) for item in range(10, 2010)]
    mined = write_mined(tmp_path / "mined", rows)
    say = {"budget": 2000, "seed": 0}
    annotate(mined, world[0], [DAY], world[1], tmp_path / "right.csv", noise=0.0, **say)
    annotate(mined, world[0], [DAY], world[1], tmp_path / "said.csv", noise=0.1, **say)
    right, said = (pa.csv.read_csv(tmp_path / f"{name}.csv") for name in ("right", "said"))
    assert right.column_names == ["day", "query", "item_id", "grade"]
    assert right.filter(pa.compute.field("grade") > 0)["item_id"].to_pylist() == [10, 11]
    wrong = np.mean(right["grade"].to_numpy() != said["grade"].to_numpy())
    assert 0.08 < wrong < 0.12  # three standard errors of 2,000 draws
    assert set(said["grade"].to_pylist()) == {0, 1, 2, 3}
    for inside in ("judgements.csv", "more/judgements.csv"):
        with pytest.raises(CropsError, match="judgements err, and are no truth"):
            annotate(mined, world[0], [DAY], world[1], world[1] / inside, noise=0.1, **say)
