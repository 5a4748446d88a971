"""How a pool takes what Ray says of its workers; handles that answer as they are told stand for
Ray's actors. Real deaths: test_ray_pool.py."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RuntimeEnvSetupError,
)

from cluster import ray_pool
from cluster.lost import PoolLost, WorkerLost
from cluster.ray_pool import FIRST_BIRTHS_S, RayPool
from cluster.ray_ranks import RayRanks
from rewards.checks import WorkerBroken
from rewards.known_answer import KnownAnswerError

WRONG = KnownAnswerError("the clip scores 0.1")


@dataclass
class Method:
    """A method of an actor: its answer, or the error that Ray gives instead, after a while."""

    answer: Any
    after_s: float = 0.0

    def options(self, **_: Any) -> Method:
        return self

    def remote(self, *_: Any) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        answer = self.answer() if callable(self.answer) else self.answer
        tell = future.set_exception if isinstance(answer, Exception) else future.set_result
        if math.isinf(self.after_s):
            return future
        if self.after_s:
            threading.Timer(self.after_s, loop.call_soon_threadsafe, (tell, answer)).start()
        else:
            loop.call_soon(tell, answer)
        return future


@dataclass
class Handle:
    """An actor of one method, and of the one that it must answer before it gets work."""

    work: Method
    __ray_ready__: Method
    admit: Method = field(default_factory=lambda: Method(True))


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Actors that the pool killed."""
    found: list[Any] = []
    monkeypatch.setattr(ray_pool.ray, "kill", lambda actor, no_restart=True: found.append(actor))
    return found


def pool_of(spawn: Callable[[int], Handle]) -> RayPool:
    return RayPool("waiters", spawn, 1)


@pytest.mark.parametrize(
    "death", [ActorDiedError(), ActorUnavailableError("gone", None), OutOfMemoryError("killed")]
)
def test_a_rank_that_dies_is_a_lost_worker_however_ray_puts_it(
    death: Exception, killed: list[Any]
) -> None:
    async def test() -> None:
        well, dead = (Handle(Method(answer), Method(True)) for answer in (1, death))
        ranks = RayRanks("ranks", lambda: [well, dead], straggler_s=5.0)
        with pytest.raises(WorkerLost, match="a ranks rank died in work"):
            await ranks.call_all("work", [(), ()])

    asyncio.run(test())


@pytest.mark.parametrize("refusal", [ActorDiedError(), RuntimeEnvSetupError("no interpreter")])
def test_a_worker_that_cannot_start_is_said_to_be_lost(
    refusal: Exception, killed: list[Any]
) -> None:
    """By a call and by a call of all; it is spawned anew twice, and the reason is named."""
    spawned: list[int] = []

    def spawn(index: int) -> Handle:
        spawned.append(index)
        return Handle(Method(refusal), Method(refusal))

    async def called() -> None:
        await asyncio.wait_for(pool_of(spawn).call("work"), 20)

    async def called_all() -> None:
        await asyncio.wait_for(pool_of(spawn).call_all("work", [()]), 20)

    for test in (called, called_all):
        spawned.clear()
        with pytest.raises(WorkerLost, match="waiters"):
            asyncio.run(test())
        assert len(spawned) == 1 + len(FIRST_BIRTHS_S)


def test_a_pool_without_workers_answers_nothing(killed: list[Any]) -> None:
    dead = Handle(Method(ActorDiedError()), Method(ActorDiedError()))

    async def test() -> None:
        pool = pool_of(lambda _: dead)
        with pytest.raises(PoolLost, match="no waiters worker is left; the last one"):
            await asyncio.wait_for(pool.call("work"), 20)
        with pytest.raises(PoolLost, match="no waiters worker is left to answer work"):
            await pool.call_all("work", [()] * pool.size)

    asyncio.run(test())


