"""Each startup proof fails when its fault is put in."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from actors.trajectory import LoraWeights, Trajectory, WeightsVersion
from actors.worker import RolloutWorker
from benchmarks.simulated import Durations, SimulatedRanks
from cluster.config import RunConfig, load, resolve_model
from cluster.local import LocalPool, local_workers
from cluster.lost import LearnerLost
from cluster.pools import Learner, Rewards, Rollouts, Workers
from cluster.startup import RunRefused, _strictest_start, prove_run
from learner.batch import BatchShape
from learner.proof import StartupProofError
from prompts.dataset import load_prompts
from rewards.aesthetic_worker import AestheticWorker
from rewards.judge_worker import JudgeWorker
from rewards.score import Score
from rewards.worker import ReconstructionWorker

Build = Callable[..., RunConfig]


def prove(config: RunConfig, workers: Workers) -> list[str]:
    lines: list[str] = []
    prompts = {"train": load_prompts(config.prompts.train)}

    async def run() -> None:
        weights = await workers.learner.publish(0, "test")
        await prove_run(config, workers, prompts, weights, lines.append)

    asyncio.run(run())
    return lines


@pytest.fixture
def config(smallest: Build) -> RunConfig:
    return smallest()


@pytest.fixture
def workers(config: RunConfig) -> Iterator[Workers]:
    with local_workers(config) as found:
        yield found


def with_rollouts(workers: Workers, config: RunConfig, worker_class: type) -> Workers:
    """The same workers, but rollouts by another class."""
    honest = workers.rollouts.pool.worker  # type: ignore[attr-defined]
    worker = object.__new__(worker_class)
    worker.__dict__.update(honest.__dict__)
    return replace(workers, rollouts=Rollouts(LocalPool("rollout", worker)))


def test_honest_workers_pass_every_proof(config: RunConfig, workers: Workers) -> None:
    lines = prove(config, workers)
    kinds = [line.split()[1] for line in lines]
    assert kinds == ["policy", "delivery", "ratio", "rewards", "rewards", "rewards"]
    assert all(" ok: " in line for line in lines)


class IgnoresWeights(RolloutWorker):
    """Keeps the initial adapter, whatever it is sent."""

    def load_weights(self, version: WeightsVersion, weights: LoraWeights) -> str:
        return self._checksum


def test_worker_that_ignores_weights(config: RunConfig, workers: Workers) -> None:
    with pytest.raises(RunRefused, match="holds weights"):
        prove(config, with_rollouts(workers, config, IgnoresWeights))


def test_worker_that_applies_its_adapter_otherwise(config: RunConfig, workers: Workers) -> None:
    """Twice the alpha: as many modules and parameters, the same checksum, the same untrained
    policy; only weights that do something tell them apart."""
    lora = config.policy.lora.model_copy(update={"alpha": 2 * config.policy.lora.alpha})
    policy = config.policy.model_copy(
        update={"lora": lora, "model": resolve_model(config.policy.model)}
    )
    other = RolloutWorker(policy, config.rollout, config.camera, "cpu", config.threads)
    pool = LocalPool("rollout", other)
    with pytest.raises(RunRefused, match="not the same density"):
        prove(config, replace(workers, rollouts=Rollouts(pool)))


class Tampering(RolloutWorker):
    """Rolls out honestly and changes what it stores."""

    def change(self, trajectory: Trajectory) -> Trajectory:
        raise AssertionError("a subclass says what is changed")

    def rollout(self, *args: Any) -> tuple[Any, ...]:
        answer = super().rollout(*args)
        return tuple(self.change(a) if isinstance(a, Trajectory) else a for a in answer)


class ShiftsSigma(Tampering):
    def change(self, trajectory: Trajectory) -> Trajectory:
        return replace(trajectory, sigmas=trajectory.sigmas * 0.999)


class DropsAStep(Tampering):
    def change(self, trajectory: Trajectory) -> Trajectory:
        return replace(trajectory, sigmas=trajectory.sigmas[1:])


class StoresBfloat16(Tampering):
    def change(self, trajectory: Trajectory) -> Trajectory:
        return replace(trajectory, states=trajectory.states.to(torch.bfloat16))


class ScalesTheMean(Tampering):
    """One per cent off in a coefficient: the mean over all dimensions barely sees it."""

    def change(self, trajectory: Trajectory) -> Trajectory:
        return replace(trajectory, means=trajectory.means * 1.01)


class ShiftsLogProb(Tampering):
    def change(self, trajectory: Trajectory) -> Trajectory:
        return replace(trajectory, log_probs=trajectory.log_probs + 3e-5)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (ShiftsSigma, "sigma schedule"),
        (DropsAStep, "number of sampling steps"),
        (StoresBfloat16, "bfloat16"),
        (ScalesTheMean, "residual difference"),
        (ShiftsLogProb, "log r"),
    ],
)
def test_trajectory_of_another_density(
    config: RunConfig, workers: Workers, fault: type, words: str
) -> None:
    with pytest.raises(RunRefused, match=re.escape(words)):
        prove(config, with_rollouts(workers, config, fault))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rollout.sampling_steps=5", "samples on the schedule"),
        ("policy.lora.rank=4", "adapters of the processes differ"),
    ],
)
def test_worker_with_another_schedule_or_adapter(
    smallest: Build, config: RunConfig, workers: Workers, override: str, words: str
) -> None:
    other = smallest(override)
    stranger = RolloutWorker(
        other.policy.model_copy(update={"model": resolve_model(other.policy.model)}),
        other.rollout,
        other.camera,
        "cpu",
        1,
    )
    faulty = replace(workers, rollouts=Rollouts(LocalPool("rollout", stranger)))
    with pytest.raises(RunRefused, match=words):
        prove(config, faulty)


def test_adapter_that_matches_nothing(smallest: Build) -> None:
    config = smallest('policy.lora.targets=["to_nothing"]')
    with (
        pytest.raises(ValueError, match=r"policy\.lora\.targets.*to_nothing"),
        local_workers(config),
    ):
        pass


class ConstantReconstruction(ReconstructionWorker):
    def assess(self, video: Any, prompt: Any, keep_artifacts: bool) -> Any:
        score = Score("reconstruction", {"recon": 0.5, "traj": 0.5})
        return score, np.zeros_like(video[0]), None


class ConstantJudge(JudgeWorker):
    def score(self, meta_view: Any, prompt: Any) -> Any:
        return Score("judge", {"meta": 0.5})


class NanAesthetic(AestheticWorker):
    def score(self, video: Any, prompt: Any) -> Any:
        return Score("aesthetic", {"gen": float("nan")})


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("reconstruction", ConstantReconstruction),
        ("judge", ConstantJudge),
        ("aesthetic", NanAesthetic),
    ],
)
def test_scorer_that_cannot_tell_known_clips_apart(
    config: RunConfig, workers: Workers, kind: str, fault: type
) -> None:
    pools = dict(workers.rewards.pools)
    honest = pools[kind].worker  # type: ignore[index]
    worker = object.__new__(fault)
    worker.__dict__.update(honest.__dict__)
    pools[kind] = LocalPool(kind, worker)  # type: ignore[index]
    faulty = Rewards(pools["reconstruction"], pools["judge"], pools["aesthetic"], config.rewards)
    with pytest.raises(RunRefused, match=kind):
        prove(config, replace(workers, rewards=faulty))


class Answering(SimulatedRanks):
    """Two ranks whose answer to a proof is an error."""

    error: RuntimeError

    async def call_all(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        raise self.error


def test_a_failed_proof_of_many_ranks_is_no_loss_of_ranks(smallest: Build) -> None:
    """They would be replaced three times, and prove the same."""
    ranks = Answering(smallest("learner.ranks=2"), Durations(rollout_s=0.0, reconstruction_s=0.0))
    learner = Learner(ranks, BatchShape.of(ranks.config.learner, ranks.config.rollout))
    ranks.error = StartupProofError("rollout and learner are not the same density")
    with pytest.raises(StartupProofError, match="not the same density"):
        asyncio.run(learner.prove([]))
    ranks.error = RuntimeError("Connection closed by peer")
    with pytest.raises(LearnerLost, match="lost touch in prove"):
        asyncio.run(learner.prove([]))


@pytest.mark.parametrize(("kernel", "start"), [("sde", 5), ("cps", 5), ("dance", 1)])
def test_the_proof_looks_at_the_window_with_the_least_noise(kernel: str, start: int) -> None:
    """16 steps at shift 3: the noise of `sde` and `cps` falls along the schedule, that of `dance`
    grows with the steps."""
    assert _strictest_start(load("small", [f"rollout.kernel={kernel}"])) == start
