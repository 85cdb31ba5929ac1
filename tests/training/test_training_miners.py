"""What each method's miner draws from a small catalogue, and how it joins a batch."""

import numpy as np
import pytest
import torch
from by_hand import stored
from sentence_transformers import SentenceTransformer

from crops.config import TrainingConfig
from crops.losses import h_infonce, nce
from crops.negatives import adore, ance, dpr, star, trisampler
from crops.negatives.base import Moment, Schedule
from crops.training.model import EncodedCorpus, objective, with_documents
from crops.training.pool import tokenise_pool
from crops.training.samples import Catalogue

NONE = -1


@pytest.fixture
def corpus(toy, random_encoder, tmp_path):
    """The toy's queries and documents, the documents as the catalogue too; and the encoder."""
    catalogue = Catalogue(toy.docs["item_id"].to_numpy(), toy.docs["text"].to_pylist())
    source = stored(toy, tmp_path, catalogue=catalogue)
    encoder = SentenceTransformer(str(random_encoder), device="cpu")
    return EncodedCorpus(encoder, tokenise_pool(encoder, source, tmp_path), catalogue, source, None), encoder


def moment(step, corpus, positives=(), negatives=3, queries=(0, 1)):
    own = [np.array(ids, dtype=np.int64) for ids in positives or [[]] * len(queries)]
    return Moment(step, np.random.default_rng(step), np.array(queries), own, own, negatives)


def top(encoder, corpus, query, without=()):
    """The catalogue in the order of the encoder as it is now."""
    scores = encoder.encode(corpus.texts) @ encoder.encode(corpus.query_texts[query])
    order = np.lexsort((corpus.ids, -np.round(scores, 6)))
    return [i for i in corpus.ids[order].tolist() if i not in without]


def change(encoder):
    with torch.no_grad():
        encoder[0].embedding.weight.copy_(encoder[0].embedding.weight.flip(0))


def test_ances_negatives_after_a_refresh_are_the_current_models_top_hits_that_are_no_positives(
    corpus, monkeypatch
):
    corpus, encoder = corpus
    monkeypatch.setattr("crops.negatives.base.nearest_negatives.__defaults__", (4,))
    mine = ance.mine(corpus, Schedule(2, 5, 0.05))
    before = top(encoder, corpus, 0)
    positives = [[before[1]], []]
    warming_up = mine(moment(1, corpus, positives))
    assert warming_up.shape == (2, 3)
    assert before[1] not in warming_up[0]
    assert corpus.refreshes == 0
    # Of the four best one is a positive: the other three are drawn, all of them.
    assert sorted(mine(moment(2, corpus, positives))[0]) == sorted([before[0], before[2], before[3]])
    change(encoder)
    assert sorted(mine(moment(6, corpus, positives))[0]) == sorted([before[0], before[2], before[3]])
    after = top(encoder, corpus, 0)
    expected = sorted(i for i in after[:4] if i != before[1])
    assert expected != sorted([before[0], before[2], before[3]])
    drawn = mine(moment(7, corpus, positives))[0]
    assert set(drawn.tolist()) <= {*expected, NONE}
    assert corpus.refreshes == 2


def test_stars_list_stays_that_of_the_warmed_up_model(corpus, monkeypatch):
    corpus, encoder = corpus
    monkeypatch.setattr("crops.negatives.base.nearest_negatives.__defaults__", (3,))
    mine = star.mine(corpus, Schedule(2, 5, 0.05))
    mine(moment(1, corpus))
    assert corpus.refreshes == 0
    warmed_up = sorted(top(encoder, corpus, 0)[:3])
    assert sorted(mine(moment(2, corpus))[0]) == warmed_up
    change(encoder)
    assert sorted(top(encoder, corpus, 0)[:3]) != warmed_up
    assert sorted(mine(moment(7, corpus))[0]) == warmed_up
    assert corpus.refreshes == 1


def test_adores_negatives_are_those_of_the_query_as_encoded_now(corpus):
    corpus, encoder = corpus
    mine = adore.mine(corpus)
    frozen = encoder.encode(corpus.texts)
    change(encoder)
    scores = frozen @ encoder.encode(corpus.query_texts[0])
    order = corpus.ids[np.lexsort((corpus.ids, -np.round(scores, 6)))].tolist()
    positive = order[0]
    assert mine(moment(0, corpus, [[positive], []]))[0].tolist() == order[1:4]
    assert corpus.refreshes == 1


