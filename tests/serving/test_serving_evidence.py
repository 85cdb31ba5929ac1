"""The evidence by hand, and what k keeps out of it: of searchers 1 to 6 and 9, see `served_world`."""

import numpy as np
import pytest
from served_world import GENERATED, ITEMS, MODELS, SECRET, patient
from starlette.testclient import TestClient

from crops.config import ExpansionConfig, IndexConfig
from crops.engine.documents import added_texts, expand, read_expansion
from crops.engine.evidence import Trail, TrainingEvidence
from crops.errors import CropsError
from crops.labels import Source
from crops.retrieval import build_index
from crops.retrieval.uri import Texts
from crops.serving import service as service_module
from crops.serving.app import make_app
from crops.serving.evidence import Added, Truth
from crops.text import DOCUMENT_FIELDS, query_id

P0, P1, P2, P3 = Source.CLICKED, Source.REFORMULATION, Source.FEED, Source.KNOWLEDGE


def totals(evidence, text):
    return {
        total.source: (total.items, total.events, total.users)
        for total in evidence.query(query_id(text)).by_source
    }


def pairs(evidence, text):
    return {pair.item_id: pair for pair in evidence.group(query_id(text))}


@pytest.fixture(scope="module")
def evidence(world):
    return TrainingEvidence(world / "samples")


def test_only_queries_of_k_users_are_known(evidence):
    assert [(query.text, query.searches, query.users) for query in evidence.queries] == [
        ("jaguar", 7, 7),
        ("spotted cat", 4, 4),
    ]
    for rare in (SECRET, "red car"):
        assert evidence.query(query_id(rare)) is None
        assert evidence.stages(query_id(rare)) is None
        assert evidence.group(query_id(rare)) == []


def test_the_sources_of_a_query_by_hand(evidence):
    """Item 1 was clicked by 4; 3 consumed under "spotted cat" by 4 and 5 under "red car" by one;

    2 was liked in the feed by 3 of the searchers.
    """
    found = totals(evidence, "jaguar")
    assert found[P0] == (1, 4, 4)
    assert found[P1] == (1, 4, 4)  # with item 5 in it, the difference would tell of the one
    assert found[P2] == (1, 3, 3)
    assert found[P3] == (1, 1, 0)
    assert evidence.query(query_id("jaguar")).rewordings == ("spotted cat",)


def test_trails_name_and_count_k_users_or_nobody(evidence):
    group = pairs(evidence, "jaguar")
    assert group[3].trails == (Trail(P1, 4, 4, ("spotted cat",)),)
    assert group[5].trails == (Trail(P1, None, None),)
    assert group[1].trails == (Trail(P0, 4, 4),)
    assert group[2].trails == (Trail(P2, 3, 3),)
    assert [group[item].label for item in (3, 5, 1, 2, 6)] == [5, 5, 4, 4, 1]
    written = next(pair for item, pair in group.items() if item < 0)
    assert (written.model, written.document.title, written.label) == ("Test-LM 1B", GENERATED["ocr_cover"], 4)
    # stages: the furthest that the old system went
    expected = {1: Source.CLICKED, 6: Source.FILTERED, 8: Source.EXPOSED}
    assert evidence.stages(query_id("jaguar")) == expected


def test_a_higher_k_hides_more(world):
    strict = TrainingEvidence(world / "samples", k=5)
    assert [query.text for query in strict.queries] == ["jaguar"]
    found = totals(strict, "jaguar")
    assert found[P0] == (None, None, None)
    assert found[P1] == (None, None, None)
    assert pairs(strict, "jaguar")[3].trails == (Trail(P1, None, None),)
    assert strict.query(query_id("jaguar")).rewordings == ()
    assert [query.text for query in TrainingEvidence(world / "samples", limit=1).queries] == ["jaguar"]


