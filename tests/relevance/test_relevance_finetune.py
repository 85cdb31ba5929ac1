"""Both heads over a tiny 6-layer checkpoint: they learn, are calibrated, refused where they do not fit."""

import json

import numpy as np
import pyarrow as pa
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast

from crops.cli.theta import theta_calibrate
from crops.config import RelevanceConfig
from crops.errors import CropsError
from crops.relevance import (
    Calibration,
    CosineScorer,
    CrossScorer,
    Pairs,
    fine_tune,
    model_hash,
    pair_scorer,
    scorer_identity,
    scorers,
)

WORDS = ["cat", "dog", "car", "pie", "fig", "owl", "tea", "sun"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "video", "about"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=6,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    plain = folder / "plain"
    BertModel(config).save_pretrained(plain)
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(plain)
    model = SentenceTransformer(
        modules=[part := Transformer(str(plain)), Pooling(part.get_embedding_dimension())]
    )
    model.save(str(folder / "model"))
    return str(folder / "model")


@pytest.fixture(scope="module")
def judged():
    """Videos about the first four words are relevant to everybody: a rule that random weights learn fast."""
    rows = [(word, f"video about {other}", other in WORDS[:4]) for word in WORDS for other in WORDS]
    left, right, relevant = zip(*rows * 2, strict=True)
    return Pairs(left, right, np.array(relevant))


@pytest.fixture(scope="module")
def trained(checkpoint, judged, tmp_path_factory):
    """Both heads, and the losses of their epochs."""
    out = tmp_path_factory.mktemp("trained")
    return {
        head: (
            out / head,
            fine_tune(judged, checkpoint, out / head, head=head, epochs=6, batch_size=16, learning_rate=3e-3),
        )
        for head in ("bi", "cross")
    }


@pytest.mark.parametrize("head", ["bi", "cross"])
def test_a_head_learns_its_judgements(trained, head):
    folder, losses = trained[head]
    assert len(losses) == 6
    assert losses[-1] < 0.8 * losses[0]
    assert len(model_hash(folder)) == 64


def test_the_same_seed_gives_the_same_model(checkpoint, judged, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fine_tune(judged, checkpoint, tmp_path / name, epochs=1, seed=seed)
    hashes = [model_hash(tmp_path / name) for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]
    with pytest.raises(CropsError, match="exists; name another folder"):
        fine_tune(judged, checkpoint, tmp_path / "a")
    with pytest.raises(CropsError, match="relevant and irrelevant"):
        fine_tune(Pairs(["a"], ["b"], np.array([True])), checkpoint, tmp_path / "m")


@pytest.fixture(scope="module")
def calibrated(trained, judged, tmp_path_factory):
    """The cross-encoder calibrated by the command, on pairs with some judgements turned round."""
    folder = tmp_path_factory.mktemp("calibrated")
    rng = np.random.default_rng(0)
    rows = [
        {"query": q, "text": d, "relevant": int(bool(r) != (rng.random() < 0.15))}
        for q, d, r in zip(judged.left, judged.right, judged.relevant, strict=True)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = theta_calibrate(
        folder / "pairs.jsonl",
        folder / "out",
        "made by hand",
        model=str(trained["cross"][0]),
        head="cross",
        store=folder / "mine.json",
    )
    return folder, found


def test_calibrate_prints_stores_and_draws(calibrated, trained):
    folder, found = calibrated
    stored = json.loads((folder / "mine.json").read_text())["relevance"][str(trained["cross"][0])]
    assert stored["model_hash"] == model_hash(trained["cross"][0])
    assert (stored["a"], stored["b"], stored["source"]) == (found["a"], found["b"], "made by hand")
    recalls = [point["recall"] for point in found["alphas"]]
    assert recalls == sorted(recalls, reverse=True)
    assert len(recalls) == 19
    page = (folder / "out" / "report.html").read_text()
    assert "made by hand" in page
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http-equiv", "")


def test_a_calibrated_cross_encoder_scores_documents_and_the_bi_encoder_queries(calibrated, trained):
    folder, found = calibrated
    config = RelevanceConfig(cross_encoder=str(trained["cross"][0]), calibrations=str(folder / "mine.json"))
    batch = pa.RecordBatch.from_pydict(
        {"left": ["cat", "cat"], "right": ["video about cat", "video about fig"]}
    )
    (scored,) = pair_scorer("relevance", config)(iter([batch]))
    same, other = scored.column("score").to_pylist()
    assert 0 <= other < same <= 1
    relevance, similarity = scorers(config)
    assert isinstance(relevance, CrossScorer)
    assert isinstance(similarity, CosineScorer)


def test_identity_follows_model_and_calibration_and_other_weights_are_refused(calibrated, trained, tmp_path):
    folder, _ = calibrated
    model = str(trained["cross"][0])
    cross = RelevanceConfig(cross_encoder=model, calibrations=str(folder / "mine.json"))
    bi = scorer_identity("relevance", RelevanceConfig())
    assert bi != scorer_identity("relevance", cross)
    assert bi != scorer_identity("similarity", RelevanceConfig())
    with pytest.raises(CropsError, match="no relevance calibration"):
        pair_scorer("relevance", RelevanceConfig(cross_encoder=model))
    stored = json.loads((folder / "mine.json").read_text())
    stored["relevance"][model]["model_hash"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(stored))
    with pytest.raises(CropsError, match="was fitted for weights 0000"):
        pair_scorer("relevance", cross.model_copy(update={"calibrations": str(tmp_path / "other.json")}))


def test_cross_scores_by_hand_and_distinct_pairs_once():
    asked = []

    def logits(pairs):
        asked.extend(pairs)
        return np.array([{"d": 0.5, "e": -1.0}[right] for _, right in pairs])

    batch = pa.RecordBatch.from_pydict({"left": ["q", "q", "q"], "right": ["d", "e", "d"]})
    (out,) = CrossScorer(logits, Calibration(2.0, -1.0))(iter([batch]))
    # 2 * .5 - 1 = 0 -> .5; 2 * -1 - 1 = -3 -> 1 / (1 + e^3) = .047426
    assert out.column("score").to_pylist() == [0.5, 0.047426, 0.5]
    assert asked == [("q", "d"), ("q", "e")]