@pytest.mark.parametrize(
    "broken",
    [
        WorkerBroken("the judge's server does not start"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_a_worker_that_can_do_nothing_more_is_replaced_and_its_call_made_again(
    broken: Exception, killed: list[Any]
) -> None:
    """It would answer at once, with an error, and be given all calls that wait."""

    async def test() -> None:
        answers = iter([broken, 7])
        pool = pool_of(lambda _: Handle(Method(lambda: next(answers)), Method(True)))
        assert await asyncio.wait_for(pool.call("work"), 20) == 7
        assert (len(killed), pool.meter.lap().deaths) == (1, 1)
        always = pool_of(lambda _: Handle(Method(broken), Method(True)))
        with pytest.raises(WorkerLost, match=f"because: {broken}"):
            await asyncio.wait_for(always.call("work"), 20)
        assert len(killed) == 1 + always.max_deaths

    asyncio.run(test())


def test_births_that_fail_for_a_while_are_forgotten_once_the_worker_works(
    killed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a long run a worker may die more often than it is born in a row."""
    monkeypatch.setattr(ray_pool, "LATER_BIRTHS_S", (0.01, 0.01))
    spawned: list[int] = []

    def spawn(index: int) -> Handle:
        """Every second actor works, for one call; the constructors of the others raise."""
        number, calls = len(spawned), list[int]()
        spawned.append(number)

        def work() -> Any:
            calls.append(number)
            return number if len(calls) == 1 else ActorDiedError()

        def ready() -> Any:
            return True if number % 2 == 0 and len(calls) < 2 else ActorDiedError()

        return Handle(Method(work), Method(ready))

    async def test() -> list[int]:
        pool = pool_of(spawn)
        return [await asyncio.wait_for(pool.call("work"), 20) for _ in range(4)]

    assert asyncio.run(test()) == [0, 2, 4, 6]


def test_calls_wait_for_a_worker_that_is_on_its_way_when_the_last_one_is_gone(
    killed: list[Any],
) -> None:
    dead = Handle(Method(ActorDiedError()), Method(ActorDiedError()))
    coming = Handle(Method(7), Method(True, after_s=0.3))

    async def test() -> None:
        pool = pool_of(lambda index: coming if index == 1 else dead)
        pool.grow()
        assert await asyncio.wait_for(pool.call("work"), 20) == 7

    async def failing() -> None:
        late = Handle(Method(7), Method(RuntimeEnvSetupError("no disk"), after_s=0.2))
        pool = pool_of(lambda index: late if index == 1 else dead)
        pool.grow()
        await asyncio.wait_for(pool.call("work"), 20)

    asyncio.run(test())
    with pytest.raises(WorkerLost, match="no waiters worker is left; the last one: Failed"):
        asyncio.run(failing())


def test_a_restarted_worker_gets_work_only_when_it_has_passed_its_admission(
    killed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong answer and a silence cost the actor; the next one passes."""
    monkeypatch.setattr(ray_pool, "FIRST_BIRTHS_S", (0.0, 0.0, 0.0))
    admissions = [Method(True), Method(WRONG), Method(True, math.inf), Method(True)]
    seen: list[str] = []
    actors: list[Handle] = []

    def spawn(_: int) -> Handle:
        number, admission = len(actors), admissions[len(actors)]

        def work() -> Any:
            seen.append(f"work {number}")
            return 7 if number else ActorDiedError()

        def admit() -> Any:
            seen.append(f"admit {number}")
            return admission.answer

        ready = True if number else ActorDiedError()
        actors.append(Handle(Method(work), Method(ready), Method(admit, after_s=admission.after_s)))
        return actors[-1]

    async def test() -> None:
        pool = RayPool("waiters", spawn, 1, admission="admit", admission_s=0.3)
        assert await asyncio.wait_for(pool.call("work"), 20) == 7

    asyncio.run(test())
    assert seen == ["work 0", "admit 1", "admit 2", "admit 3", "work 3"]
    assert killed == actors[1:3]


def test_a_worker_that_never_passes_its_admission_is_given_up_and_said_why(
    killed: list[Any],
) -> None:
    """One that joins when the last one is gone; as often as one that cannot start."""
    dead = Handle(Method(ActorDiedError()), Method(ActorDiedError()))

    async def test() -> None:
        pool = RayPool(
            "waiters",
            lambda index: Handle(Method(7), Method(True), Method(WRONG)) if index else dead,
            1,
            admission="admit",
        )
        pool.grow()
        await asyncio.wait_for(pool.call("work"), 20)

    with pytest.raises(WorkerLost, match="the last one: it does not pass admit: the clip scores"):
        asyncio.run(test())
    assert len(killed) == 1 + len(FIRST_BIRTHS_S)


def test_a_worker_that_has_worked_is_born_again_for_ever_while_another_works(
    killed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node's store is away for longer than all births in a row take."""
    monkeypatch.setattr(ray_pool, "LATER_BIRTHS_S", (0.0, 0.0))
    monkeypatch.setattr(ray_pool, "RARE_BIRTHS_S", 0.01)
    births = [0, 0]

    def spawn(index: int) -> Handle:
        births[index] += 1
        first, back = births[index] == 1, births[index] > 6
        answers = iter([index, ActorDiedError()])
        work = Method(lambda: next(answers)) if index and first else Method(index)
        # What restarts by itself fails, as do the next five actors.
        ready = Method(True if not index or back else ActorDiedError())
        return Handle(work, ready)

    async def test() -> None:
        pool = RayPool("waiters", spawn, 2)
        assert await asyncio.gather(*(pool.call("work") for _ in range(2))) == [0, 1]
        for _ in range(4):
            await pool.call("work")
        while births[1] < 7 or pool.meter.workers < 2:
            await asyncio.sleep(0.01)
        assert pool.size == 2

    asyncio.run(asyncio.wait_for(test(), 20))


def test_a_pool_is_lost_once_the_last_worker_was_born_in_vain_and_comes_back_with_it(
    killed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pool, "LATER_BIRTHS_S", (0.0, 0.0))
    monkeypatch.setattr(ray_pool, "RARE_BIRTHS_S", 0.3)
    births: list[int] = []

    def spawn(_: int) -> Handle:
        births.append(0)
        answers = iter([7, ActorDiedError()])
        ready = True if len(births) > 3 else ActorDiedError()
        return Handle(Method(lambda: next(answers)), Method(ready))

    async def test() -> None:
        pool = pool_of(spawn)
        assert await pool.call("work") == 7
        with pytest.raises(PoolLost, match="no waiters worker is left; the last one: The actor"):
            await pool.call("work")
        while not pool.meter.workers:
            await asyncio.sleep(0.01)
        assert await pool.call("work") == 7

    asyncio.run(asyncio.wait_for(test(), 20))


def test_workers_that_were_asked_for_are_no_hope_for_ever(
    killed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only worker is gone, and the cluster has no room for the one that was asked for."""
    monkeypatch.setattr(ray_pool, "LAST_HOPE_S", 0.2)
    dead = Handle(Method(ActorDiedError()), Method(ActorDiedError()))
    never = Handle(Method(7), Method(True, math.inf))

    async def test() -> None:
        pool = pool_of(lambda index: never if index == 1 else dead)
        pool.grow()
        await asyncio.wait_for(pool.call("work"), 20)

    with pytest.raises(PoolLost, match="; 1 that were asked for have not started either"):
        asyncio.run(test())


def test_workers_that_were_asked_for_are_taken_back_before_one_that_works_leaves(
    killed: list[Any],
) -> None:
    actors = [Handle(Method(index), Method(True, math.inf)) for index in range(3)]

    async def test() -> None:
        pool = RayPool("waiters", lambda index: actors[index], 1)
        pool.grow()
        pool.grow()
        await asyncio.sleep(0)
        assert (pool.size, pool.pending) == (1, 2)
        pool.drain()
        await asyncio.sleep(0)
        assert (pool.size, pool.pending, killed) == (1, 1, [actors[2]])
        pool.grow()
        assert pool.pending == 2, "its place is free again"
        pool.close()

    asyncio.run(test())


def test_a_worker_on_a_lost_node_leaves_before_one_that_works(killed: list[Any]) -> None:
    """Its actor would stay asked for, and take a place that nobody counts."""
    away = Method(ActorUnavailableError("its node is gone", None))
    actors = [Handle(Method(ActorDiedError()), away), Handle(Method(1), Method(True))]

    async def test() -> None:
        pool = RayPool("waiters", lambda index: actors[index], 2)
        assert await pool.call("work") == 1
        pool.drain()
        assert (pool.size, pool.actors, killed) == (1, (actors[1],), [actors[0]])
        while pool._tasks:  # until nobody waits for it any more
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(test(), 20))


def test_a_worker_that_does_not_start_is_spoken_of_ever_more_rarely(
    killed: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray_pool, "OVERDUE_S", 0.05)
    monkeypatch.setattr(ray_pool, "LONGEST_SILENCE_S", 0.1)
    never = Handle(Method(ActorDiedError()), Method(ActorUnavailableError("gone", None)))

    async def test() -> None:
        pool = pool_of(lambda _: never)
        call = asyncio.ensure_future(pool.call("work"))
        while len(said()) < 3:
            await asyncio.sleep(0.01)
        call.cancel()
        pool.close()

    def said() -> list[str]:
        return [r.message for r in caplog.records if "has not started" in r.message]

    asyncio.run(asyncio.wait_for(test(), 20))
    why = "it may wait for a node, or for what it loads"
    assert all(f"({why}); 0 others work, 1 calls wait" in line for line in said())


def test_a_worker_that_is_drained_answers_its_call_and_leaves(killed: list[Any]) -> None:
    answers: list[asyncio.Future[Any]] = []

    class Held(Method):
        """Answers when the test says so."""

        def remote(self, *_: Any) -> asyncio.Future[Any]:
            answers.append(asyncio.get_running_loop().create_future())
            return answers[-1]

    actors = [Handle(Held(None), Method(True)) for _ in range(2)]

    async def test() -> None:
        pool = RayPool("waiters", lambda index: actors[index], 2)
        calls = [asyncio.ensure_future(pool.call("work")) for _ in range(2)]
        while len(answers) < 2:
            await asyncio.sleep(0)
        pool.drain()
        assert (pool.size, pool.meter.workers, killed) == (1, 1, [])
        for index, answer in enumerate(answers):
            answer.set_result(index)
        assert await asyncio.gather(*calls) == [0, 1]
        assert killed == [actors[1]], "the youngest leaves, after its answer"
        assert pool.actors == (actors[0],)

    asyncio.run(test())


def test_an_idle_worker_that_is_drained_leaves_at_once(killed: list[Any]) -> None:
    actors = [Handle(Method(index), Method(True)) for index in range(2)]

    async def test() -> None:
        pool = RayPool("waiters", lambda index: actors[index], 2)
        pool.drain()
        assert (pool.size, killed) == (1, [actors[1]])

    asyncio.run(test())


def test_a_death_by_memory_is_repaired(killed: list[Any]) -> None:
    answers = iter([OutOfMemoryError("killed by the memory monitor"), 7])

    async def test() -> None:
        pool = pool_of(lambda _: Handle(Method(lambda: next(answers)), Method(True)))
        assert await asyncio.wait_for(pool.call("work"), 20) == 7
        assert pool.meter.lap().deaths == 1

    asyncio.run(test())


def test_an_answer_that_came_while_the_loop_was_held_up_is_in_time(killed: list[Any]) -> None:
    """The answer is there after 0.2 s, the limit is 0.5 s, and the loop sleeps for 1 s."""

    async def test() -> None:
        pool = pool_of(lambda _: Handle(Method(7, after_s=0.2), Method(True)))
        ranks = RayRanks("ranks", lambda: [Handle(Method(7, 0.2), Method(True))], straggler_s=5.0)
        calls = [
            asyncio.ensure_future(pool.call("work", timeout_s=0.5)),
            asyncio.ensure_future(ranks.call_all("work", [()], limit_s=0.5)),
        ]
        await asyncio.sleep(0.05)
        time.sleep(1.0)
        assert await asyncio.gather(*calls) == [7, [7]]
        assert killed == []

    asyncio.run(test())


def test_a_silent_worker_is_still_killed(killed: list[Any]) -> None:
    async def test() -> None:
        pool = pool_of(lambda _: Handle(Method(7, after_s=0.6), Method(True)))
        with pytest.raises(TimeoutError):
            await pool.call("work", timeout_s=0.1)
        assert len(killed) == 1
        await asyncio.sleep(0.7)  # its answer, when nobody waits for it any more

    asyncio.run(test())
