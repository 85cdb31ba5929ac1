from handmade import DAY, EXPOSED, NOON, P0, P2, evidence, labels, run, scores, shown, watched

from crops.text import query_id


def p2(folder, searches, events, **config):
    """Return [(item, search_id, seconds after noon)] of the P2 evidence, sorted; `config` is the engine's."""
    tables, _ = run(folder, searches, events, **config)
    rows = evidence(tables, P2)
    return sorted((row["item_id"], row["search_id"], (row["watched_at"] - NOON) / 1e6) for row in rows)


def test_feed_items_before_and_after_the_query_count_for_all_its_users(tmp_path):
    searches = [shown(1, 1, "q", 0, 1), shown(2, 2, "Q", 5000, 1), shown(3, 3, "other", 0, 1)]
    feed = [
        watched(1, 11, -60),
        watched(1, 12, 60),
        watched(2, 13, 5100),
        watched(3, 14, 0),
        watched(4, 15, 0),
    ]
    tables, _ = run(tmp_path, searches, feed)
    assert labels(tables, ["q", "other"]) == {
        ("q", 1): (3, EXPOSED),
        ("q", 11): (4, P2),
        ("q", 12): (4, P2),
        ("q", 13): (4, P2),
        ("other", 1): (3, EXPOSED),
        ("other", 14): (4, P2),
    }


def test_window_is_centred_and_includes_both_edges(tmp_path):
    feed = [
        watched(1, 11, -1800.000001),
        watched(1, 12, -1800),
        watched(1, 13, 0),
        watched(1, 14, 1800),
        watched(1, 15, 1800.000001),
    ]
    found = p2(tmp_path, [shown(1, 1, "q", 0, 1)], feed)
    assert found == [(12, 1, -1800), (13, 1, 0), (14, 1, 1800)]


def test_a_skipped_exposure_is_no_interaction(tmp_path):
    feed = [
        watched(1, 11, 5, play_ms=17_999),
        watched(1, 12, 5, play_ms=18_000),
        watched(1, 13, 5, play_ms=0),
        watched(1, 14, 5, play_ms=0, liked=True),
        watched(1, 15, 5, play_ms=None, clicked=True),
        watched(1, 16, 5, play_ms=None, duration_ms=None),
        watched(1, 17, 5, play_ms=7_000, duration_ms=7_000),
    ]
    found = p2(tmp_path, [shown(1, 1, "q", 0, 1)], feed)
    assert [item for item, _, _ in found] == [12, 14, 15, 17]


def test_nearest_in_time_are_kept_per_user_ties_by_time_then_item(tmp_path):
    searches = [shown(1, 1, "q", 0, 1), shown(2, 1, "Q", 1000, 1), shown(3, 2, "q", 0, 1)]
    feed = [
        watched(1, 15, 10),
        watched(1, 14, 10),  # 10 s after event 1, like item 15: the lower id first
        watched(1, 16, -10),  # 10 s before: the earlier time wins the tie
        watched(1, 13, 5),  # nearest
        watched(1, 12, 500),  # 500 s from both events of user 1: credited to the lower search_id
        watched(1, 17, 1020),  # near event 2, but the cap is of the user and the query, not of the event
        watched(2, 18, 590),  # another user has places of their own
    ]
    window = {"window_s": 600}
    nearest = [(13, 1, 5), (14, 1, 10), (15, 1, 10), (16, 1, -10), (17, 2, 1020), (12, 1, 500)]
    for cap, kept in ((3, (0, 1, 3)), (6, range(6))):
        found = p2(tmp_path / str(cap), searches, feed, feed={"max_items": cap, **window})
        assert found == sorted([*(nearest[place] for place in kept), (18, 3, 590)])


def test_the_cap_is_of_user_and_query_and_counts_interactions_with_distinct_items(tmp_path):
    searches = [shown(1, 1, "q", 0, 1), shown(2, 1, "other", 100, 1)]
    feed = [watched(1, 11, 10), watched(1, 12, 90)]
    assert p2(tmp_path / "queries", searches, feed, feed={"max_items": 1}) == [(11, 1, 10), (12, 2, 90)]
    feed = [watched(1, 13, 1, play_ms=0), watched(1, 11, 4), watched(1, 11, -3), watched(1, 12, 5)]
    found = p2(tmp_path / "items", searches[:1], feed, feed={"max_items": 2})
    assert found == [(11, 1, -3), (12, 1, 5)]  # once at its nearest time; a skipped exposure is none


def test_theta_must_exceed_alpha_and_is_scored_once_per_pair(tmp_path):
    searches = [shown(1, 1, "q", 0, 1), shown(2, 2, "q", 0, 1)]
    feed = [watched(user, item, 5) for user in (1, 2) for item in (11, 12, 13)]
    relevance = scores({("q", "doc 11"): 0.6, ("q", "doc 12"): 0.61, ("q", "doc 13"): 1.0})
    tables, report = run(tmp_path, searches, feed, relevance=relevance)
    assert sorted(relevance.asked) == [("q", "doc 11"), ("q", "doc 12"), ("q", "doc 13")]
    assert labels(tables, ["q"]) == {("q", 1): (3, EXPOSED), ("q", 12): (4, P2), ("q", 13): (4, P2)}
    p2_counts = report["sources"]["p2"]
    assert p2_counts == {"theta": 0.6, "candidates": 3, "after_relevance": 2, "kept": 2}
    assert evidence(tables, P2)[0] == {
        "query_id": query_id("q"), "item_id": 12, "source": 32, "search_id": 1, "via_query_id": None,
        "watched_at": NOON + 5_000_000, "theta": 0.61, "day": DAY,
    }  # fmt: skip


def test_a_negative_of_search_consumed_in_the_feed_becomes_positive(tmp_path):
    searches = [
        shown(1, 1, "q", 0, 1),
        shown(1, 1, "q", 0, 2, "unexposed"),
        shown(1, 1, "q", 0, 3, clicked=True),
    ]
    tables, report = run(tmp_path, searches, [watched(1, item, 9) for item in (1, 2, 3)])
    assert labels(tables, ["q"]) == {("q", 1): (4, P2 | 4), ("q", 2): (4, P2 | 2), ("q", 3): (4, P2 | P0)}
    assert report["rescued"] == {"pairs": 2, "3": 1, "2": 1, "1": 0}
    assert report["novelty"]["p2"] == {"positives": 3, "never_shown": 1, "share": 0.333333}
    assert report["novelty"]["all"] == {"positives": 3, "never_shown": 1, "share": 0.333333}
