"""Paths against hand-computed poses; composites are continuous; pose algebra is exact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from prompts.camera import (
    camera_path,
    given_path,
    invert_pose,
    read_path,
    relative_to_first,
    requested_path,
    require_paths,
    rotation_angle_deg,
)
from prompts.config import Amplitudes, CameraConfig
from prompts.motions import COMPOSITES, PRIMITIVES, Motion, Segment
from prompts.schema import Prompt

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
        (M.CRANE_UP, (0, -0.13, 0)),
        (M.CRANE_DOWN, (0, 0.13, 0)),
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


@pytest.mark.parametrize(("motion", "side"), [(M.TILT_UP, -1), (M.TILT_DOWN, 1)])
def test_tilts_look_up_and_down_on_the_spot(motion: Motion, side: int) -> None:
    """12 degrees; y points down, so that looking up is -y."""
    c2w, angle = c2w_of(motion), np.radians(12)
    np.testing.assert_allclose(
        forward(c2w[-1]), (0, side * np.sin(angle), np.cos(angle)), atol=1e-12
    )
    np.testing.assert_allclose(c2w[:, :3, 0], np.tile((1, 0, 0), (9, 1)), atol=1e-12)
    assert np.abs(c2w[:, :3, 3]).max() == 0


@pytest.mark.parametrize(("motion", "side"), [(M.ROLL_LEFT, -1), (M.ROLL_RIGHT, 1)])
def test_rolls_turn_about_the_viewing_axis(motion: Motion, side: int) -> None:
    """20 degrees; rolled to the right (clockwise), the camera's right edge points downwards."""
    c2w, angle = c2w_of(motion), np.radians(20)
    np.testing.assert_allclose(c2w[-1, :3, 0], (np.cos(angle), side * np.sin(angle), 0), atol=1e-12)
    np.testing.assert_allclose(forward(c2w), np.tile((0, 0, 1), (9, 1)), atol=1e-12)


def test_a_stated_amount_is_what_its_segment_does() -> None:
    """30 degrees in the first half of the clip, then the default push's half in the second."""
    path = camera_path((Segment(M.PAN_RIGHT, 30.0), Segment(M.PUSH_IN)), 9)
    assert path is not None
    assert rotation_angle_deg(path.c2w[4, :3, :3]) == pytest.approx(30)
    end = 0.3 * np.array([np.sin(np.radians(30)), 0, np.cos(np.radians(30))])
    np.testing.assert_allclose(path.c2w[-1, :3, 3], end, atol=1e-12)
    plain = camera_path((Segment(M.PAN_RIGHT), Segment(M.PUSH_IN)), 9)
    assert plain is not None
    np.testing.assert_array_equal(plain.c2w, c2w_of(M.PAN_RIGHT, M.PUSH_IN))


def test_every_motion_takes_an_amount_in_its_unit() -> None:
    for motion in set(Motion) - {M.FIXED}:
        path = camera_path((Segment(motion, 0.5),), 5)
        assert path is not None
        moved = np.linalg.norm(path.c2w[-1, :3, 3])
        turned = rotation_angle_deg(path.c2w[-1, :3, :3])
        reached = turned if motion.unit == "degrees" else moved
        assert reached == pytest.approx(0.5), motion


def test_a_hand_given_path_takes_the_place_of_the_motions() -> None:
    """Re-expressed in its first camera, exact rotations from rounded decimals; text is unread."""
    given = c2w_of(M.ORBIT_LEFT)[3] @ c2w_of(M.ORBIT_RIGHT)
    prompt = Prompt.from_text("p", "Camera push in.").model_copy(
        update={"c2w": np.round(given, 5).tolist()}
    )
    path = requested_path(prompt, 9)
    assert path is not None
    np.testing.assert_allclose(path.c2w, c2w_of(M.ORBIT_RIGHT), atol=3e-5)
    np.testing.assert_allclose(path.c2w[0], np.eye(4), atol=1e-12)
    R = path.c2w[:, :3, :3]
    np.testing.assert_allclose(R @ np.swapaxes(R, 1, 2), np.tile(np.eye(3), (9, 1, 1)), atol=1e-12)
    with pytest.raises(ValueError, match="has 9 cameras; allowed: 5"):
        requested_path(prompt, 5)


