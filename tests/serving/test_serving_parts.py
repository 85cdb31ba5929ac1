"""Batches, buckets, keys and queries, one by one."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from urllib.parse import parse_qsl, urlsplit

import pytest

from crops.config import ServingConfig
from crops.serving.batching import Batcher, SaturatedError, StoppedError
from crops.serving.inputs import BadRequestError, check_query
from crops.serving.limits import RateLimit, has_key
from crops.serving.view import State


class Held:
    """Doubles its jobs; the first batch waits until it is let go."""

    def __init__(self):
        self.batches = []
        self.go = threading.Event()

    def __call__(self, jobs):
        self.batches.append(list(jobs))
        if len(self.batches) == 1:
            assert self.go.wait(5)
        if -1 in jobs:
            raise ValueError("minus one")
        return [2 * job for job in jobs]


async def waiting(batcher, count):
    while len(batcher) != count:
        await asyncio.sleep(0.001)


def test_what_waits_is_run_together_in_order():
    async def run():
        held = Held()
        batcher = Batcher(held, max_batch=3, max_waiting=10)
        first = asyncio.create_task(batcher(0))
        await asyncio.sleep(0.02)
        rest = [asyncio.create_task(batcher(job)) for job in range(1, 6)]
        await waiting(batcher, 5)
        held.go.set()
        answers = await asyncio.gather(first, *rest)
        await batcher.stop()
        return answers, held.batches

    assert asyncio.run(run()) == ([0, 2, 4, 6, 8, 10], [[0], [1, 2, 3], [4, 5]])


def test_too_much_is_refused_and_who_gave_up_costs_nothing():
    async def run():
        held = Held()
        batcher = Batcher(held, max_batch=8, max_waiting=2)
        first = asyncio.create_task(batcher(0))
        await asyncio.sleep(0.02)
        gone, stays = asyncio.create_task(batcher(1)), asyncio.create_task(batcher(2))
        await waiting(batcher, 2)
        with pytest.raises(SaturatedError):
            await batcher(3)
        gone.cancel()
        await asyncio.sleep(0)
        held.go.set()
        assert await asyncio.gather(first, stays) == [0, 4]
        await batcher.stop()
        return held.batches

    assert asyncio.run(run()) == [[0], [2]]


def test_a_job_that_waited_too_long_is_refused():
    """A batch takes 0.2 s: who came at its beginning waits longer than 0.1 s, who came late does not."""

    async def run():
        held = Held()
        batcher = Batcher(held, max_batch=8, max_waiting=99, max_wait=0.1)
        first = asyncio.create_task(batcher(0))
        await asyncio.sleep(0)
        early = asyncio.create_task(batcher(1))
        await asyncio.sleep(0.2)
        late = asyncio.create_task(batcher(2))
        await asyncio.sleep(0)
        held.go.set()
        answers = await asyncio.gather(first, early, late, return_exceptions=True)
        await batcher.stop()
        return answers

    first, early, late = asyncio.run(run())
    assert (first, late) == (0, 4)
    assert isinstance(early, SaturatedError)


def test_batches_shrink_to_what_can_be_done_in_time():
    """0.02 s per job, and a batch may take half of 0.1 s: the first has 8 jobs, those after it have 2."""
    sizes = []

    def run_slowly(jobs):
        sizes.append(len(jobs))
        time.sleep(0.02 * len(jobs))
        return jobs

    async def run():
        batcher = Batcher(run_slowly, max_batch=8, max_waiting=99, max_wait=0.1)
        await asyncio.gather(*(batcher(job) for job in range(8)))
        await asyncio.gather(*(batcher(job) for job in range(4)))
        await batcher.stop()

    asyncio.run(run())
    assert sizes == [8, 2, 2]


def test_an_error_reaches_those_of_its_batch_only():
    async def run():
        held = Held()
        held.go.set()
        batcher = Batcher(held, max_batch=8, max_waiting=8)
        with pytest.raises(ValueError, match="minus one"):
            await batcher(-1)
        assert await batcher(4) == 8
        await batcher.stop()

    asyncio.run(run())


def test_stop_answers_what_waits_and_refuses_what_comes():
    async def run():
        held = Held()
        batcher = Batcher(held, max_batch=1, max_waiting=8)
        jobs = [asyncio.create_task(batcher(job)) for job in range(3)]
        await waiting(batcher, 2)
        stopping = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0)
        with pytest.raises(StoppedError):
            await batcher(9)
        held.go.set()
        await stopping
        return await asyncio.gather(*jobs)

    assert asyncio.run(run()) == [0, 2, 4]


def test_a_bucket_by_hand():
    """2 per second, 3 at once: the 4th waits 0.5 s; 0.75 s later 1.5 tokens are there, so one may pass."""
    limit = RateLimit(rate=2, burst=3)
    assert [limit.wait("a", 10.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert limit.wait("b", 10.0) == 0
    assert limit.wait("a", 10.75) == 0
    assert limit.wait("a", 10.75) == pytest.approx(0.25)
    assert [limit.wait("a", 100.0) for _ in range(4)] == [0, 0, 0, 0.5]


def test_clients_that_are_not_seen_are_forgotten():
    limit = RateLimit(rate=1, burst=1)
    for client in range(20_000):
        limit.wait(str(client), 0.0)
    assert len(limit._buckets) == 10_000
    assert limit.wait("19999", 0.0) == 1


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({b"x-api-key": b"secret"}, True),
        ({b"authorization": b"Bearer secret"}, True),
        ({b"authorization": b"bearer  secret"}, True),
        ({b"authorization": b"Basic " + base64.b64encode(b"anyone:secret")}, True),
        ({b"authorization": b"Basic " + base64.b64encode(b"secret:")}, False),
        ({b"authorization": b"Basic !!!"}, False),
        ({b"authorization": b"secret"}, False),
        ({b"x-api-key": b"secre"}, False),
        ({}, False),
    ],
)
def test_keys(headers, expected):
    assert has_key(headers, "secret") is expected


def test_queries_are_normalised_as_in_training():
    assert check_query("  Ｆｉｃｕｓ\tWATER ", ServingConfig()) == "ficus water"
    with pytest.raises(BadRequestError, match="empty"):
        check_query("\u200b", ServingConfig())
    with pytest.raises(BadRequestError, match="at most 5"):
        check_query("123456", ServingConfig(max_query_chars=5))


def test_the_state_of_a_page_is_its_address():
    state = State(q="a&b=c", k=20, show="changed", source="P1", topic="big cat", open=7)
    address = state.link()
    assert State.read(dict(parse_qsl(urlsplit(address).query))) == state
    assert State.read({"show": "<b>", "source": "P9"}) == State()
    assert State().link() == "/"
    with pytest.raises(BadRequestError, match="k"):
        State.read({"k": "ten"})


def test_a_batch_of_one_waits_for_nothing():
    async def run():
        batcher = Batcher(lambda jobs: jobs, max_batch=32, max_waiting=32)
        await batcher(0)
        start = time.perf_counter()
        for job in range(50):
            await batcher(job)
        await batcher.stop()
        return time.perf_counter() - start

    assert asyncio.run(run()) < 2
