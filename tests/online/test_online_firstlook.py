"""A first look: one route drafts two models' results, and clicks tell whose were better."""

import numpy as np
import pyarrow as pa
from online_hand import make_start

from crops.cli.online_tables import first_looks
from crops.online.firstlook import Drafted, _judge, look_first
from crops.online.interleave import NOBODY, A, B, Preference


class Fixed:
    """Finds the same items for every query."""

    def __init__(self, *items):
        self.items = items

    def search(self, queries, k):
        row = [*self.items, *[-1] * k][:k]
        return np.array([row] * len(queries), dtype=np.int64), np.zeros((len(queries), k), np.float32)


def test_a_draft_is_a_retriever_that_remembers_whose_each_result_is():
    drafted = Drafted(Fixed(7, 1, 2), Fixed(7, 3), seed=0)
    ids, scores = drafted.search(["a", "b"], 6)
    for row, query in enumerate(["a", "b"]):
        assert sorted(ids[row].tolist()) == [-1, -1, 1, 2, 3, 7]
        assert ids[row, 0] == 7
        assert np.all(np.diff(scores[row][ids[row] >= 0]) < 0)
        assert [drafted.team(query, item) for item in (7, 1, 2, 3, 99)] == [NOBODY, A, A, B, NOBODY]
    again, _ = Drafted(Fixed(7, 1, 2), Fixed(7, 3), seed=0).search(["b"], 6)
    assert again.tolist() == [ids[1].tolist()]


def test_clicks_count_for_who_drafted_the_result_and_a_user_counts_once():
    """User 1: two clicks for B, one for A; user 2: one for A; user 3: one on what both have."""
    drafted = Drafted(Fixed(7, 1, 2), Fixed(7, 3, 4), seed=0)
    drafted.search(["q"], 5)
    rows = [(1, 3, True), (1, 4, True), (1, 1, True), (2, 2, True), (3, 7, True), (3, 3, False), (3, 4, None)]
    users, items, clicked = (list(column) for column in zip(*rows, strict=True))
    seen = _judge(
        pa.table({"user_id": users, "item_id": items, "clicked": clicked, "query": ["q"] * len(rows)}),
        drafted,
    )
    assert (seen.wins_a, seen.wins_b, seen.ties) == (1, 1, 1)
    assert seen.share_b == 0.5
    assert seen.p == 1.0


def test_users_prefer_what_answers_them_over_random_items(tmp_path):
    """The platform's own words route against one that brings the same ten items to everybody."""
    start = make_start()
    arms = {"control": {"bm25": start.deployed["bm25"]}, "useless": {"bm25": Fixed(*range(1, 11))}}
    found = look_first(tmp_path, start, "bm25", {**arms, "same": arms["control"]})
    assert set(found) == {"useless"}  # nobody can prefer a copy of the control
    assert found["useless"].wins_a > 2 * found["useless"].wins_b
    assert found["useless"].p < 0.01
    (tmp_path / "useless.json").write_text(
        '{"wins_a": 1, "wins_b": 3, "ties": 6, "share_b": 0.6, "low": 0.3, "high": 0.9, "p": 0.6}\n'
    )
    kept = look_first(tmp_path, start, "bm25", arms)  # what is there is read
    assert kept == {"useless": Preference(1, 3, 6, 0.6, 0.3, 0.9, 0.6)}
    (section,) = first_looks({"bm25": kept})
    assert section.tables[0].rows[0][:6] == ["bm25", "useless", "3", "1", "6", "75.0 [30.0, 90.0]"]
    assert first_looks({}) == []
