"""The sums per user and day, counted on paper, and the metrics that they make."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.config import ReformulationConfig
from crops.engine import CachedScorer
from crops.errors import CropsError
from crops.logs import open_logs
from crops.online.analysis import arms_of, everybody
from crops.online.metrics import Reading, creator_reach, metrics_of, user_days

NOON = 1_767_614_400_000_000
SECOND = 1_000_000


def read(logs, routes=None, similarity=None, truth=()):
    how = Reading(routes or {}, ReformulationConfig(), similarity, "1GB")
    return user_days(open_logs(logs), how, truth=truth)


def row(table, user, day="2026-01-05"):
    (found,) = [r for r in table.to_pylist() if (r["user_id"], r["day"]) == (user, day)]
    return found


def search(search_id, user=1, at=0, query="query", **columns):
    return {"search_id": search_id, "user_id": user, "searched_at": NOON + round(at * SECOND), "query": query,
            "item_id": 1, **columns}  # fmt: skip


def test_clicks_plays_and_ranked_results(write_logs, tmp_path):
    rows = [
        # A search with two clicks: one long play of a short item (10 s of 10 s), one play of 17.9 s of 60 s.
        search(1, item_id=1, clicked=True, play_ms=10_000, duration_ms=10_000),
        search(1, item_id=2, clicked=True, play_ms=17_900, duration_ms=60_000),
        search(1, item_id=3),
        search(1, item_id=4, stage="unexposed"),
        search(1, item_id=5, stage="filtered"),
        # A click without a play, and 18 s of a long item without a click: autoplay is a play.
        search(2, at=1000, item_id=1, clicked=True, play_ms=0, duration_ms=60_000),
        search(2, at=1000, item_id=2, play_ms=18_000, duration_ms=60_000),
        # No click.
        search(3, at=2000, item_id=1),
    ]
    found = row(read(write_logs(tmp_path / "logs", impressions=rows)), 1)
    keys = ("searches", "clicked_searches", "shown", "clicks", "plays", "long_plays", "ranked")
    assert [found[key] for key in keys] == [3, 2, 6, 3, 3, 2, 7]


def test_an_item_of_several_routes_counts_for_each_and_unique_only_alone(write_logs, tmp_path):
    rows = [
        search(1, item_id=1, routes=0b01),
        search(1, item_id=2, routes=0b11),
        search(1, item_id=3, routes=0b10, stage="unexposed"),
        search(1, item_id=4, routes=0b100, stage="unexposed"),
        search(1, item_id=5, routes=0b01, stage="filtered"),
        search(1, item_id=6, routes=None),
    ]
    table = read(write_logs(tmp_path / "logs", impressions=rows), {"dense": 0, "sparse": 1})
    metrics = {m.key: m for m in metrics_of(("dense", "sparse"), table.column_names)}
    sums = everybody(table).sums()
    shares = {key: (sums[m.numerator][0], sums[m.denominator][0]) for key, m in metrics.items()}
    for route, expected in (
        ("dense", [(2, 5), (2, 3), (1, 5), (1, 3)]),
        ("sparse", [(2, 5), (1, 3), (1, 5), (0, 3)]),
    ):
        keys = ("ratio_rank", "ratio_show", "only_rank", "only_show")
        assert [shares[f"{key}:{route}"] for key in keys] == expected
    with pytest.raises(CropsError, match="route x: bit 63"):
        read(tmp_path, {"x": 63})


def test_reformulations_within_90_s_by_the_same_user_in_other_words(write_logs, tmp_path):
    rows = [
        search(1, user=1, at=0, query="jaguar"),
        search(2, user=1, at=90, query="jaguar car"),  # exactly 90 s after 1: counts for 1
        search(3, user=1, at=180.001, query="jaguar speed"),  # 90.001 s after 2: too late
        search(4, user=2, at=0, query="jaguar"),
        search(5, user=2, at=5, query="  JAGUAR "),  # the same normalised text: paging
        search(6, user=3, at=0, query="jaguar"),
        search(7, user=4, at=5, query="jaguar car"),  # somebody else
        search(8, user=5, at=0, query="a"),
        search(9, user=5, at=10, query="b"),
        search(10, user=5, at=20, query="c"),  # 8 is followed by two texts and counts once; 9 by one
    ]
    table = read(write_logs(tmp_path / "logs", impressions=rows))
    assert {user: row(table, user)["reformulated"] for user in range(1, 6)} == {1: 1, 2: 0, 3: 0, 4: 0, 5: 2}


def test_other_intents_are_no_reformulation(write_logs, tmp_path):
    def similar(batches):
        scores = {"jaguar car": 0.5, "lasagne": 0.49}  # 0.5 is the threshold: the same intent
        for batch in batches:
            found = [scores[text] for text in batch["right"].to_pylist()]
            yield batch.append_column("score", pa.array(found, pa.float64()))

    texts = {1: ("jaguar", "jaguar car"), 2: ("jaguar", "lasagne")}
    rows = [
        search(2 * user + step, user=user, at=9 * step, query=text)
        for user, both in texts.items()
        for step, text in enumerate(both)
    ]
    scorer = CachedScorer(similar, tmp_path / "scores")
    table = read(write_logs(tmp_path / "logs", impressions=rows), similarity=scorer)
    assert [row(table, user)["reformulated"] for user in texts] == [1, 0]


def test_days_and_arms_stay_apart(write_logs, tmp_path):
    rows = [
        search(1, user=1, clicked=True),
        search(2, user=1, at=86_400, arm="A", query="x"),
        search(3, user=1, at=86_400 + 500, arm="A", query="y", clicked=True),
        search(4, user=2, at=86_400, arm=""),
    ]
    table = read(write_logs(tmp_path / "logs", impressions=rows))
    keyed = {
        (r["user_id"], r["day"], r["arm"]): (r["searches"], r["clicked_searches"]) for r in table.to_pylist()
    }
    assert keyed == {
        (1, "2026-01-05", None): (1, 1),
        (1, "2026-01-06", "A"): (2, 1),
        (2, "2026-01-06", None): (1, 0),
    }
    people = everybody(table)
    assert people.sums(["2026-01-06"])["searches"].tolist() == [2, 1]
    assert people.sums()["clicked_searches"].tolist() == [2, 0]


def test_own_shares_leave_out_who_has_no_denominator(write_logs, tmp_path):
    rows = [
        search(1, user=1, item_id=1, clicked=True, play_ms=20_000, duration_ms=60_000),
        search(1, user=1, item_id=2, clicked=True, play_ms=1_000, duration_ms=60_000),
        search(2, user=2),
    ]
    sums = everybody(read(write_logs(tmp_path / "logs", impressions=rows))).sums()
    assert sums["lpr_own"].tolist() == [0.5, 0.0]
    assert sums["lpr_has"].tolist() == [1.0, 0.0]
    assert sums["lpr_ever"].tolist() == [1.0, 0.0]
    assert sums["ctr_own"].tolist() == [1.0, 0.0]
    assert sums["ctr_has"].tolist() == [1.0, 1.0]


def truth_folder(folder, **tables):
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


NEEDS = {
    "need_id": [0, 1, 2, 3],
    "head": ["Ｊaguar", "Ｊaguar", "Ｊaguar", "pasta"],
    "sense": ["cat", "car", "car", "food"],
    "need": ["speed", "price", "repair", "sauce"],
}


def test_senses_and_satisfaction_by_truth(write_logs, tmp_path):
    rows = [
        # Ambiguous: shows both senses of the word; the pasta is no sense of it, the ranked item is not shown.
        search(1, query="Jaguar", item_id=1),
        search(1, query="Jaguar", item_id=2),
        search(1, query="Jaguar", item_id=3),
        search(1, query="Jaguar", item_id=4),
        # Ambiguous, but shows nothing of it.
        search(2, at=500, query="jaguar", item_id=4),
        search(2, at=500, query="jaguar", item_id=1, stage="unexposed"),
        # Not ambiguous: one sense only, or more words.
        search(3, at=1000, query="pasta", item_id=4),
        search(4, at=1500, query="jaguar price", item_id=2),
    ]
    static = truth_folder(
        tmp_path / "static", needs=NEEDS, items={"item_id": [1, 2, 3, 4], "need_id": [0, 1, 2, 3]}
    )
    told = {"search_id": [1, 2, 3], "need_id": [0, 0, 3], "satisfied": [True, False, True]}
    (tmp_path / "live" / "searches" / "day=2026-01-05").mkdir(parents=True)
    pq.write_table(pa.table(told), tmp_path / "live" / "searches" / "day=2026-01-05" / "part-0.parquet")
    logs = write_logs(tmp_path / "logs", impressions=rows)
    found = row(read(logs, truth=[tmp_path / "live", static]), 1)
    assert (found["senses"], found["ambiguous"], found["satisfied"]) == (2, 2, 2)
    without = read(logs, truth=[static])
    assert "satisfied" not in without.column_names
    assert "senses" in {metric.key for metric in metrics_of((), without.column_names)}


def test_truth_that_is_missing_is_named(write_logs, tmp_path):
    logs = write_logs(tmp_path / "logs")
    with pytest.raises(CropsError, match=r"items\.parquet is missing in .*nowhere"):
        read(logs, truth=[tmp_path / "nowhere"])
    folder = truth_folder(tmp_path / "bad", needs=NEEDS, items={"item_id": [1]})
    with pytest.raises(CropsError, match="lacks the columns need_id"):
        read(logs, truth=[folder])


def test_creators_are_counted_over_equally_many_users(write_logs, tmp_path):
    items = [{"item_id": i, "author_id": i} for i in range(1, 11)]
    # Arm A has one user who saw one creator; B has five users who saw one each: one of them is looked at.
    rows = [search(1, user=1, item_id=1, arm="e=A")]
    rows += [search(i, user=i, item_id=i, arm="e=B;f=x") for i in range(2, 7)]
    logs = open_logs(write_logs(tmp_path / "logs", items=items, impressions=rows))
    assert creator_reach(logs, "1GB", None, "e") == {"A": (1, 10, 1), "B": (1, 10, 1)}
    no_authors = open_logs(write_logs(tmp_path / "plain"))
    assert creator_reach(no_authors, "1GB") == {}


def test_arms_of_one_of_several_experiments():
    logged = ["dense=+p1;sparse=crops", "sparse=+p1", None, "dense=baseline"]
    table = pa.table({"user_id": [1, 2, 3, 4], "arm": logged, "day": ["d"] * 4})
    assert arms_of(table, "dense")["arm"].to_pylist() == ["+p1", None, None, "baseline"]
    assert arms_of(table, "sparse")["arm"].to_pylist() == ["crops", "+p1", None, None]
    with pytest.raises(CropsError, match=r"no arm of experiment 'dens'.*dense, sparse.*Did you mean 'dense'"):
        arms_of(table, "dens")
