"""A run at its smallest: the shipped toy model, 2 groups of 2 samples, 4 denoising steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.config import RunConfig, load

SMALLEST = (
    "steps=3",
    "checkpoint.every=1",
    "eval.prompts=0",
    "rollout.groups_per_step=2",
    "rollout.group_size=2",
    "rollout.sampling_steps=4",
    "rollout.eval_sampling_steps=2",
    "rollout.window_size=2",
    "rollout.window_high=2",
    "learner.ranks=1",
    "schedule.main_steps=2",
    "schedule.dynamic_steps=1",
    "rewards.reconstruction.min_workers=1",
)


@pytest.fixture
def smallest(tmp_path: Path) -> Callable[..., RunConfig]:
    """Build the smallest configuration, with overrides, in a folder of this test."""

    def build(*overrides: str, name: str = "run") -> RunConfig:
        return load("toy", [*SMALLEST, f"run={tmp_path / name}", *overrides])

    return build
