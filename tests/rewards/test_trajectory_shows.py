"""S_traj cannot be had by a wrong path: static, opposite, orthogonal, far too short (method §3)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from prompts.camera import camera_path
from prompts.motions import COMPOSITES, PRIMITIVES, Motion
from rewards.scoring import trajectory_score

REQUESTS: dict[str, tuple[Motion, ...]] = {
    motion.value: (motion,) for motion in Motion if motion is not Motion.FIXED
} | dict(COMPOSITES)
OPPOSITE = {
    "left": "right", "right": "left", "up": "down", "down": "up", "in": "out", "out": "in",
    "push": "pull", "pull": "push", "clockwise": "counterclockwise",
    "counterclockwise": "clockwise",
}  # fmt: skip


def path(*motions: Motion, frames: int = 33) -> np.ndarray:
    found = camera_path(motions, frames)
    assert found is not None
    return found.c2w.copy()


def mirrored(motion: Motion) -> Motion:
    words = [OPPOSITE.get(word, word) for word in motion.value.split()]
    return Motion(" ".join(words))


def orthogonal(c2w: np.ndarray) -> np.ndarray:
    """The same path with right, down and forward exchanged in a ring: every direction of motion
    and every axis of rotation is at a right angle to what it was."""
    ring = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    other = c2w.copy()
    other[:, :3, :3] = ring @ c2w[:, :3, :3] @ ring.T
    other[:, :3, 3] = c2w[:, :3, 3] @ ring.T
    return other


@pytest.mark.parametrize("name", REQUESTS)
def test_static_opposite_and_orthogonal_paths_are_worth_at_most_045(name: str) -> None:
    motions = REQUESTS[name]
    asked = path(*motions)
    estimates = {
        "static": np.tile(np.eye(4), (33, 1, 1)),
        "opposite": path(*(mirrored(motion) for motion in motions)),
        "orthogonal": orthogonal(asked),
    }
    for kind, made in estimates.items():
        assert trajectory_score(asked, made, 1.0).score <= 0.45, kind
    assert trajectory_score(asked, asked, 1.0).score == pytest.approx(1.0)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_path_a_thousandth_as_long_does_not_score_one(name: str) -> None:
    """The scale is capped, and what hardly moves is gated."""
    asked = path(*REQUESTS[name])
    made = np.tile(np.eye(4), (33, 1, 1))
    made[:, :3, 3] = asked[:, :3, 3] / 1000
    skew = asked[:, :3, :3] - np.swapaxes(asked[:, :3, :3], 1, 2)
    made[:, :3, :3] += skew / 2000
    assert trajectory_score(asked, made, 1.0).score < 0.1


def test_a_fixed_camera_that_drifts_falls_with_the_drift() -> None:
    asked = path(Motion.FIXED)
    scores = []
    for drift in (0.0, 0.05, 0.1, 0.2, 0.4, 0.8):
        made = asked.copy()
        made[:, 0, 3] = np.linspace(0, drift, 33)
        scores.append(trajectory_score(asked, made, 1.0).score)
    assert scores[0] == 1.0
    assert all(later < earlier - 0.02 for earlier, later in pairwise(scores))
    turning = path(Motion.PAN_LEFT)
    assert trajectory_score(asked, turning, 1.0).score < 0.55
    assert Motion.FIXED in PRIMITIVES
