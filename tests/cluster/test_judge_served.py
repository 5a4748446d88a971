"""A real vLLM server (CPU build), started by the reward pool in the judge's environment on Ray.

The model is a tiny random Qwen3-VL: what is shown is the way of a picture to its score, not taste.
Skipped where the environment is not built (`worldr1 envs build judge --cpu`); CI builds it and sets
REQUIRE_JUDGE, with which its absence is a failure. Not covered: CUDA, tensor parallelism.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cluster.config import LOOPBACK, RunConfig, load
from cluster.evaluation.measure import Measurer
from cluster.pools import Rewards, SampleScores
from prompts.config import CameraConfig
from prompts.motions import Motion
from rewards.config import JudgeConfig, RewardConfig
from rewards.environments import EnvironmentProblem, check, environments_root
from rewards.judge_protocol import messages
from rewards.score import Score
from rewards.scoring import digit_expectation
from tests.rewards.clips import clip
from tests.rewards.tiny_qwen3vl import build, reference

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

DIGIT_TOLERANCE = 0.05
REQUESTS_AT_ONCE = 4
MOTIONS = (Motion.PUSH_IN, Motion.ORBIT_LEFT, Motion.PAN_RIGHT, Motion.MOVE_LEFT)
Run = Callable[[Callable[[Rewards], Coroutine[Any, Any, None]]], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        check("judge", environments_root() / "judge")
    except EnvironmentProblem as problem:
        if os.environ.get("REQUIRE_JUDGE"):
            raise
        pytest.skip(str(problem))
    return build(tmp_path_factory.mktemp("served") / "tiny-random-qwen3-vl")


@pytest.fixture(scope="module")
def config(model: Path) -> RunConfig:
    return load(
        "toy",
        [
            "rewards.judge.backend=vllm",
            "rewards.judge.env=judge",
            f"rewards.judge.model={model}",
            "rewards.judge.dtype=float32",
            f"rewards.judge.concurrency={REQUESTS_AT_ONCE}",
            "rewards.judge.max_tokens=2048",
            "rewards.judge.health_interval_s=0.5",
            "rewards.reconstruction.min_workers=1",
            "rewards.reconstruction.max_workers=1",
        ],
    )


@pytest.fixture(scope="module")
def run(config: RunConfig) -> Iterator[Run]:
    """Runs coroutines, one after the other, on reward pools that stay up."""
    import ray

    from cluster.handles import ray_rewards

    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address=LOOPBACK,
        object_store_memory=80 * 2**20,
    )
    try:
        with asyncio.Runner() as runner:
            with ray_rewards(config) as rewards:
                yield lambda body: runner.run(asyncio.wait_for(body(rewards), 400))
                pid, _ = runner.run(server_of(rewards))
                session = os.getsid(pid)
            assert _left(session) == [], "a pool that is closed leaves no server behind"
    finally:
        ray.shutdown()


async def scored(rewards: Rewards, motion: Motion, seed: int = 1) -> SampleScores:
    shot = clip(motion, seed=seed)
    return await rewards.score(shot.video, shot.prompt, "main")


async def server_of(rewards: Rewards) -> tuple[int, int]:
    """Process id of the judge's server, and how often it was started."""
    (found,) = await rewards.pools["judge"].call_all("describe", [()])
    return int(found["server_pid"]), int(found["server_starts"])


def test_meta_views_are_scored_through_ray_and_agree_with_transformers(
    run: Run, model: Path
) -> None:
    """The expected digit of eight meta-views, each rendered by the reconstruction worker, judged by
    the server and again by transformers in this process."""

    async def body(rewards: Rewards) -> None:
        expected, found = [], []
        for motion in MOTIONS:
            for seed in (1, 7):
                shot = clip(motion, seed=seed)
                pool = rewards.pools["reconstruction"]
                outcome, view, _ = await pool.call("score", shot.video, shot.prompt, returns=3)
                assert isinstance(outcome, Score), outcome
                answer = await rewards.pools["judge"].call("score", view, shot.prompt)
                assert isinstance(answer, Score), answer
                assert answer.scorer.startswith(f"{model}+rubric-")
                picture = await pool.fetch(view)
                found.append(10 * answer.parts["meta"])
                asked = messages(picture, shot.prompt.text)
                expected.append(10 * digit_expectation(list(reference(model, picture, asked))))
        differences = np.abs(np.subtract(expected, found))
        print(f"expected digits {np.round(found, 3)}, off by {differences.max():.5f} at most")
        assert differences.max() <= DIGIT_TOLERANCE
        assert np.ptp(found) > 10 * DIGIT_TOLERANCE, "the judge has to see the picture"

    run(body)


