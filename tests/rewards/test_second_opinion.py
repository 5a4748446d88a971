"""The independent estimator on clips with known cameras, and on clips that are none."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from prompts.camera import invert_pose, rotation_angle_deg
from prompts.config import CameraConfig
from prompts.motions import PRIMITIVES, Motion
from rewards.metrics.independent import NoCameraFound, second_opinion
from rewards.metrics.sparse import corner_term, solve_cameras
from rewards.metrics.sweep import lifted, projected, seen_from, sweep_depth, view_agreement
from rewards.metrics.tracks import Tracks, follow_corners
from rewards.spoilt import frozen, shuffled, warped
from toyworld.scenes import Clip, random_scene, render_clip

CAMERA = CameraConfig()
SIZE = (64, 96)


def clip(motion: Motion, seed: int = 5) -> Clip:
    return render_clip(random_scene(np.random.default_rng(seed)), (motion,))


def test_corners_follow_a_shift() -> None:
    wide = clip(Motion.FIXED).video[0]
    video = np.stack([wide[:, 4 - i : 90 - i] for i in range(5)])
    tracks = follow_corners(video)
    found = tracks.found.all(axis=0)
    assert tracks.source == 2
    assert found.mean() > 0.5
    moved = tracks.pixels[4][found] - tracks.pixels[2][found]
    assert np.median(moved[:, 0]) == pytest.approx(2, abs=0.1)
    assert np.median(moved[:, 1]) == pytest.approx(0, abs=0.1)


def test_cost_has_the_derivative_that_it_says() -> None:
    rng = np.random.default_rng(0)
    goal, at = rng.normal(size=(2, 2, 5)), rng.normal(size=(2, 2, 5))
    seen = np.array([[1, 1, 0, 1, 1], [1, 0, 1, 1, 1]], bool)
    term = corner_term(goal, seen, 0.3)
    _, gradient, information = term(at)
    for index in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[index] = 1e-6
        slope = (term(at + step)[0] - term(at - step)[0]) / 2e-6
        assert gradient[index] == pytest.approx(slope, abs=1e-5)
    assert information[0, 0, 2] == 0  # a lost corner pulls at nothing


def test_cameras_of_exact_corners_are_exact() -> None:
    """Corners projected by known cameras, without noise: path and depths come back."""
    rng = np.random.default_rng(3)
    made = clip(Motion.ORBIT_LEFT)
    w2c = invert_pose(made.c2w) @ made.c2w[4]
    points = np.stack(
        [rng.uniform(-0.4, 0.4, 60), rng.uniform(-0.25, 0.25, 60), rng.uniform(0.9, 1.6, 60)]
    )
    seen = w2c[:, :3, :3] @ points + w2c[:, :3, 3:]
    u, v, _ = projected(np.moveaxis(seen, 1, -1), made.intrinsics)
    tracks = Tracks(np.stack([u + 0.5, v + 0.5], axis=-1), np.ones((9, 60), bool), 4)
    model = solve_cameras(tracks, made.intrinsics, SIZE)[0]
    scale = np.median(points[2] / model.depth)
    assert model.depth * scale == pytest.approx(points[2], rel=0.05)
    assert model.error_px < 0.03
    assert model.consistency > 0.99
    turned = model.w2c[:, :3, :3] @ np.swapaxes(w2c[:, :3, :3], 1, 2)
    assert rotation_angle_deg(turned).max() < 0.5


@pytest.mark.parametrize("motion", PRIMITIVES)
def test_every_motion_is_recognised(motion: Motion) -> None:
    made = clip(motion)
    found = second_opinion(made.video, made.prompt, CAMERA, sweep=False)
    assert found.figures["traj"] > 0.55
    assert found.figures["consistency"] > 0.4
    assert found.figures["gold"] == found.figures["traj"] + found.figures["consistency"]
    assert found.c2w.shape == (9, 4, 4)


def test_what_is_wrong_with_a_clip_costs() -> None:
    made = clip(Motion.PUSH_IN)
    gold = second_opinion(made.video, made.prompt, CAMERA, sweep=False).figures["gold"]
    for spoil in (shuffled, frozen, warped):
        spoilt = second_opinion(spoil(made.video), made.prompt, CAMERA, False).figures["gold"]
        assert spoilt < gold - 0.2, spoil.__name__


def test_nothing_to_follow_is_a_failure() -> None:
    grey = np.full((9, 64, 96, 3), 128, np.uint8)
    with pytest.raises(NoCameraFound, match="0 corners"):
        second_opinion(grey, clip(Motion.FIXED).prompt, CAMERA)


def test_swept_depth_is_the_known_one() -> None:
    made = clip(Motion.MOVE_LEFT)
    video = (made.video / 255).astype(np.float32)
    w2c = invert_pose(made.c2w)
    hypotheses = 1 / np.linspace(1 / 0.6, 1 / 3.0, 28)
    depth = sweep_depth(video, w2c, made.intrinsics, 4, [0, 2, 6, 8], hypotheses)
    error = np.abs(depth - made.depth[4]) / made.depth[4]
    assert np.median(error) < 0.06


def test_points_through_known_depth_meet() -> None:
    """Lifted and projected again, a pixel is itself; another frame seen from here looks like it."""
    made = clip(Motion.PULL_OUT)
    depth = made.depth[0].astype(np.float64)
    u, v, ahead = projected(lifted(depth, made.intrinsics), made.intrinsics)
    assert ahead.all()
    rows, columns = np.mgrid[0:64, 0:96]
    assert u == pytest.approx(columns, abs=1e-9)
    assert v == pytest.approx(rows, abs=1e-9)
    video = (made.video / 255).astype(np.float32)
    to_last = invert_pose(made.c2w[8]) @ made.c2w[0]
    warped_last, inside = seen_from(video[8], depth, to_last, made.intrinsics)
    assert np.abs(warped_last - video[0])[inside].mean() < 0.25 * np.abs(video[8] - video[0]).mean()


def test_frames_of_one_place_agree_and_of_many_do_not() -> None:
    made = clip(Motion.ORBIT_RIGHT)
    w2c = invert_pose(made.c2w)
    consistent = (made.video / 255).astype(np.float32)
    bent = (warped(made.video) / 255).astype(np.float32)
    good = view_agreement(consistent, w2c, made.intrinsics, 0.6, 3.0)
    bad = view_agreement(bent, w2c, made.intrinsics, 0.6, 3.0)
    assert good.mvcs > 0.9 > bad.mvcs
    assert good.depth_error is not None
    assert bad.depth_error is not None
    assert good.depth_error < 0.6 * bad.depth_error
    frozen_video, at_rest = consistent[:1].repeat(9, 0), w2c[:1].repeat(9, 0)
    still = view_agreement(frozen_video, at_rest, made.intrinsics, 0.6, 3.0)
    assert still.depth_error is None
    assert still.mvcs == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(ValueError, match="2 frames"):
        view_agreement(consistent[:2], w2c[:2], made.intrinsics, 0.6, 3.0)


def test_frames_that_a_depth_was_fitted_to_are_not_compared_through_it() -> None:
    """Frames of noise have nothing in common; seen through depths that were fitted to them, they
    would agree to 0.22."""
    made = clip(Motion.ORBIT_RIGHT)
    values = np.random.default_rng(0).random((9, 64, 96, 3)).astype(np.float32)
    video = np.stack([cv2.GaussianBlur(frame, (0, 0), 1.5) for frame in values])
    video = (video - video.min()) / np.ptp(video)
    found = view_agreement(video, invert_pose(made.c2w), made.intrinsics, 0.6, 3.0)
    assert abs(found.mvcs) < 0.1
