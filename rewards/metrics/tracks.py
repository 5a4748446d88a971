"""Corners of the middle frame followed through a clip, one by one, with a check on the way back.

Sparse and local (Shi and Tomasi 1994; pyramidal Lucas-Kanade): nothing here is shared with the
reward's reconstructor, which matches whole frames at once and refines on colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rewards.reconstruct.flow import gradients, luminance

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

WORK_HEIGHT = 256
"""Rows at which corners are followed: smaller clips are enlarged, larger ones reduced."""
MAX_CORNERS, QUALITY, SPACING = 200, 0.001, 0.03
"""Corners at most, the weakest against the strongest, and their distance in widths."""
WINDOW, LEVELS = 61, 3
BLUR, BLOCK = 3.0, 15
"""Pixels at work size: of the frames, against a decoder's grain, and of the window in which the
strength of a corner is judged. Generated clips are grainy: small windows follow the grain."""
MIN_GRADIENT = 0.2
"""Grey levels per pixel at work size, root mean square along the weaker direction, below which a
place is no corner, however weak the others are."""
RETURN_ERROR = 0.015
"""Distance, in widths, between a corner and where following it there and back ends."""


@dataclass(frozen=True, eq=False)
class Tracks:
    """N corners of frame `source`, in F frames."""

    pixels: F64
    """[F, N, 2] positions in pixels of the clip, pixel centres at half integers."""
    found: NDArray[np.bool_]
    """[F, N] whether a corner was found again; true all along in the source frame."""
    source: int


def follow_corners(video: U8) -> Tracks:
    """Corners of the middle frame of a video uint8 [F, H, W, 3]; none for a flat one.

    Each search starts where the frame before left the corner, and compares with the source frame,
    so that errors do not add up.
    """
    frames, height, width = video.shape[:3]
    factor = WORK_HEIGHT / height
    size = (round(width * factor), WORK_HEIGHT)
    method = cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA
    grey = [
        cv2.GaussianBlur(cv2.resize(image, size, interpolation=method), (0, 0), BLUR)
        for image in luminance(video)
    ]
    source = frames // 2
    spacing = SPACING * size[0]
    corners = cv2.goodFeaturesToTrack(
        grey[source], MAX_CORNERS, QUALITY, spacing, mask=_cornered(grey[source]), blockSize=BLOCK
    )
    if corners is None:
        return Tracks(np.zeros((frames, 0, 2)), np.zeros((frames, 0), bool), source)
    start = np.asarray(corners, np.float32).reshape(-1, 1, 2)
    pixels = np.repeat(start[None, :, 0], frames, axis=0)
    found = np.ones((frames, len(start)), bool)
    for direction, last in ((1, frames), (-1, -1)):
        for target in range(source + direction, last, direction):
            guess = pixels[target - direction][:, None]
            pixels[target], found[target] = _follow(grey[source], grey[target], start, guess)
    scale = np.array([width / size[0], height / size[1]])
    return Tracks((pixels.astype(np.float64) + 0.5) * scale, found, source)


def _cornered(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Where the weaker direction has gradients that can be followed: 1, else 0."""
    du, dv = gradients(grey.astype(np.float32))
    xx, xy, yy = (cv2.blur(p, (BLOCK, BLOCK)) for p in (du * du, du * dv, dv * dv))
    weaker = (xx + yy - np.sqrt((xx - yy) ** 2 + 4 * xy * xy)) / 2
    return (weaker > MIN_GRADIENT**2).astype(np.uint8)


def _follow(
    source: NDArray[np.uint8],
    target: NDArray[np.uint8],
    start: NDArray[np.float32],
    guess: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Positions [N, 2] of `start` in the target, and which of them lead back to their start."""
    settings: dict[str, Any] = {
        "winSize": (WINDOW, WINDOW),
        "maxLevel": LEVELS,
        "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 0.005),
        "flags": cv2.OPTFLOW_USE_INITIAL_FLOW,
    }
    found, seen, _ = cv2.calcOpticalFlowPyrLK(source, target, start, guess.copy(), **settings)
    there = np.asarray(found, np.float32)
    # The way back must not be told where to end: its guess undoes the guess of the way there.
    undone = there - (guess - start)
    back, again, _ = cv2.calcOpticalFlowPyrLK(target, source, there, undone, **settings)
    away = np.linalg.norm(np.asarray(back, np.float32) - start, axis=-1)[:, 0]
    height, width = source.shape
    u, v = there[:, 0, 0], there[:, 0, 1]
    inside = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
    both = (np.asarray(seen)[:, 0] > 0) & (np.asarray(again)[:, 0] > 0)
    sure = both & inside & (away < RETURN_ERROR * width)
    # A lost corner stays where it was, as the next frame's guess.
    kept = np.where(sure[:, None], there[:, 0], guess[:, 0])
    return kept.astype(np.float32), sure