def test_dprs_negative_is_bm25s_top_non_positive_and_none_where_no_word_is_shared(corpus):
    corpus, _ = corpus
    corpus.query_texts[0] = corpus.texts[0]
    mine = dpr.mine(corpus, Schedule(0, 1, 0.05))
    negatives = mine(moment(0, corpus, [[int(corpus.ids[0])], []], negatives=1))
    shared = set(corpus.texts[0].split())
    assert set(corpus.texts[int(np.searchsorted(corpus.ids, negatives[0, 0]))].split()) & shared
    assert negatives[0, 0] != corpus.ids[0]
    # The toy's queries and documents share no word.
    assert negatives[1].tolist() == [NONE]


def test_trisampler_needs_a_positive_that_is_in_the_catalogue(corpus):
    corpus, _ = corpus
    mine = trisampler.mine(corpus, Schedule(0, 5, 0.5))
    negatives = mine(moment(0, corpus, [[int(corpus.ids[0])], [99999]]))
    assert corpus.ids[0] not in negatives[0]
    assert negatives[1].tolist() == [NONE] * 3


def unit(*rows):
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=1)


def test_nce_is_contrasted_with_its_own_noise_alone():
    queries, docs = unit([1, 0], [0, 1]), unit([1, 1], [2, 1], [1, 3], [-1, 2])
    rows, labels = torch.tensor([0, 0, 1, 1]), torch.tensor([4, 0, 4, 0])
    options = {"temperature": torch.tensor(0.5), "doc_id": torch.arange(4), "reduction": "sum"}
    loss = objective(TrainingConfig(loss="nce", in_batch=False)).loss
    both = loss(queries, docs, rows, labels, query_id=torch.tensor([7, 8]), **options)
    alone = [
        nce(queries[[q]], docs[[2 * q, 2 * q + 1]], torch.zeros(2, dtype=torch.int64), labels[:2],
            temperature=0.5, min_anchor_label=4, reduction="sum")
        for q in range(2)
    ]  # fmt: skip
    assert both.item() == pytest.approx(sum(alone).item())
    shared = objective(TrainingConfig(loss="nce")).loss
    assert shared(queries, docs, rows, labels, query_id=torch.tensor([7, 8]), **options) != both


def test_a_joined_document_is_no_negative_of_the_query_it_is_a_positive_of(corpus):
    """Documents 1 and 2 are the queries' positives; 1 joins as everyone's, 2 as query 0's own negative."""
    corpus, _ = corpus
    inputs = {
        "texts": np.array([0, 1, int(corpus.text_rows[0]), int(corpus.text_rows[1])]),
        "encoded_here": np.ones(4, dtype=bool),
        "query_text": np.array([0, 1]),
        "doc_text": np.array([2, 3]),
        "query_index": np.array([0, 1]),
        "grades": np.array([4, 4]),
        "query_id": np.array([100, 200]),
        "doc_id": corpus.ids[:2],
        "known_index": np.empty(0, dtype=np.int64),
        "known_id": np.empty(0, dtype=np.int64),
        "scale": np.array(0.5),
    }
    joined = with_documents(inputs, np.array([-1, 0]), corpus.ids[:2], corpus)
    assert joined["grades"].tolist() == [4, 4, 0, 0]
    assert joined["query_index"].tolist() == [0, 1, -1, 0]
    # No text is encoded twice.
    assert joined["texts"].tolist() == sorted(set(inputs["texts"].tolist()))
    assert joined["texts"][joined["doc_text"]].tolist() == [
        *inputs["texts"][2:].tolist(),
        *inputs["texts"][2:].tolist(),
    ]
    queries, docs = unit([1, 0.2], [0.3, 1]), unit([1, 1], [2, 1])
    index, grades, query_id, doc_id = (
        torch.from_numpy(joined[name]) for name in ("query_index", "grades", "query_id", "doc_id")
    )
    losses = h_infonce(
        queries, docs[[0, 1, 0, 1]], index, grades, temperature=0.5, query_id=query_id, doc_id=doc_id,
        reduction="none",
    )  # fmt: skip
    score = (queries @ docs.T / 0.5).exp()
    # Query 0: its positive against document 2 once, as its own negative. Query 1: against document 1 twice,
    # query 0's copy and the one of all; query 0's copy of document 2 is its own positive.
    assert losses[0].exp().item() == pytest.approx(((score[0, 0] + score[0, 1]) / score[0, 0]).item())
    assert losses[1].exp().item() == pytest.approx(((score[1, 1] + 2 * score[1, 0]) / score[1, 1]).item())
    assert losses[2:].tolist() == [0, 0]
