"""Frequency, senses, age and exposure on logs small enough to count by eye; what is measured with them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.errors import CropsError
from crops.evaluation import Slices, TestSets, TruthSets, build_slices, load_slices, save_slices
from crops.evaluation.evaluate import METRICS, RankedDay, Rankings
from crops.text import query_id

DAY = 86_400_000_000
TRAIN = 1_767_614_400_000_000  # 2026-01-05 12:00
TEST = TRAIN + 2 * DAY
TEXTS = ["ape", "bee", "cow", "new"]
IDS = {text: query_id(text) for text in TEXTS}


@pytest.fixture
def day(tmp_path, write_logs):
    """Training: ape searched 3 times, bee 2, cow 1, in other letters; test: all of them once, and `new`."""
    impressions, search = [], 0
    for text, times in (("Ape", 3), ("bee ", 2), ("cow", 1)):
        for _ in range(times):
            search += 1
            impressions.append({"search_id": search, "query": text, "item_id": 1, "searched_at": TRAIN})
    impressions.append(
        {"search_id": 1, "query": "Ape", "item_id": 2, "stage": "unexposed", "searched_at": TRAIN}
    )
    impressions.append({"search_id": 9, "query": "ape", "item_id": 5, "searched_at": TRAIN + DAY})
    for number, text in enumerate(TEXTS):
        impressions.append({"search_id": 20 + number, "query": text, "item_id": 3, "searched_at": TEST})
    midnight = TRAIN + DAY // 2
    uploads = {1: None, 2: midnight - 7 * DAY - 1, 3: midnight - 7 * DAY, 4: midnight - 1, 5: midnight}
    items = [{"item_id": item, "uploaded_at": at} for item, at in uploads.items()]
    logs = write_logs(tmp_path / "logs", items, impressions)
    truth = tmp_path / "truth"
    truth.mkdir()
    tables = {
        "needs": {"need_id": [0, 1, 2], "head": ["ape"] * 3, "sense": ["zoo", "zoo", "band"]},
        "searches": {"search_id": [20, 21, 22, 23], "need_id": [0, 0, 1, 2]},
        "grades": {"need_id": [0, 0, 1, 2], "item_id": [1, 2, 3, 4], "grade": [3, 1, 2, 2]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), truth / f"{name}.parquet")
    return logs, truth


def sets(truth=None, ct=((), (), ())):
    ordered = sorted(IDS.items(), key=lambda one: one[1])
    queries = pa.table({"query_id": [one for _, one in ordered], "query": [text for text, _ in ordered]})
    pairs = pa.table(
        {
            name: pa.array(list(v), pa.int64())
            for name, v in zip(("query_id", "search_id", "item_id"), ct, strict=True)
        }
    )
    candidates = pa.table({"item_id": [1, 2, 3, 4, 5]})
    return TestSets(("2026-01-07",), 0, queries, candidates, pairs, pairs.slice(0, 0), truth, {})


def by_text(table, column):
    values = dict(zip(table["query_id"].to_pylist(), table[column].to_pylist(), strict=True))
    return {text: values[one] for text, one in IDS.items()}


def test_logs_without_upload_times_and_of_one_file_have_slices_too(day, tmp_path):
    """Columns of the contract that may be absent, and both layouts of a table."""
    logs, _ = day
    expected = build_slices(logs, "2026-01-05", sets(), None, "500MB")
    searches = pq.read_table(logs / "search_impressions", partitioning=None)
    items = pq.read_table(logs / "items.parquet").select(["item_id", "keyword"])
    bare = tmp_path / "bare [1]"
    bare.mkdir()
    pq.write_table(searches.add_column(0, "Query", searches["stage"]), bare / "search_impressions.parquet")
    pq.write_table(items, bare / "items.parquet")
    slices = build_slices(bare, "2026-01-05", sets(), None, "500MB")
    assert slices.queries.equals(expected.queries)
    assert slices.shown.equals(expected.shown)
    assert slices.ages.to_pylist() == [{"item_id": item, "age": None} for item in range(1, 6)]


def test_frequency_is_thirds_of_the_training_searches(day):
    """Of 6 searches ape has the first 3 (starts at 0), bee the next 2 (starts at 1/2), cow starts at 5/6."""
    slices = build_slices(day[0], "2026-01-05", sets(), None, "500MB")
    parts = {"ape": "head", "bee": "torso", "cow": "tail", "new": "unseen"}
    assert by_text(slices.queries, "frequency") == parts
    assert set(by_text(slices.queries, "senses").values()) == {None}
    assert slices.senses is None
    # only what was shown up to the training day counts as shown
    shown = {(row["query_id"], row["item_id"]) for row in slices.shown.to_pylist()}
    assert shown == {(IDS[text], 1) for text in ("ape", "bee", "cow")}
    ages = dict(zip(slices.ages["item_id"].to_pylist(), slices.ages["age"].to_pylist(), strict=True))
    assert ages == {1: None, 2: "old", 3: "recent", 4: "recent", 5: "new"}


def test_senses_are_those_that_the_test_searches_meant(day, tmp_path):
    """Each query was searched once: one sense; item 2 has grade 1 only and answers nothing."""
    slices = build_slices(day[0], "2026-01-05", sets(), day[1], "500MB")
    assert by_text(slices.queries, "senses") == {"ape": 1, "bee": 1, "cow": 1, "new": 1}
    rows = {(row["query_id"], row["sense"], row["item_id"]) for row in slices.senses.to_pylist()}
    assert (IDS["new"], "ape / band", 4) in rows
    assert {item for one, _, item in rows if one == IDS["ape"]} == {1, 3}
    (tmp_path / "slices").mkdir()
    save_slices(slices, tmp_path / "slices")
    assert load_slices(tmp_path / "slices") == slices
    with pytest.raises(CropsError, match="does not hold the slices"):
        load_slices(tmp_path)


def test_clicks_are_told_by_what_was_shown_before_and_by_words(tmp_path, write_logs):
    """Training: ape shown 1, bee (of the same sense) 2. Test: ape clicked 1, 2, 3 and cow, the band, 2."""
    rows = [("ape", 1, TRAIN, 1), ("bee", 2, TRAIN, 2), ("cow", 4, TRAIN, 4)]
    impressions = [
        {"search_id": search, "query": text, "item_id": item, "searched_at": at}
        for text, item, at, search in rows
    ] + [
        {"search_id": search, "query": text, "item_id": item, "searched_at": TEST, "clicked": True}
        for text, search, item in (("ape", 20, 1), ("ape", 20, 2), ("ape", 20, 3), ("cow", 22, 2))
    ]
    impressions.append({"search_id": 21, "query": "bees", "item_id": 4, "searched_at": TEST})
    titles = {1: "apes!", 2: "a bee or cow", 3: "it is so good", 4: "ape"}
    items = [{"item_id": item, "ocr_cover": title} for item, title in titles.items()]
    logs, truth = write_logs(tmp_path / "logs", items, impressions), tmp_path / "truth"
    truth.mkdir()
    for name, columns in {
        "needs": {"need_id": [0, 1, 2], "head": ["ape"] * 3, "sense": ["zoo", "zoo", "band"]},
        "searches": {"search_id": [1, 2, 4, 20, 21, 22], "need_id": [0, 1, 2, 0, 1, 2]},
        "grades": {"need_id": [0], "item_id": [1], "grade": [3]},
    }.items():
        pq.write_table(pa.table(columns), truth / f"{name}.parquet")
    ct = ([IDS["ape"]] * 3 + [IDS["cow"]], [20, 20, 20, 22], [1, 2, 3, 2])
    testsets = sets(ct=ct)
    slices = build_slices(logs, "2026-01-05", testsets, truth, "500MB")
    told = {
        (row["query_id"], row["item_id"]): (row["shown"], row["wordless"])
        for row in slices.clicks.to_pylist()
    }
    # The zoo was asked for as "ape" and "bees", the band as "cow": stems count, item 3 has no word of either.
    assert told == {
        (IDS["ape"], 1): ("text", False),
        (IDS["ape"], 2): ("meaning", False),
        (IDS["ape"], 3): ("never", True),
        (IDS["cow"], 2): ("never", False),
    }
    ids = testsets.queries["query_id"].to_numpy()
    rankings = Rankings(Fixed([2, 3, -1]), ids, testsets.queries["query"].to_pylist(), 3)
    found = METRICS["recall_by_click"](RankedDay(testsets, rankings, None, slices, 3, 3))
    values = {name: dict(zip(q.tolist(), v.tolist(), strict=True)) for name, (q, v, _) in found.items()}
    assert values == {
        "recall@3/ct|words=some": {IDS["ape"]: 1 / 2, IDS["cow"]: 1},
        "recall@3/ct|words=none": {IDS["ape"]: 1},
        "recall@3/ct|shown=text": {IDS["ape"]: 0},
        "recall@3/ct|shown=meaning": {IDS["ape"]: 1},
        "recall@3/ct|shown=never": {IDS["ape"]: 1, IDS["cow"]: 1},
    }


class Fixed:
    """Answers every query with the same items."""

    def __init__(self, items):
        self._items = items

    def search(self, queries, k):
        return np.array([self._items] * len(queries)), np.zeros((len(queries), len(self._items)), np.float32)


def test_detail_by_hand(day):
    ct = ([IDS["ape"], IDS["ape"], IDS["new"]], [20, 20, 23], [3, 2, 5])
    truth = TruthSets(
        qr=pa.table({"query_id": [], "search_id": [], "item_id": []}),
        needs=pa.table({"query_id": [IDS["ape"]], "need_id": [0], "searches": [1]}),
        annotation=pa.table({}),
        grades=pa.table({"need_id": [0, 0, 0], "item_id": [1, 3, 4], "grade": [3, 2, 1]}),
    )
    testsets = sets(truth, ct)
    slices = build_slices(day[0], "2026-01-05", testsets, day[1], "500MB")
    ids = testsets.queries["query_id"].to_numpy()
    rankings = Rankings(Fixed([1, 3, -1]), ids, testsets.queries["query"].to_pylist(), 3)
    day = RankedDay(testsets, rankings, None, slices, 3, 3)
    found = {
        name: dict(zip(ids.tolist(), values.tolist(), strict=True))
        for metric in ("mrr", "recall_by_age", "never_shown", "senses", "recall_of_never_shown")
        for name, (ids, values, _) in METRICS[metric](day).items()
    }
    assert found["mrr@3/ct"] == {IDS["ape"]: 1 / 2, IDS["new"]: 0}
    assert found["recall@3/ct|age=recent"] == {IDS["ape"]: 1}
    assert found["recall@3/ct|age=old"] == {IDS["ape"]: 0}
    assert found["recall@3/ct|age=new"] == {IDS["new"]: 0}
    # of the results 1 and 3, item 1 had been shown for ape, bee and cow; -1 is no result
    assert found["never_shown@3"] == {IDS["ape"]: 1 / 2, IDS["bee"]: 1 / 2, IDS["cow"]: 1 / 2, IDS["new"]: 1}
    # answers of grade 2 or more to ape's need: 1 (shown) and 3 (never shown, found)
    assert found["true_recall@3|never_shown"] == {IDS["ape"]: 1}
    assert all(np.isnan(value) for value in found["senses@3"].values())


def test_senses_covered_of_an_ambiguous_query():
    """Two senses; the results answer the one, with two items."""
    senses = pa.table({"query_id": [1, 1, 1, 2], "sense": ["a", "a", "b", "a"], "item_id": [7, 8, 9, 7]})
    rankings = Rankings(Fixed([8, 7]), np.array([1, 2]), ["x", "y"], 2)
    day = RankedDay(sets(), rankings, None, Slices(senses, senses, senses, senses), 2, 2)
    ids, values, _ = METRICS["senses"](day)["senses@2"]
    assert ids.tolist() == [1, 2]
    assert values[0] == 0.5
    assert np.isnan(values[1])
