"""What the platform learns from its own logs: popularity, co-watches, and the id model."""

import numpy as np
import pyarrow as pa
import pytest
from platform_hand import memory_of

from crops.platform import fit_id_model
from crops.platform.learned import NEIGHBOURS, Memory, best_per_group
from crops.simulation import IdRetriever


def brute_best(group, item, score, k):
    rows = sorted(range(len(group)), key=lambda row: (group[row], -score[row], item[row]))
    taken: dict[int, int] = {}
    kept = []
    for row in rows:
        taken[group[row]] = taken.get(group[row], 0) + 1
        if taken[group[row]] <= k:
            kept.append(row)
    return kept


@pytest.mark.parametrize("k", [1, 3, 100])
def test_best_per_group_equals_brute_force(k):
    rng = np.random.default_rng(k)
    group, score = rng.integers(0, 7, 200), rng.integers(0, 5, 200).astype(float)
    item = rng.permutation(200)
    assert best_per_group(group, item, score, k).tolist() == brute_best(group, item, score, k)


def impressions(rows):
    columns = list(zip(*rows, strict=True))
    return pa.table({"query": list(columns[0]), "item_id": list(columns[1]), "clicked": list(columns[2])})


def feed(rows):
    names = ("user_id", "item_id", "play_ms", "duration_ms")
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


@pytest.fixture
def taught() -> Memory:
    memory = Memory(np.array([9, 0, 0, 0]), np.zeros(2, dtype=np.int64))
    item_sense = np.array([0, 0, 1, 1])
    memory.learn(
        impressions([("bow", 1, True), ("bow", 1, True), ("tie", 3, True), ("seen", 2, False)]),
        # played 3 s or less is no play; watched half or less is not remembered
        feed([(1, 4, 3_000, 4_000), (1, 2, 3_001, 8_000), (2, 2, 5_001, 10_000), (2, 3, 5_000, 10_000)]),
        item_sense,
    )
    memory.learn(impressions([("tie", 1, True), ("new", 2, True)]), feed([(7, 1, 9_000, 9_000)]), item_sense)
    return memory


def test_a_day_is_remembered(taught):
    # item 1: 9 before, 2 + 1 clicks, 1 play; item 2: 1 click and 2 plays; item 3: 1 click and 1 play
    assert taught.plays.tolist() == [9 + 3 + 1, 1 + 2, 1 + 1, 0]
    assert taught.sense_clicks.tolist() == [4, 1]
    assert taught.queries == {"bow": 0, "tie": 1, "new": 2}
    assert taught.click_counts().toarray().tolist() == [[2, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0]]
    # yesterday is the last day only; on the first day users 1 and 2 watched more than half of items 4 and 2
    assert [rows.tolist() for rows in taught.yesterday()] == [[6], [0]]
    assert [len(rows) for rows in memory_of(3).yesterday()] == [0, 0]
    assert [rows.tolist() for rows in taught.watched[0]] == [[0, 1], [3, 1]]


def test_popularity_is_the_logarithm_of_plays():
    popularity = memory_of(3, plays=[0, 1, 7]).popularity()
    assert popularity.tolist() == pytest.approx([0, 1 / 3, 1])
    assert memory_of(2).popularity().tolist() == [0, 0]


def test_co_watched_equals_brute_force_across_blocks(monkeypatch):
    monkeypatch.setattr("crops.platform.learned._BLOCK", 7)
    rng = np.random.default_rng(0)
    watched = [(int(u), int(i)) for u, i in zip(rng.integers(0, 9, 80), rng.integers(0, 30, 80), strict=True)]
    near = memory_of(30, watched=watched).co_watched()
    people = [{u for u, i in watched if i == item} for item in range(30)]
    for item in range(30):
        common = {other: len(people[item] & people[other]) for other in range(30) if other != item}
        best = sorted((o for o in common if common[o]), key=lambda o: (-common[o], o))[:NEIGHBOURS]
        assert near[item].tolist() == best + [-1] * (NEIGHBOURS - len(best))
    assert (memory_of(3).co_watched() == -1).all()


CLICKS = {
    "oak table": {1: 9, 2: 1},
    "glass table": {2: 9},
    "red boots": {4: 9},
    "winter boots": {5: 9, 4: 2},
    "vase": {6: 1},
}
"""Items 0 and 3 were never clicked. Four dimensions for five items: the faintest, 6, is what gets lost."""


@pytest.fixture(scope="module")
def model():
    return fit_id_model(memory_of(7, CLICKS), seed=0)


def test_terms_find_the_items_that_were_clicked_for_them_and_nothing_else(model):
    assert model.item_rows.tolist() == [1, 2, 4, 5, 6]
    assert np.linalg.norm(model.item_vectors[:4], axis=1) == pytest.approx(np.ones(4))
    ids, scores = IdRetriever(model).search(["oak", "glass", "red", "winter", "table", "BOOTS"], 7)
    assert ids[:4, 0].tolist() == [2, 3, 5, 6]  # ids are rows + 1
    assert [set(row.tolist()) for row in ids[4:, :2]] == [{2, 3}, {5, 6}]
    assert (ids[:, 5:] == -1).all()
    assert not np.isin(ids, [1, 4]).any()
    assert (np.diff(scores[:, :5], axis=1) <= 0).all()


def test_unknown_terms_are_zero_and_find_nothing(model):
    vectors = model.encode(["sourdough", "oak sourdough", "oak"])
    assert not vectors[0].any()
    assert vectors[1] == pytest.approx(vectors[2])
    assert np.linalg.norm(vectors[2]) == pytest.approx(1)
    ids, scores = IdRetriever(model).search(["sourdough"], 3)
    assert ids.tolist() == [[-1, -1, -1]]
    assert np.isneginf(scores).all()
