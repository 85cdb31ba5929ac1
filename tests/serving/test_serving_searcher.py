"""Batches, queries and addresses, one by one."""

import asyncio
import threading
import time
from urllib.parse import parse_qsl, urlsplit

import pytest

from crops.config import ServingConfig
from crops.serving.explorer import State
from crops.serving.searcher import Batcher, StoppedError
from crops.serving.service import BadRequestError, check_query


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
        batcher = Batcher(held, max_batch=3)
        first = asyncio.create_task(batcher(0))
        await asyncio.sleep(0.02)
        rest = [asyncio.create_task(batcher(job)) for job in range(1, 6)]
        await waiting(batcher, 5)
        held.go.set()
        answers = await asyncio.gather(first, *rest)
        await batcher.stop()
        return answers, held.batches

    assert asyncio.run(run()) == ([0, 2, 4, 6, 8, 10], [[0], [1, 2, 3], [4, 5]])


def test_who_gave_up_costs_nothing_and_an_error_reaches_those_of_its_batch_only():
    async def run():
        held = Held()
        batcher = Batcher(held, max_batch=8)
        first = asyncio.create_task(batcher(0))
        await asyncio.sleep(0.02)
        gone, stays = asyncio.create_task(batcher(1)), asyncio.create_task(batcher(2))
        await waiting(batcher, 2)
        gone.cancel()
        await asyncio.sleep(0)
        held.go.set()
        assert await asyncio.gather(first, stays) == [0, 4]
        with pytest.raises(ValueError, match="minus one"):
            await batcher(-1)
        assert await batcher(4) == 8
        await batcher.stop()
        return held.batches

    assert asyncio.run(run()) == [[0], [2], [-1], [4]]


def test_the_wait_is_told_by_the_pace_of_the_last_batches():
    """0.05 s a job: one that runs and two that wait are 0.15 s."""

    async def run():
        def slowly(jobs):
            time.sleep(0.05 * len(jobs))
            return jobs

        batcher = Batcher(slowly, max_batch=1)
        waits = [batcher.wait()]
        await batcher(0)
        jobs = [asyncio.create_task(batcher(job)) for job in range(3)]
        await waiting(batcher, 2)
        waits.append(batcher.wait())
        await asyncio.gather(*jobs)
        waits.append(batcher.wait())
        await batcher.stop()
        return waits

    before, among, after = asyncio.run(run())
    assert before == after == 0
    assert 0.15 <= among < 0.3


def test_batches_shrink_to_what_can_be_done_in_time():
    """0.1 s per job, and a batch may take 0.25 s: the first has 8 jobs, those after it have 2."""
    sizes = []

    def run_slowly(jobs):
        sizes.append(len(jobs))
        time.sleep(0.1 * len(jobs))
        return jobs

    async def run():
        batcher = Batcher(run_slowly, max_batch=8, max_seconds=0.25)
        await asyncio.gather(*(batcher(job) for job in range(8)))
        await asyncio.gather(*(batcher(job) for job in range(4)))
        await batcher.stop()

    asyncio.run(run())
    assert sizes == [8, 2, 2]


def test_stop_ends_the_batch_that_runs_and_refuses_the_rest():
    async def run():
        held = Held()
        batcher = Batcher(held, max_batch=1)
        jobs = [asyncio.create_task(batcher(job)) for job in range(3)]
        await waiting(batcher, 2)
        stopping = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0)
        with pytest.raises(StoppedError):
            await batcher(9)
        held.go.set()
        await stopping
        return await asyncio.gather(*jobs, return_exceptions=True)

    first, *others = asyncio.run(run())
    assert first == 0
    assert all(isinstance(one, StoppedError) for one in others)


def test_queries_are_normalised_as_in_training():
    assert check_query("  Ｆｉｃｕｓ\tWATER ", ServingConfig()) == "ficus water"
    with pytest.raises(BadRequestError, match="at most 5"):
        check_query("123456", ServingConfig(max_query_chars=5))


def test_the_state_of_a_page_is_its_address():
    state = State(q="a&b=c", k=20, show="changed", topic="big cat", open=7)
    address = state.link()
    assert State.read(dict(parse_qsl(urlsplit(address).query))) == state
    assert State.read({"show": "<b>"}) == State()
    assert State().link() == "/"
    with pytest.raises(BadRequestError, match="k"):
        State.read({"k": "ten"})
