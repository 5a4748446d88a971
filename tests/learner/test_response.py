"""`benchmarks.response`: the step that it takes, and what it makes of clips before and after."""

from __future__ import annotations

import pytest
import torch

from actors.lora import lora_parameters
from actors.policy import Policy
from benchmarks.response import add_step, change
from cluster.config import load, resolve_model


def adapter(policy: Policy, matrix: str) -> torch.Tensor:
    found = [p for n, p in lora_parameters(policy.transformer).items() if matrix in n]
    return torch.cat([tensor.detach().flatten() for tensor in found])


def test_a_step_has_the_wanted_length_and_direction_and_leaves_the_rest() -> None:
    config = load("toy").policy
    config = config.model_copy(update={"model": resolve_model(config.model)})
    policy = Policy.load(config, "cpu", with_decoder=False)
    first = adapter(policy, "lora_A")
    size = adapter(policy, "lora_B").numel()
    direction = torch.linspace(-2, 1, size)
    add_step(policy, direction, 0.003)
    moved = adapter(policy, "lora_B")
    assert float(moved.square().mean().sqrt()) == pytest.approx(0.003, rel=1e-5)
    assert torch.allclose(moved / moved[-1], direction / direction[-1], rtol=1e-4, atol=1e-5)
    assert torch.equal(adapter(policy, "lora_A"), first)


def test_changes_are_paired_and_in_percent_where_that_is_asked() -> None:
    """Motion rises by 0.2 and 0 of a mean of 2: 5 percent, standard error 5; only one clip has a
    camera."""
    before = [{"motion": 1.0, "psnr": 20.0, "traj": 0.5}, {"motion": 3.0, "psnr": 22.0}]
    after = [{"motion": 1.2, "psnr": 21.0, "traj": 0.7}, {"motion": 3.0, "psnr": 24.0}]
    assert change(before, after, "motion") == pytest.approx([5.0, 5.0])
    assert change(before, after, "psnr") == pytest.approx([1.5, 0.5])
