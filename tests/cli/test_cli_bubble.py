"""The bubble's observables and the choice of cases, on logs small enough to check by eye."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.cli.experiment import bubble_section
from crops.config import EngineConfig
from crops.engine import mine
from crops.logs import open_logs
from crops.report.side_by_side import Reasons, choose_queries

DAY_US = 86_400_000_000
DENSE = 2  # second bit: bm25, dense, ...


def write_truth(folder, searches, grades):
    folder.mkdir(parents=True)
    needs = [(1, "Bow", "archery"), (2, "Bow", "ribbon")]
    columns = list(zip(*needs, strict=True))
    pq.write_table(
        pa.table({"need_id": columns[0], "head": columns[1], "sense": columns[2]}), folder / "needs.parquet"
    )
    names = ("search_id", "need_id")
    pq.write_table(
        pa.table(dict(zip(names, zip(*searches, strict=True), strict=True))), folder / "searches.parquet"
    )
    names = ("need_id", "item_id", "grade")
    pq.write_table(
        pa.table(dict(zip(names, zip(*grades, strict=True), strict=True))), folder / "grades.parquet"
    )


@pytest.fixture
def world(tmp_path, write_logs):
    noon = 1_767_614_400_000_000
    rows = [
        # day 1: "bow" shows items 1 and 2, one of them found by the dense route
        {"search_id": 1, "query": "bow", "item_id": 1, "searched_at": noon, "routes": 1},
        {"search_id": 1, "query": "bow", "item_id": 2, "searched_at": noon, "routes": 1 | DENSE},
        # day 2: item 1 again in another spelling, item 3 for the first time; item 4 is ranked, not shown
        {"search_id": 2, "query": "Ｂow ", "item_id": 1, "searched_at": noon + DAY_US, "routes": DENSE},
        {"search_id": 2, "query": "Ｂow ", "item_id": 3, "searched_at": noon + DAY_US, "routes": DENSE},
        {"search_id": 2, "query": "Ｂow ", "item_id": 4, "searched_at": noon + DAY_US, "stage": "unexposed"},
        {"search_id": 3, "query": "tie a bow", "item_id": 3, "searched_at": noon + DAY_US, "routes": 1},
    ]
    items = [{"item_id": i, "ocr_cover": "x"} for i in range(1, 101)]
    tmp_path /= "it's a world"  # a quote must not break the queries
    logs = write_logs(tmp_path / "logs", items=items, impressions=rows)
    grades = [(1, 1, 3), (1, 4, 2), (1, 5, 1), (2, 3, 3)]
    write_truth(tmp_path / "truth", [(1, 1), (2, 1), (3, 2)], grades)
    return logs, tmp_path / "truth"


def test_bubble_shares_by_hand(world):
    (table,) = bubble_section(*world).tables
    own, again, top, unseen = zip(*(row[1:] for row in table.rows), strict=True)
    assert own == ("50.0", "66.7")  # 1 of 2, 2 of 3
    assert again == ("0.0", "33.3")
    # 1 % of 100 items = the single most shown one: one of two exposures, then item 3 with two of three
    assert top == ("50.0", "66.7")
    # "bow" wants items 1 and 4 (grade >= 2): 4 is never shown; on day 2 "tie a bow" wants 3, which is shown
    assert unseen == ("50.0", "33.3")
    assert table.head[1] == "found by the own model\n%, n = 2–3"


def test_cases_are_chosen_by_rule(world):
    logs, truth = world
    cases = choose_queries(logs, truth, "2026-01-05", "2026-01-06", k=1)
    assert [(case.text, case.need_id) for case in cases] == [("bow", 1), ("tie a bow", 2)]
    assert "also searched" in cases[0].note
    assert "never searched" in cases[1].note


def test_what_was_shown_for_a_query_is_looked_up_by_what_it_means(world, tmp_path):
    logs, truth = world
    samples = tmp_path / "samples"
    mine(open_logs(logs), samples, EngineConfig(), relevance=None, similarity=None)
    pq.write_table(pa.table({"item_id": [1], "need_id": [1]}), truth / "items.parquet")
    with Reasons(samples, logs, truth, "2026-01-06") as evidence:
        assert evidence.was_shown("bow", 3)  # as "Ｂow " on the second day
        assert not evidence.was_shown("bow", 4)
    with Reasons(samples, logs, truth, "2026-01-05") as evidence:
        assert not evidence.was_shown("bow", 3)
