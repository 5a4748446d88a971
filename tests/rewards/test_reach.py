"""S_reach: the plane's motion by hand, shifted pictures, and clips whose cameras are known."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from prompts.camera import camera_path
from prompts.config import CameraConfig
from prompts.motions import PRIMITIVES, Motion
from rewards import spoilt
from rewards.reach import plane_motion, reach_score
from rewards.reconstruct.flow import dense_flow, luminance
from tests.rewards.clips import clip

FOCAL = CameraConfig().focal
WIDTH, HEIGHT = 96, 64
FOCAL_PX = FOCAL * WIDTH
MOVING = [motion for motion in PRIMITIVES if motion is not Motion.FIXED]


def path(motion: Motion, frames: int = 9) -> np.ndarray:
    found = camera_path((motion,), frames)
    assert found is not None
    return found.c2w


def shifted(asked: np.ndarray, factor: float, depth: float) -> np.ndarray:
    """Blobs of noise on a plane, seen by a camera that goes sideways `factor` times as far as the
    path: frame f is moved by -focal x / depth pixels."""
    noise = np.random.default_rng(3).uniform(0, 255, (HEIGHT, 3 * WIDTH, 3)).astype(np.float32)
    picture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3.0), None, 0, 255, cv2.NORM_MINMAX)
    u, v = np.meshgrid(np.arange(WIDTH) + WIDTH, np.arange(HEIGHT))
    frames = [
        cv2.remap(
            picture,
            (u + factor * FOCAL_PX * x / depth).astype(np.float32),
            v.astype(np.float32),
            cv2.INTER_CUBIC,
        )
        for x in asked[:, 0, 3]
    ]
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("depth", [1.0, 2.5])
def test_the_plane_of_a_sideways_move_shifts_by_focal_times_way_over_depth(depth: float) -> None:
    asked = path(Motion.MOVE_RIGHT)
    moved, inside = plane_motion(asked, depth, FOCAL_PX, WIDTH, HEIGHT)
    assert moved.shape == (9, HEIGHT, WIDTH, 2)
    assert inside.shape == (9, HEIGHT, WIDTH)
    shift = FOCAL_PX * asked[-1, 0, 3] / depth
    np.testing.assert_allclose(moved[-1, ..., 0], -shift, atol=1e-9)
    np.testing.assert_allclose(moved[..., 1], 0.0, atol=1e-9)
    assert inside[0].all()
    # Pixel u + 0.5 leaves the picture on the left where it lies less than the shift from the edge.
    assert (~inside[-1]).sum() == HEIGHT * math.floor(shift + 0.5)


def test_the_plane_of_a_push_in_by_hand() -> None:
    """At depth 2, half a unit nearer, what lies x from the centre moves by x (2 / 1.5 - 1)."""
    asked = np.tile(np.eye(4), (2, 1, 1))
    asked[1, 2, 3] = 0.5
    moved, _ = plane_motion(asked, 2.0, FOCAL_PX, WIDTH, HEIGHT)
    assert moved[1, 0, 0] == pytest.approx((-47.5 / 3, -31.5 / 3))
    assert moved[1, -1, -1] == pytest.approx((47.5 / 3, 31.5 / 3))


def test_a_turn_moves_the_plane_alike_at_every_depth() -> None:
    near, far = (
        plane_motion(path(Motion.PAN_RIGHT), depth, FOCAL_PX, WIDTH, HEIGHT)[0]
        for depth in (0.5, 5.0)
    )
    np.testing.assert_allclose(near, far, atol=1e-9)
    middle = near[-1, HEIGHT // 2 - 1 : HEIGHT // 2 + 1, WIDTH // 2 - 1 : WIDTH // 2 + 1]
    assert middle[..., 0].mean() == pytest.approx(-FOCAL_PX * math.tan(math.radians(14)), rel=1e-3)


def test_the_world_frame_does_not_matter() -> None:
    asked = path(Motion.ORBIT_LEFT)
    world = path(Motion.PUSH_IN)[-1] @ path(Motion.PAN_LEFT)[-1]
    here = plane_motion(asked, 1.0, FOCAL_PX, WIDTH, HEIGHT)[0]
    there = plane_motion(world @ asked, 1.0, FOCAL_PX, WIDTH, HEIGHT)[0]
    np.testing.assert_allclose(here, there, atol=1e-9)


@pytest.mark.parametrize(
    ("factor", "reached"), [(1.0, 1.0), (0.5, 0.5), (0.25, 0.25), (1.5, 1.0), (-0.5, 0.0), (0, 0)]
)
def test_half_the_way_is_half_the_reach_and_farther_is_no_more(
    factor: float, reached: float
) -> None:
    asked = path(Motion.MOVE_LEFT)
    video = shifted(asked, factor, 1.5)
    assert reach_score(asked, video, FOCAL, 1.5) == pytest.approx(reached, abs=0.02)


def test_a_larger_picture_reaches_as_far() -> None:
    asked = path(Motion.MOVE_LEFT)
    video = shifted(asked, 0.5, 1.5)
    large = np.stack(
        [cv2.resize(frame, (288, 192), None, 0, 0, cv2.INTER_CUBIC) for frame in video]
    )
    assert reach_score(asked, large, FOCAL, 1.5) == pytest.approx(0.5, abs=0.02)


def test_a_request_to_stand_still_is_reached_by_anything() -> None:
    still = path(Motion.FIXED)
    for motion in (Motion.FIXED, Motion.PAN_LEFT):
        assert reach_score(still, clip(motion).video, FOCAL, 1.0) == 1.0


def turned(*degrees: float) -> np.ndarray:
    poses = np.tile(np.eye(4), (len(degrees), 1, 1))
    for pose, angle in zip(poses, np.radians(degrees), strict=True):
        pose[[0, 0, 2, 2], [0, 2, 0, 2]] = (
            np.cos(angle),
            np.sin(angle),
            -np.sin(angle),
            np.cos(angle),
        )
    return poses


def test_what_a_request_takes_out_of_the_picture_cannot_be_reached_unseen() -> None:
    """A first step of 90 degrees leaves nothing that flow could follow; what lies behind a camera
    that has turned about is not in its picture."""
    noise = np.random.default_rng(0).integers(0, 256, (4, HEIGHT, WIDTH, 3)).astype(np.uint8)
    assert reach_score(turned(0, 90, 120, 150), noise, FOCAL, 1.0) == 0.0
    _, inside = plane_motion(turned(0, 60, 120, 180), 1.0, FOCAL_PX, WIDTH, HEIGHT)
    assert inside[0].all()
    assert not inside[2:].any()


REACHED = {
    Motion.PUSH_IN: 0.83, Motion.PULL_OUT: 0.73, Motion.MOVE_LEFT: 0.99, Motion.MOVE_RIGHT: 0.96,
    Motion.ORBIT_LEFT: 1.0, Motion.ORBIT_RIGHT: 0.96, Motion.PAN_LEFT: 0.99, Motion.PAN_RIGHT: 1.0,
}  # fmt: skip
"""Of what was asked, by the toy world's ground truth, with the plane half as deep again as the unit
of the moves."""


@pytest.mark.parametrize("motion", MOVING)
def test_a_camera_that_does_what_it_was_asked_reaches_it(motion: Motion) -> None:
    shot = clip(motion)
    asked = path(motion)
    assert reach_score(asked, shot.video, FOCAL, 1.5) == pytest.approx(REACHED[motion], abs=0.02)
    assert reach_score(asked, shot.video[::-1].copy(), FOCAL, 1.5) == 0.0
    assert reach_score(asked, spoilt.frozen(shot.video), FOCAL, 1.5) < 0.05


def test_at_the_unit_of_the_moves_a_push_would_fall_short_and_an_orbit_go_too_far() -> None:
    """Which is why the reproduction has the plane at 1.5."""
    push, orbit = (clip(motion).video for motion in (Motion.PUSH_IN, Motion.ORBIT_LEFT))
    assert reach_score(path(Motion.PUSH_IN), push, FOCAL, 1.0) == pytest.approx(0.47, abs=0.02)
    flow = dense_flow(luminance(orbit), 0)
    asked, inside = plane_motion(path(Motion.ORBIT_LEFT), 1.0, FOCAL_PX, WIDTH, HEIGHT)
    asked *= inside[..., None]
    assert (asked * flow).sum() / (asked * asked).sum() == pytest.approx(1.42, abs=0.03)
