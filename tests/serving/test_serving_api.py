"""The endpoints: what they answer, and what they say to requests that cannot be answered."""

import itertools
import json
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from served_world import HOSTILE, ITEMS, MODELS, SECRET, open_world, patient
from starlette.testclient import TestClient

from crops.config import IndexConfig
from crops.ids import number_of
from crops.retrieval import build_index
from crops.serving import service as service_module
from crops.serving.app import make_app
from crops.serving.searcher import Job, Searcher


def texts(item):
    return " ".join(ITEMS[item][:2])


def ids(reply):
    return [int(hit["item_id"]) for hit in reply.json()["hits"]]


def test_search_is_the_order_of_cosines_of_its_own_model(client):
    options = {"batch_size": 8, "normalize_embeddings": True, "show_progress_bar": False}
    for name, model in (("index", "new"), ("baseline", "old")):
        encoder = MODELS[model].encoder
        cosines = (
            encoder.encode(list(map(texts, ITEMS)), **options) @ encoder.encode(["jaguar"], **options)[0]
        )
        expected = [list(ITEMS)[row] for row in np.argsort(-cosines)]
        reply = client.post("/search", json={"query": " JAGUAR ", "k": 3, "index": name}).json()
        assert [int(hit["item_id"]) for hit in reply["hits"]] == expected[:3]
        assert reply["hits"][0]["score"] == pytest.approx(cosines.max(), abs=1e-5)
        assert (reply["version"], reply["index"]) == ("000001", name)
        assert [hit["rank"] for hit in reply["hits"]] == [1, 2, 3]
        assert reply["hits"][0]["title"] == ITEMS[expected[0]][0]
    # more results than items are all items; like an item are all but itself
    assert sorted(ids(client.post("/search", json={"query": "cat", "k": 1000}))) == sorted(ITEMS)
    assert sorted(ids(client.post("/similar", json={"item_id": 3}))) == sorted({*ITEMS} - {3})
    assert len(ids(client.post("/similar", json={"item_id": 3, "k": 3}))) == 3


def test_filters_hold_and_texts_can_be_left_out(client):
    where = {"category": "animals", "item_ids": [1, 2, 3]}
    reply = client.post("/search", json={"query": "jaguar", "where": where, "texts": False})
    assert ids(reply)[0] == 2
    assert set(ids(reply)) == {2, 3}
    assert reply.json()["hits"][0]["title"] is None


def test_each_of_many_gets_its_own_filter(client):
    """Eight clients at once, each without one item: ids by the thousand are printed abbreviated."""
    padding = list(range(10**6, 10**6 + 2000))

    def ask(left_out):
        where = {"item_ids": sorted([item for item in ITEMS if item != left_out] + padding)}
        return left_out, ids(client.post("/search", json={"query": "jaguar", "where": where}))

    with ThreadPoolExecutor(8) as pool:
        for left_out, found in pool.map(ask, [*ITEMS] * 6):
            assert sorted(found) == [item for item in ITEMS if item != left_out]


def test_a_query_of_unknown_words_finds_nothing_and_says_so(client, service, monkeypatch):
    encode = MODELS["new"].encoder.encode

    def knows_no_ficus(texts, **options):
        return np.where([["ficus" in text] for text in texts], 0, encode(texts, **options))

    monkeypatch.setattr(MODELS["new"].encoder, "encode", knows_no_ficus)
    reply = client.post("/search", json={"query": "ficus"}).json()
    assert (reply["hits"], reply["note"]) == ([], "the model knows no word of this query")
    assert client.post("/search", json={"query": "jaguar"}).json()["note"] is None
    assert "Nothing was found: the model knows no word of this query." in client.get("/?q=ficus").text
    jobs = [Job(2, "ficus"), Job(2, "jaguar"), Job(2, "ficus")]
    assert [len(one.ids) for one in service.searcher("index").answer(jobs)] == [0, 2, 0]


