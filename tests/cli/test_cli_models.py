import pytest

from crops.errors import CropsError
from crops.pipeline import load_retriever


def test_bm25_takes_its_tokeniser_behind_a_colon():
    catalogue = [1, 2], ["新手怎么养猫咪", "狗"]
    assert load_retriever("bm25:bigrams", *catalogue).search(["养猫"], 1)[0].tolist() == [[1]]
    assert load_retriever("bm25", *catalogue).search(["养猫"], 1)[0].tolist() == [[-1]]
    with pytest.raises(CropsError, match="unknown tokeniser 'jieba'; known: english, bigrams"):
        load_retriever("bm25:jieba", *catalogue)
