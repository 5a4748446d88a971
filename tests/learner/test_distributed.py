"""One rank and two ranks are the same learner. Processes of their own over gloo.

Not covered: NCCL, and more than one node.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from actors.config import PolicyConfig
from actors.policy import Policy
from actors.trajectory import Trajectory, weights_checksum
from learner.proof import RatioProof, StartupProofError
from learner.rank import StepReport
from tests.learner.small import (
    LEARNER,
    ROLLOUT,
    make_rank,
    policy_config,
    roll_out,
    run_ranks,
    score,
    train_step,
)

PARITY = [("sde", "float32"), ("cps", "float32"), ("dance", "float32"), ("sde", "bfloat16")]
"""Kernels and policy dtypes of the parity test."""
FAILED = ((1, 0),)
"""One member could not be scored: five trajectories, so that two ranks have uneven shares."""


def _job(
    rank: int,
    world_size: int,
    url: str | None,
    policy: PolicyConfig,
    trajectories: tuple[Trajectory, ...],
    folder: str,
) -> tuple[RatioProof, list[StepReport], dict[str, np.ndarray]]:
    """Prove, take a step, save it as `by_<ranks>`, take another; whole weights after it."""
    learner = make_rank(policy, rank=rank, world_size=world_size, init_url=url)
    _, own = learner.weights(0, "a")
    shared: list[Any] = [own]
    if world_size > 1:
        dist.broadcast_object_list(shared)  # rank 0 alone ships the weights
    other = {name: array + np.float32(0.25) for name, array in shared[0].items()}
    assert learner.hold(other) == weights_checksum(other)
    learner.hold(shared[0])
    proof = learner.prove(*trajectories[:2])
    scored = score(trajectories, FAILED)
    reports = [train_step(learner, scored, LEARNER, rank, world_size)]
    learner.save(f"{folder}/by_{world_size}")
    reports.append(train_step(learner, scored, LEARNER, rank, world_size))
    _, weights = learner.weights(2, "a")
    if world_size > 1:
        # Here, because a process takes longer to start than all of this takes to run.
        learner.load(f"{folder}/by_1")
        reports.append(train_step(learner, scored, LEARNER, rank, world_size))
    learner.close()
    return proof, reports, weights


@pytest.mark.slow
def test_two_ranks_equal_one_and_resume_on_another_number(
    policy: PolicyConfig, trajectories: tuple[Trajectory, ...], tmp_path: Path
) -> None:
    """Loss to 1e-6, gradient norm to 1e-5, metrics to 1e-4; what one rank saved after its first
    step gives, on two ranks, the loss and gradient of its second, and the other way round."""
    folder = str(tmp_path)
    proof, one, weights = _job(0, 1, None, policy, trajectories, folder)
    (proof_of_two, two, weights_of_two), (_, other, nothing) = run_ranks(
        2, _job, policy, trajectories, folder
    )
    for measured in (proof, proof_of_two):
        assert measured.log_ratio_max <= 1e-5
    for left, right in zip(one, two[:2], strict=True):
        assert right.loss == pytest.approx(left.loss, abs=1e-6)
        assert right.grad_norm == pytest.approx(left.grad_norm, rel=1e-5)
        assert right.metrics == pytest.approx(left.metrics, rel=1e-4, abs=1e-6)
    assert abs(one[1].loss) > 1e-5
    assert max(float(np.abs(weights[k] - weights_of_two[k]).max()) for k in weights) < 1e-4
    assert [(r.loss, r.grad_norm) for r in other] == [(r.loss, r.grad_norm) for r in two]
    assert nothing == {}  # only rank 0 ships the weights

    learner = make_rank(policy)
    learner.load(f"{folder}/by_2")
    on_one = train_step(learner, score(trajectories, FAILED))
    learner.close()
    for resumed, uninterrupted in ((on_one, two[1]), (two[2], one[1])):
        assert resumed.loss == pytest.approx(uninterrupted.loss, abs=1e-6)
        assert resumed.grad_norm == pytest.approx(uninterrupted.grad_norm, rel=1e-5)


def _replicated_or_sharded_job(
    rank: int,
    world_size: int,
    _: str | None,
    policy: PolicyConfig,
    trajectories: tuple[Trajectory, ...],
    folder: str,
) -> list[tuple[str, str]]:
    """By whether frozen weights are replicated: the adapter after proof and two steps of several
    passes, and after going back by one step and taking it again."""
    checksums = []
    for replicate in (False, True):
        config = LEARNER.model_copy(update={"replicate_frozen": replicate, "micro_batch": 1})
        meeting = f"file://{folder}/meet_{replicate}"
        learner = make_rank(policy, config, ROLLOUT, rank, world_size, meeting)
        learner.prove(*trajectories[:2])
        train_step(learner, score(trajectories), config, rank, world_size)
        learner.save(f"{folder}/{replicate}")
        train_step(learner, score(trajectories), config, rank, world_size)
        after_two = learner.weights(2, "a")[0].checksum
        with pytest.raises(StartupProofError, match="weights"):
            learner.prove(*trajectories[:1])
        learner.load(f"{folder}/{replicate}")
        train_step(learner, score(trajectories), config, rank, world_size)
        checksums.append((after_two, learner.weights(2, "a")[0].checksum))
        learner.close()
    return checksums


@pytest.mark.slow
def test_replicated_and_sharded_frozen_weights_give_the_same_bits(
    policy: PolicyConfig, trajectories: tuple[Trajectory, ...], tmp_path: Path
) -> None:
    """On two ranks; and what was gathered is never used after the weights below it changed."""
    checksums, _ = run_ranks(2, _replicated_or_sharded_job, policy, trajectories, str(tmp_path))
    assert len({checksum for pair in checksums for checksum in pair}) == 1


def _parity_job(
    rank: int,
    world_size: int,
    _: str | None,
    model: Path,
    folder: str,
    cases: list[tuple[str, str, tuple[Trajectory, ...]]],
) -> dict[tuple[str, str, int], list[float]]:
    """Largest |log p - log p_old| at each window step, by kernel, dtype and micro-batch."""
    gaps = {}
    for number, (kernel, dtype, trajectories) in enumerate(cases):
        rollout = ROLLOUT.model_copy(update={"kernel": kernel})
        for micro_batch in (1, 3):
            config = LEARNER.model_copy(update={"micro_batch": micro_batch})
            meeting = f"file://{folder}/meet_{world_size}_{number}_{micro_batch}"
            learner = make_rank(
                policy_config(model, dtype=dtype), config, rollout, rank, world_size, meeting
            )
            learner.load(f"{folder}/weights")
            report = train_step(learner, score(trajectories), config, rank, world_size)
            learner.close()
            gaps[kernel, dtype, micro_batch] = [
                report.metrics[f"window_{w}/log_ratio_max"] for w in range(rollout.window_size)
            ]
    return gaps


@pytest.mark.slow
def test_log_p_agrees_for_every_kernel_batch_and_number_of_ranks(
    model: Path, policy: PolicyConfig, trajectories: tuple[Trajectory, ...], tmp_path: Path
) -> None:
    """Trained weights, micro-batches of 1 and of G = 3, one rank and two: 1e-6 in float32 at each
    window step.

    In bfloat16, where batches of other sizes round otherwise, the gap is reported per window step
    and stays below 2e-3 on this network of random weights.
    """
    learner = make_rank(policy)
    for _ in range(2):
        train_step(learner, score(trajectories))
    learner.save(f"{tmp_path}/weights")
    published = learner.weights(2, "a")
    learner.close()
    assert max(float(np.abs(v).max()) for k, v in published[1].items() if "lora_B" in k) > 1e-2
    cases = []
    for kernel, dtype in PARITY:
        rollout = ROLLOUT.model_copy(update={"kernel": kernel})
        cases.append(
            (kernel, dtype, roll_out(policy_config(model, dtype=dtype), published, rollout))
        )
    one = _parity_job(0, 1, None, model, str(tmp_path), cases)
    two, _ = run_ranks(2, _parity_job, model, str(tmp_path), cases)
    for gaps in (one, two):
        assert len(gaps) == 8
        for (kernel, dtype, micro_batch), by_step in gaps.items():
            limit = 1e-6 if dtype == "float32" else 2e-3
            assert max(by_step) <= limit, (kernel, dtype, micro_batch, by_step)


def _late(rank: int, world_size: int, url: str | None, policy: PolicyConfig) -> int:
    """A rank whose model takes longer to load than a collective may take."""
    if rank:
        load = Policy.load

        def slowly(*args: Any, **kwargs: Any) -> Policy:
            time.sleep(4)
            return load(*args, **kwargs)

        Policy.load = slowly  # type: ignore[method-assign]
    learner = LEARNER.model_copy(update={"timeout_s": 2.0})
    made = make_rank(policy, learner, rank=rank, world_size=world_size, init_url=url)
    return made.describe().world_size


def test_a_rank_may_load_for_longer_than_a_collective_may_take(policy: PolicyConfig) -> None:
    assert run_ranks(2, _late, policy) == [2, 2]
