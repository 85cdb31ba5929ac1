from handmade import DAY, P1, clicked, evidence, run, scores, shown, write_logs

from crops.config import ReformulationConfig
from crops.engine import reformulation_positives
from crops.text import query_id


def positives(tmp_path, searches, config=None, similarity=None, relevance=None):
    """Return [(query, item, search_id, later query, user, theta)], the later query as its text."""
    logs, config = write_logs(tmp_path, searches), config or ReformulationConfig()
    table = reformulation_positives(
        logs, None, config, similarity=similarity, relevance=relevance, memory="200MB"
    )
    texts = {query_id(row["query"]): row["query"].strip().lower() for row in searches}
    names = ("query", "item_id", "search_id", "via_query_id", "user_id", "theta")
    assert table.column_names == ["query_id", *names]
    rows = [[row[name] for name in names] for row in table.to_pylist()]
    return [(*row[:3], texts[row[3]], *row[4:]) for row in rows]


def test_window_excludes_zero_and_includes_ninety(tmp_path):
    searches = []
    for user, seconds in enumerate((-1, 0, 0.000001, 90, 90.000001), 1):
        searches.append(shown(10 * user, user, "a", 100, 1))
        searches.append(clicked(10 * user + 1, user, "b", 100 + seconds, 10 + user))
    # User 1 said b first, user 2 at the same instant, user 5 a microsecond late.
    assert positives(tmp_path / "default", searches) == [
        ("a", 13, 30, "b", 3, None),
        ("a", 14, 40, "b", 4, None),
    ]
    short = ReformulationConfig(window_s=89.9)
    assert positives(tmp_path / "short", searches, short) == [("a", 13, 30, "b", 3, None)]


def test_all_later_searches_count_not_only_the_next(tmp_path):
    searches = [
        shown(1, 1, "a", 0, 1),
        clicked(2, 1, "b", 20, 2),
        clicked(3, 1, "c", 60, 3),
        clicked(4, 1, "d", 100, 4),
    ]
    assert positives(tmp_path, searches) == [
        (first, item, search, later, 1, None)
        for first, item, search, later in sorted(
            # a sees b, c (d is 100 s later); b sees c, d (80 s); c sees d.
            [("a", 2, 1, "b"), ("a", 3, 1, "c"), ("b", 3, 2, "c"), ("b", 4, 2, "d"), ("c", 4, 3, "d")],
            key=lambda row: (query_id(row[0]), row[1]),
        )
    ]


def test_same_normalised_text_again_is_paging(tmp_path):
    searches = [
        shown(1, 1, "red shoes", 0, 1),
        clicked(2, 1, "Red  SHOES", 20, 2),  # page two: item 2 is no reformulation of search 1
        clicked(3, 1, "boots", 40, 3),  # but both pages start a window
        clicked(4, 1, "BOOTS", 45, 3),  # and a second page of the later query is the same event for them
    ]
    assert positives(tmp_path, searches) == [
        ("red shoes", 3, 1, "boots", 1, None),
        ("red shoes", 3, 2, "boots", 1, None),
    ]


def test_first_search_may_have_a_click_unless_forbidden(tmp_path):
    searches = [
        clicked(1, 1, "a", 0, 1),
        clicked(2, 1, "b", 30, 2),
        shown(3, 2, "a", 0, 1),  # another user, no click
        clicked(4, 2, "b", 30, 3),
    ]
    both = [("a", 2, 1, "b", 1, None), ("a", 3, 3, "b", 2, None)]
    assert positives(tmp_path / "off", searches) == both
    assert positives(tmp_path / "on", searches, ReformulationConfig(require_no_click=True)) == both[1:]


def test_like_and_long_play_after_the_reformulation_count_a_short_play_does_not(tmp_path):
    searches = [
        shown(1, 1, "a", 0, 1),
        shown(2, 1, "b", 30, 2, liked=True),
        shown(2, 1, "b", 30, 3, play_ms=18_000, duration_ms=60_000),
        shown(2, 1, "b", 30, 4, play_ms=5_000, duration_ms=5_000),
        shown(2, 1, "b", 30, 5, play_ms=17_999, duration_ms=60_000),
        shown(2, 1, "b", 30, 6),
        shown(2, 1, "b", 30, 7, "unexposed"),
    ]
    assert [row[1] for row in positives(tmp_path, searches)] == [2, 3, 4]


def test_similarity_of_the_threshold_passes_and_theta_must_exceed_alpha(tmp_path):
    searches = [
        shown(1, 1, "a", 0, 1),
        clicked(2, 1, "b", 10, 2),
        clicked(2, 1, "b", 10, 5),
        clicked(2, 1, "b", 10, 6),
        clicked(3, 1, "c", 20, 3),
        clicked(4, 1, "d", 30, 4),
    ]
    similarity = scores({("a", "b"): 0.5, ("a", "c"): 0.499999, ("a", "d"): 0.9})
    found = positives(tmp_path / "similar", searches, similarity=similarity)
    assert [row[1] for row in found] == [2, 4, 5, 6]
    relevance = scores({("a", "doc 2"): 0.6, ("a", "doc 5"): 0.600001, ("a", "doc 6"): 0.2})
    found = positives(tmp_path / "both", searches, similarity=similarity, relevance=relevance)
    assert found == [("a", 5, 1, "b", 1, 0.600001)]


def test_scorers_see_each_distinct_pair_once_and_only_what_is_left(tmp_path):
    searches = [
        row
        for user in range(1, 4)
        for row in (
            shown(10 * user, user, "a", 0, 1),
            clicked(10 * user + 1, user, "b", 10, 2),
            clicked(10 * user + 2, user, "c", 20, 3),
            shown(10 * user + 3, user, "d", 30, 4),  # nothing consumed: never scored
        )
    ]
    similarity = scores({("a", "b"): 1.0, ("b", "c"): 1.0})
    relevance = scores({}, other=1.0)
    found = positives(tmp_path, searches, similarity=similarity, relevance=relevance)
    assert sorted(similarity.asked) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert sorted(relevance.asked) == [("a", "doc 2"), ("b", "doc 3")]
    assert len(found) == 6


def test_evidence_names_each_supporting_event(tmp_path):
    tables, _ = run(
        tmp_path,
        [
            shown(1, 1, "a", 0, 1),
            clicked(2, 1, "b", 30, 2),
            clicked(3, 1, "b", 50, 2),  # the second page of b: the same evidence
            clicked(4, 1, "c", 60, 2),
            shown(5, 2, "a", 0, 1),
            clicked(6, 2, "b", 30, 2),
        ],
        relevance=scores({("a", "doc 2"): 0.9}),
    )
    a, b, c = query_id("a"), query_id("b"), query_id("c")
    common = {"query_id": a, "item_id": 2, "source": 64, "watched_at": None, "theta": 0.9, "day": DAY}
    expected = [(1, b), (1, c), (5, b)]
    assert sorted(evidence(tables, P1), key=lambda row: (row["search_id"], row["via_query_id"])) == [
        {**common, "search_id": search, "via_query_id": via} for search, via in sorted(expected)
    ]


def test_days_limit_the_window(tmp_path):
    searches = [shown(1, 1, "a", 43_190, 1), clicked(2, 1, "b", 43_210, 2)]  # 20 s across midnight
    logs = write_logs(tmp_path, searches)
    settings = {"similarity": None, "relevance": None, "memory": "200MB"}
    assert reformulation_positives(logs, None, ReformulationConfig(), **settings).num_rows == 1
    assert reformulation_positives(logs, (DAY,), ReformulationConfig(), **settings).num_rows == 0
