import pytest

from crops.errors import CropsError
from crops.retrieval import BM25Retriever
from crops.retrieval.bm25 import splitter


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("怎么养猫", ["怎么", "么养", "养猫"]),
        ("猫", ["猫"]),
        ("养猫 vlog2 第3集", ["养猫", "vlog2", "第", "3", "集"]),
        ("Ａｂｃ、猫", ["abc", "猫"]),
        ("カタカナと한국어", ["カタ", "タカ", "カナ", "ナと", "と한", "한국", "국어"]),
        ("!? ", []),
    ],
)
def test_bigrams_of_characters(text, words):
    assert splitter("bigrams")([text]) == [words]


def test_chinese_is_found_by_bigrams_where_english_words_find_nothing():
    texts = ["新手怎么养猫咪", "怎么做蛋糕", "狗"]
    by_bigrams = BM25Retriever([1, 2, 3], texts, tokeniser="bigrams").search(["养猫咪"], 2)[0]
    assert by_bigrams.tolist() == [[1, -1]]
    assert BM25Retriever([1, 2, 3], texts).search(["养猫咪"], 2)[0].tolist() == [[-1, -1]]


def test_an_unknown_tokeniser_is_refused_with_the_nearest():
    with pytest.raises(CropsError, match=r"unknown tokeniser 'bigram'; known: english, bigrams\..*bigrams"):
        splitter("bigram")
