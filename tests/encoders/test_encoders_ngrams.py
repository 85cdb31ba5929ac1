import json

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from crops.config import TrainingConfig
from crops.encoders import encoder_folder, load_encoder, only_used_tokens, rendering_for, tokenise
from crops.encoders.ngrams import ngram_encoder, ngrams
from crops.errors import CropsError
from crops.relevance.encode import text_encoder
from crops.text import PLAIN

TEXTS = ["苹果手机壳 iPhone", "مرحبا بالعالم", "שלום", "हिन्दी में", "🍎🍎", "สวัสดี"]


@pytest.fixture
def encoder():
    return ngram_encoder(dim=8, rows=4096, max_tokens=16)


@pytest.fixture
def folder(encoder, tmp_path):
    encoder.save(str(tmp_path / "model"), create_model_card=False)
    return tmp_path / "model"


@pytest.mark.parametrize(("text", "parts"), [
    ("Cat", ["<cat>", "<ca", "cat", "at>", "<cat", "cat>"]),
    ("to", ["<to>", "<to", "to>"]),
    ("养猫粮", ["养", "猫", "粮", "养猫", "猫粮", "养猫粮"]),
    ("Ａ🍎", ["<a>", "<🍎>"]),
    ("हि", ["<हि>", "<हि", "हि>"]),  # a vowel sign is a part of its word
    ("?! \u200b", []),
])  # fmt: skip
def test_words_n_grams_and_emoji(text, parts):
    assert ngrams(text) == parts


def test_a_text_is_the_mean_of_its_rows(encoder):
    features = encoder[0].preprocess(["养猫", "", "to"])
    assert features["offsets"].tolist() == [0, 3, 3]
    mean = encoder[0].embedding.weight[features["input_ids"][:3]].mean(dim=0).detach().numpy()
    found = encoder.encode(["养猫", ""])
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert not found[1].any()


def test_every_script_has_vectors_and_they_differ(encoder):
    vectors = encoder.encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (vectors @ vectors.T)[~np.eye(len(TEXTS), dtype=bool)].max() < 0.95


def test_texts_are_cut_where_the_settings_say(encoder):
    assert encoder.encode("a" * 64 + " end").tolist() == encoder.encode("a" * 64).tolist()


def test_a_saved_encoder_gives_the_same_vectors(encoder, folder):
    before = encoder.encode(TEXTS)
    ours = load_encoder(TrainingConfig(encoder=str(folder)))
    plain = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    for loaded in (ours, plain):
        np.testing.assert_array_equal(loaded.encode(TEXTS), before)
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(folder))


def test_a_saved_encoder_serves_as_theta(encoder, folder):
    found, _ = text_encoder(str(folder))
    np.testing.assert_allclose(found.encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)


def test_code_that_lies_in_a_model_folder_is_never_run(folder):
    (folder / "crops.encoders.ngrams.py").write_text("raise SystemExit('ran')")
    with pytest.raises(CropsError, match="trust_remote_code"):
        load_encoder(TrainingConfig(encoder=str(folder)))


def test_a_foreign_module_beside_ours_is_not_trusted(folder):
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "shlex.quote"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CropsError, match="trust_remote_code"):
        load_encoder(TrainingConfig(encoder=str(folder)))


def test_the_preset_trains_reads_plain_texts_and_has_no_weights_before():
    config = TrainingConfig(encoder="ngrams", dim=8, id_table=4096)
    assert rendering_for(config) is PLAIN
    np.testing.assert_array_equal(load_encoder(config).encode(TEXTS), load_encoder(config).encode(TEXTS))
    with pytest.raises(CropsError, match="ngrams is an untrained encoder"):
        encoder_folder(config)


def test_separate_towers_survive_saving(tmp_path):
    towers = load_encoder(TrainingConfig(encoder="ngrams", dim=8, id_table=4096, towers="separate"))
    towers.save(str(tmp_path), create_model_card=False)
    loaded = load_encoder(TrainingConfig(encoder=str(tmp_path)))
    np.testing.assert_array_equal(loaded.encode_query(TEXTS), towers.encode_query(TEXTS))


def test_training_touches_the_rows_of_its_texts_only(encoder):
    before = encoder[0].embedding.weight.detach().clone()
    tokens = tokenise(encoder, ["养猫", "?"])
    assert tokens.lengths(np.arange(2)).tolist() == [3, 0]
    with only_used_tokens(encoder, tokens) as narrow:
        assert encoder[0].embedding.weight.shape == (3, 8)
        encoder[0].embedding.weight.data += 1
        assert sorted(narrow.ids.tolist()) == [0, 1, 2]
    moved = (encoder[0].embedding.weight != before).any(dim=1)
    assert sorted(moved.nonzero().flatten().tolist()) == sorted(tokens.ids.tolist())
