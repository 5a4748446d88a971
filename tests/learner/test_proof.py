"""A run starts only where rollout and learner are one density: the proof fails closed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch.nn.modules.module import register_module_forward_pre_hook

from actors.config import LoraConfig, PolicyConfig
from actors.sde import log_prob
from actors.trajectory import Trajectory
from learner.proof import StartupProofError, judge, proof_elements, residual_gap
from learner.rank import LearnerRank
from tests.learner.small import LEARNER, ROLLOUT, Published, make_rank, policy_config, roll_out

Trajectories = tuple[Trajectory, ...]
NewRank = Callable[..., LearnerRank]


def test_rollout_density_is_the_learners(new_rank: NewRank, trajectories: Trajectories) -> None:
    """Through FSDP and other batch sizes, |log r| <= 1e-5 and residuals agree to 1e-3."""
    proof = new_rank().prove(*trajectories)
    assert (proof.trajectories, proof.steps) == (6, 12)
    assert proof.log_ratio_max <= 1e-6
    assert proof.residual_max <= 1e-5
    assert (proof.log_ratio_limit, proof.residual_limit) == (1e-5, 1e-3)
    assert len(proof.log_ratio_by_step) == len(proof.residual_by_step) == ROLLOUT.window_size
    assert max(proof.log_ratio_by_step) == proof.log_ratio_max
    assert max(proof.residual_by_step) == proof.residual_max


def test_the_batches_that_train_are_proven_too(
    new_rank: NewRank, trajectories: Trajectories
) -> None:
    """One state alone and `micro_batch` of them, with guidance two branches of each."""
    rank, seen = new_rank(), set[int]()

    def look(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, WanTransformerBlock):
            seen.add(len(args[0]))

    hook = register_module_forward_pre_hook(look)
    try:
        rank.prove(trajectories[0])
    finally:
        hook.remove()
    assert seen == {2, 2 * LEARNER.micro_batch}


def test_other_weights_are_held_for_a_proof_and_put_back(
    new_rank: NewRank, policy: PolicyConfig, trained: Published
) -> None:
    """Trajectories of trained weights are an untrained rank's own only while it holds those."""
    rank = new_rank()
    _, before = rank.weights(0, "a")
    version, weights = trained
    drawn = roll_out(policy, trained)[:1]
    assert rank.hold(weights) == version.checksum
    assert rank.prove(*drawn).log_ratio_max <= 1e-6
    assert rank.hold(before) == rank.weights(0, "a")[0].checksum
    with pytest.raises(StartupProofError, match="checksum of the LoRA weights"):
        rank.prove(*drawn)
    with pytest.raises(ValueError, match="are not in both"):
        rank.hold({})


@pytest.mark.parametrize("kernel", ["cps", "dance"])
def test_other_kernels_agree_too(
    new_rank: NewRank, policy: PolicyConfig, untrained: Published, kernel: str
) -> None:
    rollout = ROLLOUT.model_copy(update={"kernel": kernel, "group_size": 2})
    proof = new_rank(rollout=rollout).prove(*roll_out(policy, untrained, rollout)[:1])
    assert proof.log_ratio_max <= 1e-5


def test_bfloat16_policy_keeps_float32_lora_and_agrees(
    new_rank: NewRank, model: Path, untrained: Published
) -> None:
    """Frozen weights in bfloat16, LoRA in float32, under FSDP as in the rollout."""
    policy = policy_config(model, dtype="bfloat16")
    rank = new_rank(policy)
    version, weights = rank.weights(0, "a")
    assert version.checksum == untrained[0].checksum
    proof = rank.prove(*roll_out(policy, (version, weights)))
    assert proof.log_ratio_limit == pytest.approx(LEARNER.clip_range / 5)
    assert proof.log_ratio_max <= 2e-3
    assert proof.residual_max <= 3e-2


