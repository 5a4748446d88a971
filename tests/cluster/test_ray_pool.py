"""Pools of real actors that are killed, frozen and resized; the workers only wait.

Not covered here: whole runs (test_ray_run.py) and a collective among ranks (tests/learner).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.config import LOOPBACK
from cluster.elastic import Supervisor
from cluster.lost import ObjectGone, WorkerLost
from cluster.pool import Late
from cluster.ray_pool import RayPool
from cluster.ray_ranks import RayRanks
from cluster.sections import SupervisionConfig
from rewards.config import PoolConfig
from tests.cluster.waiter import Waiter

pytestmark = pytest.mark.cluster

Spawn = Callable[[int], Any]
LOG_BYTES = 100_000


@pytest.fixture(scope="module")
def spawn() -> Iterator[Spawn]:
    import ray

    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_ROTATION_MAX_BYTES", str(LOG_BYTES))
    patch.setenv("RAY_ROTATION_BACKUP_COUNT", "3")
    patch.setenv("RAY_worker_niceness", "5")
    ray.init(
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address=LOOPBACK,
        object_store_memory=80 * 2**20,
    )
    remote: Any = ray.remote(Waiter)
    yield lambda index: remote.options(num_cpus=0.1, max_restarts=-1).remote()
    ray.shutdown()
    patch.undo()


def run(test: Callable[[RayPool], Any], spawn: Spawn, workers: int = 1) -> Any:
    async def with_pool() -> Any:
        pool = RayPool("waiters", spawn, workers)
        try:
            return await test(pool)
        finally:
            pool.close()

    return asyncio.run(with_pool())


def gone(pid: int, within_s: float) -> bool:
    """Whether a process ends in time."""
    try:
        psutil.Process(pid).wait(within_s)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def test_a_call_survives_deaths_below_the_limit_and_the_rest_is_given_up(
    spawn: Spawn, tmp_path: Path
) -> None:
    async def test(pool: RayPool) -> None:
        assert await pool.call("die", str(tmp_path / "two"), 2) == 2
        assert pool.meter.lap().deaths == 2
        with pytest.raises(WorkerLost, match=r"waiters\.die was given up: 3 workers died"):
            await pool.call("die", str(tmp_path / "many"), 99)
        assert (tmp_path / "many").read_text() == "xxx"
        assert (await pool.call("wait", 0.0, 7))[0] == 7, "the pool goes on"
        assert pool.size == 1

    run(test, spawn)


def test_a_worker_that_lost_its_gpu_is_replaced_and_fails_no_call(spawn: Spawn) -> None:
    async def test(pool: RayPool) -> None:
        broken, _ = await pool.call_all("pid", [()] * 2)
        calls = [pool.call("lose_gpu", broken) for _ in range(12)]
        assert broken not in await asyncio.gather(*calls)
        assert pool.meter.lap().deaths == 1
        assert broken not in await pool.call_all("pid", [()] * 2)

    run(test, spawn, workers=2)


def test_killed_from_outside_while_many_calls_are_in_flight(spawn: Spawn) -> None:
    """Every call is answered once, in the order in which it was made."""

    async def test(pool: RayPool) -> None:
        pids = await pool.call_all("pid", [()] * 2)
        calls = [asyncio.ensure_future(pool.call("wait", 0.15, i)) for i in range(12)]
        await asyncio.sleep(0.3)
        os.kill(pids[0], signal.SIGKILL)
        answers = await asyncio.gather(*calls)
        assert [value for value, _ in answers] == list(range(12))
        assert pool.meter.lap().deaths == 1
        assert pool.meter.busy == pool.meter.waiting == 0
        assert pids[0] not in await pool.call_all("pid", [()] * 2)

    run(test, spawn, workers=2)


def test_a_frozen_worker_is_replaced_and_costs_its_call_a_timeout(spawn: Spawn) -> None:
    async def test(pool: RayPool) -> None:
        pid = await pool.call("pid")
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            await pool.call("wait", 0.0, 1, timeout_s=1.0)
        assert (await pool.call("wait", 0.0, 2))[0] == 2
        assert await pool.call("pid") != pid
        assert gone(pid, within_s=20)

    run(test, spawn)


def test_a_call_that_nobody_waits_for_costs_no_worker(spawn: Spawn) -> None:
    async def test(pool: RayPool) -> None:
        pid = await pool.call("pid")
        started = time.monotonic()
        call = asyncio.ensure_future(pool.call("wait", 2.0, 0))
        await asyncio.sleep(0.2)
        call.cancel()
        assert await pool.call("wait", 0.0, 1) == (1, pid)
        assert time.monotonic() - started >= 2.0, "it is free when its call has ended"
        assert pool.meter.busy == 0

    run(test, spawn)


def test_an_object_that_is_lost_is_said_to_be_lost(spawn: Spawn) -> None:
    """It goes with the process that owns it. As a call's argument and when it is fetched; the pool
    goes on."""

    async def test(pool: RayPool) -> None:
        (data,) = await pool.call("lend")
        assert await pool.call("size", data) == 1_000_000
        os.kill(await pool.call("pid"), signal.SIGKILL)
        await pool.call("pid")
        with pytest.raises(ObjectGone):
            await pool.fetch(data)
        with pytest.raises(ObjectGone):
            await pool.call("size", data)
        assert (await pool.call("wait", 0.0, 1))[0] == 1

    run(test, spawn)


def test_errors_refs_and_late_arguments(spawn: Spawn) -> None:
    async def test(pool: RayPool) -> None:
        with pytest.raises(LookupError, match="as it is"):
            await pool.call("fail")
        word, data = await pool.call("pair", returns=2)
        assert word == "small"
        assert await pool.call("size", data) == 1_000_000
        current = [3]
        busy = asyncio.ensure_future(pool.call("wait", 0.3, 0))
        await asyncio.sleep(0.1)
        late = asyncio.ensure_future(pool.call("wait", 0.0, Late(lambda: current[0])))
        current[0] = 4
        assert (await late)[0] == 4, "read when a worker was free"
        await busy

    run(test, spawn)


def test_a_worker_without_room_is_demand_that_an_autoscaler_sees(spawn: Spawn) -> None:
    """Nothing scales here: what is read is the state that Ray hands to its autoscaler."""
    import ray
    from ray._raylet import GcsClient
    from ray.autoscaler.v2.sdk import get_cluster_resource_state

    def asked() -> list[float]:
        client = GcsClient(address=ray.get_runtime_context().gcs_address)
        state = get_cluster_resource_state(client)
        return [
            demand.request.resources_bundle["CPU"]
            for demand in state.pending_resource_requests
            for _ in range(demand.count)
        ]

    async def test() -> None:
        remote: Any = ray.remote(Waiter)
        pool = RayPool("large", lambda index: remote.options(num_cpus=1 + 99 * index).remote(), 1)
        try:
            assert (await pool.call("wait", 0.0, 1))[0] == 1
            pool.grow()
            deadline = time.monotonic() + 20
            while 100.0 not in asked() and time.monotonic() < deadline:
                await asyncio.sleep(0.2)
            assert asked() == [100.0]
            assert (pool.size, pool.pending) == (1, 1)
            assert (await pool.call("wait", 0.0, 2))[0] == 2, "the pool works meanwhile"
        finally:
            pool.close()

    asyncio.run(test())


def test_what_a_worker_prints_is_rotated(spawn: Spawn) -> None:
    """20 times the limit of one file is printed; the file and three old ones are left."""
    import ray

    async def test(pool: RayPool) -> int:
        return int(await pool.call("talk", 20 * LOG_BYTES // 100))

    pid = run(test, spawn)
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    sizes = [path.stat().st_size for path in logs.glob(f"worker-*-{pid}.out*")]
    assert 1 <= len(sizes) <= 4
    assert sum(sizes) <= 4 * LOG_BYTES + 10_000


async def ready(ranks: RayRanks) -> None:
    """Two processes do not start within the time in which two ranks must answer."""
    await asyncio.gather(*(actor.__ray_ready__.remote() for actor in ranks.actors))


def test_ranks_are_lost_together_and_replaced_together(spawn: Spawn) -> None:
    async def test() -> None:
        ranks = RayRanks("ranks", lambda: [spawn(0), spawn(1)], straggler_s=2.0)
        try:
            await ready(ranks)
            pids = await ranks.call_all("pid", [(), ()])
            os.kill(pids[1], signal.SIGSTOP)
            started = time.monotonic()
            with pytest.raises(TimeoutError, match=r"ranks \[1\] did not answer pid within 2 s"):
                await ranks.call_all("pid", [(), ()])
            assert time.monotonic() - started < 10
            await ranks.restart()
            assert gone(pids[1], within_s=20), "a frozen rank would keep its memory"
            await ready(ranks)
            fresh = await ranks.call_all("pid", [(), ()])
            assert not set(fresh) & set(pids)
            os.kill(fresh[0], signal.SIGKILL)
            with pytest.raises(WorkerLost, match="a ranks rank died in wait"):
                await ranks.call_all("wait", [(5.0, 0), (5.0, 1)])
        finally:
            ranks.close()

    asyncio.run(test())


@pytest.mark.hand
def test_load_tripled_grows_the_pool_and_no_call_is_lost_in_the_drain(spawn: Spawn) -> None:
    """1 -> 3 workers within 15 s of the load, and back to 1 after it."""
    config = SupervisionConfig(interval_s=0.5, grow_wait_s=0.8, shrink_after_s=1.5)
    limits = PoolConfig(min_workers=1, max_workers=3)
    trace: list[str] = []

    async def test(pool: RayPool) -> tuple[float, int]:
        supervisor = Supervisor({"waiters": (pool, limits)}, config, trace.append)
        supervisor.start()
        await pool.call("wait", 0.2, 0)
        started, calls, grown = time.monotonic(), [], 0.0
        for index in range(200):  # offered: 15 calls a second of 0.2 s, three times one worker
            calls.append(asyncio.ensure_future(pool.call("wait", 0.2, index)))
            await asyncio.sleep(1 / 15)
            if pool.size == 3 and not grown:
                grown = time.monotonic() - started
        answers = await asyncio.gather(*calls)
        assert [value for value, _ in answers] == list(range(200))
        deadline = time.monotonic() + 30
        steady = 0
        while pool.size > 1 and time.monotonic() < deadline:
            steady += (await pool.call("wait", 0.02, 1))[0]
            await asyncio.sleep(0.2)
        assert steady > 0
        await supervisor.stop()
        return grown, pool.size

    grown, left = run(test, spawn)
    print("\n".join(trace), f"\ngrown to 3 after {grown:.1f} s")
    assert 0 < grown < 15
    assert left == 1


def test_workers_that_take_several_calls_at_once_share_them_and_lose_none(spawn: Spawn) -> None:
    """Two workers of four threads, as a judge's are: 24 calls of 0.3 s take three rounds; a
    worker's death costs none of its calls, and a call that is given up kills nobody and keeps its
    place until it ends."""
    import ray

    remote: Any = ray.remote(Waiter)

    async def test() -> None:
        pool = RayPool(
            "threads",
            lambda _: remote.options(num_cpus=0.1, max_restarts=-1, max_concurrency=4).remote(),
            2,
            calls_at_once=4,
        )
        try:
            pids = await pool.call_all("pid", [()] * 2)
            started = time.monotonic()
            answers = await asyncio.gather(*(pool.call("wait", 0.3, i) for i in range(24)))
            took = time.monotonic() - started
            assert [value for value, _ in answers] == list(range(24))
            assert [pid for _, pid in answers].count(pids[0]) == 12
            assert 0.9 <= took < 3.0, f"{took:.1f} s; without threads they take 3.6"
            calls = [asyncio.ensure_future(pool.call("wait", 0.3, i)) for i in range(24)]
            await asyncio.sleep(0.15)
            os.kill(pids[0], signal.SIGKILL)
            assert [value for value, _ in await asyncio.gather(*calls)] == list(range(24))
            assert pool.meter.lap().deaths == 4, "each call in flight has seen it"
            given_up = asyncio.ensure_future(pool.call("wait", 2.0, 0))
            await asyncio.sleep(0.1)
            given_up.cancel()
            await asyncio.gather(given_up, return_exceptions=True)
            assert (pool.meter.busy, pool.meter.waiting) == (1, 0)
            assert pids[1] in await pool.call_all("pid", [()] * 2)
            deadline = time.monotonic() + 20
            while pool.meter.busy and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            assert pool.meter.busy == 0
        finally:
            pool.close()

    asyncio.run(test())
