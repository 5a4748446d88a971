"""One rank and two ranks are the same learner. Processes of their own over gloo.

Not covered: NCCL, and more than one node.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actors.config import PolicyConfig
from actors.trajectory import Trajectory
from learner.proof import RatioProof
from learner.rank import StepReport
from tests.learner.small import LEARNER, make_rank, run_ranks, score, train_step

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
