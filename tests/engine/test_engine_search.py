from collections import Counter

import numpy as np
from handmade import EXPOSED, FILTERED, P0, UNEXPOSED, clicked, labels, run, shown

from crops.engine.backend import DuckDBBackend
from crops.engine.merge import label_sql, random_order
from crops.labels import assign_labels


def test_stages_become_labels_of_each_query(tmp_path):
    """A search without a click gives negatives, a long play alone is no P0, a click stays with its query."""
    tables, report = run(
        tmp_path,
        [
            clicked(1, 1, "q", 0, 1),
            shown(1, 1, "q", 0, 2, liked=True),
            shown(1, 1, "q", 0, 3),
            shown(1, 1, "q", 0, 4, "unexposed"),
            shown(1, 1, "q", 0, 5, "filtered"),
            shown(2, 2, "other", 0, 1),
            shown(2, 2, "other", 0, 2, "filtered"),
            shown(2, 2, "other", 0, 3, play_ms=60_000, duration_ms=60_000),
        ],
    )
    assert labels(tables, ["q", "other"]) == {
        ("q", 1): (4, P0),
        ("q", 2): (4, P0),
        ("q", 3): (3, EXPOSED),
        ("q", 4): (2, UNEXPOSED),
        ("q", 5): (1, FILTERED),
        ("other", 1): (3, EXPOSED),
        ("other", 2): (1, FILTERED),
        ("other", 3): (3, EXPOSED),
    }
    assert {row["weight"] for row in tables["samples"]} == {1.0}
    assert report["labels"] == {"4": 2, "3": 3, "2": 1, "1": 2}
    assert report["input"]["searches_without_click"] == 1


def test_events_of_one_normalised_query_merge_at_the_highest_stage(tmp_path):
    tables, _ = run(
        tmp_path,
        [
            shown(1, 1, "Q", 0, 1, "filtered"),
            shown(2, 2, "q ", 10, 1, "unexposed"),
            shown(3, 3, "q", 20, 1),
            clicked(4, 4, " q", 30, 1),
            shown(1, 1, "Q", 0, 2),
            shown(2, 2, "q ", 10, 2, "filtered"),
        ],
    )
    assert labels(tables, ["q"]) == {
        ("q", 1): (4, P0 | EXPOSED | UNEXPOSED | FILTERED),
        ("q", 2): (3, EXPOSED | FILTERED),
    }


def _wide(queries: int, items: int) -> list[dict]:
    stages = ("exposed", "unexposed", "filtered")
    return [
        shown(query, 1, f"q{query}", 1000.0 * query, 100 * level + item, stage)
        for query in range(queries)
        for level, stage in enumerate(stages, 1)
        for item in range(items)
    ]


def test_caps_hold_per_query_and_stage_and_choose_by_the_seed(tmp_path):
    clicks = [clicked(9, 9, "c", 0, item) for item in range(1, 9)]
    caps = {"max_clicked": 5, "max_exposed": 3, "max_unexposed": 2, "max_filtered": 0}
    runs = [
        run(tmp_path / name, _wide(2, 10) + clicks, search=caps, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    tables, report = runs[0]
    kept = Counter((row["query_id"], row["label"]) for row in tables["samples"])
    assert sorted((label, count) for (_, label), count in kept.items()) == [
        (2, 2),
        (2, 2),
        (3, 3),
        (3, 3),
        (4, 5),
    ]
    clicked_items = [row["item_id"] for row in tables["samples"] if row["label"] == 4]
    assert [row["item_id"] for row in tables["evidence"]] == clicked_items  # evidence is for the kept
    counts = {"clicked": (8, 5), "exposed": (20, 6), "unexposed": (20, 4), "filtered": (20, 0)}
    assert report["sources"]["search"] == {
        stage: {"candidates": found, "kept": kept} for stage, (found, kept) in counts.items()
    }
    assert runs[0] == runs[1]
    assert tables["samples"] != runs[2][0]["samples"]


def test_random_order_is_the_stated_formula_and_fits_64_bits():
    # By hand: shift s = first integer of the generator; (5 mod p) * (1 + (-3 mod p + s) mod (p - 1)) mod p.
    prime = 2**31 - 1
    shift = int(np.random.default_rng(9).integers(prime))
    extremes = [(-3, 5), (-(2**63), 2**63 - 1), (2**63 - 1, -(2**63)), (prime - 1, prime - 1), (0, 0)]
    with DuckDBBackend("100MB") as backend:
        for query, item in extremes:
            sql = random_order("q", "i", 9)
            got = backend.rows(
                f"select {sql} as k from (select cast('{query}' as BIGINT) q, cast('{item}' as BIGINT) i)"
            )
            assert got == [{"k": (item % prime) * (1 + (query % prime + shift) % (prime - 1)) % prime}]


def test_random_order_keeps_every_item_about_equally_often():
    # 2000 queries keep 5 of 20 items: each item is expected 500 times, sd sqrt(2000 * 1/4 * 3/4) = 19.4.
    with DuckDBBackend("100MB") as backend:
        backend.table("q", "select (range * 7919 * 104729) as query_id from range(2000)")
        backend.table("i", "select range + 1 as item_id from range(20)")
        kept = backend.rows(
            f"""
            select item_id, count(*) as n from (
                select item_id, row_number() over (
                    partition by query_id order by {random_order("query_id", "item_id", 3)}
                ) as place from q cross join i
            ) placed where place <= 5 group by item_id
            """
        )
    counts = [row["n"] for row in kept]
    assert len(counts) == 20
    assert min(counts) > 500 - 6 * 19.4
    assert max(counts) < 500 + 6 * 19.4


def test_label_sql_is_assign_labels():
    with DuckDBBackend("100MB") as backend:
        rows = backend.rows(
            f"select range as m, {label_sql('range')} as label from range(1, 128) order by range"
        )
    masks = np.array([row["m"] for row in rows], dtype=np.int64)
    assert [row["label"] for row in rows] == assign_labels(masks).tolist()
