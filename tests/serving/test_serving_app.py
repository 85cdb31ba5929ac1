"""What does not reach the application: keys, sizes, slow senders, and a server that is full."""

import asyncio
import base64
import copy
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from served_world import open_world
from starlette.testclient import TestClient

from crops.errors import CropsError
from crops.serving.app import Guard, check_key, has_key, make_app, refusal_json
from crops.serving.searcher import Searcher
from crops.serving.service import Lag

SEARCH = {"query": "jaguar"}


def opened(world, api_key=None, **config):
    return TestClient(make_app(open_world(world, **config), api_key))


def test_with_a_key_nothing_but_health_is_open(world, fake_models):
    with opened(world, api_key="secret") as client:
        for path in ("/", "/metrics", "/openapi.json", "/static/explorer.css"):
            refused = client.get(path)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Basic")
        assert client.post("/search", json=SEARCH).status_code == 401
        assert client.get("/healthz").status_code == 200
        assert client.post("/search", json=SEARCH, headers={"x-api-key": "secret"}).status_code == 200
        assert client.get("/", auth=("me", "secret")).status_code == 200


def held(monkeypatch):
    """Make searches wait; return what lets them go, and what says that one has begun."""
    go, begun = threading.Event(), threading.Event()
    answer = Searcher.answer

    def wait(self, jobs):
        begun.set()
        assert go.wait(10)
        return answer(self, jobs)

    monkeypatch.setattr(Searcher, "answer", wait)
    return go, begun


def test_a_full_server_sheds_at_once_and_stays_alive(world, fake_models, monkeypatch):
    """Three requests may be under way: of seven more than one, five are refused while none is answered."""
    service = open_world(world, max_requests=3, max_batch=1, timeout_s=10)
    go, begun = held(monkeypatch)
    with TestClient(make_app(service)) as client, ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.post, "/search", json=SEARCH)
        assert begun.wait(5)
        more = [pool.submit(client.post, "/search", json=SEARCH) for _ in range(7)]
        until = time.monotonic() + 5
        while sum(one.done() for one in more) < 5 and time.monotonic() < until:
            time.sleep(0.01)
        refused = [one.result() for one in more if one.done()]
        assert [reply.status_code for reply in refused] == [503] * 5
        assert {reply.headers["retry-after"] for reply in refused} == {"1"}
        assert client.get("/healthz").status_code == 200
        assert client.get("/", params={"q": "jaguar"}).status_code == 503
        assert client.post("/explain", json={"query": "jaguar", "item_ids": [1]}).status_code == 503
        metrics = client.get("/metrics").text
        assert 'crops_refused_total{reason="saturated"} 7.0' in metrics
        assert "crops_waiting_requests 2.0" in metrics
        go.set()
        assert sorted(one.result().status_code for one in [first, *more]) == [200] * 3 + [503] * 5
        assert client.post("/search", json=SEARCH).status_code == 200


def test_who_would_wait_too_long_is_refused_before_it_waits(world, fake_models, monkeypatch):
    """At 0.4 s a search and 1 s of patience, two may wait behind one: a fourth would wait for 1.2 s."""
    service = open_world(world, max_batch=1, max_wait_s=1, timeout_s=10)
    answer = Searcher.answer

    def slow(self, jobs):
        time.sleep(0.4)
        return answer(self, jobs)

    monkeypatch.setattr(Searcher, "answer", slow)
    with TestClient(make_app(service)) as client, ThreadPoolExecutor(8) as pool:
        assert client.post("/search", json=SEARCH).status_code == 200
        replies = list(pool.map(lambda _: client.post("/search", json=SEARCH), range(8)))
        assert sorted(reply.status_code for reply in replies) == [200] * 3 + [503] * 5


@pytest.mark.parametrize(("path", "body"), [
    ("/search", SEARCH),
    ("/similar", {"item_id": 1}),
    ("/explain", {"query": "jaguar", "item_ids": [1]}),
    ("/?q=jaguar", None),
    ("/group?q=jaguar", None),
])  # fmt: skip
def test_whatever_takes_too_long_is_given_up(world, fake_models, path, body):
    """One queue and one deadline for all: something else holds the queue for longer."""
    service = open_world(world, timeout_s=0.05)
    go = threading.Event()
    with TestClient(make_app(service)) as client:
        client.portal.start_task_soon(service.do, lambda: go.wait(10))
        reply = client.get(path) if body is None else client.post(path, json=body)
        assert reply.status_code == 504
        assert "0.05 s" in reply.text
        go.set()


