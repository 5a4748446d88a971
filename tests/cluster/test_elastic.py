"""Sizes of pools by tables: when they grow, when they shrink, and when they do neither."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import pytest

from cluster.clocks import Meter
from cluster.elastic import Decision, Demand, Memory, Supervisor, plan
from cluster.sections import SupervisionConfig
from rewards.config import PoolConfig


class Grown:
    """An elastic pool that only counts."""

    name, calls_at_once, pending, failed_joins = "judge", 1, 0, 0

    def __init__(self, clock: Callable[[], float]) -> None:
        self.size = 1
        self.meter = Meter(1, clock)

    def grow(self) -> None:
        self.pending += 1

    def drain(self) -> None:
        self.size -= 1


CONFIG = SupervisionConfig(interval_s=1.0, grow_wait_s=2.0, shrink_after_s=5.0)
LIMITS = PoolConfig(min_workers=1, max_workers=4)


@pytest.mark.parametrize(
    ("workers", "pending", "waiting", "service_s", "votes", "change", "votes_after"),
    [
        (1, 0, 4, 1.0, 0, 0, 1),  # 4 s of waiting, but for the first time
        (1, 0, 3, 1.0, 1, 2, 0),  # again: 3 s of work in 2 s need two more than the busy one
        (2, 1, 7, 1.0, 1, 1, 0),  # 3.5 workers and the two busy ones, up to the limit
        (1, 2, 7, 1.0, 1, 1, 0),  # one busy and 3.5 more: up to the limit, pending ones counted
        (1, 0, 20, 1.0, 1, 2, 0),  # eleven would be needed, it at most doubles and one more
        (2, 1, 20, 1.0, 1, 1, 0),  # up to the limit, pending ones counted
        (3, 1, 99, 1.0, 1, 0, 0),  # at the limit
        (2, 0, 4, 1.0, 1, 0, 0),  # 2 s of waiting are within bounds: the vote is forgotten
        (1, 0, 9, 0.0, 1, 0, 0),  # nothing is known of the duration of a call
    ],
)
def test_growth(
    workers: int,
    pending: int,
    waiting: int,
    service_s: float,
    votes: int,
    change: int,
    votes_after: int,
) -> None:
    demand = Demand(workers, pending, waiting, 1.0, service_s)
    decision, memory = plan(demand, Memory(votes), LIMITS, CONFIG)
    assert (decision.change, memory.votes) == (change, votes_after)


@pytest.mark.parametrize(
    ("workers", "pending", "waiting", "busy_share", "slack_s", "change", "slack_after"),
    [
        (3, 0, 0, 0.5, 4.0, -1, 0.0),  # 1.5 busy, two would be busy for 75 %
        (3, 0, 0, 0.5, 3.0, 0, 4.0),  # not for long enough
        (3, 0, 0, 0.6, 4.0, 0, 0.0),  # two would be busy for 90 %
        (3, 0, 1, 0.1, 4.0, 0, 0.0),  # something waits
        (3, 1, 0, 0.1, 899.0, -1, 0.0),  # one was asked for, and could have come
        (1, 2, 0, 0.9, 899.0, -2, 0.0),  # two; the one that works stays
        (1, 2, 0, 0.9, 898.0, 0, 899.0),  # they may be on their way
        (1, 0, 0, 0.0, 99.0, 0, 0.0),  # the least that there may be
    ],
)
def test_shrinking(
    workers: int,
    pending: int,
    waiting: int,
    busy_share: float,
    slack_s: float,
    change: int,
    slack_after: float,
) -> None:
    demand = Demand(workers, pending, waiting, busy_share, 0.1)
    decision, memory = plan(demand, Memory(0, slack_s), LIMITS, CONFIG)
    assert (decision.change, memory.slack_s) == (change, slack_after)


def test_a_pool_whose_new_workers_do_not_start_waits_longer_each_time() -> None:
    """A queue that is always too long; each worker that is asked for fails after four intervals."""
    memory, grown_at = Memory(), list[int]()
    for second in range(400):
        age = second - grown_at[-1] if grown_at else 0
        demand = Demand(1, int(0 < age < 4), 9, 1.0, 1.0, failed=int(age == 4))
        decision, memory = plan(demand, memory, PoolConfig(min_workers=1, max_workers=2), CONFIG)
        if decision.change:
            grown_at.append(second)
    assert grown_at == [1, 66, 191]  # four seconds, a rest of 60 s, of 120 s, of 240 s, two votes


def test_a_queue_that_passed_forgets_the_failures_once_the_rest_is_over() -> None:
    _, memory = plan(Demand(1, 0, 9, 1.0, 1.0, failed=1), Memory(), LIMITS, CONFIG)
    assert (memory.failures, memory.rest_s) == (1, 60.0)
    for _ in range(60):
        _, memory = plan(Demand(1, 0, 0, 1.0, 1.0), memory, LIMITS, CONFIG)
    assert memory == Memory()


def test_a_pool_that_cannot_be_resized_is_left_alone_and_said_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The other one is supervised as before."""

    class Unable(Grown):
        def grow(self) -> None:
            raise ConnectionError("the head is away")

    config = SupervisionConfig(interval_s=0.01, grow_wait_s=0.1, shrink_after_s=60.0)
    pools = {"unable": Unable(time.perf_counter), "able": Grown(time.perf_counter)}

    async def test() -> None:
        supervisor = Supervisor(
            {name: (pool, LIMITS) for name, pool in pools.items()}, config, lambda line: None
        )
        for pool in pools.values():
            pool.meter.change(busy=1, waiting=3)
            pool.meter.ended(1.0)
        supervisor.start()
        while not pools["able"].pending:
            await asyncio.sleep(0.01)
        await supervisor.stop()

    asyncio.run(asyncio.wait_for(test(), 20))
    said = [record.message for record in caplog.records]
    assert said.count("pool unable keeps its size from now on: the head is away") == 1


def test_a_steady_load_leaves_the_pool_alone() -> None:
    """Hysteresis: a load that two workers just carry neither grows nor shrinks the pool."""
    memory, changes = Memory(), []
    for second in range(120):
        demand = Demand(2, 0, second % 3, 0.85, 0.5)
        decision, memory = plan(demand, memory, LIMITS, CONFIG)
        changes.append(decision.change)
    assert set(changes) == {0}
    assert isinstance(decision, Decision)


def test_the_supervisor_grows_a_pool_whose_queue_stays_long_and_notes_it() -> None:
    """One worker, calls of a second, three waiting: the second look grows it by two."""
    now = [0.0]
    pool, noted = Grown(lambda: now[0]), list[str]()
    supervisor = Supervisor({"judge": (pool, LIMITS)}, CONFIG, noted.append)
    pool.meter.change(busy=1, waiting=3)
    for _ in range(2):
        now[0] += 1.0
        pool.meter.ended(1.0)
        supervisor.decide("judge")
    assert pool.pending == 2
    (event,) = map(json.loads, noted)
    assert (event["pool"], event["workers"], event["pending"], event["change"]) == (
        "judge",
        1,
        0,
        2,
    )
    assert "wait" in event["reason"]


def test_a_pool_of_a_fixed_size_is_left_alone() -> None:
    fixed = PoolConfig(min_workers=2, max_workers=2)
    supervisor = Supervisor({"judge": (Grown(lambda: 0.0), fixed)}, CONFIG, lambda line: None)
    assert supervisor._pools == {}
