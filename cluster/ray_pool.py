"""Pools of Ray actors: calls that survive their workers, workers that come and go, learner ranks.

A worker's death is seen by the call that was in flight: it is counted, the worker is left alone
until its replacement answers, and the call goes to the next free one. Ray restarts the actor but
does not retry its calls, because it would hide how many deaths a sample has seen.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import (
    ActorPlacementGroupRemoved,
    ActorUnavailableError,
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from cluster.calls import Call, first_line, settle, within
from cluster.clocks import Meter
from cluster.dispatch import Dispatch, NobodyLeft
from cluster.lost import ObjectGone, PoolLost, WorkerLost
from cluster.pools import bind
from rewards.checks import BROKEN

log = logging.getLogger(__name__)

DEATHS = (
    RayActorError,
    OutOfMemoryError,
    NodeDiedError,
    RuntimeEnvSetupError,
    ActorUnschedulableError,
    ActorPlacementGroupRemoved,
)
"""How Ray speaks of a worker that is gone; victims of its memory monitor have their own error."""
LOSSES = (*BROKEN, torch.OutOfMemoryError)
"""Errors after which a worker is replaced, by one with a new context of its GPU."""
FIRST_BIRTHS_S, LATER_BIRTHS_S = (0.0, 0.0), (1.0, 10.0, 60.0)
"""A worker whose actor is gone for good, such as one whose constructor raises, is spawned anew so
many times in a row, after these pauses: at once while it has never worked, since the reason is then
most likely the user's; later a model store or a full GPU may need a while."""
REVIVAL_POLL_S = 0.1


class _NotAdmitted(Exception):
    """A worker that starts but does not pass its admission."""


@dataclass(slots=True, eq=False)
class _Member:
    """A worker's place in a pool."""

    index: int
    actor: Any
    births: int = 0
    """Since it last started."""
    worked: bool = False
    buried: str = ""
    """Why it does not start any more."""
    draining: bool = False
    repairing: bool = False


