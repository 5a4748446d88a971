"""Who takes the next call: by tables and by hand-driven coroutines, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from cluster.dispatch import Dispatch, NobodyLeft


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 10))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def opened(calls_at_once: int, workers: str) -> Dispatch[str]:
    dispatch: Dispatch[str] = Dispatch(calls_at_once)
    for worker in workers:
        dispatch.open(worker)
    return dispatch


def test_calls_are_spread_by_the_shortest_queue() -> None:
    async def body() -> None:
        dispatch = opened(4, "abc")
        assert [await dispatch.take() for _ in range(7)] == list("abcabca")
        dispatch.give_back("b")
        dispatch.give_back("b")
        # b holds none, c two, a three.
        assert [await dispatch.take() for _ in range(4)] == list("bbcb")
        assert [dispatch.in_flight(w) for w in "abc"] == [3, 3, 3]

    run(body())


def test_a_slow_worker_gets_no_more_than_it_may_hold() -> None:
    """Worker a never ends a call: it is given two, the other 20 go through b."""

    async def body() -> None:
        dispatch = opened(2, "ab")
        taken = {"a": 0, "b": 0}

        async def call() -> None:
            worker = await dispatch.take()
            taken[worker] += 1
            if worker == "b":
                await asyncio.sleep(0)
                dispatch.give_back(worker)

        await asyncio.gather(*(call() for _ in range(22)))
        assert taken == {"a": 2, "b": 20}

    run(body())


def test_waiting_calls_are_served_in_their_order() -> None:
    async def body() -> None:
        dispatch = opened(1, "a")
        served: list[int] = []

        async def call(number: int) -> None:
            worker = await dispatch.take()
            served.append(number)
            await asyncio.sleep(0)
            dispatch.give_back(worker)

        await asyncio.gather(*(call(i) for i in range(6)))
        assert served == list(range(6))
        assert dispatch.in_flight("a") == 0

    run(body())


def test_a_closed_worker_takes_nothing_until_it_is_open_again() -> None:
    async def body() -> None:
        dispatch = opened(2, "a")
        assert await dispatch.take() == "a"
        dispatch.close("a")
        waiting = asyncio.ensure_future(dispatch.take())
        dispatch.give_back("a")
        await settle()
        assert not waiting.done()
        dispatch.open("a")
        assert await waiting == "a"

    run(body())


def test_a_cancelled_call_leaves_no_trace() -> None:
    """Cancelled while it waits, and cancelled in the moment in which it was given a worker."""

    async def body() -> None:
        dispatch = opened(1, "a")
        assert await dispatch.take() == "a"
        gone, next_one = (asyncio.ensure_future(dispatch.take()) for _ in range(2))
        await settle()
        gone.cancel()
        await settle()
        dispatch.give_back("a")
        assert await next_one == "a"
        last = asyncio.ensure_future(dispatch.take())
        await settle()
        dispatch.give_back("a")  # `last` has been given a, and has not run yet
        last.cancel()
        await settle()
        assert dispatch.in_flight("a") == 0
        assert await dispatch.take() == "a"

    run(body())


def test_when_nobody_is_left_every_call_says_so() -> None:
    async def body() -> None:
        dispatch = opened(1, "a")
        await dispatch.take()
        waiting = asyncio.ensure_future(dispatch.take())
        await settle()
        dispatch.fail("the last one burnt")
        with pytest.raises(NobodyLeft, match="the last one burnt"):
            await waiting
        with pytest.raises(NobodyLeft, match="the last one burnt"):
            await dispatch.take()

    run(body())
