"""Bundle adjustment on synthetic points: Jacobians, exact recovery, outliers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from prompts.camera import rotation_angle_deg
from rewards.reconstruct.bundle_adjustment import (
    Pinhole,
    State,
    _jacobians,
    _stepped,
    adjust,
    project,
    rotation_from_vector,
    transform,
)
from rewards.reconstruct.data_terms import flow_term

CAMERA = Pinhole(115.0, (48.0, 32.0))


def world(seed: int, points: int = 120, frames: int = 4) -> tuple[np.ndarray, State]:
    rng = np.random.default_rng(seed)
    rays = CAMERA.rays(rng.uniform(0, 1, (2, points)) * [[96], [64]])
    rotation = rotation_from_vector(rng.normal(0, 0.05, (frames, 3)))
    return rays, State(rotation, rng.normal(0, 0.15, (frames, 3)), rng.normal(0, 0.3, points))


def test_rotation_vectors_become_rotations() -> None:
    omega = np.array([[0.0, 0.0, 0.0], [0.0, np.pi / 2, 0.0], [0.3, -0.2, 0.5]])
    R = rotation_from_vector(omega)
    assert R @ np.swapaxes(R, 1, 2) == pytest.approx(np.tile(np.eye(3), (3, 1, 1)))
    assert rotation_angle_deg(R) == pytest.approx(np.degrees(np.linalg.norm(omega, axis=1)))
    assert R[1] @ [0, 0, 1] == pytest.approx([1, 0, 0])


def test_jacobians_agree_with_finite_differences() -> None:
    rays, state = world(0, points=7)
    rotated, points = transform(state, rays)
    J_camera, J_depth = _jacobians(state, CAMERA, rotated, points)
    here = project(points, CAMERA)
    for k in range(6):
        step = np.zeros((4, 6))
        step[:, k] = 1e-6
        moved = project(transform(_stepped(state, (step, np.zeros(7))), rays)[1], CAMERA)
        assert (moved - here) / 1e-6 == pytest.approx(J_camera[:, k], abs=1e-3)
    moved = project(
        transform(_stepped(state, (np.zeros((4, 6)), np.full(7, 1e-6))), rays)[1], CAMERA
    )
    assert (moved - here) / 1e-6 == pytest.approx(J_depth, abs=1e-3)


def solved(rays: np.ndarray, matches: np.ndarray, steps: int = 30) -> State:
    frames, points = len(matches), rays.shape[1]
    information = np.tile(np.array([1.0, 0.0, 1.0])[None, :, None], (frames, 1, points))
    prior = (np.zeros(points), np.full(points, 1e-6))
    start = State.at_rest(frames, np.zeros(points))
    return adjust(rays, CAMERA, flow_term(matches, information), start, steps, prior, 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_exact_matches_give_back_cameras_and_depths_up_to_scale(seed: int) -> None:
    rays, truth = world(seed)
    found = solved(rays, project(transform(truth, rays)[1], CAMERA))
    between = np.swapaxes(truth.rotation, 1, 2) @ found.rotation
    assert rotation_angle_deg(between).max() < 0.05
    scale = (truth.translation * found.translation).sum() / (found.translation**2).sum()
    assert found.translation * scale == pytest.approx(truth.translation, abs=2e-3)
    shift = found.log_inverse_depth - truth.log_inverse_depth
    assert shift.std() < 0.02


def test_a_tenth_of_wrong_matches_hardly_matters() -> None:
    rays, truth = world(1)
    matches = project(transform(truth, rays)[1], CAMERA)
    matches[:, :, ::10] += 15.0
    found = solved(rays, matches, 60)
    between = np.swapaxes(truth.rotation, 1, 2) @ found.rotation
    assert rotation_angle_deg(between).max() < 1.5


def test_the_cost_never_rises() -> None:
    rays, truth = world(2)
    matches = project(transform(truth, rays)[1], CAMERA)
    costs = [solved(rays, matches, steps).cost for steps in (0, 1, 2, 4, 8, 16)]
    assert all(later <= earlier for earlier, later in pairwise(costs))
    assert costs[-1] < 1e-2 * costs[0]
