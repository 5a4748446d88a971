"""The judges tell motions, broken clips and shapes apart on clips with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from prompts.motions import Motion
from toyworld.measures import (
    best_motion,
    consistency_db,
    primitive_paths,
    segment,
    shape_of,
    sweep_error,
)
from toyworld.scenes import random_scene, render_clip

PATHS = primitive_paths(9)


@pytest.mark.parametrize("motion", [Motion.ORBIT_LEFT, Motion.PAN_RIGHT, Motion.PULL_OUT])
def test_the_motion_of_a_true_clip_is_recovered(motion: Motion) -> None:
    clip = render_clip(random_scene(np.random.default_rng(20)), (motion,))
    assert best_motion(clip.video, PATHS) is motion


def test_a_corrupted_clip_is_less_consistent_under_the_commanded_path() -> None:
    scene, motion = random_scene(np.random.default_rng(21)), Motion.MOVE_RIGHT
    good = consistency_db(render_clip(scene, (motion,)).video, PATHS[motion])
    for kind in ("slide", "warp", "drift", "wrong_camera"):
        broken = render_clip(scene, (motion,), kind).video
        assert consistency_db(broken, PATHS[motion]) < good - 3, kind


def test_a_still_video_is_perfectly_consistent_with_a_fixed_camera_only() -> None:
    video = render_clip(random_scene(np.random.default_rng(22)), (Motion.FIXED,)).video
    assert sweep_error(video, PATHS[Motion.FIXED]) < 1e-6
    assert sweep_error(video, PATHS[Motion.PAN_LEFT]) > 1e-4


def test_boxes_and_balls_are_told_apart_in_true_first_frames() -> None:
    rng = np.random.default_rng(23)
    right = []
    for _ in range(8):
        scene = random_scene(rng)
        frame = render_clip(scene, (Motion.FIXED,), frames=1).video[0]
        right += [shape_of(segment(frame, o.color)) == o.shape for o in scene.objects]
    assert np.mean(right) >= 0.9


def test_an_absent_colour_has_no_shape() -> None:
    gray = np.full((64, 96, 3), 128, np.uint8)
    assert not segment(gray, "red").any()
    assert shape_of(segment(gray, "red")) == "none"
