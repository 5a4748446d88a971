"""Paths against hand-computed poses; composites are continuous; pose algebra is exact."""

from __future__ import annotations

import numpy as np
import pytest

from prompts.camera import camera_path, invert_pose, relative_to_first, rotation_angle_deg
from prompts.config import Amplitudes
from prompts.motions import COMPOSITES, Motion

M = Motion


def c2w_of(*motions: Motion, frames: int = 9) -> np.ndarray:
    path = camera_path(motions, frames)
    assert path is not None
    return path.c2w


def forward(c2w: np.ndarray) -> np.ndarray:
    return c2w[..., :3, 2]


@pytest.mark.parametrize(
    ("motion", "centre"),
    [
        (M.PUSH_IN, (0, 0, 0.6)),
        (M.PULL_OUT, (0, 0, -0.6)),
        (M.MOVE_LEFT, (-0.22, 0, 0)),
        (M.MOVE_RIGHT, (0.22, 0, 0)),
        (M.FIXED, (0, 0, 0)),
    ],
)
def test_translations_end_where_their_amplitude_says_and_never_turn(
    motion: Motion, centre: tuple[float, float, float]
) -> None:
    c2w = c2w_of(motion)
    np.testing.assert_allclose(c2w[-1, :3, 3], centre, atol=1e-12)
    np.testing.assert_allclose(c2w[4, :3, 3], np.array(centre) / 2, atol=1e-12)
    np.testing.assert_allclose(c2w[:, :3, :3], np.tile(np.eye(3), (9, 1, 1)), atol=1e-12)


@pytest.mark.parametrize(("motion", "side"), [(M.PAN_LEFT, -1), (M.PAN_RIGHT, 1)])
def test_pans_turn_fourteen_degrees_to_their_side_on_the_spot(motion: Motion, side: int) -> None:
    c2w = c2w_of(motion)
    angle = np.radians(14)
    np.testing.assert_allclose(
        forward(c2w[-1]), (side * np.sin(angle), 0, np.cos(angle)), atol=1e-12
    )
    assert np.abs(c2w[:, :3, 3]).max() == 0
    assert rotation_angle_deg(c2w[-1, :3, :3]) == pytest.approx(14)


@pytest.mark.parametrize(("motion", "side"), [(M.ORBIT_LEFT, -1), (M.ORBIT_RIGHT, 1)])
def test_orbits_circle_a_centre_that_they_always_face(motion: Motion, side: int) -> None:
    c2w = c2w_of(motion)
    centre = np.array([0, 0, 0.6])
    to_centre = centre - c2w[:, :3, 3]
    np.testing.assert_allclose(np.linalg.norm(to_centre, axis=1), 0.6, atol=1e-12)
    np.testing.assert_allclose(to_centre / 0.6, forward(c2w), atol=1e-12)
    # 0.6·sin 24° to the side, 0.6·(1 - cos 24°) forwards.
    np.testing.assert_allclose(c2w[-1, :3, 3], (side * 0.24404, 0, 0.05187), atol=1e-5)


@pytest.mark.parametrize("name", COMPOSITES)
def test_composites_are_continuous_and_compose_their_parts_in_order(name: str) -> None:
    c2w = c2w_of(*COMPOSITES[name], frames=121)
    steps = invert_pose(c2w[:-1]) @ c2w[1:]
    assert np.linalg.norm(steps[:, :3, 3], axis=1).max() < 0.6 / 120 + 1e-9
    assert rotation_angle_deg(steps[:, :3, :3]).max() < 14 / 120 + 1e-9
    side = -1 if name == "pull left" else 1
    # Each part gets a third of the time, hence a third of its amplitude.
    np.testing.assert_allclose(c2w[-1, :3, 3], (side * 0.22 / 3, 0, -0.2), atol=1e-12)
    assert rotation_angle_deg(c2w[-1, :3, :3]) == pytest.approx(14 / 3)


def test_a_move_after_a_pan_goes_along_the_turned_axis() -> None:
    angle = np.radians(7)
    end = c2w_of(M.PAN_RIGHT, M.PUSH_IN)[-1, :3, 3]
    np.testing.assert_allclose(end, (0.3 * np.sin(angle), 0, 0.3 * np.cos(angle)), atol=1e-12)


def test_paths_start_at_the_identity_and_are_read_only() -> None:
    for motion in Motion:
        c2w = c2w_of(motion)
        assert c2w.shape == (9, 4, 4)
        assert c2w.dtype == np.float64
        np.testing.assert_array_equal(c2w[0], np.eye(4))
        with pytest.raises(ValueError, match="read-only"):
            c2w[0, 0, 0] = 2


def test_no_motion_means_no_path_and_one_frame_is_the_identity() -> None:
    assert camera_path((), 9) is None
    np.testing.assert_array_equal(c2w_of(M.PUSH_IN, frames=1), np.eye(4)[None])
    with pytest.raises(ValueError, match="frames is 0"):
        camera_path((M.PUSH_IN,), 0)


def test_amplitudes_scale_the_path() -> None:
    path = camera_path((M.PUSH_IN,), 3, Amplitudes(push=1.0))
    assert path is not None
    np.testing.assert_allclose(path.c2w[:, 2, 3], (0, 0.5, 1.0))


def test_inverse_and_relative_poses_cancel() -> None:
    c2w = c2w_of(M.ORBIT_LEFT, M.PUSH_IN)
    np.testing.assert_allclose(invert_pose(c2w) @ c2w, np.tile(np.eye(4), (9, 1, 1)), atol=1e-12)
    moved = c2w[5] @ c2w
    np.testing.assert_allclose(relative_to_first(moved), c2w, atol=1e-12)


@pytest.mark.parametrize("angle_deg", [0.0, 1e-6, 0.3, 90.0, 179.9, 180.0])
def test_rotation_angles_are_exact_at_both_ends(angle_deg: float) -> None:
    angle = np.radians(angle_deg)
    around_x = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    assert rotation_angle_deg(around_x) == pytest.approx(angle_deg, rel=1e-6, abs=1e-12)