def test_the_nearest_pairs_by_hand(service):
    """Item 3 is itself a positive of "jaguar": both cosines are 1. The others follow by their product."""
    explained = service.explainer.explain("jaguar", [3, 6])
    assert explained.known
    assert [near.query.text for near in explained.queries][0] == "jaguar"
    first = explained.pairs[3][0]
    assert (first.pair.item_id, first.similarity, first.near.similarity) == (3, 1.0, 1.0)
    written = [one for one in explained.pairs[3] if one.pair.model]
    assert 0 < written[0].similarity < 1  # both say "spotted cat"
    weights = [one.similarity * one.near.similarity for one in explained.pairs[6]]
    assert weights == sorted(weights, reverse=True)
    encoder = MODELS["new"].encoder
    options = {"batch_size": 8, "normalize_embeddings": True, "show_progress_bar": False}
    a, b = encoder.encode(
        [" ".join(ITEMS[item][:2]) for item in (6, explained.pairs[6][0].pair.item_id)], **options
    )
    assert explained.pairs[6][0].similarity == pytest.approx(float(np.dot(a, b)), abs=1e-5)
    # a query that nobody asked is explained by its neighbours
    explained = service.explainer.explain("spotted jaguar", [3])
    assert not explained.known
    assert {near.query.text for near in explained.queries} == {"jaguar", "spotted cat"}
    assert all(0 < near.similarity < 1 for near in explained.queries)


def test_what_is_far_from_all_training_queries_has_no_evidence(service, client):
    assert service.explainer.explain("ficus", [6]).queries == ()
    page = client.get("/", params={"q": "ficus", "open": 6}).text
    assert "No training query is near (of those that at least 3 people searched)" in page
    assert "the model found it by its text" in page


def test_a_page_explains_the_result_that_is_open_and_no_other(service, client, monkeypatch):
    asked = []
    explain = service.explainer.explain
    monkeypatch.setattr(
        service.explainer, "explain", lambda query, items: asked.append(list(items)) or explain(query, items)
    )
    assert "consumed after rewording as" not in client.get("/", params={"q": "jaguar"}).text
    assert "consumed after rewording as" in client.get("/", params={"q": "jaguar", "open": 3}).text
    assert client.get("/", params={"q": "jaguar", "open": 99}).status_code == 200  # an old link
    assert asked == [[], [3], [99], []]


def test_a_reason_says_whose_evidence_it_is_and_what_shows_the_rest(client):
    """Item 3 was itself consumed after "jaguar"; for 6, which nobody chose, items like it speak."""
    own = " ".join(client.get("/", params={"q": "jaguar", "open": 3}).text.split())
    assert "this result, consumed after rewording as" in own
    other = " ".join(client.get("/", params={"q": "jaguar", "open": 6}).text.split())
    assert "a similar item, “<bdi>" in other
    assert "this result, " not in other
    hidden = " ".join(client.get("/", params={"q": "jaguar", "open": 5}).text.split())
    assert "this result, consumed after rewording, by fewer than 3 people; searched as this query" in hidden
    assert "<code>crops serve … --shown-users N</code> sets another limit" in hidden


def test_a_query_is_explained_with_three_look_ups_at_most(own_service, monkeypatch):
    """Queries are in memory; the pairs that are named, their trails and new texts are looked up."""
    asked = []
    rows = own_service.evidence._rows
    monkeypatch.setattr(own_service.evidence, "_rows", lambda sql: asked.append(sql) or rows(sql))
    first = own_service.explainer.explain("jaguar", [3, 6])
    assert len(asked) == 3
    assert own_service.explainer.explain("jaguar", [3, 6]) == first
    assert len(asked) == 5
    assert own_service.explainer.explain("jaguar", []).queries == first.queries
    assert len(asked) == 5


def test_what_has_left_the_index_speaks_for_nothing(service, monkeypatch):
    """Item 1 is a positive of "jaguar"; an index without it explains the others."""
    index = service.searcher("index").index
    known = type(index).known
    monkeypatch.setattr(index, "known", lambda ids: known(index, ids) & (ids != 1), raising=False)
    pairs = service.explainer.explain("jaguar", [3])
    assert 1 not in {one.pair.item_id for one in pairs.pairs[3]}
    with pytest.raises(CropsError, match="item_id 1 is not in the index"):
        service.explainer.explain("jaguar", [1])


