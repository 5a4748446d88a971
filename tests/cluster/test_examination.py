"""The examiner of a run: when it examines, what it writes, and its three alarms."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cluster.clocks import Meter
from cluster.examination import Examination, hacking
from cluster.local import LocalPool
from cluster.lost import WorkerLost
from cluster.metrics import MetricsLog
from cluster.storage import RunFolder
from rewards.examiner import known_clips


class Scorer:
    """Answers prepared scores."""

    def __init__(self, *answers: dict[str, dict[str, float]]) -> None:
        self.answers = list(answers)

    def examine(self) -> dict[str, dict[str, float]]:
        return self.answers.pop(0)


GOOD = {"push.consistent": {"recon": 0.9, "traj": 0.98, "psnr": 30.0}}
BLIND = {"push.consistent": {"recon": 0.9, "traj": 0.5, "psnr": 20.0}}


def log(tmp_path: Path, said: list[str]) -> MetricsLog:
    return MetricsLog(RunFolder(str(tmp_path)), 100, 0, said.append)


def run(examination: Examination, steps: range) -> None:
    """Steps with a while for the examination in each, and the run's end."""

    async def all_steps() -> None:
        for step in steps:
            examination.begin(step)
            await asyncio.sleep(0)
        await examination.finish()
        await examination.close()

    asyncio.run(all_steps())


class Waiting(LocalPool):
    """A pool whose worker answers when it is told to, or is lost."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__("reconstruction", Scorer(GOOD))
        self.error, self.answer = error, asyncio.Event()

    async def call(self, *args: Any, **options: Any) -> Any:
        self.limit_s = options["timeout_s"]
        if self.error is not None:
            raise self.error
        await self.answer.wait()
        return GOOD


def test_steps_go_on_while_it_examines(tmp_path: Path) -> None:
    said: list[str] = []
    metrics = log(tmp_path, said)

    async def steps() -> None:
        pool = Waiting()
        examination = Examination(1, pool, metrics, clip_timeout_s=30)
        for step in range(3):
            examination.begin(step)
            await asyncio.sleep(0)
        assert list(metrics.rows("examiner")) == []
        pool.answer.set()
        await examination.finish()
        assert pool.limit_s == 30 * sum(1 for _ in known_clips())

    asyncio.run(steps())
    assert [row["step"] for row in metrics.rows("examiner")] == [1]
    assert said == ["examiner: none after step 2, the one before is under way"]


def test_an_examination_that_could_not_be_held_is_said_and_ends_no_run(tmp_path: Path) -> None:
    for error in (TimeoutError(), WorkerLost("three workers died")):
        said: list[str] = []
        metrics = log(tmp_path, said)
        run(Examination(1, Waiting(error), metrics, clip_timeout_s=30), range(2))
        reason = f"{type(error).__name__} {error}".strip()
        assert said == [f"examiner: no examination after step 1: {reason}"]
        assert list(metrics.rows("examiner")) == []


def test_an_error_that_nobody_expects_is_raised(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="a bug"):
        run(Examination(3, Waiting(LookupError("a bug")), log(tmp_path, []), 30), range(5))


def test_a_run_that_stops_gives_it_up(tmp_path: Path) -> None:
    async def stopped() -> None:
        examination = Examination(1, Waiting(), log(tmp_path, []), clip_timeout_s=30)
        examination.begin(1)
        await asyncio.sleep(0)
        await asyncio.wait_for(examination.close(), 5)
        assert examination._task is not None
        assert examination._task.cancelled()

    asyncio.run(stopped())


def test_it_examines_every_so_often_and_says_its_alarms(tmp_path: Path) -> None:
    said: list[str] = []
    metrics = log(tmp_path, said)
    pool = LocalPool("reconstruction", Scorer(GOOD, GOOD, BLIND))
    assert isinstance(pool.meter, Meter)
    examination = Examination(10, pool, metrics, clip_timeout_s=30)
    run(examination, range(31))
    rows = list(metrics.rows("examiner"))
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert rows[0]["alarms"] == rows[1]["alarms"] == []
    assert rows[2]["scores"] == BLIND
    assert rows[2]["alarms"] == [
        "push.consistent: 20.0 dB; at least 27 are needed",
        "push.consistent: S_traj 0.500; at least 0.95 is needed",
        "push.consistent: traj was 0.980 and is 0.500",
    ]
    assert said == [f"examiner: {alarm}" for alarm in rows[2]["alarms"]]


def test_zero_never_examines(tmp_path: Path) -> None:
    said: list[str] = []
    metrics = log(tmp_path, said)
    examination = Examination(0, LocalPool("reconstruction", Scorer()), metrics, clip_timeout_s=30)
    run(examination, range(5))
    assert said == []
    assert list(metrics.rows("examiner")) == []


def steps(recon: tuple[float, float], **raw: tuple[float, float]) -> list[dict[str, Any]]:
    """Ten rows: five as at the start, five as at the end; dynamic ones between."""
    rows = []
    for end in (0, 1):
        measured = {name: {"mean": values[end]} for name, values in raw.items()}
        rows += [{"parts": {"recon": {"mean": recon[end]}}, "raw": measured}] * 5
        rows.append({"parts": {"gen": {"mean": 0.5}}, "raw": {}})
    return rows


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [("sharpness", 5.0, 3.9), ("motion", 2.0, 1.1), ("content", 0.9, 0.7)],
)
def test_a_reward_that_rises_at_the_cost_of_content_is_an_alarm(
    name: str, before: float, after: float
) -> None:
    (alarm,) = hacking(steps((0.7, 0.8), **{name: (before, after)}))
    assert f"{name} fell from {before:.3g} to {after:.3g}" in alarm
    assert hacking(steps((0.8, 0.7), **{name: (before, after)})) == []
    assert hacking(steps((0.7, 0.8), **{name: (before, before)})) == []
    assert hacking(steps((0.7, 0.8), **{name: (before, after)})[:7]) == []
