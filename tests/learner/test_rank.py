"""One rank in this process: parity with plain autograd, determinism, and what is never applied."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.config import PolicyConfig
from actors.lora import lora_parameters
from actors.policy import Policy
from actors.sde import gaussian_kl, log_prob, step_moments
from actors.trajectory import Trajectory
from cluster.checkpoint import CheckpointStore, RunState
from learner.batch import BatchShape, ScoredGroup, advantages, plan_batch
from learner.config import LearnerConfig
from learner.rank import LearnerRank
from learner.storage_errors import StoreRefused
from tests.learner.small import LEARNER, ROLLOUT, score, train_step

Trajectories = tuple[Trajectory, ...]
NewRank = Callable[..., LearnerRank]


def _weights(rank: LearnerRank) -> dict[str, np.ndarray]:
    return rank.weights(0, "a")[1]


def _distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def _changed(config: LearnerConfig = LEARNER, **changes: object) -> LearnerConfig:
    return config.model_copy(update=changes)


def _plain_loss(
    config: LearnerConfig, policy: Policy, groups: tuple[ScoredGroup, ...], drawn: Trajectories
) -> torch.Tensor:
    """Method section 4 written out: one trajectory at a time, no sharding, no micro-batches."""
    terms = []
    for trajectory, advantage in zip(drawn, advantages(groups, "group", 5.0), strict=True):
        text = policy.encode([trajectory.meta.prompt_text])
        for w in range(ROLLOUT.window_size):
            i = trajectory.meta.window_start + w
            sigma, following = trajectory.sigmas[i], trajectory.sigmas[i + 1]
            x, sample = trajectory.states[w][None], trajectory.states[w + 1][None]

            def moments(x=x, text=text, sigma=sigma, following=following, sigmas=trajectory.sigmas):  # type: ignore[no-untyped-def]
                velocity = policy.velocity(x, sigma, text, policy.encode_negative())
                return step_moments("sde", x, velocity, sigma, following, sigmas[1], 0.7)

            with torch.no_grad(), policy.adapter_disabled():
                reference = moments().mean
            mean, std = moments()
            log_ratio = log_prob(sample, mean, std) - trajectory.log_probs[w]
            weight = 1.0
            if config.guard:
                shift = (mean - trajectory.means[w][None]).square().mean()
                log_ratio = (log_ratio + shift / (2 * std**2)) * std
                weight = 1 / float(sigma - following)
            ratio = log_ratio.exp()
            clipped = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
            gain = torch.minimum(ratio * advantage, clipped * advantage) * weight
            terms.append(-gain + config.beta_kl * gaussian_kl(mean, reference, std))
    return torch.cat([term.flatten() for term in terms]).mean()


@pytest.mark.parametrize("guard", [False, True])
def test_loss_and_gradient_equal_plain_autograd(
    new_rank: NewRank, policy: PolicyConfig, trajectories: Trajectories, guard: bool
) -> None:
    """At weights that have moved off the rollout's (ratio and KL are not trivial): loss to 1e-6,
    gradient norm to 1e-5."""
    config = _changed(guard=guard, max_grad_norm=1e6, clip_range=0.5)
    rank, scored = new_rank(learner=config), score(trajectories)
    train_step(rank, scored, config)
    plain = Policy.load(policy, "cpu", with_decoder=False)
    plain.load_lora(_weights(rank))
    report = train_step(rank, scored, config)
    loss = _plain_loss(config, plain, *scored)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in lora_parameters(plain.transformer).values()]
    norm = float(torch.nn.utils.get_total_norm([g for g in gradients if g is not None]))
    assert abs(report.loss) > 1e-4
    assert report.metrics["kl"] > 1e-6
    assert report.loss == pytest.approx(float(loss.detach()), abs=1e-6)
    assert report.grad_norm == pytest.approx(norm, rel=1e-5)


def test_a_shared_first_step_is_computed_once_for_a_group(
    new_rank: NewRank, trajectories: Trajectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two groups of three, three states a pass, at weights that have moved: the same loss and
    gradient as one by one, from 2 + 6 states of the policy and of its reference instead of 12."""
    groups, drawn = score(trajectories)
    config = _changed(max_grad_norm=1e6, clip_range=0.5)
    shared = BatchShape.of(config, ROLLOUT)
    assert shared.shared_prefix
    reports, passed = [], []
    network = Policy.velocity

    def counting(policy: Policy, latents: torch.Tensor, *args: Any) -> torch.Tensor:
        passed.append(len(latents))
        return network(policy, latents, *args)

    for shape in (shared, replace(shared, shared_prefix=False)):
        rank = new_rank(learner=config)
        train_step(rank, (groups, drawn), config)
        passed.clear()
        monkeypatch.setattr(Policy, "velocity", counting)
        (plan,) = plan_batch(groups, 1, shape)
        reports.append(rank.step(1, groups, plan, *drawn))
        monkeypatch.setattr(Policy, "velocity", network)
        assert sum(passed) == 2 * (2 + 6 if shape.shared_prefix else 12)
        rank.close()
    once, alone = reports
    assert abs(once.loss) > 1e-4
    assert once.loss == pytest.approx(alone.loss, abs=1e-6)
    assert once.grad_norm == pytest.approx(alone.grad_norm, rel=1e-5)
    for name, value in alone.metrics.items():
        assert once.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


