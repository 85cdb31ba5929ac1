"""From a simulated editor to a mining with an evidence theta and P4, by the commands."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.cli.logs import mine
from crops.cli.simulate import annotate
from crops.cli.theta import brought_by, theta_fit
from crops.errors import CropsError
from crops.labels import Source
from crops.outputs import write_manifest
from crops.text import query_id

TRAIN, TEST, NOON = "2026-01-05", "2026-01-07", 1_767_614_400_000_000
ANIMALS = ("cat", "dog", "owl", "fox", "cow", "bee", "ape", "eel", "emu", "hen", "jay", "koi")


@pytest.fixture(scope="module")
def world(tmp_path_factory, write_logs):
    """Each animal is searched for its need; of its ten items, half its own, the first two are clicked."""
    folder = tmp_path_factory.mktemp("evidence") / "world"
    rows, items, grades = [], [], []
    for number, animal in enumerate(ANIMALS):
        for place in range(10):
            item = 10 * number + place + 1
            right = place % 2 == 0
            items.append(
                {"item_id": item, "ocr_cover": f"clip {item}", "category": animal if right else "other"}
            )
            seen = {"stage": "exposed", "clicked": right} if place < 4 else {"stage": "unexposed"}
            rows.append({"search_id": number + 1, "query": animal, "item_id": item, **seen})
            if right:
                grades.append((number, item, 3))
        rows.append({**rows[-1], "search_id": 100 + number, "searched_at": NOON + 2 * 86_400_000_000})
    logs = write_logs(folder / "logs", items, rows)
    (folder / "truth").mkdir()
    searches = {"search_id": [*range(1, 13), *range(100, 112)], "need_id": [*range(12), *range(12)]}
    pq.write_table(pa.table(searches), folder / "truth" / "searches.parquet")
    needs, ids, given = zip(*grades, strict=True)
    table = pa.table({"need_id": needs, "item_id": ids, "grade": given})
    pq.write_table(table, folder / "truth" / "grades.parquet")
    days = {"warm_up": "2026-01-04", "train": TRAIN, "test": TEST}
    write_manifest(folder, "simulate", config={}, seconds={}, days=days)
    wide = folder.with_name("wide")
    mine(logs, wide, day=[TRAIN], relevance="none")
    return folder, logs, wide


def test_an_editor_teaches_a_theta_that_promotes_what_was_not_shown(world, tmp_path):
    folder, logs, wide = world
    judged = annotate(folder, wide, out=tmp_path / "judged.csv", budget=120, noise=0.0)
    found = theta_fit(judged, samples=wide, out=tmp_path / "theta")
    assert found["worth"]["trees"]["all"]["pairs"] == 120
    # Only the category tells an animal's clips from others; a title says nothing.
    assert (
        found["worth"][found["model"]]["all"]["auc"] > 0.95 > 0.8 > found["worth"]["text alone"]["all"]["auc"]
    )
    config = tmp_path / "run.toml"
    config.write_text(
        f'[relevance]\nevidence = "{tmp_path / "theta"}"\n[engine.promotion]\nrelevance = 0.5\n'
    )
    mine(logs, tmp_path / "mined", day=[TRAIN], sources=["search", "p4"], config=config)
    rows = pq.read_table(tmp_path / "mined" / "samples.parquet").to_pylist()
    promoted = {row["item_id"] for row in rows if row["sources"] & Source.PROMOTED}
    right = {10 * number + place + 1 for number in range(12) for place in (4, 6, 8)}
    assert promoted == right
    assert json.loads((tmp_path / "mined" / "manifest.json").read_text())["evidence"] == str(
        tmp_path / "theta"
    )
    with pytest.raises(CropsError, match="not read in daily builds"):
        mine(logs, tmp_path / "days", daily=True, config=config)


def test_the_test_day_is_neither_judged_nor_learnt(world, tmp_path):
    folder, logs, wide = world
    mine(logs, tmp_path / "tested", day=[TEST], relevance="none")
    with pytest.raises(CropsError, match="2026-01-07, the test day: nobody judges its answers"):
        annotate(folder, tmp_path / "tested", out=tmp_path / "judged.csv")
    judged = tmp_path / "judged.csv"
    judged.write_text(f"day,query,item_id,grade\n{TEST},cat,1,3\n")
    with pytest.raises(CropsError, match="column day: 2026-01-07 is not what was mined .2026-01-05."):
        theta_fit(judged, samples=wide, out=tmp_path / "theta")


def test_pairs_of_a_source_are_found_in_groups_of_one_event_too(tmp_path):
    """Two searches for “fox” are two groups: one has item 1 of P1, the other item 1 of P2 and item 2."""
    p1, p2, shown = int(Source.REFORMULATION), int(Source.FEED), int(Source.EXPOSED)
    samples = {"query_id": [70, 71, 71, 72], "item_id": [1, 1, 2, 1], "sources": [p1, p2 | shown, shown, p2]}
    pq.write_table(pa.table(samples), tmp_path / "samples.parquet")
    pq.write_table(
        pa.table({"query_id": [70, 71, 72], "query": ["fox", "fox", "hen"]}), tmp_path / "queries.parquet"
    )
    asked = np.array([query_id("fox"), query_id("fox"), query_id("hen"), query_id("owl")])
    found = brought_by(tmp_path, asked, np.array([1, 2, 1, 1]))
    assert {name: own.tolist() for name, own in found.items()} == {
        "P1": [True, False, False, False],
        "P2": [True, False, True, False],
    }
