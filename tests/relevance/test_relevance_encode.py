"""Every text once: in memory, and on disk between runs."""

import hashlib

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from crops.errors import CropsError
from crops.relevance.encode import TextEncoder, VectorStore, text_key, unread_share


class FakeModel:
    """Unit vectors from a hash of the text; remembers what it was asked."""

    def __init__(self, dim: int = 4) -> None:
        self.dim = dim
        self.calls: list[list[str]] = []

    def __call__(self, texts):
        self.calls.append(list(texts))
        raw = np.array(
            [list(hashlib.sha256(text.encode()).digest()[: self.dim]) for text in texts], np.float32
        )
        return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def test_distinct_texts_are_computed_once():
    model = FakeModel()
    encoder = TextEncoder(model)
    first = encoder.encode(["a", "b", "a"])
    second = encoder.encode(["b", "c"])
    assert model.calls == [["a", "b"], ["c"]]
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(first[1], second[0])
    np.testing.assert_array_equal(encoder.encode(["c", "a"]), model(["c", "a"]))


def test_rows_stay_valid_while_the_matrix_grows():
    encoder = TextEncoder(FakeModel())
    rows = encoder.rows(["a", "b"])
    before = encoder.vectors[rows].copy()
    encoder.rows([f"text {number}" for number in range(1000)])
    np.testing.assert_array_equal(encoder.vectors[rows], before)
    assert encoder.vectors.shape == (1002, 4)


def test_new_texts_join_stored_ones(tmp_path):
    first = TextEncoder(FakeModel(), VectorStore(tmp_path))
    first.encode(["a"])
    first.save()
    first.save()
    assert len(list(tmp_path.iterdir())) == 1  # one part per save with something new
    model = FakeModel()
    second = TextEncoder(model, VectorStore(tmp_path))
    got = second.encode(["b", "a"])
    assert model.calls == [["b"]]
    np.testing.assert_array_equal(got, FakeModel()(["b", "a"]))
    second.save()
    keys, vectors = VectorStore(tmp_path).load()
    assert sorted(keys) == sorted([text_key("a"), text_key("b")])
    assert vectors.shape == (2, 4)
    assert vectors.dtype == np.float32


def test_long_work_is_stored_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr("crops.relevance.encode._SAVE_EVERY", 2)
    encoder = TextEncoder(FakeModel(), VectorStore(tmp_path))
    encoder.encode(["a"])
    assert VectorStore(tmp_path).load()[0] == []
    encoder.encode(["b"])
    assert VectorStore(tmp_path).load()[0] == [text_key("a"), text_key("b")]


def test_two_processes_may_store_the_same_text(tmp_path):
    for texts in (["a", "b"], ["b", "c"]):
        VectorStore(tmp_path).append([text_key(text) for text in texts], FakeModel()(texts))
    model = FakeModel()
    got = TextEncoder(model, VectorStore(tmp_path)).encode(["a", "b", "c"])
    assert model.calls == []
    np.testing.assert_array_equal(got, FakeModel()(["a", "b", "c"]))


def test_damaged_parts_and_vectors_of_two_lengths_are_refused(tmp_path):
    VectorStore(tmp_path).append([text_key("a")], FakeModel(4)(["a"]))
    VectorStore(tmp_path).append([text_key("b")], FakeModel(5)(["b"]))
    with pytest.raises(CropsError, match="several lengths"):
        VectorStore(tmp_path).load()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / ".0123.99.tmp").write_bytes(b"half a file")  # unfinished: no part
    assert VectorStore(tmp_path / "damaged").load()[0] == []
    (tmp_path / "damaged" / "part-0.parquet").write_bytes(b"not parquet")
    with pytest.raises(CropsError, match=r"part-0.parquet.*Delete it"):
        TextEncoder(FakeModel(), VectorStore(tmp_path / "damaged"))


def test_what_a_tokenizer_cannot_read_by_hand(tmp_path):
    """Words: cat (3 letters) and 猫狗, of which 猫 is known; xyzw is spelt, 🍎 and long words unknown."""
    vocabulary = ["[UNK]", "cat", "猫", "x", "##y", "##z", "##w"]
    tokenizer = Tokenizer(WordPiece({word: row for row, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.normalizer = BertNormalizer()
    tokenizer.enable_padding()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    known = {"cat": 0, "猫狗": 1 / 2, "xyzw": 1, "🍎": 1, "cat 猫狗": 1 / 5, "cat xyzw": 4 / 7, "?": 0}
    for text, share in known.items():
        assert unread_share(tmp_path, [text]) == pytest.approx(share), text
    assert unread_share(tmp_path, ["cat", "cat", "🍎"]) == pytest.approx(1 / 3)
    (tmp_path / "tokenizer.json").unlink()
    assert unread_share(tmp_path, ["cat"]) is None
