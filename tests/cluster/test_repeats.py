"""Repeat noise: by hand, against the spread per start, and what a run writes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.trajectory import RolloutReport, RolloutRequest, WeightsVersion
from cluster.collect import Batch, GroupRecord
from cluster.exports import samples
from cluster.local import LocalPool
from cluster.lost import ObjectGone, PoolLost
from cluster.metrics import MetricsLog
from cluster.pools import GroupRollout, Published, Rewards
from cluster.repeats import Repetition, repeat_noise, weak_starts
from cluster.rows import Row
from cluster.storage import RunFolder
from learner.batch import ScoredGroup
from learner.schedule import Phase
from prompts.schema import Prompt
from rewards.config import RewardConfig
from rewards.score import Score, ScoreFailure
from tests.cluster.test_exports import row

PROMPT = Prompt.from_text("toy-0", "Camera push in. A red box on a green floor.")
FIRST = 2.0
"""Reward of the first sample, as the step had it."""


class Reconstructor:
    """Answers prepared S_recon, or fails where there is none."""

    def __init__(self, answers: Sequence[float | None]) -> None:
        self.answers, self.seen = list(answers), list[Any]()

    def score(self, video: Any, prompt: Prompt, keep_artifacts: bool = False) -> Any:
        self.seen.append(video)
        recon = self.answers.pop(0)
        if recon is None:
            return ScoreFailure("reconstruction", "no camera found", retry=False), None, None
        return Score("reconstruction", {"recon": recon, "traj": 0.5}), "meta-view", None


class Fixed:
    """Always the same score."""

    def __init__(self, score: Score) -> None:
        self.answer = score

    def score(self, subject: Any, prompt: Prompt) -> Score:
        return self.answer


class Lost:
    """A worker to whom the video cannot be brought, or that has another error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def score(self, *args: Any) -> Any:
        raise self.error


class Slow(LocalPool):
    """A pool whose worker never answers."""

    def __init__(self) -> None:
        super().__init__("reconstruction", None)
        self.begun = self.given_up = 0

    async def call(self, *args: Any, **options: Any) -> Any:
        self.begun += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.given_up += 1


def rewards(reconstructor: Any) -> Rewards:
    judge, aesthetic = Score("judge", {"meta": 0.25}), Score("aesthetic", {"gen": 0.25})
    return Rewards(
        LocalPool("reconstruction", reconstructor),
        LocalPool("judge", Fixed(judge)),
        LocalPool("aesthetic", Fixed(aesthetic)),
        RewardConfig(),
    )


def batch(*, videos: bool = True) -> Batch:
    """Two groups of three members; of the first group the first member has no score, and where not
    `videos` it comes from a checkpoint."""
    version = WeightsVersion(0, "base", "c")
    scored, records = [], {}
    for serial in range(2):
        report = RolloutReport(serial, 3, 1, version, "here:1", {})
        shown = tuple(f"video {serial}.{m}" for m in range(3)) if videos or serial else ()
        records[serial] = GroupRecord(
            request=RolloutRequest(serial, PROMPT, 3, 0, 1),
            phase="main",
            rollout=GroupRollout(report, Published(version, None), (None,) * 3, shown),
            scores=[],
            rewards=[],
        )
        members = (0, 2) if serial else (1, 2)
        scored.append(ScoredGroup(serial, PROMPT.id, members, (FIRST, FIRST + 1)))
    return Batch(tuple(scored), (), records, {}, 0, {})


def log(tmp_path: Path, said: list[str], step: int = 0) -> MetricsLog:
    return MetricsLog(RunFolder(str(tmp_path)), 100, step, said.append)


def run_steps(
    repetition: Repetition,
    metrics: MetricsLog,
    steps: Sequence[int],
    spread: float = 0.01,
    phase: Phase = "main",
    given: Batch | None = None,
) -> list[Row]:
    """Some steps as the loop takes them, with a while for the learner in each; the log's rows of
    repetitions."""

    async def run() -> None:
        for step in steps:
            repetition.begin(step, phase, given or batch())
            for _ in range(20):
                await asyncio.sleep(0)
            spreads = {"3": spread, "1": 0.5}
            done = row(step=step, phase=phase, spread_by_window_start=spreads)
            metrics.write(done)
            repetition.finish(done)
        await repetition.close()

    asyncio.run(run())
    return list(metrics.rows("repeat"))


def test_noise_by_hand() -> None:
    # Scorings x + e and x + f: their difference has twice the variance of either.
    assert repeat_noise([0.3, -0.4]) == pytest.approx((0.25 / 4) ** 0.5)
    assert repeat_noise([0.0, 0.0]) == 0.0
    with pytest.raises(ValueError, match="nothing"):
        repeat_noise([])


def test_a_start_whose_groups_differ_by_less_than_twice_the_noise_is_weak() -> None:
    spreads = {"1": [0.04] * 5, "2": [0.01] * 4, "3": [0.01] * 4 + [0.035]}
    assert weak_starts(spreads, 0.007) == []
    (alarm,) = weak_starts(spreads, 0.01)  # of start 2 there are too few steps
    assert "starts at 3 differ by 0.015" in alarm
    assert "differs by 0.01:" in alarm