def test_members_that_began_in_different_states_share_none(
    new_rank: NewRank, trajectories: Trajectories
) -> None:
    rank = new_rank()
    groups, drawn = score(trajectories)
    (plan,) = plan_batch(groups, 1, BatchShape.of(LEARNER, ROLLOUT))
    moved = replace(drawn[1], states=drawn[1].states + 1e-3)
    with pytest.raises(ValueError, match="members 0 and 1 of group 0 begin window step 0"):
        rank.step(0, groups, plan, drawn[0], moved, *drawn[2:])


def test_first_step_on_policy(new_rank: NewRank, trajectories: Trajectories) -> None:
    """Ratios are 1, advantages of a group sum to 0: loss 0 with a gradient, nothing muted."""
    rank = new_rank()
    before = _weights(rank)
    report = train_step(rank, score(trajectories))
    assert report.loss == pytest.approx(0.0, abs=1e-6)
    assert report.grad_norm > 1e-4
    assert report.metrics["ratio_max_dev"] < 1e-5
    assert report.metrics["clip_fraction"] == 0.0
    assert report.metrics["kl"] == 0.0
    assert (report.update_skipped, report.skip_reason) == (False, "")
    # AdamW's first step moves every value with a gradient by the learning rate.
    assert _distance(before, _weights(rank)) == pytest.approx(1e-2, rel=0.01)


def test_training_raises_the_density_of_better_samples(
    new_rank: NewRank, trajectories: Trajectories
) -> None:
    """Without KL, every update lowers the surrogate's loss on the same batch."""
    rank = new_rank(learner=_changed(beta_kl=0.0))
    losses = [train_step(rank, score(trajectories)).loss for _ in range(3)]
    assert all(later < earlier - 1e-5 for earlier, later in itertools.pairwise(losses))


def test_two_runs_give_the_same_bits(new_rank: NewRank, trajectories: Trajectories) -> None:
    checksums = []
    for _ in range(2):
        rank = new_rank()
        for _ in range(2):
            train_step(rank, score(trajectories))
        checksums.append(rank.weights(2, "a")[0].checksum)
    assert checksums[0] == checksums[1]


def test_micro_batches_and_checkpointing_change_only_rounding(
    new_rank: NewRank, trajectories: Trajectories
) -> None:
    """Micro-batches of 1 and of 5 (over group boundaries), recomputed and stored activations."""
    norms = []
    for micro_batch, recompute in ((1, True), (5, False)):
        config = _changed(micro_batch=micro_batch, activation_checkpointing=recompute)
        rank = new_rank(learner=config)
        norms.append(train_step(rank, score(trajectories), config).grad_norm)
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


def test_learning_rate_zero_moves_nothing(new_rank: NewRank, trajectories: Trajectories) -> None:
    config = _changed(learning_rate=0.0)
    rank = new_rank(learner=config)
    version, before = rank.weights(0, "a")
    report = train_step(rank, score(trajectories), config)
    assert report.grad_norm > 0
    assert rank.weights(0, "a")[0].checksum == version.checksum
    assert _distance(before, rank.weights(0, "", average=True)[1]) == 0.0


def test_average_follows_its_recursion(new_rank: NewRank, trajectories: Trajectories) -> None:
    """avg <- d avg + (1 - d) w after every update, d = 2/11 and then 3/12, from the initial
    weights."""
    rank = new_rank()
    expected = _weights(rank)
    for decay in (2 / 11, 3 / 12):
        train_step(rank, score(trajectories))
        now = _weights(rank)
        expected = {name: decay * expected[name] + (1 - decay) * now[name] for name in now}
    assert _distance(expected, rank.weights(0, "", average=True)[1]) < 1e-7
    assert _distance(now, rank.weights(0, "", average=True)[1]) > 1e-3


def test_what_is_not_finite_is_skipped_and_the_next_update_is_clean(
    new_rank: NewRank, trajectories: Trajectories
) -> None:
    """NaN reward, infinite log-density, NaN state: weights, optimizer and average stay; the next
    good batch trains as if nothing had happened."""
    rank = new_rank()
    version, _ = rank.weights(0, "a")
    groups, drawn = score(trajectories)
    bad = replace(groups[0], rewards=(math.nan, *groups[0].rewards[1:]))
    first = drawn[0]
    cases = [
        (((bad, groups[1]), drawn), "reward of group 0 member 0 is nan"),
        ((groups, (replace(first, log_probs=first.log_probs - math.inf), *drawn[1:])), "loss is"),
        ((groups, (replace(first, states=first.states * math.nan), *drawn[1:])), "loss is nan"),
    ]
    for scored, reason in cases:
        report = train_step(rank, scored)
        assert report.update_skipped
        assert reason in report.skip_reason
        assert report.metrics["updates_skipped"] == 1.0
        assert rank.weights(0, "a")[0].checksum == version.checksum
    train_step(rank, (groups, drawn))
    after = rank.weights(1, "a")[0].checksum
    untouched = new_rank()
    train_step(untouched, (groups, drawn))
    assert untouched.weights(1, "a")[0].checksum == after


