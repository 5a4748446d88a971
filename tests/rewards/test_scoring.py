"""S_recon, S_traj, the meta-view and the total, against numbers computed by hand (method §3)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prompts.camera import camera_path, rotation_angle_deg
from prompts.motions import COMPOSITES, PRIMITIVES, Motion
from rewards.config import WeightsConfig
from rewards.scoring import (
    MOTION_NOTE,
    affine_to_unit,
    combine,
    digit_expectation,
    meta_view_pose,
    reconstruction_score,
    texture,
    trajectory_score,
)


def path(*motions: Motion, frames: int = 9) -> np.ndarray:
    found = camera_path(motions, frames)
    assert found is not None
    return found.c2w.copy()


STILL = np.tile(np.eye(4), (9, 1, 1))
MOVING = [m for m in PRIMITIVES if m is not Motion.FIXED]


@pytest.mark.parametrize("variant", ["default", "paper", "release"])
@pytest.mark.parametrize("motion", PRIMITIVES)
def test_the_requested_path_itself_scores_one(motion: Motion, variant: str) -> None:
    score = trajectory_score(path(motion), path(motion), 1.0, variant)
    assert score.score == pytest.approx(1.0, abs=1e-6)
    assert score.notes == ()


@pytest.mark.parametrize("motion", MOVING)
def test_the_world_frame_does_not_matter(motion: Motion) -> None:
    """Paths are compared relative to their first cameras."""
    world = path(Motion.ORBIT_RIGHT)[-1]
    world[:3, 3] += (0.4, -2.0, 1.0)
    assert trajectory_score(path(motion), world @ path(motion), 1.0).score == pytest.approx(1.0)


@pytest.mark.parametrize(
    "motion", [Motion.PUSH_IN, Motion.PULL_OUT, Motion.MOVE_LEFT, Motion.ORBIT_LEFT]
)
def test_a_static_video_has_a_translation_error_of_one(motion: Motion) -> None:
    score = trajectory_score(path(motion), STILL, 1.0)
    assert score.translation_error == pytest.approx(1.0)
    assert score.scale == 0.0


@pytest.mark.parametrize("motion", MOVING)
def test_a_static_video_is_gated_to_zero_where_motion_was_asked(motion: Motion) -> None:
    score = trajectory_score(path(motion), STILL, 1.0)
    assert score.score == 0.0
    assert score.notes == (MOTION_NOTE,)


def test_a_static_video_is_right_where_a_fixed_camera_was_asked() -> None:
    assert trajectory_score(path(Motion.FIXED), STILL, 1.0).score == 1.0


def test_the_gate_opens_at_a_tenth_of_the_request() -> None:
    asked = path(Motion.PUSH_IN)
    for share, gated in ((0.09, True), (0.11, False)):
        made = asked.copy()
        made[:, 2, 3] *= share
        assert (trajectory_score(asked, made, 1.0).score == 0.0) is gated


def test_the_gate_of_an_orbit_needs_both_extent_and_angle_to_be_missing() -> None:
    """A turn on the spot is no orbit, but it is not standing still either."""
    turning = path(Motion.ORBIT_LEFT)
    turning[:, :3, 3] = 0.0
    score = trajectory_score(path(Motion.ORBIT_LEFT), turning, 1.0)
    assert score.notes == ()
    assert score.score == pytest.approx(math.exp(-1.0))


def test_paper_variant_pays_a_static_video_exp_minus_half_on_a_push_in() -> None:
    score = trajectory_score(path(Motion.PUSH_IN), STILL, 1.0, "paper")
    assert score.score == pytest.approx(math.exp(-0.5))


def test_paper_variant_pays_an_opposite_pan_079() -> None:
    """Mean angle between opposite pans: 14 degrees = 0.244 rad; exp(-0.244) = 0.783."""
    asked, made = path(Motion.PAN_LEFT), path(Motion.PAN_RIGHT)
    assert trajectory_score(asked, made, 1.0, "paper").score == pytest.approx(0.79, abs=0.01)
    # By default the same error counts relative to what was asked: 14 / 10 degrees.
    default = trajectory_score(asked, made, 1.0)
    assert default.rotation_error_deg == pytest.approx(14.0)
    assert default.score == pytest.approx(math.exp(-1.4))


def test_the_translation_error_is_relative_and_free_of_scale_up_to_three() -> None:
    asked, made = path(Motion.PUSH_IN), path(Motion.PUSH_IN)
    made[:, :3, 3] *= 0.5
    half = trajectory_score(asked, made, 1.0)
    assert half.scale == pytest.approx(2.0)
    assert half.score == pytest.approx(1.0)
    made[:, :3, 3] = asked[:, :3, 3] / 5
    fifth = trajectory_score(asked, made, 1.0)
    assert fifth.scale == 3.0
    assert fifth.translation_error == pytest.approx(1 - 3 / 5)
    assert trajectory_score(asked, made, 1.0, "paper").score == pytest.approx(1.0)


def test_an_opposite_translation_is_worth_no_more_than_none() -> None:
    """The scale is clipped from below: a reversed path cannot be turned round."""
    score = trajectory_score(path(Motion.MOVE_LEFT), path(Motion.MOVE_RIGHT), 1.0)
    assert score.scale == 0.0
    assert score.score == pytest.approx(math.exp(-1.0))


def test_median_depth_scales_the_drift_under_a_pan_or_a_fixed_camera() -> None:
    drifting = STILL.copy()
    drifting[:, 0, 3] = np.linspace(0, 0.4, 9)
    for depth, error in ((1.0, 0.2), (2.0, 0.1)):
        score = trajectory_score(path(Motion.FIXED), drifting, depth)
        assert score.translation_error == pytest.approx(error)
        assert score.score == pytest.approx(math.exp(-error))


def test_rotation_errors_are_relative_to_the_mean_requested_angle_but_at_least_ten_degrees() -> (
    None
):
    """A pan of 14 degrees turns 7 on average, an orbit of 24 degrees 12 on average."""
    assert trajectory_score(path(Motion.PAN_LEFT), STILL, 1.0).rotation_error == pytest.approx(0.7)
    straight = path(Motion.ORBIT_LEFT)
    straight[:, :3, :3] = np.eye(3)
    score = trajectory_score(path(Motion.ORBIT_LEFT), straight, 1.0)
    assert score.rotation_error == pytest.approx(1.0)


def test_release_variant_mixes_translation_and_rotation_as_published() -> None:
    """Pan asked, nothing done: 0.2 · 1 + 0.8 · (0.5 exp(-7/6) + 0.3 exp(-14/6) + 0.2 · ~0)."""
    score = trajectory_score(path(Motion.PAN_LEFT), STILL, 1.0, "release").score
    rotation = 0.5 * np.mean(np.exp(-7.0 / 6)) + 0.3 * math.exp(-14 / 6)
    assert score == pytest.approx(0.2 + 0.8 * rotation, abs=1e-4)


@pytest.mark.parametrize("name", COMPOSITES)
def test_composites_prefer_themselves_to_every_primitive(name: str) -> None:
    asked = path(*COMPOSITES[name])
    others = [trajectory_score(asked, path(motion), 1.0).score for motion in PRIMITIVES]
    assert max(others) < 0.75
    assert trajectory_score(asked, asked, 1.0).score == pytest.approx(1.0)


def test_every_primitive_prefers_itself_by_a_margin() -> None:
    """Under a fixed camera nothing is relative: a sideways move of 0.22 costs only exp(-0.11)."""
    for motion in PRIMITIVES:
        asked = path(motion)
        rest = [other for other in PRIMITIVES if other is not motion]
        others = [trajectory_score(asked, path(other), 1.0).score for other in rest]
        assert max(others) < (0.9 if motion is Motion.FIXED else 0.8), motion


def test_bad_paths_are_refused() -> None:
    with pytest.raises(ValueError, match="they must be equal"):
        trajectory_score(STILL, STILL[:5], 1.0)
    with pytest.raises(ValueError, match="median_depth is 0"):
        trajectory_score(STILL, STILL, 0.0)


def test_texture_is_the_mean_difference_of_neighbours() -> None:
    stripes = np.zeros((2, 4, 6, 3), np.uint8)
    stripes[:, :, ::2] = 20
    assert texture(stripes) == pytest.approx(10.0)
    assert texture(np.full((2, 4, 4, 3), 77, np.uint8)) == 0.0


def test_texture_does_not_depend_on_the_resolution() -> None:
    video = np.random.default_rng(0).integers(0, 255, (2, 64, 96, 3)).astype(np.uint8)
    large = video.repeat(5, axis=1).repeat(5, axis=2)
    assert texture(large) == pytest.approx(texture(video), rel=0.01)


def test_a_video_without_texture_scores_zero_by_definition() -> None:
    perfect = np.zeros(9)
    assert reconstruction_score(perfect, 5.0, 2.0) == (1.0, ())
    score, notes = reconstruction_score(perfect, 1.0, 2.0)
    assert score == 0.0
    assert notes == ("texture gate: S_recon = 0",)
    assert reconstruction_score(np.array([0.1, 0.3]), 5.0, 2.0)[0] == pytest.approx(0.8)


def test_the_orbiting_meta_view_faces_the_median_depth_point_from_its_distance() -> None:
    c2w = path(Motion.ORBIT_LEFT)
    depth = 1.7
    pose = meta_view_pose(c2w, 2.0, depth, "orbit", 20.0, 10.0)
    middle = c2w[4]
    point = middle[:3, 3] + depth * middle[:3, 2]
    assert pose[:3, 3] + depth * pose[:3, 2] == pytest.approx(point)
    assert np.linalg.norm(pose[:3, 3] - point) == pytest.approx(depth)
    turned = rotation_angle_deg(middle[:3, :3].T @ pose[:3, :3])
    cosine = (
        math.cos(math.radians(20)) * (1 + math.cos(math.radians(10)))
        + math.cos(math.radians(10))
        - 1
    ) / 2
    assert math.cos(math.radians(float(turned))) == pytest.approx(cosine)
    moved = middle[:3, :3].T @ (pose[:3, 3] - middle[:3, 3])
    assert moved[0] > 0, "to the right"
    assert moved[1] < 0, "and up: y points down"


def test_the_other_meta_views() -> None:
    c2w = path(Motion.MOVE_RIGHT)
    assert np.array_equal(meta_view_pose(c2w, 2.0, 1.7, "farthest"), c2w[-1])
    back = meta_view_pose(c2w, 2.0, 1.7, "pulled_back", pull_back=0.5)
    assert back[:3, 3].tolist() == pytest.approx([0.0, 0.0, -1.0])
    assert np.array_equal(back[:3, :3], np.eye(3))


def test_digits_are_read_as_an_expectation() -> None:
    assert digit_expectation([0.0] * 10) == pytest.approx(0.45)
    certain = [-100.0] * 10
    certain[7] = 0.0
    assert digit_expectation(certain) == pytest.approx(0.7)
    two = [-math.inf] * 10
    two[2], two[6] = math.log(0.1), math.log(0.3)
    assert digit_expectation(two) == pytest.approx(0.1 * (0.25 * 2 + 0.75 * 6))
    with pytest.raises(ValueError, match="allowed: 10"):
        digit_expectation([0.0] * 9)


def test_the_affine_map_is_clipped() -> None:
    assert affine_to_unit(7.5, 5.0, 5.0) == 0.5
    assert affine_to_unit(99.0, 5.0, 5.0) == 1.0
    assert affine_to_unit(-99.0, 5.0, 5.0) == -1.0


PARTS = {"recon": 0.8, "traj": 0.6, "meta": 0.4, "gen": -0.2}


def test_reach_counts_where_it_has_a_weight_and_may_not_be_missing_there() -> None:
    weights = WeightsConfig(reach=2.0)
    total, parts = combine(PARTS | {"reach": 0.5}, weights, "main")
    assert total == pytest.approx(2.6)
    assert parts["reach"] == 0.5
    with pytest.raises(ValueError, match="'reach' is missing"):
        combine(PARTS, weights, "main")
    without = {name: value for name, value in PARTS.items() if name != "traj"}
    assert combine(without, weights, "main")[0] == pytest.approx(1.0)


def test_the_total_is_the_weighted_sum() -> None:
    total, parts = combine(PARTS, WeightsConfig(), "main")
    assert total == pytest.approx(1.6)
    assert parts == PARTS
    total, parts = combine(PARTS, WeightsConfig(recon=0.5, gen=2.0), "main")
    assert total == pytest.approx(0.4 + 0.6 + 0.4 - 0.4)
    assert parts == PARTS


def test_the_dynamic_phase_counts_the_general_reward_alone() -> None:
    assert combine(PARTS, WeightsConfig(), "dynamic") == (-0.2, {"gen": -0.2})
    assert combine({"gen": 0.3}, WeightsConfig(), "dynamic")[0] == 0.3


def test_a_prompt_without_motion_has_no_trajectory_part() -> None:
    parts = {name: value for name, value in PARTS.items() if name != "traj"}
    assert combine(parts, WeightsConfig(), "main")[0] == pytest.approx(1.0)


def test_missing_and_broken_parts_are_refused_unless_their_weight_is_zero() -> None:
    with pytest.raises(ValueError, match="'meta' is missing"):
        combine({"recon": 1.0, "traj": 1.0, "gen": 0.0}, WeightsConfig(), "main")
    with pytest.raises(ValueError, match="'recon' is nan"):
        combine(PARTS | {"recon": math.nan}, WeightsConfig(), "main")
    with pytest.raises(ValueError, match="'traj' is inf"):
        combine(PARTS | {"traj": math.inf}, WeightsConfig(), "main")
    total, parts = combine({"recon": 1.0, "gen": 0.5}, WeightsConfig(meta=0, traj=0), "main")
    assert total == 1.5
    assert set(parts) == {"recon", "gen"}