def test_a_run_scores_a_sample_again_and_remembers(tmp_path: Path) -> None:
    said: list[str] = []
    metrics = log(tmp_path, said)
    # The total is recon + .5 + .25 + .25: differences of +.02, -.02, none, +.02.
    worker = Reconstructor([1.02, 0.98, None, 1.02])
    rows = run_steps(Repetition(3, rewards(worker), metrics), metrics, range(10))
    assert worker.seen == ["video 0.1"] * 4  # member 0 had no score
    assert [found["step"] for found in rows] == [1, 4, 7, 10]
    differences = [found["difference"] for found in rows]
    assert differences[2] is None
    assert [differences[i] for i in (0, 1, 3)] == pytest.approx([0.02, -0.02, 0.02])
    assert [found["repetitions"] for found in rows] == [1, 2, 2, 3]
    assert [found["failures"] for found in rows] == [
        [], [], ["reconstruction: no camera found"], []
    ]  # fmt: skip
    assert [found["noise"] for found in rows] == pytest.approx([0.02 / 2**0.5] * 4)
    assert rows[3]["spread_by_window_start"] == pytest.approx({"1": 0.5, "3": 0.01})
    assert [len(found["alarms"]) for found in rows] == [0, 0, 0, 1]
    (alarm,) = rows[3]["alarms"]
    assert "starts at 3 " in alarm
    assert [line for line in said if "repeat" in line] == [f"repeat noise: {alarm}"]
    (gauge,) = samples(rows[3])
    assert gauge == ("worldr1_reward_repeat_noise_points", pytest.approx(0.02 / 2**0.5), "")


def test_a_run_that_goes_on_says_what_an_undisturbed_one_does(tmp_path: Path) -> None:
    answers = [1.02, 0.98, 1.01, 1.03]
    metrics = log(tmp_path / "whole", [])
    whole = run_steps(Repetition(3, rewards(Reconstructor(answers)), metrics), metrics, range(10))

    first = log(tmp_path / "resumed", [])
    run_steps(Repetition(3, rewards(Reconstructor(answers)), first), first, range(6))
    again = log(tmp_path / "resumed", [], step=5)  # its checkpoint had seen five steps
    repetition = Repetition(3, rewards(Reconstructor(answers[2:])), again)
    assert run_steps(repetition, again, range(5, 10)) == whole


def test_enough_spread_is_no_alarm(tmp_path: Path) -> None:
    metrics = log(tmp_path, [])
    repetition = Repetition(1, rewards(Reconstructor([1.02] * 8)), metrics)
    rows = run_steps(repetition, metrics, range(8), spread=0.03)
    assert [found["alarms"] for found in rows] == [[]] * 8


@pytest.mark.parametrize(("every", "phase"), [(0, "main"), (1, "dynamic")])
def test_neither_where_it_is_off_nor_in_the_dynamic_phase(
    tmp_path: Path, every: int, phase: Phase
) -> None:
    metrics = log(tmp_path, [])
    repetition = Repetition(every, rewards(Reconstructor([])), metrics)
    assert run_steps(repetition, metrics, range(3), phase=phase) == []


def test_it_waits_for_the_next_main_step(tmp_path: Path) -> None:
    metrics = log(tmp_path, [])
    repetition = Repetition(3, rewards(Reconstructor([1.0, 1.0])), metrics)
    run_steps(repetition, metrics, range(2))
    run_steps(repetition, metrics, range(2, 6), phase="dynamic")
    rows = run_steps(repetition, metrics, range(6, 8))
    assert [found["step"] for found in rows] == [1, 7]


def test_a_group_without_videos_is_passed_over(tmp_path: Path) -> None:
    """Groups that a checkpoint held come back without."""
    metrics = log(tmp_path, [])
    worker = Reconstructor([1.0])
    run_steps(Repetition(1, rewards(worker), metrics), metrics, [0], given=batch(videos=False))
    assert worker.seen == ["video 1.0"]


def test_a_step_may_let_go_of_its_videos_at_once(tmp_path: Path) -> None:
    """As under --local, where a step can be over before any other task has had a turn."""
    metrics = log(tmp_path, [])
    worker, given = Reconstructor([1.02]), batch()
    repetition = Repetition(1, rewards(worker), metrics)

    async def run() -> None:
        repetition.begin(0, "main", given)
        for record in given.records.values():
            record.rollout = replace(record.rollout, videos=())
        for _ in range(20):
            await asyncio.sleep(0)
        repetition.finish(row(step=0, phase="main", spread_by_window_start={"3": 0.01}))

    asyncio.run(run())
    (found,) = metrics.rows("repeat")
    assert worker.seen == ["video 0.1"]
    assert found["difference"] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ObjectGone("its node is gone"), "its video is lost: its node is gone"),
        (PoolLost("no judge worker is left"), "PoolLost: no judge worker is left"),
    ],
)
def test_what_goes_wrong_is_counted_and_ends_no_run(
    tmp_path: Path, error: Exception, said: str
) -> None:
    metrics = log(tmp_path, [])
    (found,) = run_steps(Repetition(1, rewards(Lost(error)), metrics), metrics, [0])
    assert found["difference"] is found["noise"] is None
    assert found["failures"] == [said]
    assert list(samples(found)) == []


def test_an_error_that_nobody_expects_is_raised(tmp_path: Path) -> None:
    metrics = log(tmp_path, [])
    repetition = Repetition(1, rewards(Lost(LookupError("a bug"))), metrics)
    with pytest.raises(LookupError, match="a bug"):
        run_steps(repetition, metrics, [0])


def test_nobody_waits_for_a_slow_scorer(tmp_path: Path) -> None:
    """The step goes on, no second repetition begins, and the end gives it up."""
    metrics = log(tmp_path, [])
    slow = Slow()
    others = LocalPool("judge", None), Slow()
    repetition = Repetition(1, Rewards(slow, *others, RewardConfig()), metrics)
    assert run_steps(repetition, metrics, range(4)) == []
    assert (slow.begun, slow.given_up) == (1, 1)