def test_equal_rewards_train_nothing(new_rank: NewRank, trajectories: Trajectories) -> None:
    rank = new_rank()
    groups, drawn = score(trajectories)
    flat = tuple(replace(group, rewards=(0.5,) * 3) for group in groups)
    report = train_step(rank, (flat, drawn))
    assert report.update_skipped
    assert "no gradient" in report.skip_reason
    assert report.metrics["samples"] == 0.0


def test_two_updates_use_every_sample_once(new_rank: NewRank, trajectories: Trajectories) -> None:
    """The guard is on by default then, and the second update's ratios differ from 1."""
    config = _changed(updates_per_batch=2)
    rank = new_rank(learner=config)
    assert rank.describe().guard
    report = train_step(rank, score(trajectories), config)
    assert report.metrics["samples"] == 6.0
    assert 1e-6 < report.metrics["ratio_max_dev"] < 0.1


def test_misplaced_trajectories_are_refused(new_rank: NewRank, trajectories: Trajectories) -> None:
    rank = new_rank()
    groups, drawn = score(trajectories)
    (plan,) = plan_batch(groups, 1, BatchShape.of(LEARNER, ROLLOUT))
    with pytest.raises(ValueError, match="got 5 trajectories; its plan names 6"):
        rank.step(0, groups, plan, *drawn[1:])
    with pytest.raises(ValueError, match="must be sorted by"):
        rank.step(0, groups, plan, *drawn[::-1])
    with pytest.raises(ValueError, match=r"only torch\.float32 is allowed"):
        rank.step(0, groups, plan, replace(drawn[0], means=drawn[0].means.half()), *drawn[1:])
    with pytest.raises(ValueError, match="another sigma schedule"):
        rank.step(0, groups, plan, drawn[0].with_meta(schedule_hash="x"), *drawn[1:])


def test_save_and_load_continue_bit_for_bit(
    new_rank: NewRank, trajectories: Trajectories, tmp_path: Path
) -> None:
    """Weights, average and both moments of AdamW come back exactly; a missing path is an error."""
    rank, scored = new_rank(), score(trajectories)
    train_step(rank, scored)
    rank.save(str(tmp_path / "learner"))
    train_step(rank, scored)
    expected, average = rank.weights(2, "a")[0].checksum, rank.weights(0, "", average=True)[1]
    resumed = new_rank()
    resumed.load(str(tmp_path / "learner"))
    train_step(resumed, scored)
    assert resumed.weights(2, "a")[0].checksum == expected
    assert _distance(average, resumed.weights(0, "", average=True)[1]) == 0.0
    with pytest.raises(StoreRefused, match=r"loading .*nowhere failed"):
        resumed.load(str(tmp_path / "nowhere"))


@pytest.mark.slow
def test_checkpoint_over_s3_continues_bit_for_bit(
    new_rank: NewRank, trajectories: Trajectories, s3_bucket: str
) -> None:
    """Shards, state and manifest through a server that speaks S3: found valid, and loaded."""
    store, rank, scored = CheckpointStore(f"{s3_bucket}/run"), new_rank(), score(trajectories)
    train_step(rank, scored)
    rank.save(store.begin(1))
    store.commit(1, RunState(step=1), {"seed": 0})
    train_step(rank, scored)
    expected = rank.weights(2, "a")[0].checksum
    found = store.newest_valid({"seed": 0}).checkpoint
    assert found is not None
    resumed = new_rank()
    resumed.load(found.learner_url)
    train_step(resumed, scored)
    assert resumed.weights(2, "a")[0].checksum == expected


def test_only_one_group_per_process(new_rank: NewRank, policy: PolicyConfig) -> None:
    new_rank()
    with pytest.raises(ValueError, match="has a process group already"):
        LearnerRank(0, policy, LEARNER, ROLLOUT, 0, None, "cpu", 1)


def test_a_failed_save_is_told_once_and_never_blocks_the_next(
    new_rank: NewRank, trajectories: Trajectories, tmp_path: Path
) -> None:
    """Also where nobody asked how it ended, as when another rank's failure was told first."""
    (tmp_path / "file").write_text("not a folder")
    rank = new_rank()
    for asked in (True, False):
        rank.begin_save(f"{tmp_path}/file/deeper")
        if asked:
            with pytest.raises(OSError, match="failed on ranks"):
                rank.saved(30.0)
            assert rank.saved()
        rank.begin_save(f"{tmp_path}/whole")
        train_step(rank, score(trajectories))
        assert rank.saved(30.0)
    before = _weights(rank)
    rank.load(f"{tmp_path}/whole")
    assert _distance(_weights(rank), before) > 0, "the copy was taken before the step"