def test_no_page_or_reply_tells_what_one_person_did(client):
    """User 9 alone asked the secret, alone consumed 5 after "red car": neither text is ever said."""
    for path in ("/", "/?q=jaguar&k=20", "/?q=spotted+cat", "/group?q=jaguar"):
        page = client.get(path).text
        assert SECRET not in page
        assert "“<bdi>red car</bdi>”" not in page
    page = client.get("/group", params={"q": SECRET})
    assert page.status_code == 404
    assert "no training query of at least 3 people" in page.text
    reply = client.post("/explain", json={"query": SECRET, "item_ids": list(ITEMS)}).json()
    assert not reply["known"]
    assert SECRET not in str(reply)
    told = client.post("/explain", json={"query": "jaguar", "item_ids": [5]}).json()["items"][0]["pairs"][0]
    assert told["item_id"] == "5"
    assert told["evidence"] == [{"source": "P1", "events": None, "users": None, "items": None, "via": []}]


def test_explain_answers_with_counts_and_sources(client):
    reply = client.post("/explain", json={"query": "Jaguar", "item_ids": [3]}).json()
    assert (reply["k"], reply["known"]) == (3, True)
    near = {told["source"]: told for told in reply["queries"][0]["positives"]}
    assert near["clicked"] == {"source": "clicked", "events": 4, "users": 4, "items": 1, "via": []}
    first = reply["items"][0]["pairs"][0]
    assert (first["query"], first["item_id"], first["label"]) == ("jaguar", "3", 5)
    assert first["evidence"] == [
        {"source": "P1", "events": 4, "users": 4, "items": None, "via": ["spotted cat"]}
    ]


def test_without_samples_there_is_no_evidence(world, fake_models):
    service = service_module.open_service({"index": (str(world / "new"), "new")}, patient())
    with TestClient(make_app(service)) as client:
        assert client.get("/", params={"q": "jaguar"}).status_code == 200
        for reply in (
            client.post("/explain", json={"query": "jaguar", "item_ids": [1]}),
            client.get("/group", params={"q": "jaguar"}),
        ):
            assert reply.status_code == 404
            assert "--samples" in reply.text


def test_samples_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(CropsError, match="not an output of `crops mine`"):
        TrainingEvidence(tmp_path)
    with pytest.raises(CropsError, match="no truth folder"):
        Truth(tmp_path)


def test_queries_that_joined_the_text_are_shown_with_their_reason(world, fake_models, tmp_path):
    """ "jaguar" joined item 3, reworded by 4 as "spotted cat", and item 5, where one did: k is 3."""
    expand(world / "samples", tmp_path / "expanded", ExpansionConfig(users=1))
    added = added_texts(read_expansion(tmp_path / "expanded"))
    texts = Texts((*DOCUMENT_FIELDS, "mined_query"), added)
    build_index(f"faiss:{tmp_path / 'index'}", MODELS["new"], world / "logs", IndexConfig(), texts=texts)
    settings = {"config": patient(), "samples": world / "samples", "expanded": tmp_path / "expanded"}
    service = service_module.open_service({"index": (str(tmp_path / "index"), "new")}, **settings)
    assert service.expansion.of(3) == (Added("jaguar", P1, "spotted cat", 4),)
    assert service.expansion.of(5) == (Added("jaguar", P1, None, None),)
    assert service.expansion.of(1) == ()
    with TestClient(make_app(service)) as one:
        page = " ".join(one.get("/", params={"q": "jaguar"}).text.split())
        asked = {"query": "jaguar", "item_ids": ["3"]}
        (reply,) = one.post("/explain", json=asked).json()["items"]
    assert "reworded as “<bdi>spotted cat</bdi>” by 4 people" in page
    assert "by fewer than 3 people" in page
    assert "red car</bdi>" not in page
    assert reply["added"] == [{"query": "jaguar", "sources": ["P1"], "via": "spotted cat", "users": 4}]
    with pytest.raises(CropsError, match="was built without an expansion; build it with --expanded"):
        service_module.open_service({"index": (str(world / "new"), "new")}, **settings)