def test_a_missing_environment_is_named_by_its_node_before_anything_starts(
    run: Run, tmp_path: Path
) -> None:
    from cluster.handles import EnvironmentMissing, require_environments

    judge = JudgeConfig(backend="vllm", env=f"{tmp_path}/gone")
    with pytest.raises(EnvironmentMissing, match=rf"^node {LOOPBACK}: .*gone' does not exist"):
        require_environments(RewardConfig(judge=judge))


def test_a_sample_is_scored_by_all_three_workers(run: Run) -> None:
    async def body(rewards: Rewards) -> None:
        scores = await scored(rewards, Motion.ORBIT_RIGHT)
        assert not scores.failures
        assert set(scores.parts) == {"recon", "traj", "meta", "gen"}
        assert 0 <= scores.parts["meta"] <= 0.9
        assert sum(scores.scores["judge"].digits) == pytest.approx(1)

    run(body)


def test_an_evaluation_is_judged_by_the_served_model(run: Run) -> None:
    """`worldr1 evaluate` measures through the same pools: the served model's S_meta, beside
    everything that is measured in this process."""

    async def body(rewards: Rewards) -> None:
        shot = clip(Motion.PUSH_IN)
        measurer = Measurer(rewards, CameraConfig(), 25)
        found = await measurer.measure(shot.video, shot.prompt, 0)
        assert found.failures == {}
        expected = (await scored(rewards, Motion.PUSH_IN)).parts
        assert found.figures["judge"] == pytest.approx(expected["meta"], abs=1e-4)
        assert found.figures["s_recon"] == pytest.approx(expected["recon"], abs=1e-6)
        assert {"psnr", "rot_err", "content", "mvcs", "motion"} <= found.figures.keys()
        assert "tiny-random-qwen3-vl" in (await measurer.scorers())["judge"]

    run(body)


def test_killing_the_server_in_the_middle_loses_no_sample(run: Run) -> None:
    """Kill -9 of a server that holds four requests, behind them eight more samples: all are scored,
    each at its first attempt, with the same numbers as before.

    The server is stopped before it is asked: it would answer such small requests faster than this
    process finds out that they are on their way.
    """

    async def body(rewards: Rewards) -> None:
        pid, starts = await server_of(rewards)
        before = [await scored(rewards, motion) for motion in MOTIONS]
        os.kill(pid, signal.SIGSTOP)
        calls = [
            asyncio.ensure_future(scored(rewards, MOTIONS[i % 4], seed=(1, 7)[i // 4 % 2]))
            for i in range(12)
        ]
        while rewards.pools["judge"].meter.busy < REQUESTS_AT_ONCE:
            await asyncio.sleep(0.02)
        assert not any(call.done() for call in calls)
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        after = await asyncio.gather(*calls)
        print(f"all answered {time.monotonic() - killed:.0f} s after the kill")
        assert [scores.failures for scores in after] == [()] * 12
        assert [scores.attempts for scores in after] == [1] * 12
        for first, second in zip(before, after[:4], strict=True):
            assert second.parts["meta"] == pytest.approx(first.parts["meta"], abs=1e-4)
        new_pid, new_starts = await server_of(rewards)
        assert new_pid != pid
        assert new_starts == starts + 1
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"

    run(body)


def test_a_picture_that_the_server_refuses_is_a_final_failure(run: Run) -> None:
    """8,000 x 40 pixels: Qwen's processor takes no picture 200 times as long as it is high."""

    async def body(rewards: Rewards) -> None:
        picture = np.zeros((40, 40 * 201, 3), np.uint8)
        prompt = clip(Motion.FIXED).prompt
        outcome = await rewards.pools["judge"].call("score", picture, prompt)
        assert not isinstance(outcome, Score)
        assert not outcome.retry, outcome
        assert (await scored(rewards, Motion.PULL_OUT)).failures == ()

    run(body)


def test_nothing_of_a_server_outlives_its_worker(run: Run) -> None:
    """kill -9 of the actor: its server's processes end, the actor comes back with another server,
    and the call in flight is answered."""

    async def body(rewards: Rewards) -> None:
        pid, _ = await server_of(rewards)
        session = os.getsid(pid)
        (found,) = await rewards.pools["judge"].call_all("describe", [()])
        os.kill(int(found["pid"]), signal.SIGKILL)
        scores = await scored(rewards, Motion.PUSH_IN)
        assert scores.failures == ()
        assert (await server_of(rewards))[0] != pid
        assert _left(session) == []

    run(body)


def _left(session: int) -> list[str]:
    """Processes of a session that run for 60 s more; one that only waits for whoever collects its
    exit status has ended."""
    deadline = time.monotonic() + 60
    while True:
        found = []
        for process in psutil.process_iter(["status", "cmdline"]):
            if _session(process.pid) == session and process.info["status"] != "zombie":
                found.append(f"{process.pid} {process.info['status']} {process.info['cmdline']}")
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0
