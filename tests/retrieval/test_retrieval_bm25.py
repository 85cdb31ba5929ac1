from math import log

import numpy as np
import pytest

from crops.errors import CropsError
from crops.retrieval import BM25Retriever
from crops.retrieval.bm25 import splitter

IDS = [30, 20, 10]
TEXTS = ["running shoes", "red shoes shoes", "blue hat"]


def test_scores_follow_the_formula():
    # "shoes" is in 2 of 3: idf = ln(1 + (3 - 2 + .5) / (2 + .5)) = ln 1.6. Lengths 2, 3, 2: mean 7/3.
    # Lucene: idf * tf / (tf + k1 * (1 - b + b * length / mean)), k1 = 1.5, b = .75.
    one = log(1.6) * 1 / (1 + 1.5 * (0.25 + 0.75 * 2 / (7 / 3)))
    two = log(1.6) * 2 / (2 + 1.5 * (0.25 + 0.75 * 3 / (7 / 3)))
    ids, scores = BM25Retriever(IDS, TEXTS).search(["The Shoe"], k=3)
    assert ids.tolist() == [[20, 30, -1]]
    assert scores[0, :2] == pytest.approx([two, one], abs=2e-6)
    assert np.isneginf(scores[0, 2])


def test_k1_and_b_are_used():
    # b = 0: the length plays no part; k1 = 0: the frequency plays none, so both documents tie.
    ids, scores = BM25Retriever(IDS, TEXTS, k1=0, b=0).search(["shoes"], k=2)
    assert ids.tolist() == [[20, 30]]
    assert scores[0] == pytest.approx([log(1.6), log(1.6)], abs=2e-6)


def test_ties_go_to_the_smallest_id_across_the_cut():
    retriever = BM25Retriever([9, 4, 6, 2], ["same words"] * 3 + ["other thing"])
    assert retriever.search(["words"], k=2)[0].tolist() == [[4, 6]]


def test_what_shares_no_word_is_no_result():
    retriever = BM25Retriever(IDS, TEXTS)
    for query in ("umbrella", "", "the of and", "!?"):
        ids, scores = retriever.search([query], k=2)
        assert ids.tolist() == [[-1, -1]]
        assert np.isneginf(scores).all()
    with pytest.raises(CropsError, match="k = 0"):
        retriever.search(["red"], 0)


def test_scores_of_given_candidates_equal_those_of_the_search():
    retriever = BM25Retriever(IDS, TEXTS)
    ids, scores = retriever.search(["red shoes", "hats"], k=3)
    wanted = np.array([[20, 30, -1], [10, 20, -1]])
    given = retriever.scores(["red shoes", "hats"], wanted)
    assert ids[0].tolist() == wanted[0].tolist()
    assert given[0].tolist() == scores[0].tolist()
    assert given[1, 0] == scores[1, 0]
    assert given[1, 1] == 0
    with pytest.raises(CropsError, match="item_id 11 is not in"):
        retriever.scores(["red"], np.array([[11]]))


@pytest.mark.parametrize(("ids", "texts", "options", "message"), [
    ([], [], {}, "the catalogue is empty"),
    ([1, -2], ["a cat", "a dog"], {}, "item_id -2 is negative"),
    ([1], ["a !"], {}, "no document of the catalogue holds a word"),
    ([1], ["cat"], {"k1": -1}, "k1 = -1"),
    ([1], ["cat"], {"b": 1.5}, "b = 1.5"),
    ([1], ["cat"], {"tokeniser": "bigram"},
     r"unknown tokeniser 'bigram'; known: english, folded, bigrams\..*bigrams"),
])  # fmt: skip
def test_bad_input_is_refused(ids, texts, options, message):
    with pytest.raises(CropsError, match=message):
        BM25Retriever(ids, texts, **options)


@pytest.mark.parametrize(("text", "words"), [
    ("怎么养猫", ["怎么", "么养", "养猫"]),
    ("猫", ["猫"]),
    ("养猫 vlog2 第3集", ["养猫", "vlog2", "第", "3", "集"]),
    ("Ａｂｃ、猫", ["abc", "猫"]),
    ("カタカナと한국어", ["カタ", "タカ", "カナ", "ナと", "と한", "한국", "국어"]),
    ("สวัส", ["สว", "วั", "ัส"]),
    ("हिन्दी 🍎", ["हिन्दी", "🍎"]),
    ("!? ", []),
])  # fmt: skip
def test_bigrams_of_characters(text, words):
    assert splitter("bigrams")([text]) == [words]


def test_chinese_is_found_by_bigrams_where_english_words_find_nothing():
    texts = ["新手怎么养猫咪", "怎么做蛋糕", "狗"]
    chosen = BM25Retriever([1, 2, 3], texts)
    assert chosen.search(["养猫咪"], 2)[0].tolist() == [[1, -1]]
    by_words = BM25Retriever([1, 2, 3], texts, tokeniser="english")
    assert by_words.search(["养猫咪"], 2)[0].tolist() == [[-1, -1]]


@pytest.mark.parametrize(("texts", "tokeniser"), [
    (["running shoes", "猫"], "english"),  # 1 of 13 letters: below a tenth
    (["shoes 养猫", "cat"], "bigrams"),  # 2 of 10
    (["สวัสดี"], "bigrams"),
    (["бег по утрам", "كيف أطبخ"], "english"),
    (["sábanas de algodón"], "folded"),
    (["sábanas".replace("á", "a\u0301")], "folded"),  # decomposed
    ([f"{'plain words ' * 60}in a café, 2 × 3"], "english"),  # 1 of some 600 letters
])  # fmt: skip
def test_the_script_of_the_texts_decides_what_a_word_is(texts, tokeniser):
    assert BM25Retriever(range(len(texts)), texts).tokeniser == tokeniser


def test_who_types_without_accents_finds_what_has_them_and_the_reverse():
    retriever = BM25Retriever([1, 2, 3], ["Juego de sábanas", "Colchón 150", "Toalla"])
    assert retriever.search(["sabana"], 2)[0].tolist() == [[1, -1]]
    assert retriever.search(["colchon", "TOÁLLA"], 1)[0].tolist() == [[2], [3]]
    # vowel signs of other scripts are letters, and Korean syllables stay whole
    assert splitter("folded")(["हिन्दी"]) == splitter("english")(["हिन्दी"])
    assert splitter("folded")(["한국어 über"]) == [["한국어", "uber"]]
