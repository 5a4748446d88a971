"""The tiny policy and one rollout with an adapter that changes something, made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.config import PolicyConfig
from actors.policy import Policy
from actors.trajectory import Trajectory, WeightsVersion, weights_checksum
from learner.rank import LearnerRank
from tests.actors.tiny import build_tiny_wan
from tests.learner.small import Published, make_rank, policy_config, roll_out


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a WanPipeline of random weights."""
    return build_tiny_wan(tmp_path_factory.mktemp("learner") / "wan")


@pytest.fixture(scope="session")
def policy(model: Path) -> PolicyConfig:
    """The tiny policy's configuration."""
    return policy_config(model)


@pytest.fixture(scope="session")
def untrained(policy: PolicyConfig) -> Published:
    """The adapter as every worker and rank initialises it: A random, B zero."""
    weights = Policy.load(policy, "cpu", with_decoder=False, with_text_encoder=False).lora_weights()
    return WeightsVersion(0, "a", weights_checksum(weights)), weights


@pytest.fixture(scope="session")
def trained(untrained: Published) -> Published:
    """An adapter of random weights, which changes the velocity."""
    rng = np.random.default_rng(3)
    weights = {
        name: 0.2 * rng.standard_normal(array.shape, dtype=np.float32)
        for name, array in sorted(untrained[1].items())
    }
    return WeightsVersion(1, "a", weights_checksum(weights)), weights


@pytest.fixture(scope="session")
def trajectories(policy: PolicyConfig, untrained: Published) -> tuple[Trajectory, ...]:
    """Two groups of three members under the untrained adapter."""
    return roll_out(policy, untrained)


@pytest.fixture
def new_rank(policy: PolicyConfig) -> Iterator[Callable[..., LearnerRank]]:
    """Makes one rank after another in this process; the last is closed at the end."""
    ranks: list[LearnerRank] = []

    def make(config: PolicyConfig = policy, **changes: Any) -> LearnerRank:
        for rank in ranks:
            rank.close()
        ranks.append(make_rank(config, **changes))
        return ranks[-1]

    yield make
    for rank in ranks:
        rank.close()
