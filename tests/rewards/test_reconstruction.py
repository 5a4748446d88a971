"""The weight-free reconstructor on ray-cast clips with known cameras and depths."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from prompts.camera import invert_pose, relative_to_first, rotation_angle_deg
from prompts.motions import PRIMITIVES, Motion
from rewards.checks import psnr
from rewards.config import ReconstructionConfig
from rewards.reconstruct.flow import dense_flow, luminance
from rewards.reconstruct.photometric import PhotometricReconstructor
from rewards.reconstruct.reconstruction import Reconstruction, ReconstructionError
from rewards.scoring import trajectory_score
from tests.rewards.clips import clip, decoded, scene
from toyworld.scenes import Clip, render_clip

RECONSTRUCT = PhotometricReconstructor(ReconstructionConfig())


def found(shot: Clip, video: np.ndarray | None = None) -> Reconstruction:
    return RECONSTRUCT(shot.video if video is None else video, shot.intrinsics)


def rotation_error_deg(shot: Clip, result: Reconstruction) -> float:
    asked = relative_to_first(shot.c2w)[:, :3, :3]
    made = relative_to_first(invert_pose(result.w2c))[:, :3, :3]
    return float(rotation_angle_deg(np.swapaxes(asked, 1, 2) @ made).mean())


@pytest.mark.parametrize("motion", PRIMITIVES)
def test_cameras_of_every_motion_are_found(motion: Motion) -> None:
    """Rotation within 1.5 degrees, S_traj of the true path at least 0.8, re-rendering 26 dB."""
    shot = clip(motion)
    result = found(shot)
    assert rotation_error_deg(shot, result) < 1.5
    score = trajectory_score(shot.c2w, invert_pose(result.w2c), result.median_depth)
    assert score.score > 0.8
    assert psnr(shot.video / 255, result.rerender) > 26


@pytest.mark.slow
def test_the_median_over_motions_is_well_below_one_degree_also_after_blur_and_noise() -> None:
    for spoil in (lambda v: v, decoded):
        errors, scores = [], []
        for motion in PRIMITIVES[::2]:
            shot = clip(motion, seed=2)
            result = found(shot, spoil(shot.video))
            errors.append(rotation_error_deg(shot, result))
            path = invert_pose(result.w2c)
            scores.append(trajectory_score(shot.c2w, path, result.median_depth).score)
        assert np.median(errors) < 0.8
        assert np.median(scores) > 0.9


@pytest.mark.parametrize("motion", [Motion.MOVE_LEFT, Motion.ORBIT_RIGHT])
def test_nearer_things_get_smaller_depths(motion: Motion) -> None:
    """Depth of what the middle frame sees, up to scale: log-correlation with the truth > 0.6."""
    shot = clip(motion)
    result = found(shot)
    w2c = result.w2c[4]
    points = result.gaussians.means.double().numpy() @ w2c[:3, :3].T + w2c[:3, 3]
    focal, centre = shot.intrinsics[0, 0], shot.intrinsics[:2, 2]
    u, v = (focal * points[:, :2] / points[:, 2:] + centre).T.astype(int)
    inside = (points[:, 2] > 0) & (u >= 0) & (u < 96) & (v >= 0) & (v < 64)
    estimated, true = np.log(points[inside, 2]), np.log(shot.depth[4][v[inside], u[inside]])
    assert np.corrcoef(estimated, true)[0, 1] > 0.6


def test_a_static_clip_stays_at_rest() -> None:
    result = found(clip(Motion.FIXED))
    path = relative_to_first(invert_pose(result.w2c))
    assert np.linalg.norm(path[:, :3, 3], axis=1).max() / result.median_depth < 0.01
    assert rotation_angle_deg(path[:, :3, :3]).max() < 0.2
    assert result.motion_px < 0.05


def test_the_same_video_gives_the_same_bits() -> None:
    shot = clip(Motion.PUSH_IN)
    first, second = found(shot), found(shot)
    assert np.array_equal(first.w2c, second.w2c)
    assert np.array_equal(first.rerender, second.rerender)


def test_long_and_large_clips_are_thinned_and_reduced() -> None:
    """13 frames of 128 × 192 under limits of 5 frames and 64 × 96 pixels."""
    shot = clip(Motion.MOVE_RIGHT)
    video = shot.video[np.minimum(np.arange(13) * 9 // 13, 8)].repeat(2, axis=1).repeat(2, axis=2)
    small = PhotometricReconstructor(ReconstructionConfig(max_frames=5, max_pixels=6144))
    scaled = shot.intrinsics * np.array([[2.0], [2.0], [1.0]])
    result = small(video, scaled)
    assert result.frames.tolist() == [0, 3, 6, 9, 12]
    assert result.video.shape == (5, 64, 96, 3)
    assert result.w2c.shape == (5, 4, 4)
    assert result.intrinsics[0] == pytest.approx(shot.intrinsics)


def test_a_reduction_that_is_not_the_same_on_both_axes_costs_nothing() -> None:
    """480 x 832 becomes 96 x 168, where focal lengths differ by 1 % (as from 240 x 416 here)."""
    shot = render_clip(scene(5), (Motion.PAN_LEFT,), frames=5, height=240, width=416)
    result = RECONSTRUCT(shot.video, shot.intrinsics)
    assert result.video.shape == (5, 96, 168, 3)
    assert result.intrinsics[0, 0, 0] == result.intrinsics[0, 1, 1] == pytest.approx(200.64)
    # 33.2 dB where the clip is filmed at 96 x 168; 30.9 dB where two focal lengths are rendered.
    assert psnr(result.video / 255, result.rerender) > 33


def test_what_cannot_be_followed_is_an_error_not_a_camera() -> None:
    rng = np.random.default_rng(0)
    flat = np.full((9, 64, 96, 3), 128, np.uint8)
    with pytest.raises(ReconstructionError, match="no camera found"):
        RECONSTRUCT(flat, clip(Motion.FIXED).intrinsics)
    with pytest.raises(ReconstructionError, match="needed: 3 frames"):
        RECONSTRUCT(rng.integers(0, 255, (2, 64, 96, 3)).astype(np.uint8), np.eye(3))


def test_flow_of_a_shift_is_the_shift() -> None:
    """A textured picture moved by 1.5 px a frame, up to four frames away."""
    base = np.random.default_rng(0).uniform(0, 255, (24, 36, 3)).astype(np.float32)
    large = cv2.resize(base, (144, 96), interpolation=cv2.INTER_CUBIC)
    frames = []
    for index in range(5):
        M = np.array([[1, 0, 1.5 * (index - 2) - 20], [0, 1, -16]], np.float32)
        frames.append(cv2.warpAffine(large, M, (96, 64), flags=cv2.INTER_LINEAR))
    video = np.clip(np.stack(frames), 0, 255).astype(np.uint8)
    flow = dense_flow(luminance(video), 2)
    for index in range(5):
        inner = flow[index, 12:-12, 12:-12]
        assert np.median(inner[..., 0]) == pytest.approx(1.5 * (index - 2), abs=0.15)
        assert np.median(inner[..., 1]) == pytest.approx(0.0, abs=0.15)
