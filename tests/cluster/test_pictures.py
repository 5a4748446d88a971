"""Pictures for people: depth in colours, cameras in the video, one sheet; which groups are kept."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from cluster.artifacts import picture_files
from cluster.pictures import camera_overlay, depth_video, even_sides, score_sheet
from cluster.video import decode_mp4
from prompts.camera import camera_path
from prompts.motions import Motion
from rewards.worker import Artifacts


def path(motion: Motion) -> np.ndarray:
    found = camera_path((motion,), 5)
    assert found is not None
    return found.c2w.copy()


def made(height: int = 64, width: int = 96) -> tuple[np.ndarray, Artifacts]:
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (9, height, width, 3)).astype(np.uint8)
    frames = np.array([0, 2, 4, 6, 8])
    return video, Artifacts(
        frames=frames,
        rerender=video[frames],
        depth=np.tile(np.linspace(0.5, 2, width, dtype=np.float32), (5, height, 1)),
        splats=b"ply",
        estimated_c2w=path(Motion.PUSH_IN),
        requested_c2w=path(Motion.ORBIT_LEFT),
        scale=2.0,
        meta_view=video[0],
    )


def test_near_is_red_far_is_blue_and_nothing_is_black() -> None:
    depth = np.tile(np.linspace(0.5, 4, 60, dtype=np.float32), (2, 8, 1))
    depth[:, 0] = 0
    colors = depth_video(depth).astype(int)
    assert not colors[:, 0].any()
    near, far = colors[0, 4, 2], colors[0, 4, 45]
    assert near[0] > near[2] + 50
    assert far[2] > far[0] + 50
    assert not depth_video(np.zeros((1, 4, 4), np.float32)).any()


def test_cameras_are_drawn_into_the_corner_alone() -> None:
    video = np.full((5, 64, 96, 3), 90, np.uint8)
    shown = camera_overlay(video, path(Motion.PUSH_IN), path(Motion.ORBIT_LEFT))
    assert shown.shape == (5, 256, 384, 3)
    assert (shown[:, :140, :200] == 90).all()
    corner = shown[:, 150:, 280:].reshape(5, -1, 3).astype(int)
    orange = (corner[..., 0] > 180) & (corner[..., 2] < 120)
    white = corner.min(axis=-1) > 180
    assert orange.any(axis=1).all()
    assert white.any(axis=1).all()
    assert not np.array_equal(shown[0], shown[4])
    alone = camera_overlay(video, path(Motion.PUSH_IN), None)
    assert not (alone[:, 150:240, 280:].reshape(-1, 3).min(axis=-1) > 180).any()


@pytest.mark.slow
def test_every_file_of_a_sample_can_be_opened() -> None:
    video, artifacts = made(65, 97)
    files = picture_files(video, artifacts, "m")
    assert {name: file for name, (file, _) in files.items()} == {
        "rerender": "m_rerender.mp4",
        "meta_view": "m_meta.png",
        "depth": "m_depth.mp4",
        "overlay": "m_cameras.mp4",
        "splats": "m.ply",
    }
    for name in ("rerender", "depth"):
        assert decode_mp4(files[name][1]).shape == (5, 64, 96, 3)
    assert decode_mp4(files["overlay"][1]).shape[0] == 5
    assert Image.open(io.BytesIO(files["meta_view"][1])).size == (97, 65)


def test_the_sheet_has_a_row_for_each_view() -> None:
    video, artifacts = made()
    sheet = score_sheet(video, artifacts)
    assert sheet.shape[0] == 5 * (160 + 22)
    assert sheet.shape[1] == 5 * 240


@pytest.mark.parametrize("size", [(64, 96), (65, 96), (64, 97)])
def test_sides_become_even(size: tuple[int, int]) -> None:
    assert even_sides(np.zeros((1, *size, 3), np.uint8)).shape == (1, 64, 96, 3)
