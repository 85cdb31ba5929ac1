import faiss
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from crops.errors import CropsError
from crops.retrieval import ExactRetriever, FlatIndex, FusedRetriever, fuse
from crops.retrieval.dense import write_flat


class TableEncoder:
    """Looks unit vectors up; counts the texts of each role."""

    def __init__(self, vectors):
        self.vectors = {text: np.asarray(vector, dtype=np.float32) for text, vector in vectors.items()}
        self.calls = []

    def encode(self, texts, *, batch_size, normalize_embeddings, show_progress_bar):
        assert normalize_embeddings
        self.calls.append(len(texts))
        return np.stack([self.vectors[text] for text in texts])


TEXTS = ["east", "north", "northeast", "east twin"]
ENCODER = {
    "east": [1, 0],
    "north": [0, 1],
    "northeast": [0.6, 0.8],
    "east twin": [1, 0],
    "to the east": [1, 0],
    "up": [0, 1],
    "broken": [np.nan, 0],
}


def test_results_are_best_first_with_ties_by_id_and_padding():
    retriever = ExactRetriever(TableEncoder(ENCODER), [40, 30, 20, 10], TEXTS)
    ids, scores = retriever.search(["to the east", "up"], k=5)
    assert ids.tolist() == [[10, 40, 20, 30, -1], [30, 20, 10, 40, -1]]
    assert scores[0, :4] == pytest.approx([1, 1, 0.6, 0])
    assert scores[1, :4] == pytest.approx([1, 0.8, 0, 0])
    assert np.isneginf(scores[:, 4]).all()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_query_without_a_known_token_finds_nothing(wrapped):
    """All such queries have the vector of the unknown token, or none: they would find the same items."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "to": 1, "the": 2, "east": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    encoder = TableEncoder({**ENCODER, "☃": [1, 0], "\u0301": [0, 0], "☃ east": [1, 0]})
    encoder.tokenizer = (
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]") if wrapped else tokenizer
    )
    retriever = ExactRetriever(encoder, [40, 30, 20, 10], TEXTS)
    ids, scores = retriever.search(["☃", "to the east", "\u0301", "☃ east"], k=2)
    assert ids.tolist() == [[-1, -1], [10, 40], [-1, -1], [10, 40]]
    assert np.isneginf(scores[[0, 2]]).all()


def test_search_equals_a_full_sort_for_any_batch_size():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((500, 16)).astype(np.float32)
    queries = rng.standard_normal((30, 16)).astype(np.float32)
    item_ids = rng.permutation(500) * 3
    index = FlatIndex(item_ids, vectors)
    scores = queries @ vectors.T
    expected = item_ids[np.argsort(-scores, axis=1)[:, :20]]

    together, values = index.nearest(queries, 20)
    alone = np.concatenate([index.nearest(query[None], 20)[0] for query in queries])

    assert (together == expected).all()
    assert (alone == expected).all()
    assert values == pytest.approx(-np.sort(-scores, axis=1)[:, :20], abs=1e-5)


def test_a_file_of_vectors_is_that_of_faiss_and_is_searched_where_it_lies(tmp_path):
    """Written in two blocks, without holding both; equal to what faiss writes of all 500."""
    vectors = np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32)
    write_flat(tmp_path / "vectors.faiss", [vectors[:300], vectors[300:]], 500, 16)
    whole = faiss.IndexFlatIP(16)
    whole.add(vectors)
    assert (tmp_path / "vectors.faiss").read_bytes() == faiss.serialize_index(whole).tobytes()
    ids = np.arange(0, 1000, 2)
    mapped, held = FlatIndex.mapped(ids, tmp_path / "vectors.faiss"), FlatIndex(ids, vectors)
    allowed = ids % 3 == 0
    for k, which in ((7, None), (600, None), (200, allowed)):
        found, scores = mapped.nearest(vectors[:20], k, which)
        expected, cosines = held.nearest(vectors[:20], k, which)
        assert (found == expected).all()
        assert scores == pytest.approx(cosines)
    assert (mapped.vectors(np.array([998, 4])) == vectors[[499, 2]]).all()
    assert mapped.vectors(np.empty(0, dtype=np.int64)).shape == (0, 16)


def test_a_rounded_tie_longer_than_the_fetched_slack_still_goes_to_the_smallest_ids():
    # 400 different scores that all round to 0.01; the largest belong to the largest ids.
    vectors = np.zeros((401, 4), dtype=np.float32)
    vectors[:400, 0] = 0.01 + np.arange(400) * 1e-9
    vectors[400, 0] = 0.5
    ids, scores = FlatIndex(np.arange(401), vectors).nearest(np.eye(4, dtype=np.float32)[:1], 4)
    assert len(np.unique(vectors[:400, 0])) > 300
    assert ids.tolist() == [[400, 0, 1, 2]]
    assert scores[0, 1:] == pytest.approx([0.01] * 3)


def test_scores_of_given_candidates_equal_those_of_the_search():
    retriever = ExactRetriever(TableEncoder(ENCODER), [40, 30, 20, 10], TEXTS)
    scores = retriever.scores(["to the east", "up"], np.array([[20, -1, 40], [30, 20, -1]]))
    assert scores[0, [0, 2]] == pytest.approx([0.6, 1])
    assert scores[1, :2] == pytest.approx([1, 0.8])
    assert np.isneginf(scores[[0, 1], [1, 2]]).all()
    with pytest.raises(CropsError, match="item_id 5 is not in the index"):
        retriever.scores(["up"], np.array([[5]]))


def test_query_and_document_prompts_of_the_model_are_used():
    class TwoSided(TableEncoder):
        def encode_query(self, texts, **options):
            self.calls.append("query")
            return self.encode(texts, **options)

        def encode_document(self, texts, **options):
            self.calls.append("document")
            return self.encode(texts, **options)

    encoder = TwoSided(ENCODER)
    ExactRetriever(encoder, [1, 2, 3, 4], TEXTS).search(["up"], 1)
    assert encoder.calls == ["document", 4, "query", 1]


def test_bad_vectors_and_arguments_are_refused():
    encoder, one = TableEncoder(ENCODER), np.array([1])
    flat = FlatIndex(one, np.ones((1, 2), np.float32))
    for message, call in (
        ("1 of 2 texts, the first is 'broken'", lambda: ExactRetriever(encoder, [1, 2], ["east", "broken"])),
        ("NaN or infinity", lambda: ExactRetriever(encoder, [1], ["east"]).search(["broken"], 1)),
        ("a query vector holds NaN", lambda: flat.nearest(np.full((1, 2), np.nan, np.float32), 1)),
        ("a vector of the index holds NaN", lambda: FlatIndex(one, np.full((1, 2), np.inf, np.float32))),
        ("k = 0", lambda: ExactRetriever(encoder, [1], ["east"]).search(["up"], 0)),
        ("item_id -1 is negative", lambda: ExactRetriever(encoder, [-1, 1], ["east", "north"])),
        ("the catalogue is empty", lambda: ExactRetriever(encoder, [], [])),
        ("the index is empty", lambda: FlatIndex(one[:0], np.empty((0, 2), np.float32))),
    ):
        with pytest.raises(CropsError, match=message):
            call()
    retriever = ExactRetriever(encoder, [1, 2, 3, 4], TEXTS)
    assert retriever.search([], 3)[0].shape == (0, 3)
    assert retriever.scores([], np.empty((0, 2), dtype=np.int64)).shape == (0, 2)


def test_reciprocal_ranks_add_up():
    """7 is first and third: 1/61 + 1/63; 5 second and first: 1/62 + 1/61, the best; 9 is third: 1/63."""
    ids, scores = fuse([np.array([[7, 5, 9]]), np.array([[5, 2, 7]])], k=5)
    assert ids.tolist() == [[5, 7, 2, 9, -1]]
    assert scores[0, :4] == pytest.approx([1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62, 1 / 63])
    assert np.isneginf(scores[0, 4])
    # ties go to the smaller id, and padding counts for nothing
    ids, _ = fuse([np.array([[8, -1], [-1, -1]]), np.array([[3, -1], [4, 6]])], k=2)
    assert ids.tolist() == [[3, 8], [4, 6]]
    one, two = np.zeros((1, 2), np.int64), np.zeros((2, 2), np.int64)
    for lists, k, message in (
        ([one, two], 2, "fusion needs result lists of the same queries"),
        ([], 2, "fusion needs result lists of the same queries"),
        ([one], 0, "k = 0"),
    ):
        with pytest.raises(CropsError, match=message):
            fuse(lists, k)


def test_a_fused_retriever_asks_deep_enough():
    """5 is second in both lists, 1 and 2 are first in one each: 2/62 > 1/61. Lists of 100 are asked for."""

    class Fixed:
        def __init__(self, ids):
            self.ids, self.asked = np.array([ids]), []

        def search(self, queries, k):
            self.asked.append(k)
            return self.ids[:, :k], np.zeros((1, min(k, self.ids.shape[1])), np.float32)

    first, second = Fixed([1, 5, *range(100, 198)]), Fixed([2, 5, *range(200, 298)])
    assert FusedRetriever([first, second]).search(["words"], 3)[0].tolist() == [[5, 1, 2]]
    assert first.asked == second.asked == [100]
    FusedRetriever([first]).search(["words"], 150)
    assert first.asked == [100, 150]
