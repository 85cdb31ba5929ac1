"""What does not reach the application: keys, rates, sizes, slow senders, and a server that is full."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from served_world import open_world
from starlette.testclient import TestClient

from crops.serving.app import make_app
from crops.serving.gate import Gate
from crops.serving.searcher import Searcher

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


def test_more_requests_than_the_rate_are_told_when_to_come_back(world, fake_models):
    with opened(world, rate=0.5, burst=2) as client:
        replies = [client.post("/search", json=SEARCH) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 429]
        assert 1 <= int(replies[2].headers["retry-after"]) <= 2
        assert "0.5 requests per second" in replies[2].json()["detail"]
        assert client.get("/healthz").status_code == 200


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


def test_a_full_server_sheds_and_stays_alive(world, fake_models, monkeypatch):
    """One search runs, two may wait: of seven more, five are refused at once, and the three are answered."""
    desk = open_world(world, max_waiting=2, max_batch=1, timeout_s=10)
    go, begun = held(monkeypatch)
    with TestClient(make_app(desk)) as client, ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.post, "/search", json=SEARCH)
        assert begun.wait(5)
        more = [pool.submit(client.post, "/search", json=SEARCH) for _ in range(7)]
        until = time.monotonic() + 5
        while sum(one.done() for one in more) < 5 and time.monotonic() < until:
            time.sleep(0.01)
        refused = [one.result() for one in more if one.done()]
        assert [reply.status_code for reply in refused] == [503] * 5
        assert {reply.headers["retry-after"] for reply in refused} == {"1"}
        go.set()
        assert sorted(one.result().status_code for one in [first, *more]) == [200] * 3 + [503] * 5
        assert 'crops_refused_total{reason="saturated"} 5.0' in client.get("/metrics").text
        assert client.post("/search", json=SEARCH).status_code == 200


def test_a_search_that_takes_too_long_is_given_up(world, fake_models, monkeypatch):
    desk = open_world(world, timeout_s=0.05)
    go, _ = held(monkeypatch)
    with TestClient(make_app(desk)) as client:
        for reply in (client.post("/search", json=SEARCH), client.get("/", params={"q": "jaguar"})):
            assert reply.status_code == 504
            assert "0.05 s" in reply.text
        go.set()


def scope(headers):
    asked = {"type": "http", "method": "POST", "path": "/search", "client": ("1.1.1.1", 1)}
    return {**asked, "headers": list(headers)}


def through(gate, messages, headers=()):
    """Send ASGI messages through the gate; return the statuses of the answers."""
    sent = []

    async def receive():
        if not messages:
            await asyncio.sleep(60)
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(gate(scope(headers), receive, send))
    return [message["status"] for message in sent if message["type"] == "http.response.start"]


@pytest.fixture
def gate(desk):
    async def application(scope, receive, send):
        raise AssertionError("the request was passed on")

    config = desk.service.config.model_copy(update={"read_timeout_s": 0.05, "max_body_bytes": 1024})
    return Gate(application, config, desk.service.metrics, None)


def part(size, more=True):
    return {"type": "http.request", "body": b"a" * size, "more_body": more}


def test_a_body_that_does_not_come_is_given_up(gate):
    assert through(gate, [part(10)]) == [408]


def test_a_body_without_a_length_is_stopped_when_it_is_far_too_large(gate):
    messages = [part(9000), part(9000), part(9000)]  # 16 times 1,024 are 16,384
    assert through(gate, messages) == [413]
    assert len(messages) == 1  # the rest is not read


def test_a_body_a_little_too_large_is_read_to_its_end_before_it_is_refused(gate):
    """A client that is still sending would see a reset connection in place of the answer."""
    messages = [part(600), part(600), part(600, more=False)]
    assert through(gate, messages, [(b"content-length", b"1800")]) == [413]
    assert messages == []


@pytest.mark.parametrize("length", [b"16385", b"-1", b"many", b"1e3"])
def test_a_length_that_is_far_too_large_or_none_is_refused_before_reading(gate, length):
    messages = [part(10)]
    assert through(gate, messages, [(b"content-length", length)]) == [413]
    assert len(messages) == 1
