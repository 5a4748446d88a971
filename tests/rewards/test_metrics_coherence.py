"""Flow-warped error and motion of shifts by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from rewards.metrics.coherence import coherence, warped_difference


def texture(seed: int = 0, width: int = 200) -> np.ndarray:
    noise = np.random.default_rng(seed).random((64, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return ((smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255).astype(np.uint8)


def sliding(step: int, frames: int = 4) -> np.ndarray:
    wide = texture()
    return np.stack([wide[:, i * step : i * step + 96] for i in range(frames)])


def test_a_shift_is_motion_and_leaves_no_error() -> None:
    still, moving = coherence(sliding(0)), coherence(sliding(2))
    assert still.motion_px == pytest.approx(0, abs=1e-3)
    assert still.warp_error == pytest.approx(0, abs=1e-3)
    assert moving.motion_px == pytest.approx(2, abs=0.1)
    assert moving.motion_share == pytest.approx(100 * moving.motion_px / 96)
    assert moving.warp_error < 0.02


def test_flicker_is_error_without_motion() -> None:
    frame = texture()[:, :96].astype(np.float32)
    video = np.stack([frame * s for s in (0.5, 0.6, 0.5, 0.6)]).astype(np.uint8)
    found = coherence(video)
    expected = np.sqrt(np.square(0.1 * frame / 255).mean())
    assert found.warp_error == pytest.approx(expected, rel=0.25)
    assert found.warp_error > 2 * coherence(sliding(2)).warp_error


def test_warped_difference_by_hand() -> None:
    """Everything moves right by one pixel; the last column leaves the frame and does not count."""
    first = texture()[:, :96]
    second = np.roll(first, 1, axis=1)
    flow = np.zeros((64, 96, 2), np.float32)
    flow[..., 0] = 1
    error, visible = warped_difference(first, second, flow, -flow)
    assert not visible[:, -1].any()
    assert visible[:, :-1].all()
    assert np.abs(error[visible]).max() == 0
    _, hidden = warped_difference(first, second, flow, flow)  # the way back leads elsewhere
    assert not hidden.any()


def test_one_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="2 or more"):
        coherence(sliding(0, frames=1))
