"""PSNR and SSIM of frames, as libraries compute them, and frames at another size."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
Floats = NDArray[np.floating]
F64 = NDArray[np.float64]

MAX_DB = 60.0
"""PSNR of equal frames, which the formula sends to infinity."""
SSIM_SIDE, SSIM_SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


def resize_frames(video: U8, width: int, height: int) -> U8:
    """A video [F, H, W, 3] at another size: by area averaging where it shrinks, else cubic. One
    way for whoever reconstructs a clip and whoever compares it with its re-rendering."""
    enlarged = width * height > video.shape[1] * video.shape[2]
    way = cv2.INTER_CUBIC if enlarged else cv2.INTER_AREA
    return np.stack([cv2.resize(frame, (width, height), interpolation=way) for frame in video])


def psnr_frames(first: Floats, second: Floats) -> F64:
    """PSNR in dB of each frame [F] of two videos [F, H, W, C] in [0, 1], at most `MAX_DB`."""
    _require_videos(first, second)
    error = np.square(first.astype(np.float64) - second).mean(axis=(1, 2, 3))
    return np.asarray(-10 * np.log10(np.maximum(error, 10 ** (-MAX_DB / 10))))


def ssim_frames(first: Floats, second: Floats) -> F64:
    """SSIM of each frame [F] of two videos [F, H, W, C] in [0, 1] (Wang et al. 2004).

    Gaussian window of 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, each channel on its own, the
    mean over all windows that lie inside the frame.
    """
    _require_videos(first, second)
    if min(first.shape[1:3]) < SSIM_SIDE:
        raise ValueError(
            f"frames are {first.shape[1:3]}; allowed: {SSIM_SIDE} pixels a side or more"
        )
    inner = SSIM_SIDE // 2
    means = [
        ssim_map(a, b)[inner:-inner, inner:-inner].mean()
        for a, b in zip(first.astype(np.float64), second.astype(np.float64), strict=True)
    ]
    return np.array(means, np.float64)


def ssim_map(first: F64, second: F64) -> F64:
    """Similarity [H, W, C] of the windows about every pixel of two images; borders mirrored."""
    a, b = _blur(first), _blur(second)
    var_a, var_b = _blur(first * first) - a * a, _blur(second * second) - b * b
    covariance = _blur(first * second) - a * b
    alike = (2 * a * b + SSIM_C1) * (2 * covariance + SSIM_C2)
    return np.asarray(alike / ((a * a + b * b + SSIM_C1) * (var_a + var_b + SSIM_C2)), np.float64)


def _blur(image: F64) -> F64:
    return np.asarray(cv2.GaussianBlur(image, (SSIM_SIDE, SSIM_SIDE), SSIM_SIGMA), np.float64)


def _require_videos(first: Floats, second: Floats) -> None:
    if first.shape != second.shape or first.ndim != 4:
        raise ValueError(
            f"videos have shapes {first.shape} and {second.shape}; allowed: two equal [F, H, W, C]"
        )
