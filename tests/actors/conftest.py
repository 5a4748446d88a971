"""The tiny Wan pipeline, built once for all tests of the rollout side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actors.config import LoraConfig, PolicyConfig, RolloutConfig
from actors.policy import Policy
from tests.actors.tiny import SHIFT, TOKENS, build_tiny_wan


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a WanPipeline of random weights."""
    return build_tiny_wan(tmp_path_factory.mktemp("tiny") / "wan")


@pytest.fixture(scope="session")
def policy_config(tiny_wan: Path) -> PolicyConfig:
    """The tiny policy in float32 at guidance 5."""
    return PolicyConfig(
        model=str(tiny_wan),
        dtype="float32",
        guidance_scale=5.0,
        max_prompt_tokens=TOKENS,
        lora=LoraConfig(rank=4, alpha=8.0),
    )


@pytest.fixture(scope="session")
def rollout_config() -> RolloutConfig:
    """32 x 48 pixels, 9 frames, 8 steps, groups of 4."""
    return RolloutConfig(
        height=32,
        width=48,
        frames=9,
        sampling_steps=8,
        eval_sampling_steps=5,
        shift=SHIFT,
        group_size=4,
        max_batch=4,
    )


@pytest.fixture
def policy(policy_config: PolicyConfig) -> Policy:
    """A policy with an untrained adapter."""
    return Policy.load(policy_config, "cpu")


@pytest.fixture
def trained_policy(policy: Policy) -> Policy:
    """A policy whose adapter changes something: all its weights are random."""
    policy.load_lora(random_weights(policy, seed=7))
    return policy


def random_weights(policy: Policy, seed: int) -> dict[str, np.ndarray]:
    """Adapter weights of the policy's shapes, normal with standard deviation 0.1."""
    rng = np.random.default_rng(seed)
    return {
        name: 0.1 * rng.standard_normal(array.shape, dtype=np.float32)
        for name, array in policy.lora_weights().items()
    }