def test_addresses_with_strange_numbers_get_a_sentence(client):
    for name, number in itertools.product(("k", "open"), ("-" + "9" * 30, "9" * 5000, "x", "1.5")):
        page = client.get("/", params={"q": "jaguar", name: number})
        assert page.status_code == 422
        assert f"{name} = " in page.text
    for k, status in ((50, 200), (51, 422)):
        page = client.get("/", params={"q": "jaguar", "k": k})
        assert page.status_code == status
        assert ("1 to 50" in page.text) is (status == 422)


def test_requests_that_arrive_together_each_get_their_own_answer(service):
    """Eight kinds of jobs in one batch, one of them wrong, answer as each would alone."""
    jobs = [Job(2, "jaguar"), Job(5, "red car"), Job(1, item_id=3), Job(2, item_id=99), Job(3, "ficus")]
    searcher = service.searcher("index")
    together = searcher.answer(jobs)
    alone = [searcher.answer([job])[0] for job in jobs]
    assert [str(one) for one in together] == [str(one) for one in alone]
    assert [len(one.ids) for one in together if not isinstance(one, Exception)] == [2, 5, 1, 3]
    assert "99" in str(together[3])


BAD = [
    ({"query": ""}, "empty"),
    ({"query": " \t\n\u3000"}, "empty"),
    ({"query": "\ufeff\u200f\x1b"}, "empty"),
    ({"query": "a" * 1001}, "1,000"),
    ({}, "query"),
    ({"query": 7}, "query"),
    ({"query": "a", "k": 0}, "k = 0"),
    ({"query": "a", "k": 10**6}, "1,000"),
    ({"query": "a", "k": "ten"}, "k"),
    ({"query": "a", "k": 2**70}, "k"),
    ({"query": "a", "limit": 3}, "limit"),
    ({"query": "a", "index": "other"}, "index"),
    ({"query": "a", "where": {"colour": "red"}}, "colour"),
    ({"query": "a", "where": {"item_ids": [2**63]}}, "item_ids"),
    # a browser that means 2**53 + 1 sends 2**53
    *(
        ({"query": "a", "where": {"item_ids": [given]}}, "send the id as a string of digits")
        for given in (2**53, -(2**53))
    ),
    *(
        ({"query": "a", "where": {"author_id": given}}, "an id is a string of digits")
        for given in (3.0, True, "3.0", "1e3", "007", " 7", "\u0663", str(2**63), "")
    ),
    *(({"query": "a", "where": {"item_ids": [given]}}, "item_ids") for given in (3.0, True, "", " ", None)),
]


def test_bad_searches_get_a_sentence(client):
    for body, told in BAD:
        reply = client.post("/search", json=body)
        assert reply.status_code == 422, body
        assert told in reply.json()["detail"], body
        assert "Traceback" not in reply.text


def test_of_many_faults_a_few_are_named(client):
    reply = client.post("/search", json={"query": "a", "where": {"item_ids": [""] * 5000}})
    assert reply.status_code == 422
    assert reply.json()["detail"].endswith("and 4,997 more")
    assert len(reply.text) < 500


LARGE = {2**53 + 1: "jaguar", 2**53: "jaguar", 2**63 - 1: "spotted cat", 7: "red car"}
OWN = {"SKU 9": "jaguar", str(2**62): "spotted cat", "\u9774": "red car"}
"""Ids of a source that are no numbers of their own."""


@pytest.fixture
def large(tmp_path, write_logs, fake_models):
    """A client of an index whose ids no browser can hold as numbers."""
    items = [{"item_id": item, "ocr_cover": text, "author_id": -item} for item, text in LARGE.items()]
    items += [{"item_id": number_of(id_), "source_id": id_, "ocr_cover": text} for id_, text in OWN.items()]
    logs = write_logs(tmp_path / "logs", items, [{"item_id": 7}])
    build_index(f"faiss:{tmp_path / 'index'}", MODELS["new"], logs, IndexConfig())
    service = service_module.open_service({"index": (str(tmp_path / "index"), "index")}, patient())
    with TestClient(make_app(service)) as one:
        yield one


def rounded(reply):
    """Return the ids as a browser or jq reads them: numbers as doubles."""
    hits = json.loads(reply.text, parse_int=float)["hits"]
    return {hit["item_id"] for hit in hits}


