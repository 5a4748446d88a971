"""Pools of Ray actors: calls that survive their workers, workers that come and go.

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

from cluster.calls import Call, first_line, within
from cluster.clocks import Meter
from cluster.dispatch import Dispatch, NobodyLeft
from cluster.lost import ObjectGone, PoolLost, WorkerLost
from cluster.pool import bind
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
RARE_BIRTHS_S = 300.0
"""Pause before further births of a worker that has worked, while others of its pool are left."""
LAST_HOPE_S = 1800.0
"""How long workers that were asked for may take to start where no other is left."""
OVERDUE_S, LONGEST_SILENCE_S = 300.0, 3600.0
"""A worker that has not started for so long is spoken of: then, after twice that, and so on."""
REVIVAL_POLL_S, LONGEST_POLL_S = 0.1, 2.0


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
    """Why it does not start; it is not waited for."""
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
        self.failed_joins = 0
        """Workers that were asked for and could not start."""
        self._spawn, self._admission, self._admission_s = spawn, admission, admission_s
        self._joining: dict[_Member, asyncio.Task[None]] = {}
        self._last_hope: asyncio.Task[None] | None = None
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
    def pending(self) -> int:
        """Workers that were asked for and do not work yet."""
        return len(self._joining)

    @property
    def actors(self) -> tuple[Any, ...]:
        """Their handles."""
        return tuple(member.actor for member in self._members if not member.draining)

    async def call(
        self, method: str, *args: Any, returns: int = 1, timeout_s: float | None = None
    ) -> Any:
        """See `cluster.pool.Pool.call`. A worker that is too slow is killed and restarted; one
        whose call nobody waits for any more is free when that has ended."""
        lost = ""
        for _ in range(self.max_deaths):
            member = await self._acquire()
            started = time.perf_counter()
            actor = member.actor
            call = asyncio.ensure_future(invoke(actor, method, args, returns))
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
        """See `cluster.pool.Pool.call_all`; a worker that dies is waited for and asked again."""
        members = [member for member in self._members if not member.draining]
        if not members:
            raise PoolLost(f"no {self.name} worker is left to answer {method}")

        async def ask(member: _Member, args: tuple[Any, ...]) -> Any:
            for _ in range(self.max_deaths):
                call = asyncio.ensure_future(invoke(member.actor, method, args, returns))
                try:
                    answer = await within(call, limit_s)
                    member.worked = True
                    return answer
                except DEATHS as error:
                    lost = first_line(error)
                except TimeoutError:
                    lost = f"no answer within {limit_s} s"
                    ray.kill(member.actor, no_restart=False)
                finally:
                    call.cancel()
                if not await self._revive(member, admit=False, insist=False):
                    break
            raise WorkerLost(f"a {self.name} worker died again and again in {method}: {lost}")

        asked = [ask(m, args) for m, args in zip(members, arguments, strict=True)]
        return list(await asyncio.gather(*asked))

    async def fetch(self, ref: Any) -> Any:
        """See `cluster.pool.Pool.fetch`."""
        return await fetch_ref(ref)

    async def store(self, value: Any) -> Any:
        """See `cluster.pool.Pool.store`."""
        return ray.put(value)

    def grow(self) -> None:
        """Ask for one more worker; it joins when it has started and passed its admission. Until the
        cluster has room its actor is pending, which an autoscaler sees as demand."""
        taken = {member.index for member in (*self._members, *self._joining)}
        # A place of the layout that was given up comes first: its resources are reserved.
        index = next(i for i in range(len(taken) + 1) if i not in taken)
        member = _Member(index, self._spawn(index))
        self._joining[member] = self._start(self._join(member))

    def drain(self) -> None:
        """Take back the last worker that was asked for; where none is, let one finish its call and
        leave: one that is being restarted, else the youngest."""
        if self._joining:
            member = max(self._joining, key=lambda m: m.index)
            self._joining.pop(member).cancel()
            ray.kill(member.actor)
            return
        staying = [member for member in self._members if not member.draining]
        member = max(staying, key=lambda m: (m.repairing, m.index))
        member.draining = True
        self._dispatch.close(member)
        self._count(0 if member.repairing else -1)
        if member.repairing or not self._dispatch.in_flight(member):
            self._retire(member)

    def close(self) -> None:
        """Kill every worker."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for member in (*self._members, *self._joining):
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
        alive = await self._spoken_of(member, self._revive(member))
        member.repairing = False
        if member.draining:
            self._retire(member)
        elif alive:
            self._open(member)

    def _open(self, member: _Member) -> None:
        if self._last_hope is not None:
            self._last_hope.cancel()
        self._count(1)
        self._dispatch.open(member)

    async def _revive(self, member: _Member, admit: bool = True, insist: bool = True) -> bool:
        """Wait until a worker answers again, and has passed its admission where `admit`; False
        where it is gone for good. One that has worked before never is, where `insist`."""
        poll_s = REVIVAL_POLL_S
        while not (self._closed or member.draining):
            actor = member.actor
            try:
                await actor.__ray_ready__.remote()
                if admit and self._admission is not None:
                    await self._admitted(actor, self._admission)
                member.births, member.buried, member.worked = 0, "", True
                return True
            except ActorUnavailableError:
                await asyncio.sleep(poll_s)
                poll_s = min(2 * poll_s, LONGEST_POLL_S)
            except (RayError, _NotAdmitted) as error:  # it died, cannot be started or does not pass
                gone = member.actor is actor and not member.draining
                if gone and not await self._born_again(member, first_line(error), insist):
                    return False
        return False

    async def _born_again(self, member: _Member, reason: str, insist: bool) -> bool:
        """Spawn another actor in place of one that is gone, after a pause; False where that was
        done often enough."""
        actor, pauses_s = member.actor, LATER_BIRTHS_S if member.worked else FIRST_BIRTHS_S
        if member.births >= len(pauses_s):
            self._bury(member, reason)
            if not (member.worked and insist):
                return False
        member.births += 1
        rare = member.births > len(pauses_s)
        await asyncio.sleep(RARE_BIRTHS_S if rare else pauses_s[member.births - 1])
        if member.actor is actor and not (member.draining or self._closed):
            member.actor = self._spawn(member.index)
        return True

    async def _admitted(self, actor: Any, method: str) -> None:
        """What is slow once, such as weights and compiled kernels, is loaded here and not within
        the limit of a call. A worker that does not pass is killed, whatever the reason."""
        call = asyncio.ensure_future(invoke(actor, method, (), 1))
        try:
            await within(call, self._admission_s)
        except Exception as error:
            ray.kill(actor)
            late = isinstance(error, TimeoutError)
            reason = f"no answer within {self._admission_s} s" if late else first_line(error)
            raise _NotAdmitted(f"it does not pass {method}: {reason}") from error
        finally:
            call.cancel()

    def _bury(self, member: _Member, reason: str) -> None:
        if not member.buried:
            log.warning("%s: worker %d does not start: %s", self.name, member.index, reason)
        member.buried = reason
        if member in self._members:
            if not member.worked:
                self._members.remove(member)
            self._fail_if_nobody(reason)

    def _fail_if_nobody(self, reason: str) -> None:
        if self._hopeless:
            failure = f"no {self.name} worker is left; the last one: {reason}"
            if not self._joining:
                self._dispatch.fail(failure)
            elif self._last_hope is None or self._last_hope.done():
                self._last_hope = self._start(self._fail_later(failure))

    @property
    def _hopeless(self) -> bool:
        return all(member.buried or member.draining for member in self._members)

    async def _fail_later(self, failure: str) -> None:
        await asyncio.sleep(LAST_HOPE_S)
        if self._hopeless:
            asked = f"; {self.pending} that were asked for have not started either"
            self._dispatch.fail(failure + asked)

    async def _join(self, member: _Member) -> None:
        alive = await self._spoken_of(member, self._revive(member))
        del self._joining[member]  # not where it is cancelled: `drain` or `close` sees to its actor
        if alive:
            self._members.append(member)
            self._open(member)
        else:
            self.failed_joins += 1
            self._fail_if_nobody(member.buried)

    async def _spoken_of(self, member: _Member, start: Coroutine[Any, Any, bool]) -> bool:
        """Await a worker's start; one that takes long is said to, ever more rarely."""
        speaker = self._start(self._speak_of(member))
        try:
            return await start
        finally:
            speaker.cancel()

    async def _speak_of(self, member: _Member) -> None:
        waited_s, pause_s = 0.0, OVERDUE_S
        while True:
            await asyncio.sleep(pause_s)
            waited_s += pause_s
            pause_s = min(2 * pause_s, LONGEST_SILENCE_S)
            log.warning(
                "%s: worker %d has not started for %.0f min (%s); %d others work, %d calls wait",
                *(self.name, member.index, waited_s / 60),
                member.buried or "it may wait for a node, or for what it loads",
                *(sum(not m.repairing for m in self._members), self.meter.waiting),
            )

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def invoke(actor: Any, method: str, args: tuple[Any, ...], returns: int) -> Any:
    """What a method of an actor answers; with `returns` > 1 its first part, and refs of the others.
    ObjectGone for a lost argument, DEATHS, or what the method raised."""
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


async def fetch_ref(ref: Any) -> Any:
    """The object behind a ref. ObjectGone."""
    try:
        return await ref
    except ObjectLostError as error:
        raise ObjectGone(first_line(error)) from error
