"""Slow jobs beside the loop."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from cluster.background import Background
from cluster.lease import RunTaken
from cluster.metrics import MetricsLog
from cluster.rows import read_rows
from cluster.storage import RunFolder


def test_the_loop_goes_on_and_all_who_ask_meanwhile_share_one_more_run() -> None:
    release, runs = threading.Event(), list[str]()

    def job() -> None:
        runs.append(threading.current_thread().name)
        assert release.wait(20)

    async def test() -> None:
        background = Background(job)
        for _ in range(5):
            background.ask()
            await asyncio.sleep(0)
        while not runs:
            await asyncio.sleep(0.001)
        background.ask()
        background.ask()
        assert len(runs) == 1, "the first run is under way"
        release.set()
        await background.finish()
        assert len(runs) == 2
        background.ask()
        await background.finish()
        assert len(runs) == 3

    asyncio.run(asyncio.wait_for(test(), 30))
    assert threading.current_thread().name not in runs


def test_an_error_is_raised_to_whoever_asks_next_or_waits() -> None:
    def job() -> None:
        raise PermissionError("denied for good")

    async def test() -> None:
        asking, waiting = Background(job), Background(job)
        asking.ask()
        waiting.ask()
        with pytest.raises(PermissionError, match="denied for good"):
            await waiting.finish()
        while not asking._task or not asking._task.done():
            await asyncio.sleep(0.001)
        with pytest.raises(PermissionError, match="denied for good"):
            asking.ask()

    asyncio.run(asyncio.wait_for(test(), 30))


class SlowStore(RunFolder):
    """Takes a file when the test lets it."""

    release = threading.Event()
    sent = 0

    def write_bytes(self, name: str, data: bytes) -> None:
        assert SlowStore.release.wait(20)
        super().write_bytes(name, data)
        SlowStore.sent += 1


def test_rows_of_a_slow_store_do_not_hold_the_loop_up_and_are_all_there_at_the_end() -> None:
    folder = SlowStore(f"memory://slow/{time.time_ns()}")
    SlowStore.release.set()

    async def test() -> None:
        metrics = MetricsLog(folder, 10, 0, lambda line: None)
        SlowStore.release.clear()
        SlowStore.sent = 0
        for step in range(5):
            metrics.write({"kind": "repeats", "step": step})
            await asyncio.sleep(0)
        assert SlowStore.sent == 0, "five rows were taken while the store takes nothing"
        SlowStore.release.set()
        await metrics.finish()

    asyncio.run(asyncio.wait_for(test(), 30))
    assert [row["step"] for row in read_rows(folder)] == list(range(5))
    assert SlowStore.sent <= 3


def test_rows_of_a_run_that_another_process_took_are_not_written_over() -> None:
    """The store takes nothing, the run changes hands, and the store comes back."""
    url = f"memory://taken/{time.time_ns()}"
    said: list[str] = []
    taken: list[bool] = []

    class Away(RunFolder):
        def write_bytes(self, name: str, data: bytes) -> None:
            if not taken:
                raise ConnectionError("503 slow down")
            super().write_bytes(name, data)

    def require_held() -> None:
        if taken:
            raise RunTaken("it is no longer this process's")

    async def test() -> None:
        metrics = MetricsLog(Away(url), 10, 0, said.append, require_held=require_held)
        metrics.write({"kind": "repeats", "step": 0})
        await metrics.finish()
        taken.append(True)
        RunFolder(url).write_text("metrics.jsonl", '{"kind": "step", "step": 7}\n')
        metrics.write({"kind": "repeats", "step": 1})
        with pytest.raises(RunTaken):
            await metrics.finish()
        metrics.close()

    asyncio.run(asyncio.wait_for(test(), 30))
    assert read_rows(RunFolder(url)) == [{"kind": "step", "step": 7}]
    assert said[-1].endswith("are not written: it is no longer this process's")


def test_without_a_loop_it_runs_at_once() -> None:
    runs = list[int]()
    Background(lambda: runs.append(1)).ask()
    assert runs == [1]