def test_ids_above_2_to_the_53_survive_browsers(large):
    """9007199254740992 and ...993 are the same number there, and two strings."""
    assert rounded(large.post("/search", json={"query": "jaguar"})) == {*map(str, LARGE), *OWN}
    for item in LARGE:
        only = {"query": "jaguar", "where": {"item_ids": [str(item)]}}
        assert rounded(large.post("/search", json=only)) == {str(item)}
        own = {"query": "jaguar", "where": {"author_id": str(-item)}}
        assert rounded(large.post("/search", json=own)) == {str(item)}
        like = large.post("/similar", json={"item_id": str(item)})
        assert rounded(like) == {*map(str, LARGE), *OWN} - {str(item)}
    assert rounded(large.post("/search", json={"query": "a", "where": {"item_ids": [7]}})) == {"7"}
    page = large.get("/", params={"q": "jaguar"}).text
    assert all(f'data-item="{item}"' in page for item in LARGE)
    assert all(f"id <bdi>{item}</bdi>" in page for item in (*LARGE, *OWN))


def test_items_are_named_as_their_source_does(large):
    for given, shown in [*((item, item) for item in OWN), (str(number_of("SKU 9")), "SKU 9")]:
        only = large.post("/search", json={"query": "a", "where": {"item_ids": [given]}, "texts": False})
        assert rounded(only) == {shown}
        assert rounded(large.post("/similar", json={"item_id": given})) == {*map(str, LARGE), *OWN} - {shown}
    unknown = large.post("/similar", json={"item_id": "SKU 10"})
    assert (unknown.status_code, unknown.json()["detail"]) == (404, "item_id SKU 10 is not in the index")


def test_the_openapi_document_names_the_endpoints_and_says_how_ids_travel(client):
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {"/search", "/similar", "/explain", "/healthz"}
    assert "413" in document["paths"]["/search"]["post"]["responses"]
    assert client.get("/docs").status_code == 404
    schemas = document["components"]["schemas"]
    assert schemas["Hit"]["properties"]["item_id"]["type"] == "string"
    assert schemas["ItemExplanation"]["properties"]["item_id"]["type"] == "string"
    taken = schemas["SimilarRequest"]["properties"]["item_id"]["anyOf"]
    assert [one["type"] for one in taken] == ["string", "integer"]


SCRIPTS = ("jag\\x00uar", "\\x1b[31mred", "יגואר", "‏يَغْوَر", "🐆", "👩‍🚀 jaguar", "e\\u0301té", "漢字",
           "a" * 1000, "'; drop table")  # fmt: skip


@pytest.mark.parametrize("query", SCRIPTS)
def test_texts_of_every_script_are_searched(client, query):
    reply = client.post("/search", json={"query": query})
    assert reply.status_code == 200
    assert len(ids(reply)) == 8
    assert client.get("/", params={"q": query}).status_code == 200
    if query in ("יגואר", "🐆"):
        assert ids(reply)[0] == (7 if query == "יגואר" else 8)


@pytest.mark.parametrize(("content", "type_", "status", "told"), [
    (b"query=jaguar", "application/x-www-form-urlencoded", 415, "application/json"),
    (b'{"query": "jaguar"}', "text/plain", 415, "application/json"),
    (b'{"query": "jaguar"}', "", 415, "application/json"),
    (b'{"query": ', "application/json", 422, "JSON"),
    (b"\xff\xfe", "application/json", 422, "JSON"),
    (b"[]", "application/json", 422, "dict"),
    (b'{"query": "\\ud800"}', "application/json", 422, ""),
])  # fmt: skip
def test_bodies_that_are_no_json(client, content, type_, status, told):
    reply = client.post("/search", content=content, headers={"content-type": type_})
    assert reply.status_code == status
    assert told in reply.json()["detail"]


def test_a_body_of_100_kb_is_refused(client):
    reply = client.post("/search", json={"query": "a" * 100_000})
    assert reply.status_code == 413
    assert "65,536" in reply.json()["detail"]