def test_each_mismatch_is_named(
    new_rank: NewRank, policy: PolicyConfig, untrained: Published, trained: Published,
    trajectories: Trajectories,
) -> None:  # fmt: skip
    """A shifted sigma, a step less, other noise, guidance, weights, precision: each is refused."""
    rank = new_rank()
    first = trajectories[0]

    def refused(pattern: str, *given: Trajectory) -> None:
        with pytest.raises(StartupProofError, match=pattern):
            rank.prove(*given)

    sigmas = first.sigmas.clone()
    sigmas[3] += 1e-6
    refused("differ in the sigma schedule", replace(first, sigmas=sigmas))
    shorter = ROLLOUT.model_copy(update={"sampling_steps": 5, "window_high": 2})
    refused(
        "number of sampling steps: .* has 5, .* expects 6", *roll_out(policy, untrained, shorter)
    )
    refused("window size", replace(first, means=first.means[:1], states=first.states[:2]))
    refused("kernel", first.with_meta(kernel="cps"))
    refused("noise level", first.with_meta(noise_level=0.71))
    refused("guidance scale", first.with_meta(guidance_scale=2.1))
    refused("checksum of the LoRA weights", first.with_meta(weights=trained[0]))
    refused("states is stored as torch.bfloat16", replace(first, states=first.states.bfloat16()))
    refused("no trajectory was given")


def test_a_density_that_its_metadata_hides_is_found(
    new_rank: NewRank, model: Path, untrained: Published, trajectories: Trajectories
) -> None:
    """Guidance 2.02 declared as 2.0, a swapped prompt, a window that starts a step later."""
    rank = new_rank()
    biased = roll_out(policy_config(model, guidance_scale=2.02), untrained)[0]
    first = trajectories[0]
    moved = first.with_meta(window_start=first.meta.window_start + 1)
    for trajectory in (
        biased.with_meta(guidance_scale=2.0),
        first.with_meta(prompt_text=trajectories[-1].meta.prompt_text),
        moved,
        replace(first, log_probs=first.log_probs + math.nan),
    ):
        with pytest.raises(StartupProofError, match="not the same density"):
            rank.prove(trajectory)


def test_an_adapter_that_matches_nothing_never_starts(model: Path, new_rank: NewRank) -> None:
    """And leaves no process group behind, so that another rank can start."""
    with pytest.raises(ValueError, match="matches no linear module"):
        make_rank(policy_config(model, lora=LoraConfig(targets=("to_nothing",))))
    assert new_rank().describe().lora_modules == 16


def test_residuals_see_what_the_mean_over_a_million_dimensions_hides() -> None:
    """A mean off by 0.0024 std moves log r by 2.8e-6 only (allowed: 1e-5), a residual by 0.0024
    (allowed: 0.001)."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 2_000_000)
    std = torch.full((1, 1), 0.3)
    old = torch.randn(shape, generator=generator)
    sample = old + std * torch.randn(shape, generator=generator)
    new = old + 0.0024 * std
    log_ratio = float(log_prob(sample, new, std) - log_prob(sample, old, std))
    gap = residual_gap(sample, old, new, std, proof_elements(shape[1], seed=0))
    assert abs(log_ratio) < 1e-5
    assert gap == pytest.approx(0.0024, rel=0.01)
    config = PolicyConfig(dtype="float32")
    with pytest.raises(StartupProofError, match=r"residual difference is 0\.0024"):
        judge([abs(log_ratio)], [gap], 1, 1, config, 1e-4)
    with pytest.raises(StartupProofError, match=r"\|log r\| is nan"):
        judge([math.nan], [0.0], 1, 1, config, 1e-4)
    bf16 = judge([1.9e-5], [2.9e-2], 1, 1, PolicyConfig(dtype="bfloat16"), 1e-4)
    assert bf16.log_ratio_limit == pytest.approx(2e-5)


def test_proof_elements_are_fixed_and_distinct() -> None:
    elements = proof_elements(5000, seed=1)
    assert len(set(elements.tolist())) == 1024
    assert torch.equal(elements, proof_elements(5000, seed=1))
    assert len(proof_elements(100, seed=1)) == 100
