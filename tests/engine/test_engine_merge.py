import numpy as np
from days import random_logs
from handmade import DAY, P0, P1, P2, clicked, evidence, labels, run, scores, shown, watched

from crops.labels import Source, assign_labels, parse_sources
from crops.text import query_id


def test_highest_label_wins_and_every_source_is_kept(tmp_path):
    searches = [
        clicked(1, 1, "a", 0, 1),  # P0 of a
        clicked(2, 1, "b", 30, 1),  # P1 of a, P0 of b
    ]
    tables, _ = run(tmp_path, searches, [watched(1, 1, 60)])  # P2 of both
    assert labels(tables, ["a", "b"]) == {("a", 1): (5, P0 | P1 | P2), ("b", 1): (4, P0 | P2)}
    # Evidence: one row per source and event.
    a, b = query_id("a"), query_id("b")
    assert [
        (row["query_id"], Source(row["source"]), row["search_id"], row["via_query_id"])
        for row in tables["evidence"]
    ] == sorted(
        [(a, P0, 1, None), (a, P1, 1, b), (a, P2, 1, None), (b, P0, 2, None), (b, P2, 2, None)],
        key=lambda row: (row[0], row[1]),
    )
    # P0 has one row per click event
    twice = [clicked(1, 1, "a", 0, 1), clicked(2, 2, "A", 0, 1), shown(3, 3, "a", 0, 1)]
    tables, _ = run(tmp_path / "twice", twice)
    common = {"query_id": a, "item_id": 1, "source": 8, "via_query_id": None, "watched_at": None}
    known = common | {"theta": None, "day": DAY}
    assert evidence(tables, P0) == [{**known, "search_id": search} for search in (1, 2)]


def user_with(items, user, first_search):
    """Searches a, then b, and consumes `items` there."""
    return [
        shown(first_search, user, "a", 0, 1),
        *(clicked(first_search + 1, user, "b", 30, item) for item in items),
    ]


def test_one_user_adds_no_more_than_the_cap_to_a_query(tmp_path):
    relevance = scores({("a", f"doc {item}"): 0.7 + item / 1000 for item in range(1, 100)})
    tables, report = run(
        tmp_path,
        user_with([11, 12, 13, 14, 15], 1, 1) + user_with([12], 2, 3),
        relevance=relevance,
        max_positives_per_user=2,
    )
    # User 1 keeps the two most relevant, 15 and 14; item 12 comes in through user 2 alone.
    assert [(row["item_id"], row["search_id"]) for row in evidence(tables, P1)] == [(12, 3), (14, 1), (15, 1)]
    assert report["sources"]["p1"]["after_relevance"] == 5
    assert report["sources"]["p1"]["kept"] == 3


def test_the_cap_counts_pairs_of_p1_and_p2_together_p1_first(tmp_path):
    relevance = scores(
        {("a", "doc 21"): 0.99, ("a", "doc 22"): 0.98, ("a", "doc 11"): 0.7, ("b", "doc 21"): 0.9}
    )
    tables, _ = run(
        tmp_path,
        user_with([11], 1, 1),
        [watched(1, 21, 5), watched(1, 22, 6), watched(1, 11, 7)],  # item 11 by P2 too: still one pair
        relevance=relevance,
        max_positives_per_user=2,
    )
    found = labels(tables, ["a", "b"])
    assert found["a", 11] == (5, P1 | P2)
    assert found["a", 21] == (4, P2)
    assert ("a", 22) not in found
    assert found["b", 21] == (4, P2)  # the cap is per query


def test_equal_theta_is_decided_by_the_seed(tmp_path):
    searches = user_with(range(11, 31), 1, 1)
    kept = [
        [
            row["item_id"]
            for row in evidence(run(tmp_path / name, searches, seed=seed, max_positives_per_user=4)[0], P1)
        ]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert len(kept[0]) == 4
    assert kept[0] == kept[1]
    assert kept[0] != kept[2]


def test_an_ablation_arm_is_the_full_run_with_bits_dropped(tmp_path):
    searches, feed = random_logs(seed=5)
    generated = [
        {"query": f"query {query}", "ocr_cover": f"text {query} {number}"}
        for query in range(0, 8, 2)
        for number in range(6)
    ]
    settings = {"search": {"max_clicked": 2, "max_exposed": 3, "max_unexposed": 2, "max_filtered": 2}}
    settings |= {"max_positives_per_user": 2, "knowledge": {"max_per_query": 2}}
    full, _ = run(tmp_path / "full", searches, feed, generated=generated, **settings)
    rows = full["samples"]
    for arm in (("search",), ("search", "p1"), ("search", "p1", "p2"), ("search", "p3")):
        alone, _ = run(tmp_path / "_".join(arm), searches, feed, generated=generated, sources=arm, **settings)
        keep = parse_sources(arm)
        kept = assign_labels(np.array([row["sources"] for row in rows]), keep)
        expected = [
            {**row, "sources": row["sources"] & keep, "label": label}
            for row, label in zip(rows, kept.tolist(), strict=True)
            if label >= 0
        ]
        assert 0 < len(expected) < len(rows)
        assert alone["samples"] == expected