def test_unknown_ids_paths_and_methods(client):
    for item in (99, -1, -(2**63)):  # -1 stands for "no item" inside result lists
        for path, asked in (
            ("/similar", {"item_id": str(item)}),
            ("/explain", {"query": "jaguar", "item_ids": ["1", str(item)]}),
        ):
            unknown = client.post(path, json=asked)
            assert unknown.status_code == 404
            assert unknown.json()["detail"] == f"item_id {item} is not in the index"
    assert client.get("/nothing").status_code == 404
    assert client.get("/search").status_code == 405


def test_without_a_baseline_it_says_so(own_service):
    del own_service.slots["baseline"]
    with TestClient(make_app(own_service)) as client:
        reply = client.post("/search", json={"query": "a", "index": "baseline"})
        assert reply.status_code == 404
        assert "--baseline" in reply.json()["detail"]
        assert client.get("/", params={"q": "jaguar"}).status_code == 200


def test_a_failure_shows_the_client_nothing_and_the_log_no_query(client, monkeypatch, caplog):
    def broken(self, jobs):
        raise RuntimeError(f"no luck with {jobs[0].query}")

    monkeypatch.setattr(Searcher, "answer", broken)
    with caplog.at_level(logging.INFO, "crops.serving"):
        replies = [client.post("/search", json={"query": SECRET}), client.get("/", params={"q": SECRET})]
    for reply in replies:
        assert reply.status_code == 500
        assert "luck" not in reply.text
        assert "Traceback" not in reply.text
        assert reply.headers["x-request-id"] in reply.text
    facts = [record.fields for record in caplog.records]
    assert SECRET not in json.dumps(facts, default=str)
    assert [fact["error"] for fact in facts if "error" in fact] == ["RuntimeError"] * 2
    assert any("broken" in line for line in facts[0]["trace"])


@pytest.mark.parametrize(("log_queries", "expected"), [(False, None), (True, "jaguar")])
def test_the_log_holds_queries_only_when_asked_to(world, fake_models, caplog, log_queries, expected):
    service = open_world(world, log_queries=log_queries)
    with TestClient(make_app(service)) as client, caplog.at_level(logging.INFO, "crops.serving"):
        client.post("/search", json={"query": "jaguar"})
        client.get("/", params={"q": "jaguar"})
    first = caplog.records[0].fields
    assert first.get("query") == expected
    told = [first[name] for name in ("route", "status", "letters", "version")]
    assert told == ["/search", 200, 6, "000001"]
    assert ("jaguar" in json.dumps([record.fields for record in caplog.records])) is log_queries


def test_every_answer_forbids_scripts_and_frames(client):
    for path in ("/", "/?q=jaguar", "/healthz", "/nothing"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src" not in policy
        assert "frame-ancestors 'none'" in policy


def test_health_and_metrics(own_service):
    with TestClient(make_app(own_service)) as client:
        client.post("/search", json={"query": "jaguar"})
        client.post("/search", json={"query": ""})
        assert client.get("/healthz").json() == {
            "status": "ok",
            "versions": {"baseline": "000001", "index": "000001"},
        }
        lines = client.get("/metrics").text.splitlines()
    assert 'crops_requests_total{route="/search",status="200"} 1.0' in lines
    assert 'crops_requests_total{route="/search",status="422"} 1.0' in lines
    assert 'crops_index_items{index="index",version="000001"} 8.0' in lines
    assert "crops_batch_requests_count 1.0" in lines
    assert "crops_waiting_requests 0.0" in lines
    assert any(line.startswith("crops_loop_lag_seconds ") for line in lines)


def test_titles_are_escaped_in_every_page(client):
    for path in ("/?q=jaguar&k=20", "/?q=<script>alert(1)</script>", "/group?q=jaguar"):
        page = client.get(path)
        assert "<script" not in page.text
    assert "&lt;script&gt;alert(&#39;title&#39;)" in client.get("/?q=jaguar&k=20").text
    assert HOSTILE in [
        hit["title"] for hit in client.post("/search", json={"query": "jaguar"}).json()["hits"]
    ]