def test_a_request_that_waited_too_long_before_it_was_seen_is_refused(own_service):
    """The time counts from its arrival at the machine, not from when the event loop came to it."""

    async def ask(arrived):
        sent = []

        async def send(message):
            sent.append(message)

        async def receive():
            return {"type": "http.request", "body": b"{}"}

        asked = {**scope([(b"content-type", b"application/json")]), "state": {"arrived": arrived}}
        await make_app(own_service)({**asked, "query_string": b"", "raw_path": b"/search"}, receive, send)
        return sent[0]["status"]

    assert asyncio.run(ask(time.monotonic() - 31)) == 503
    assert asyncio.run(ask(time.monotonic())) == 422
    asyncio.run(own_service.batcher.stop())


def test_the_lag_of_the_event_loop_is_told_and_sheds():
    """A loop that was held for 0.3 s: what it finds then has waited, if not longer than that."""
    lag = Lag()

    async def run():
        watching = asyncio.create_task(lag.watch())
        await asyncio.sleep(0.06)
        quiet = lag.seconds()
        time.sleep(0.3)
        held_up = lag.seconds()
        await asyncio.sleep(0.001)
        watching.cancel()
        return quiet, held_up, lag.seconds()

    quiet, held_up, after = asyncio.run(run())
    assert quiet < 0.2 < held_up < 0.5
    assert after == pytest.approx(held_up, abs=0.1)


def scope(headers):
    asked = {"type": "http", "method": "POST", "path": "/search", "client": ("1.1.1.1", 1)}
    return {**asked, "headers": list(headers)}


def through(guard, messages, headers=()):
    """Send ASGI messages through the guard; return the statuses of the answers."""
    sent = []

    async def receive():
        if not messages:
            await asyncio.sleep(60)
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope(headers), receive, send))
    return [message["status"] for message in sent if message["type"] == "http.response.start"]


def part(size, more=True):
    return {"type": "http.request", "body": b"a" * size, "more_body": more}


LONG, MANY = [(b"x-padding", b"a" * 2000)], [(b"x-%d" % number, b"") for number in range(300)]


@pytest.mark.parametrize(("messages", "headers", "key", "statuses"), [
    ([part(10)], (), None, [408]),  # the rest of the body does not come
    # a client that is still sending would see a reset connection in place of the answer
    ([part(600), part(600), part(9000, more=False)], (), None, [413]),
    ([part(600), part(600), part(9000)], (), None, [413]),  # time bounds it
    ([part(10), {"type": "http.disconnect"}], (), None, []),
    ([part(1, more=False)], LONG, None, [431]),
    ([part(1, more=False)], MANY, None, [431]),
    ([part(1, more=False)], LONG, "secret", [431]),  # before the key is looked at
])  # fmt: skip
def test_bodies_and_headers_that_are_too_long_or_do_not_come_are_refused(
    service, messages, headers, key, statuses
):
    async def application(scope, receive, send):
        raise AssertionError("the request was passed on")

    strict = copy.copy(service)
    limits = {"read_timeout_s": 0.05, "max_body_bytes": 1024, "max_header_bytes": 1024}
    strict.config = service.config.model_copy(update=limits)
    messages = list(messages)
    assert through(Guard(application, strict, key, refusal_json), messages, headers) == statuses
    assert messages == [] or statuses == [431]


def test_a_head_request_gets_the_answer_to_get_without_its_body(client):
    for path in ("/healthz", "/metrics", "/", "/?q=jaguar", "/static/explorer.css", "/openapi.json"):
        head, full = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == full.headers["content-type"]
        assert int(head.headers["content-length"]) > 0
    assert client.head("/search").status_code == 405
    assert client.head("/nothing").status_code == 404


def test_nothing_is_redirected_to_the_host_that_a_client_names(client):
    for path, ask in itertools.product(("/search/", "/healthz/"), (client.get, client.post)):
        reply = ask(path, headers={"host": "elsewhere.example"}, follow_redirects=False)
        assert reply.status_code == 404
        assert "elsewhere" not in str(reply.headers) + reply.text


@pytest.mark.parametrize(("headers", "expected"), [
    ({b"x-api-key": b"secret"}, True),
    ({b"authorization": b"bearer  secret"}, True),
    ({b"authorization": b"Basic " + base64.b64encode(b"anyone:secret")}, True),
    ({b"authorization": b"Basic " + base64.b64encode(b"secret:")}, False),
    ({b"authorization": b"Basic !!!"}, False),
    ({b"authorization": b"secret"}, False),
    ({b"x-api-key": b"secre"}, False),
    ({}, False),
])  # fmt: skip
def test_keys(headers, expected):
    assert has_key(headers, "secret") is expected


@pytest.mark.parametrize("key", ["", "\n", "secret\n", " secret", "se\x00cret"])
def test_a_key_that_no_request_can_carry_is_refused(key):
    with pytest.raises(CropsError, match="CROPS_API_KEY"):
        check_key(key)
    check_key("two words")
