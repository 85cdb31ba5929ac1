import pytest
from handmade import DAY, NOON, assert_signals_agree, clicked, shown, write_logs

from crops.engine.backend import DuckDBBackend
from crops.engine.events import load_events
from crops.errors import CropsError
from crops.text import query_id


def test_signals_mean_the_same_in_python_and_in_sql():
    with DuckDBBackend("100MB") as backend:
        assert_signals_agree(backend)


def test_queries_merge_by_normalised_text(tmp_path):
    logs = write_logs(
        tmp_path,
        [
            shown(1, 1, "Red  Shoes", 0, 7),
            shown(2, 2, " red shoes ", 10, 7),
            shown(3, 2, "RED SHOES", 20, 8),  # full-width letters: NFKC
            shown(4, 1, "blue shoes", 30, 8),
        ],
    )
    with DuckDBBackend("100MB") as backend:
        load_events(backend, logs, None)
        queries = backend.rows("select * from queries order by query")
        searches = backend.rows("select * from searches order by search_id")
    red, blue = query_id("red shoes"), query_id("blue shoes")
    assert queries == [
        {"query_id": blue, "query": "blue shoes", "searches": 1, "users": 1},
        {"query_id": red, "query": "red shoes", "searches": 3, "users": 2},
    ]
    assert [row["query_id"] for row in searches] == [red, red, red, blue]
    assert searches[1] == {"search_id": 2, "user_id": 2, "group_id": red, "query_id": red,
                           "searched_at": NOON + 10_000_000, "day": DAY}  # fmt: skip


def test_only_the_days_asked_for_are_read_and_space_is_no_query(tmp_path):
    logs = write_logs(
        tmp_path / "days",
        [shown(1, 1, "q", 0, 1), shown(2, 1, "q", 86_400, 2), clicked(3, 1, " 　", 86_400, 1)],
    )
    with DuckDBBackend("100MB") as backend:
        load_events(backend, logs, ("2026-01-06",))
        assert [row["search_id"] for row in backend.rows("select search_id from searches")] == [2]
        assert backend.rows("select query, searches from queries") == [{"query": "q", "searches": 1}]
        assert backend.count("impressions") == 1
    logs = write_logs(tmp_path / "space", [shown(1, 1, "　", 0, 1)])
    with DuckDBBackend("100MB") as backend, pytest.raises(CropsError, match="no search on any day"):
        load_events(backend, logs, None)


def test_every_impression_has_the_bit_of_its_stage(tmp_path):
    logs = write_logs(
        tmp_path,
        [
            shown(1, 1, "q", 0, 1, "filtered"),
            shown(1, 1, "q", 0, 2, "unexposed"),
            shown(1, 1, "q", 0, 3),
            shown(1, 1, "q", 0, 4, clicked=True),
            shown(1, 1, "q", 0, 5, liked=True),
            shown(1, 1, "q", 0, 6, play_ms=20_000),  # consumed, but P0 is clicked or liked
            shown(1, 1, "q", 0, 7, "unexposed", liked=True, play_ms=20_000),  # never shown: not consumed here
        ],
    )
    with DuckDBBackend("100MB") as backend:
        load_events(backend, logs, None)
        rows = backend.rows("select item_id, source, consumed from impressions order by item_id")
    assert [tuple(row.values()) for row in rows] == [
        (1, 1, False),
        (2, 2, False),
        (3, 4, False),
        (4, 8, True),
        (5, 8, True),
        (6, 4, True),
        (7, 2, False),
    ]


@pytest.mark.parametrize("other", [shown(5, 2, "q", 0, 2), shown(5, 1, "another", 0, 2)])
def test_search_id_of_two_users_or_queries_is_an_error(tmp_path, other):
    logs = write_logs(tmp_path, [shown(5, 1, "q", 0, 1), other])
    with (
        DuckDBBackend("100MB") as backend,
        pytest.raises(CropsError, match="search_id: 5 belongs to more than"),
    ):
        load_events(backend, logs, None)
