"""The methods of the tables on a small mined folder: what each sees, and what it leaves alone."""

import dataclasses
import json
from datetime import UTC, datetime

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer

from crops.config import TrainingConfig
from crops.errors import CropsError
from crops.labels import Source
from crops.losses import h_infonce, nce
from crops.outputs import read_manifest
from crops.training import methods
from crops.training.data import Catalogue
from crops.training.memory import MemoryGroups
from crops.training.methods import METHODS, find_method, fit_method
from crops.training.miners import Schedule, mine_adore, mine_ance, mine_bm25, mine_star, mine_tri
from crops.training.mining import Corpus, Mining, Moment, with_documents
from crops.training.objective import objective
from crops.training.pool import tokenise_pool
from crops.training.samples import Samples
from crops.training.tune import tune_method
from crops.training.validation import is_validation

QUERIES, ITEMS = 30, 60
NONE = -1


@pytest.fixture
def mined(write_mined):
    """30 queries of 6 topics; each has a click, a skip, and of every other source one document."""
    sources = [Source.CLICKED, Source.EXPOSED, Source.UNEXPOSED, Source.REFORMULATION, Source.FEED]
    rows = [
        (query, 1 + (query + 6 * place) % ITEMS, source)
        for query in range(QUERIES)
        for place, source in enumerate(sources)
    ]
    items = {1 + i: f"d{i % 6}_{i // 6 % 4} d{i % 6}_{i // 24 % 4}" for i in range(ITEMS)}
    queries = {i: (f"q{i % 6}_{i // 6 % 4} q{i % 6}_{i // 12 % 4}", 1) for i in range(QUERIES)}
    folder = write_mined(rows, items, queries)
    (folder / "report.json").write_text(json.dumps({"days": ["2026-01-05", "2026-01-06"]}))
    return folder


@pytest.fixture
def config(random_encoder):
    return TrainingConfig(
        init=str(random_encoder), batch_queries=8, steps=12, learning_rate=0.02, temperature=0.05
    )


@pytest.fixture
def corpus(toy, random_encoder):
    """The toy's queries and documents, the documents as the catalogue too; and the encoder."""
    catalogue = Catalogue(toy.doc_id, toy.doc_texts)
    source = MemoryGroups(toy, 1, 0.5, catalogue)
    encoder = SentenceTransformer(str(random_encoder), device="cpu")
    return Corpus(encoder, tokenise_pool(encoder, source), catalogue, source, None), encoder


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
    monkeypatch.setattr("crops.negatives.ann.ance_negatives.__defaults__", (4,))
    mine = mine_ance(corpus, Schedule(2, 5, 0.05))
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
    monkeypatch.setattr("crops.negatives.star.star_negatives.__defaults__", (3,))
    mine = mine_star(corpus, Schedule(2, 5, 0.05))
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
    mine = mine_adore(corpus)
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
    mine = mine_bm25(corpus, Schedule(0, 1, 0.05))
    negatives = mine(moment(0, corpus, [[int(corpus.ids[0])], []], negatives=1))
    shared = set(corpus.texts[0].split())
    assert set(corpus.texts[int(np.searchsorted(corpus.ids, negatives[0, 0]))].split()) & shared
    assert negatives[0, 0] != corpus.ids[0]
    # The toy's queries and documents share no word.
    assert negatives[1].tolist() == [NONE]


def test_trisampler_needs_a_positive_that_is_in_the_catalogue(corpus):
    corpus, _ = corpus
    mine = mine_tri(corpus, Schedule(0, 5, 0.5))
    negatives = mine(moment(0, corpus, [[int(corpus.ids[0])], [99999]]))
    assert corpus.ids[0] not in negatives[0]
    assert negatives[1].tolist() == [NONE] * 3


def unit(*rows):
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=1)


def test_nce_is_told_from_its_own_noise_alone():
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
        "texts": torch.tensor([0, 1, int(corpus.text_rows[0]), int(corpus.text_rows[1])]),
        "encoded_here": torch.ones(4, dtype=torch.bool),
        "query_text": torch.tensor([0, 1]),
        "doc_text": torch.tensor([2, 3]),
        "query_index": torch.tensor([0, 1]),
        "grades": torch.tensor([4, 4]),
        "query_id": torch.tensor([100, 200]),
        "doc_id": torch.from_numpy(corpus.ids[:2].copy()),
        "known_index": torch.empty(0, dtype=torch.int64),
        "known_id": torch.empty(0, dtype=torch.int64),
        "scale": torch.tensor(0.5),
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
    losses = h_infonce(
        queries, docs[[0, 1, 0, 1]], joined["query_index"], joined["grades"], temperature=0.5,
        query_id=joined["query_id"], doc_id=joined["doc_id"], reduction="none",
    )  # fmt: skip
    score = (queries @ docs.T / 0.5).exp()
    # Query 0: its positive against document 2 once, as its own negative. Query 1: against document 1 twice,
    # query 0's copy and the one of all; query 0's copy of document 2 is its own positive.
    assert losses[0].exp().item() == pytest.approx(((score[0, 0] + score[0, 1]) / score[0, 0]).item())
    assert losses[1].exp().item() == pytest.approx(((score[1, 1] + 2 * score[1, 0]) / score[1, 1]).item())
    assert losses[2:].tolist() == [0, 0]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_sees_the_same_queries_and_documents(mined, config, tmp_path, name):
    facts = fit_method(name, mined, tmp_path / "model", config, seed=0)
    assert (facts["steps"], facts["queries_seen"]) == (12, 96)
    assert facts["documents_per_step"] == pytest.approx(facts["budget"], rel=0.1)
    assert facts["documents_seen"] == pytest.approx(12 * facts["documents_per_step"])
    assert np.isfinite(facts["loss"])
    assert {"train_seconds", "cpu_seconds"} <= facts.keys()
    assert read_manifest(tmp_path / "model", "train")["method"] == name
    assert SentenceTransformer(str(tmp_path / "model"), device="cpu").encode_query("q0_0").shape == (16,)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".model")] == []


