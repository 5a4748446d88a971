"""Which worker of a pool takes the next call: the one with the shortest queue (no Ray in here)."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

W = TypeVar("W")


class NobodyLeft(RuntimeError):
    """No worker is left, and none that was asked for comes."""


class Dispatch(Generic[W]):
    """Hands calls to open workers, each with at most `calls_at_once` in flight.

    A call goes to the open worker with the fewest calls in flight, among those to the one that has
    waited longest; calls that find none wait in their order.
    """

    def __init__(self, calls_at_once: int = 1) -> None:
        self.calls_at_once = calls_at_once
        self._open: dict[W, int] = {}
        """Open workers -> turn at which each was last given something or gave something back."""
        self._in_flight: dict[W, int] = {}
        self._waiters: deque[asyncio.Future[W]] = deque()
        self._turn = 0
        self._failure = ""

    def open(self, worker: W) -> None:
        """Let a worker take calls."""
        self._failure = ""
        self._open[worker] = self._next_turn()
        self._serve()

    def close(self, worker: W) -> None:
        """Give a worker no further calls; those in flight go on."""
        self._open.pop(worker, None)

    def in_flight(self, worker: W) -> int:
        """Calls that a worker was given and has not given back."""
        return self._in_flight.get(worker, 0)

    async def take(self) -> W:
        """Wait for a worker. Raises NobodyLeft."""
        if self._failure:
            raise NobodyLeft(self._failure)
        waiter: asyncio.Future[W] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._serve()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.give_back(waiter.result())
            raise

    def give_back(self, worker: W) -> None:
        """Note that a call has ended."""
        self._in_flight[worker] -= 1
        if not self._in_flight[worker]:
            del self._in_flight[worker]
        if worker in self._open:
            self._open[worker] = self._next_turn()
            self._serve()

    def fail(self, reason: str) -> None:
        """Let every call that waits, or comes before a worker is opened, raise NobodyLeft."""
        self._failure = reason
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(NobodyLeft(reason))
        self._waiters.clear()

    def _serve(self) -> None:
        while self._waiters:
            if self._waiters[0].done():
                self._waiters.popleft()
                continue
            worker = self._shortest_queue()
            if worker is None:
                return
            self._in_flight[worker] = self.in_flight(worker) + 1
            self._open[worker] = self._next_turn()
            self._waiters.popleft().set_result(worker)

    def _shortest_queue(self) -> W | None:
        free = [w for w in self._open if self.in_flight(w) < self.calls_at_once]
        return min(free, key=lambda w: (self.in_flight(w), self._open[w]), default=None)

    def _next_turn(self) -> int:
        self._turn += 1
        return self._turn
