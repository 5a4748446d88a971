"""The learner's ranks as Ray actors: called together, lost together, replaced together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import ray

from cluster.calls import first_line, settle
from cluster.clocks import Meter
from cluster.lost import WorkerLost
from cluster.ray_pool import DEATHS, fetch_ref, invoke


class RayRanks:
    """The learner's ranks: called together, and replaced together, since a process group does not
    heal."""

    def __init__(self, name: str, spawn_all: Callable[[], list[Any]], straggler_s: float) -> None:
        """`spawn_all` starts one actor per rank on a meeting point of its own. After the first
        answer to a call the others have `straggler_s` to answer: the ranks work in step."""
        self.name = name
        self._spawn_all = spawn_all
        self._straggler_s = straggler_s
        self.actors = spawn_all()
        self.meter = Meter(1)

    @property
    def size(self) -> int:
        """Ranks."""
        return len(self.actors)

    async def call_all(
        self,
        method: str,
        arguments: Sequence[tuple[Any, ...]],
        returns: int = 1,
        limit_s: float | None = None,
    ) -> list[Any]:
        """See `cluster.pool.Pool.call_all`. Raises WorkerLost where a rank died, TimeoutError
        where one does not answer although another did, or within `limit_s`."""
        calls = [
            asyncio.ensure_future(invoke(actor, method, args, returns))
            for actor, args in zip(self.actors, arguments, strict=True)
        ]
        try:
            await asyncio.wait(calls, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            await settle(calls)
            if not any(call.done() for call in calls):
                raise TimeoutError(f"no rank answered {method} within {limit_s} s")
            await asyncio.wait(
                calls, timeout=self._straggler_s, return_when=asyncio.FIRST_EXCEPTION
            )
            await settle(calls)
            for call in calls:
                if call.done():
                    call.result()
            if not all(call.done() for call in calls):
                silent = [rank for rank, call in enumerate(calls) if not call.done()]
                raise TimeoutError(
                    f"ranks {silent} did not answer {method} within {self._straggler_s:g} s of "
                    "the others"
                )
            return [call.result() for call in calls]
        except DEATHS as error:
            raise WorkerLost(f"a {self.name} rank died in {method}: {first_line(error)}") from error
        finally:
            for call in calls:
                call.cancel()

    async def fetch(self, ref: Any) -> Any:
        """See `cluster.pool.Pool.fetch`."""
        return await fetch_ref(ref)

    async def store(self, value: Any) -> Any:
        """See `cluster.pool.Pool.store`."""
        return ray.put(value)

    async def restart(self) -> None:
        """Kill every rank, frozen ones too, and start as many."""
        self.close()
        self.actors = await asyncio.to_thread(self._spawn_all)

    def close(self) -> None:
        """Kill every rank."""
        for actor in self.actors:
            ray.kill(actor)