def test_paths_survive_prompt_files_and_json(tmp_path: Path) -> None:
    """A prompt's c2w goes through its line and back; without one the line has no such key."""
    c2w = c2w_of(M.TILT_UP).tolist()
    prompt = Prompt.model_validate({"id": "p", "prompt": "A box.", "motions": [], "c2w": c2w})
    again = Prompt.model_validate_json(prompt.model_dump_json(by_alias=True))
    assert again == prompt
    assert "c2w" not in Prompt.from_text("q", "A box.").model_dump_json()
    for number, data in enumerate((c2w, {"c2w": c2w})):
        (tmp_path / f"{number}.json").write_text(json.dumps(data))
        assert read_path(tmp_path / f"{number}.json") == c2w


def _faulty(fault: str) -> object:
    c2w = c2w_of(M.PAN_LEFT)
    match fault:
        case "scaled":
            c2w = c2w.copy()
            c2w[4, :3, :3] *= 1.01
        case "mirrored":
            c2w = c2w @ np.diag([-1.0, 1, 1, 1])
        case "projective":
            c2w = c2w.copy()
            c2w[2, 3] = 0, 0, 0.1, 1
        case "nan":
            c2w = c2w.copy()
            c2w[1, 0, 3] = np.nan
        case "3 x 4":
            c2w = c2w[:, :3]
        case "empty":
            return []
        case "ragged":
            return [[[1, 0], [2]]]
    return c2w.tolist()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("scaled", "camera 4 is not rigid"),
        ("mirrored", "camera 0 is not rigid"),
        ("projective", r"camera 2 ends in \[0.0, 0.0, 0.1, 1.0\]"),
        ("nan", "camera 1 holds NaN"),
        ("3 x 4", r"shape \(9, 3, 4\); allowed: \[F, 4, 4\]"),
        ("empty", r"allowed: \[F, 4, 4\]"),
        ("ragged", "no array of numbers"),
    ],
)
def test_faulty_paths_are_refused_everywhere(tmp_path: Path, fault: str, sentence: str) -> None:
    """By the function, in a prompt, and in a file, which is named."""
    c2w = _faulty(fault)
    with pytest.raises(ValueError, match=sentence):
        given_path(c2w, 9)
    if fault not in ("ragged", "empty"):
        with pytest.raises(ValueError, match=sentence):
            Prompt.model_validate({"id": "p", "prompt": "x", "motions": [], "c2w": c2w})
    file = tmp_path / "path.json"
    file.write_text(json.dumps(c2w))
    with pytest.raises(ValueError, match=rf"path\.json cannot be used: .*{sentence}"):
        read_path(file)


def test_unreadable_path_files_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"poses": []}')
    (tmp_path / "b.json").write_text("{")
    for name, sentence in (("a", 'has no "c2w"'), ("b", "cannot be used"), ("c", "No such file")):
        with pytest.raises(ValueError, match=sentence):
            read_path(tmp_path / f"{name}.json")


def test_prompts_whose_path_cannot_be_followed_are_named() -> None:
    """3 depths in one of four steps pass through the plane at depth 1."""
    fine = Prompt.from_text("fine", "Camera push in by 3 depths, then pan left by 90 degrees.")
    require_paths([fine], 81, CameraConfig())
    with pytest.raises(ValueError, match="prompt 'fine': between two frames the camera passes"):
        require_paths([fine], 5, CameraConfig())
    short = fine.model_copy(update={"id": "short", "c2w": c2w_of(M.PUSH_IN).tolist()})
    with pytest.raises(ValueError, match="prompt 'short': the camera path has 9 cameras"):
        require_paths([short], 81, CameraConfig())


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
    for motion in PRIMITIVES:
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