class RayPool:
    """Actors of one class; the one with the shortest queue takes the next call."""

    def __init__(
        self,
        name: str,
        spawn: Callable[[int], Any],
        workers: int,
        max_deaths: int = 3,
        admission: str | None = None,
        calls_at_once: int = 1,
        admission_s: float | None = None,
    ) -> None:
        """`spawn(index)` starts an actor; `admission` names a method that a worker which joins or
        is restarted must answer within `admission_s` before it gets work; a call in flight at
        `max_deaths` deaths is given up. A worker is given at most `calls_at_once` calls; the meter
        counts each as a worker.
        """
        self.name = name
        self.calls_at_once = calls_at_once
        self.meter = Meter(workers * calls_at_once)
        self.max_deaths = max_deaths
        self.pending = 0
        """Workers that were asked for and do not work yet."""
        self._spawn, self._admission, self._admission_s = spawn, admission, admission_s
        self._next_index = workers
        self._members = [_Member(index, spawn(index)) for index in range(workers)]
        self._dispatch: Dispatch[_Member] = Dispatch(calls_at_once)
        for member in self._members:
            self._dispatch.open(member)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def size(self) -> int:
        """Workers that take calls, or will again when they are restarted."""
        return sum(not member.draining for member in self._members)

    @property
    def actors(self) -> tuple[Any, ...]:
        """Their handles."""
        return tuple(member.actor for member in self._members if not member.draining)

    async def call(
        self, method: str, *args: Any, returns: int = 1, timeout_s: float | None = None
    ) -> Any:
        """See `cluster.pools.Pool.call`. A worker that is too slow is killed and restarted; one
        whose call nobody waits for any more is free when that has ended."""
        lost = ""
        for _ in range(self.max_deaths):
            member = await self._acquire()
            started = time.perf_counter()
            actor = member.actor
            call = asyncio.ensure_future(_invoke(actor, method, args, returns))
            try:
                answer = await within(call, timeout_s)
            except asyncio.CancelledError:
                self._start(self._abandoned(member, actor, call, started, timeout_s))
                raise
            except DEATHS as error:
                lost = first_line(error)
                log.warning("%s: a worker died in %s: %s", self.name, method, lost)
                self._died(member, started)
            except LOSSES as error:
                lost = first_line(error)
                log.warning("%s: a worker cannot go on after %s: %s", self.name, method, lost)
                self._broke(member, actor, started)
            except TimeoutError:
                call.cancel()
                log.warning(
                    "%s: a worker did not answer %s within %s s; it is restarted",
                    *(self.name, method, timeout_s),
                )
                self._silenced(member, started)
                raise
            except BaseException:
                self._ended(member, started)
                raise
            else:
                member.worked = True
                self._ended(member, started)
                return answer
        raise WorkerLost(
            f"{self.name}.{method} was given up: {self.max_deaths} workers died while they ran it; "
            f"the last one because: {lost}"
        )

    async def call_all(
        self,
        method: str,
        arguments: Sequence[tuple[Any, ...]],
        returns: int = 1,
        limit_s: float | None = None,
    ) -> list[Any]:
        """See `cluster.pools.Pool.call_all`; a worker that dies is waited for and asked again."""
        members = [member for member in self._members if not member.draining]
        if not members:
            raise PoolLost(f"no {self.name} worker is left to answer {method}")

        async def ask(member: _Member, args: tuple[Any, ...]) -> Any:
            for _ in range(self.max_deaths):
                call = asyncio.ensure_future(_invoke(member.actor, method, args, returns))
                try:
                    return await within(call, limit_s)
                except DEATHS as error:
                    lost = first_line(error)
                except TimeoutError:
                    lost = f"no answer within {limit_s} s"
                    ray.kill(member.actor, no_restart=False)
                finally:
                    call.cancel()
                if not await self._revive(member, admit=False):
                    break
            raise WorkerLost(f"a {self.name} worker died again and again in {method}: {lost}")

        asked = [ask(m, args) for m, args in zip(members, arguments, strict=True)]
        return list(await asyncio.gather(*asked))

    async def fetch(self, ref: Any) -> Any:
        """See `cluster.pools.Pool.fetch`."""
        return await _fetch(ref)

    async def store(self, value: Any) -> Any:
        """See `cluster.pools.Pool.store`."""
        return ray.put(value)

    def grow(self) -> None:
        """Ask for one more worker; it joins when it has started and passed its admission. Until the
        cluster has room its actor is pending, which an autoscaler sees as demand."""
        self.pending += 1
        self._next_index += 1
        self._start(self._join(_Member(self._next_index - 1, self._spawn(self._next_index - 1))))

    def drain(self) -> None:
        """Let the youngest worker finish its call and leave."""
        member = max((m for m in self._members if not m.draining), key=lambda m: m.index)
        member.draining = True
        self._dispatch.close(member)
        self._count(0 if member.repairing else -1)
        if not member.repairing and not self._dispatch.in_flight(member):
            self._retire(member)

    def close(self) -> None:
        """Kill every worker."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for member in self._members:
            ray.kill(member.actor)

    async def _acquire(self) -> _Member:
        self.meter.change(waiting=1)
        try:
            member = await self._dispatch.take()
        except NobodyLeft as nobody:
            raise PoolLost(str(nobody)) from None
        finally:
            self.meter.change(waiting=-1)
        self.meter.change(busy=1)
        return member

    async def _abandoned(
        self, member: _Member, actor: Any, call: Call, started: float, timeout_s: float | None
    ) -> None:
        """See a call to its end that nobody waits for: what it answers or raises says nothing."""
        try:
            await within(call, timeout_s)
        except DEATHS:
            self._died(member, started)
        except LOSSES:
            self._broke(member, actor, started)
        except TimeoutError:
            call.cancel()
            self._silenced(member, started)
        except Exception:
            self._ended(member, started)
        else:
            self._ended(member, started)

    def _died(self, member: _Member, started: float) -> None:
        self.meter.lost(deaths=1)
        self._repair(member)
        self._ended(member, started)

    def _broke(self, member: _Member, actor: Any, started: float) -> None:
        """Replace an actor that lives, but for nothing: asked to restart, it would still answer for
        a while as if it had."""
        if member.actor is actor and not (member.draining or self._closed):
            ray.kill(actor)
            member.actor = self._spawn(member.index)
        self._died(member, started)

    def _silenced(self, member: _Member, started: float) -> None:
        """A worker that may never answer, and whose answer is of no use to anybody."""
        self.meter.lost(timeouts=1)
        ray.kill(member.actor, no_restart=False)
        self._repair(member)
        self._ended(member, started)

    def _ended(self, member: _Member, started: float) -> None:
        self.meter.change(busy=-1)
        self.meter.ended(time.perf_counter() - started)
        self._give_back(member)

    def _give_back(self, member: _Member) -> None:
        self._dispatch.give_back(member)
        if member.draining and not self._dispatch.in_flight(member):
            self._retire(member)

    def _count(self, workers: int) -> None:
        self.meter.change(workers=workers * self.calls_at_once)

    def _retire(self, member: _Member) -> None:
        if member in self._members:
            self._members.remove(member)
            ray.kill(member.actor)

    def _repair(self, member: _Member) -> None:
        """Bring a worker back in the background; it takes no calls until then."""
        if member.draining or member.repairing or self._closed:
            return
        member.repairing = True
        self._dispatch.close(member)
        self._count(-1)
        self._start(self._repaired(member))

    async def _repaired(self, member: _Member) -> None:
        alive = await self._revive(member)
        member.repairing = False
        if member.draining:
            self._retire(member)
        elif alive:
            self._count(1)
            self._dispatch.open(member)

    async def _revive(self, member: _Member, admit: bool = True) -> bool:
        """Wait until a worker answers again, and has passed its admission where `admit`; False
        where it is gone for good."""
        while not self._closed:
            actor = member.actor
            try:
                await actor.__ray_ready__.remote()
                if admit and self._admission is not None:
                    await self._admitted(actor, self._admission)
                member.births = 0
                return True
            except ActorUnavailableError:
                await asyncio.sleep(REVIVAL_POLL_S)
            except (RayError, _NotAdmitted) as error:  # it died, cannot be started or does not pass
                if member.draining:
                    return False
                if member.actor is not actor:
                    continue
                pauses_s = LATER_BIRTHS_S if member.worked else FIRST_BIRTHS_S
                if member.births >= len(pauses_s):
                    self._bury(member, first_line(error))
                    return False
                member.births += 1
                await asyncio.sleep(pauses_s[member.births - 1])
                if member.draining or self._closed:
                    return False
                if member.actor is actor:
                    member.actor = self._spawn(member.index)
        return False

    async def _admitted(self, actor: Any, method: str) -> None:
        """What is slow once, such as weights and compiled kernels, is loaded here and not within
        the limit of a call. A worker that does not pass is killed, whatever the reason."""
        call = asyncio.ensure_future(_invoke(actor, method, (), 1))
        try:
            await within(call, self._admission_s)
        except Exception as error:
            call.cancel()
            ray.kill(actor)
            late = isinstance(error, TimeoutError)
            reason = f"no answer within {self._admission_s} s" if late else first_line(error)
            raise _NotAdmitted(f"it does not pass {method}: {reason}") from error

    def _bury(self, member: _Member, reason: str) -> None:
        member.buried = reason
        log.warning("%s: a worker does not start: %s", self.name, reason)
        if member in self._members:
            self._members.remove(member)
            self._fail_if_nobody(reason)

    def _fail_if_nobody(self, reason: str) -> None:
        if not self._members and not self.pending:
            self._dispatch.fail(f"no {self.name} worker is left; the last one: {reason}")

    async def _join(self, member: _Member) -> None:
        try:
            alive = await self._revive(member)
        finally:
            self.pending -= 1
        if alive:
            self._members.append(member)
            self._count(1)
            self._dispatch.open(member)
        else:
            self._fail_if_nobody(member.buried)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


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

    async def call(
        self, method: str, *args: Any, returns: int = 1, timeout_s: float | None = None
    ) -> Any:
        """Ranks are never called alone."""
        raise NotImplementedError(f"{self.name}.{method}: ranks are called together")

    async def call_all(
        self,
        method: str,
        arguments: Sequence[tuple[Any, ...]],
        returns: int = 1,
        limit_s: float | None = None,
    ) -> list[Any]:
        """See `cluster.pools.Pool.call_all`. Raises WorkerLost where a rank died, TimeoutError
        where one does not answer although another did, or within `limit_s`."""
        calls = [
            asyncio.ensure_future(_invoke(actor, method, args, returns))
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
        """See `cluster.pools.Pool.fetch`."""
        return await _fetch(ref)

    async def store(self, value: Any) -> Any:
        """See `cluster.pools.Pool.store`."""
        return ray.put(value)

    async def restart(self) -> None:
        """Kill every rank, frozen ones too, and start as many."""
        self.close()
        self.actors = await asyncio.to_thread(self._spawn_all)

    def close(self) -> None:
        """Kill every rank."""
        for actor in self.actors:
            ray.kill(actor)


async def _invoke(actor: Any, method: str, args: tuple[Any, ...], returns: int) -> Any:
    refs = getattr(actor, method).options(num_returns=returns).remote(*bind(args))
    try:
        if returns == 1:
            return await refs
        return (await refs[0], *refs[1:])
    except ObjectLostError as error:
        raise ObjectGone(first_line(error)) from error
    except RayTaskError as error:
        if isinstance(error.cause, ObjectLostError):
            raise ObjectGone(first_line(error.cause)) from error
        # What the method raised, as under --local; the remote traceback stays attached.
        raise error.cause from error


async def _fetch(ref: Any) -> Any:
    try:
        return await ref
    except ObjectLostError as error:
        raise ObjectGone(first_line(error)) from error
