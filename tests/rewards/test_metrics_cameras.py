"""RotErr, TransErr, CamMC and jitter by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rewards.metrics.cameras import camera_errors, jitter


def along(*steps: float, turns_deg: tuple[float, ...] | None = None) -> np.ndarray:
    """Cameras at z = steps, turned about y."""
    path = np.tile(np.eye(4), (len(steps), 1, 1))
    path[:, 2, 3] = steps
    for pose, angle in zip(path, np.radians(turns_deg or [0] * len(steps)), strict=True):
        pose[[0, 0, 2, 2], [0, 2, 0, 2]] = (
            np.cos(angle),
            np.sin(angle),
            -np.sin(angle),
            np.cos(angle),
        )
    return path


def test_equal_paths_have_no_error() -> None:
    path = along(0, 0.3, 0.6, turns_deg=(0, 10, 25))
    moved = np.linalg.inv(along(3.0, turns_deg=(77,)))[0] @ path  # another world, the same path
    errors = camera_errors(path, moved)
    for name in ("rot_err", "trans_err_rel", "trans_err_abs", "cam_mc_rel", "cam_mc_abs"):
        assert getattr(errors, name) == pytest.approx(0, abs=1e-9)


def test_translations_by_hand() -> None:
    """Asked 0, 1, 2; made 0, 1, 4. rel: (0, ½, 1) against (0, ¼, 1); abs: (0, ½, 1) against
    (0, ½, 2). Without rotation CamMC is TransErr."""
    errors = camera_errors(along(0, 1, 2), along(0, 1, 4))
    assert errors.rot_err == pytest.approx(0)
    assert errors.trans_err_rel == pytest.approx(0.25)
    assert errors.trans_err_abs == pytest.approx(1.0)
    assert errors.cam_mc_rel == pytest.approx(0.25)
    assert errors.cam_mc_abs == pytest.approx(1.0)


def test_rotations_by_hand() -> None:
    """Turned by 0, 10, 30 degrees instead of not at all: 40 degrees in radians. ‖R - I‖_F is
    2 √2 sin(angle / 2)."""
    errors = camera_errors(along(0, 1, 2), along(0, 1, 2, turns_deg=(0, 10, 30)))
    assert errors.rot_err == pytest.approx(np.radians(40))
    expected = sum(2 * np.sqrt(2) * np.sin(np.radians(a) / 2) for a in (10, 30))
    assert errors.cam_mc_rel == pytest.approx(expected)
    assert errors.trans_err_rel == pytest.approx(0)


def test_both_at_once_by_hand() -> None:
    """One frame off by (0, 0, 1) after scaling and by 90 degrees: √(1 + 8 sin²45°) = √5."""
    errors = camera_errors(along(0, 1), along(0, 2, turns_deg=(0, 90)))
    assert errors.trans_err_abs == pytest.approx(1.0)
    assert errors.cam_mc_abs == pytest.approx(np.sqrt(5))
    assert errors.cam_mc_rel == pytest.approx(2.0)


def test_a_request_at_rest_is_not_divided_by_its_extent() -> None:
    errors = camera_errors(along(0, 0, 0), along(0, 0.1, 0.2))
    assert errors.trans_err_abs == pytest.approx(0.3)
    assert errors.trans_err_rel == errors.trans_err_abs
    drift = camera_errors(along(0, 0, 0), along(0, 1e-5, 2e-5))
    assert drift.trans_err_rel == pytest.approx(3e-5), "a hair's breadth is no whole move"
    still = camera_errors(along(0, 1, 2), along(0, 0, 0))
    assert still.trans_err_rel == pytest.approx(1.5)


def test_jitter_by_hand() -> None:
    even = along(0, 1, 2, 3, turns_deg=(0, 5, 10, 15))
    assert jitter(even, np.arange(4)) == pytest.approx((0, 0), abs=1e-6)
    bent, bent_deg = jitter(along(0, 1, 1, 2, turns_deg=(0, 5, 5, 10)), np.arange(4))
    assert bent == pytest.approx(1.0)  # second differences -1 and 1
    assert bent_deg == pytest.approx(5.0)
    for few in (along(0, 1), along(0, 1, 2)):
        with pytest.raises(ValueError, match="3 or more at as many"):
            jitter(few, np.arange(2))


def test_jitter_of_a_subset_is_that_of_its_frames() -> None:
    """An even move looked at with gaps of 3 and 4 frames, as 25 of 81, is even; at every other
    frame, steps of 2, 0 and 2 are velocities of 1, 0 and 1."""
    uneven = along(0, 3, 7, 10, turns_deg=(0, 1.5, 3.5, 5))
    assert jitter(uneven, np.array([0, 3, 7, 10])) == pytest.approx((0, 0), abs=1e-6)
    spaced, spaced_deg = jitter(along(0, 2, 2, 4, turns_deg=(0, 10, 10, 20)), np.arange(0, 8, 2))
    assert spaced == pytest.approx(0.5)
    assert spaced_deg == pytest.approx(2.5)


def test_paths_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="must be equal"):
        camera_errors(along(0, 1), along(0, 1, 2))
