"""P4: what search found and never showed is promoted where theta says that it is right."""

import pyarrow as pa
import pytest
from handmade import FILTERED, P0, UNEXPOSED, clicked, read_tables, shown, write_logs

from crops.config import EngineConfig
from crops.engine import mine
from crops.errors import CropsError
from crops.labels import Source

P4 = Source.PROMOTED


class Theta:
    """0.9 for items up to 4, 0.8 for the others: its right key is the item."""

    by_item = True

    def __call__(self, batches):
        for batch in batches:
            scores = [0.9 if item <= 4 else 0.8 for item in batch.column("right_key").to_pylist()]
            yield batch.append_column("score", pa.array(scores, pa.float64()))


@pytest.fixture
def logs(tmp_path):
    """For "a": 1 is clicked, 2 shown in one search and left out of the other, 3 to 6 are never shown."""
    return write_logs(
        tmp_path / "logs",
        [
            clicked(11, 1, "a", 0, 1),
            shown(11, 1, "a", 0, 2, "unexposed"),
            shown(11, 1, "a", 0, 3, "filtered"),
            shown(11, 1, "a", 0, 5, "unexposed"),
            shown(12, 2, "A ", 60, 2),
            shown(12, 2, "A ", 60, 3, "unexposed"),
            shown(12, 2, "A ", 60, 4, "filtered"),
            shown(12, 2, "A ", 60, 6, "filtered"),
        ],
    )


@pytest.mark.parametrize("memory", ["2GB", "100MB"])
def test_what_was_never_shown_is_promoted_above_alpha_and_credited_to_its_first_search(
    tmp_path, logs, memory
):
    config = EngineConfig(sources=("search", "p4"), k=1, memory=memory)
    report = mine(logs, tmp_path / "mined", config, relevance=Theta(), similarity=None)
    tables = read_tables(tmp_path / "mined")
    assert {row["item_id"]: (row["label"], row["sources"]) for row in tables["samples"]} == {
        1: (4, P0),
        2: (3, UNEXPOSED | Source.EXPOSED),  # shown once, and left alone: no candidate
        3: (4, FILTERED | UNEXPOSED | P4),
        4: (4, FILTERED | P4),
        5: (2, UNEXPOSED),  # 0.8 is not above 0.8
        6: (1, FILTERED),
    }
    found = [
        (row["item_id"], row["search_id"], row["theta"]) for row in tables["evidence"] if row["source"] == P4
    ]
    assert found == [(3, 11, 0.9), (4, 12, 0.9)]
    assert report["sources"]["p4"] == {"theta": 0.8, "candidates": 4, "after_relevance": 2, "kept": 2}
    assert report["rescued"] == {"pairs": 2, "3": 0, "2": 1, "1": 1}


def test_it_is_no_source_of_the_paper_and_takes_a_theta(tmp_path, logs):
    assert "p4" not in EngineConfig().sources
    with pytest.raises(CropsError, match="engine.sources holds p4.*there is no theta"):
        mine(logs, tmp_path / "mined", EngineConfig(sources=("p4",)), relevance=None, similarity=None)


def test_nobody_has_a_cap_as_nobody_consumed_it(tmp_path, logs):
    """A user's cap of one pair leaves both promoted pairs."""
    config = EngineConfig(sources=("search", "p4"), k=1, max_positives_per_user=1)
    mine(logs, tmp_path / "mined", config, relevance=Theta(), similarity=None)
    promoted = [row for row in read_tables(tmp_path / "mined")["samples"] if row["sources"] & P4]
    assert len(promoted) == 2