def test_the_baselines_know_clicks_alone(mined, config, tmp_path, monkeypatch):
    seen = []
    real = methods.train
    monkeypatch.setattr(methods, "train", lambda data, *a, **k: seen.append(data) or real(data, *a, **k))
    for name in ("dpr", "fs_lr", "plus_p1", "p1_at_4"):
        fit_method(name, mined, tmp_path / name, config.model_copy(update={"steps": 1}), seed=0, documents=64)
    assert [sorted(set(data.label.tolist())) for data in seen] == [[4], [2, 3, 4], [2, 3, 4, 5], [2, 3, 4]]
    assert len(seen[0].label) == QUERIES


def test_adore_leaves_documents_bit_identical_and_moves_the_query_tower(mined, config, tmp_path, monkeypatch):
    monkeypatch.setattr(methods.shutil, "rmtree", lambda *a, **k: None)
    facts = fit_method("adore", mined, tmp_path / "model", config, seed=0, point={"query_share": 0.5})
    star = SentenceTransformer(str(tmp_path / ".model.star"), device="cpu")
    adore = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    texts = [f"d{topic}_{n}" for topic in range(6) for n in range(4)]
    np.testing.assert_array_equal(adore.encode_document(texts), star.encode_document(texts))
    assert not np.allclose(adore.encode_query(["q0_0 q0_1"]), star.encode_query(["q0_0 q0_1"]))
    assert facts["star"]["steps"] == 6
    assert facts["refreshes"] == 2


def test_the_same_seed_gives_the_same_model(mined, config, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        short = config.model_copy(update={"steps": 4})
        fit_method("trisampler", mined, tmp_path / name, short, seed=seed, documents=40)
    weights = {
        name: SentenceTransformer(str(tmp_path / name), device="cpu")[0].embedding.weight.detach()
        for name in "abc"
    }
    assert torch.equal(weights["a"], weights["b"])
    assert not torch.equal(weights["a"], weights["c"])


def test_a_catalogue_smaller_than_the_budget_gives_what_it_has(mined, config, tmp_path):
    facts = fit_method("nce", mined, tmp_path / "model", config, seed=0, documents=100_000)
    # 8 queries a step: each has its click and the other 59 documents as noise.
    assert facts["documents_per_step"] == 8 * ITEMS


def test_items_of_a_later_day_are_no_negatives(mined, config, tmp_path):
    table = pq.read_table(mined / "items.parquet")
    late = int(datetime(2026, 1, 7, tzinfo=UTC).timestamp()) * 1_000_000
    uploaded = [late - 1 if i <= 10 else late for i in table["item_id"].to_pylist()]
    place = table.column_names.index("uploaded_at")
    pq.write_table(
        table.set_column(place, table.schema.field("uploaded_at"), [uploaded]), mined / "items.parquet"
    )
    facts = fit_method("nce", mined, tmp_path / "model", config, seed=0, documents=100_000)
    assert facts["documents_per_step"] < 8 * 12


def test_held_out_queries_are_left_out(mined, config, tmp_path):
    held = int(is_validation(np.arange(QUERIES)).sum())
    facts = fit_method("dpr", mined, tmp_path / "model", config, seed=0, exclude_validation=True)
    assert (held, facts["groups"]) == (3, QUERIES - 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dprr", {}, r"unknown method 'dprr'; known: nce, dpr, .*'dpr'"),
        ("dpr", {"point": {"negative": 1}}, r"unknown setting 'negative' of a method; .*'negatives'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(mined, config, tmp_path, name, options, message):
    with pytest.raises(CropsError, match=message):
        fit_method(name, mined, tmp_path / "model", config, seed=0, **options)


def test_bm25_cannot_read_ids(mined, tmp_path):
    with pytest.raises(CropsError, match="dpr: BM25 reads texts and two_tower ids"):
        fit_method("dpr", mined, tmp_path / "model", TrainingConfig(encoder="two_tower"), seed=0)


def test_every_method_has_as_many_points_to_try_and_each_is_valid():
    assert {len(method.grid) for method in METHODS.values()} == {4}
    for method in METHODS.values():
        assert all(method.settings(point) for point in method.grid)


def test_tuning_keeps_the_best_point_of_the_held_out_queries(mined, config, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "dpr", dataclasses.replace(find_method("dpr"), grid=METHODS["dpr"].grid[:2]))
    found = tune_method("dpr", mined, tmp_path / "tuned", config, seed=0)
    scores = [one["metrics"]["score"] for one in found["points"]]
    assert found["best"] == found["points"][int(np.argmax(scores))]["point"]
    assert json.loads((tmp_path / "tuned" / "dpr.json").read_text()) == found
    lexical = tune_method("bm25", mined, tmp_path / "tuned", config, seed=0)
    assert len(lexical["points"]) == 12
    assert lexical["best"].keys() == {"k1", "b"}


def test_a_shared_tower_cannot_be_half_frozen(toy, config, tmp_path):
    frozen = config.model_copy(update={"train_documents": False})
    with pytest.raises(CropsError, match="queries share the documents' tower; set towers = separate"):
        methods.train(toy, tmp_path / "model", frozen, seed=0)


def test_mined_negatives_are_for_samples_in_memory(mined, config, tmp_path):
    mining = Mining(Catalogue(np.array([1]), ["d0_0"]), 64)
    with pytest.raises(CropsError, match="need the samples in memory"):
        methods.train(Samples(mined), tmp_path / "model", config, seed=0, mining=mining)
