"""How many reward workers there should be: a pure decision, and a task that carries it out."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from cluster.calls import first_line
from cluster.clocks import Meter
from cluster.sections import SupervisionConfig
from rewards.config import PoolConfig

log = logging.getLogger(__name__)

START_S = 900.0
"""How long a worker may take to start: a lull that is shorter takes none back."""

REST_S, LONGEST_REST_S = 60.0, 3600.0
"""A pool whose new worker could not start grows again after this; twice that after the next one."""

VOTES = 2
"""Intervals in a row that have to agree before a pool grows."""

SPARE_SHARE = 0.8
"""A worker is too many where the others would be busy for less than this share of their time."""


@dataclass(frozen=True, slots=True)
class Demand:
    """One interval of a pool."""

    workers: int
    """Workers that take calls."""
    pending: int
    """Workers that were asked for and do not work yet."""
    waiting: int
    """Calls that wait for a worker."""
    busy_share: float
    """Share of the workers' time spent on calls."""
    service_s: float
    """Mean duration of a call, over the calls that a worker runs at once."""
    failed: int = 0
    """Workers that were asked for and, in this interval, could not start."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a decision remembers of those before it: hysteresis."""

    votes: int = 0
    """Intervals in a row with too long a queue."""
    slack_s: float = 0.0
    """For how long one worker less would have done, or those that were asked for did not come."""
    failures: int = 0
    """Intervals in which workers could not start, since the last queue passed."""
    rest_s: float = 0.0
    """For how long the pool does not grow, because of them."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Workers to add (positive) or to drain (negative), and why."""

    change: int
    reason: str


def plan(
    demand: Demand, memory: Memory, limits: PoolConfig, config: SupervisionConfig
) -> tuple[Decision, Memory]:
    """Decide on one pool (pure).

    It grows when two intervals in a row ask for it: by the workers that would work its queue off
    within `grow_wait_s` while those that are busy go on with what arrives, at most to twice its
    size and one more. It shrinks by one when, for `shrink_after_s` without a break, nothing waited
    and one worker less would have done. Workers that were asked for and have not come are taken
    back first, but only after a lull in which they could have started.
    """
    memory = _rested(demand, memory, config.interval_s)
    total = demand.workers + demand.pending
    work_s = demand.waiting * demand.service_s
    wait_s = work_s / max(total, 1)
    if wait_s > config.grow_wait_s and total < limits.max_workers:
        if memory.rest_s:
            reason = "workers that were asked for could not start"
            return Decision(0, reason), replace(memory, slack_s=0.0)
        votes = memory.votes + 1
        if votes < VOTES:
            return Decision(0, "a queue that may pass"), replace(memory, votes=votes, slack_s=0.0)
        busy = demand.busy_share * demand.workers
        needed = math.ceil(busy + work_s / config.grow_wait_s)
        wanted = min(needed, 2 * total + 1, limits.max_workers)
        reason = f"{demand.waiting} calls wait {wait_s:.1f} s, more than {config.grow_wait_s:g} s"
        return Decision(wanted - total, reason), replace(memory, votes=0, slack_s=0.0)
    undecided = memory.rest_s or demand.waiting or demand.pending
    failures = memory.failures if undecided else 0
    calm = Memory(failures=failures, rest_s=memory.rest_s)
    idle = demand.workers > limits.min_workers and (
        demand.busy_share * demand.workers < SPARE_SHARE * (demand.workers - 1)
    )
    if demand.waiting or not (idle or demand.pending):
        return Decision(0, "enough"), calm
    slack_s = memory.slack_s + config.interval_s
    if slack_s < max(config.shrink_after_s, START_S * bool(demand.pending)):
        return Decision(0, "a lull that may pass"), replace(calm, slack_s=slack_s)
    if demand.pending:
        return Decision(-demand.pending, f"nothing waited for {slack_s:g} s"), calm
    reason = f"busy for {demand.busy_share:.0%} of {slack_s:g} s without a queue"
    return Decision(-1, reason), calm


def _rested(demand: Demand, memory: Memory, interval_s: float) -> Memory:
    if not demand.failed:
        return replace(memory, rest_s=max(memory.rest_s - interval_s, 0.0))
    rest_s = min(REST_S * 2**memory.failures, LONGEST_REST_S)
    return Memory(failures=memory.failures + 1, rest_s=rest_s)


@runtime_checkable
class ElasticPool(Protocol):
    """A pool whose workers may come and go."""

    meter: Meter
    calls_at_once: int
    failed_joins: int

    @property
    def pending(self) -> int:
        """Workers that were asked for and do not work yet."""
        ...

    @property
    def size(self) -> int:
        """Workers that take calls."""
        ...

    def grow(self) -> None:
        """Ask for one more worker."""
        ...

    def drain(self) -> None:
        """Take back a worker that was asked for, or let one finish its call and leave."""
        ...


class Supervisor:
    """Measures every elastic pool once an interval and carries out what `plan` decides."""

    def __init__(
        self,
        pools: Mapping[str, tuple[object, PoolConfig]],
        config: SupervisionConfig,
        note: Callable[[str], None],
    ) -> None:
        """`pools` by name with their limits; those that are not elastic are left alone. `note`
        takes every decision that changes something, as a line of JSON."""
        self._pools = {
            name: (pool, limits)
            for name, (pool, limits) in pools.items()
            if isinstance(pool, ElasticPool) and limits.max_workers > limits.min_workers
        }
        self._config, self._note = config, note
        self._memory = dict.fromkeys(self._pools, Memory())
        self._service_s = dict.fromkeys(self._pools, 0.0)
        self._failed_joins = dict.fromkeys(self._pools, 0)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to supervise, where there is anything to supervise."""
        if self._pools:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Leave the pools as they are."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self._pools:
            await asyncio.sleep(self._config.interval_s)
            for name in tuple(self._pools):
                try:
                    self.decide(name)
                except Exception as error:  # the run goes on with the workers that it has
                    log.warning("pool %s keeps its size from now on: %s", name, first_line(error))
                    del self._pools[name]

    def decide(self, name: str) -> Decision:
        """Measure one pool and act."""
        pool, limits = self._pools[name]
        clock = pool.meter.lap("supervisor")
        if clock.calls:
            self._service_s[name] = clock.service_s / pool.calls_at_once
        failed = pool.failed_joins - self._failed_joins[name]
        self._failed_joins[name] = pool.failed_joins
        demand = Demand(
            *(pool.size, pool.pending, pool.meter.waiting, clock.busy_share),
            *(self._service_s[name], failed),
        )
        decision, self._memory[name] = plan(demand, self._memory[name], limits, self._config)
        for _ in range(decision.change):
            pool.grow()
        for _ in range(-decision.change):
            pool.drain()
        if decision.change:
            event = {
                "time": round(time.time(), 3),
                "pool": name,
                "workers": demand.workers,
                "pending": demand.pending,
                "change": decision.change,
                "reason": decision.reason,
            }
            log.info("pool %s: %+d workers: %s", name, decision.change, decision.reason)
            self._note(json.dumps(event))
        return decision
