"""The bubble's observables and the choice of cases, on logs small enough to check by eye."""

import numpy as np
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
    section = bubble_section(*world)
    (table,) = section.tables
    assert "“shown again” rises from 0.0 to 33.3 %" in section.lead
    assert "“relevant, never shown” falls from 50.0 to 33.3 %" in section.lead
    again, unseen, own, top = zip(*(row[1:] for row in table.rows), strict=True)
    assert own == ("50.0", "66.7")  # 1 of 2, 2 of 3
    assert again == ("0.0", "33.3")
    # 1 % of 100 items = the single most shown one: one of two exposures, then item 3 with two of three
    assert top == ("50.0", "66.7")
    # "bow" wants items 1 and 4 (grade >= 2): 4 is never shown; on day 2 "tie a bow" wants 3, which is shown
    assert unseen == ("50.0", "33.3")
    assert table.head[3] == "found by the own model\n%, n = 2–3"


class Fixed:
    """Finds what it is told, by query."""

    def __init__(self, **found):
        self.found = {query.replace("_", " "): items for query, items in found.items()}

    def search(self, queries, k):
        ids = np.array([self.found[query] for query in queries])
        return ids, np.ones(ids.shape)


def test_cases_are_chosen_by_rule(world):
    # Relevant are items 1 and 4 to "bow", 3 to "tie a bow".
    logs, truth = world
    before = Fixed(bow=[2, 5], tie_a_bow=[3, 5])
    after = Fixed(bow=[1, 4], tie_a_bow=[2, 5])
    summary, cases = choose_queries(logs, truth, "2026-01-06", before, after, k=1)
    assert [(case.text, case.need_id) for case in cases] == [("tie a bow", 2), ("bow", 1)]
    assert cases[0].note.startswith(
        "Typical, the median of the 2 queries"
    )  # the lower one of two: it is the loss, too
    assert cases[1].note == "The largest gain (+2 relevant, the most searched query of 1 such)."
    assert "1 have more relevant results among the first 8 than before, 1 fewer; 0 show the same" in summary
    assert "On average 0.50 of 8 were relevant, now 1.00 are." in summary
    assert choose_queries(logs, truth, "2026-01-06", before, before, k=1)[1] == []


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
