"""A perceptual distance without learned weights: structure, gradients and colours at many scales.

It is its own measure, calibrated on ray-cast clips, and no stand-in for a learned one in a report.
The learned one, LPIPS, is `rewards/lpips.py`.
"""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from rewards.config import PerceptualConfig

F32 = NDArray[np.float32]

VERSION = "multiscale-v1"
SCALES = 3
WINDOW = 1.5
"""Standard deviation of the structure window, in pixels of each scale."""
COLOR_SPAN = 0.08
"""Colour difference (of 1, root mean square) that is about two thirds of the worst."""
SHARES = (0.35, 0.4, 0.25)
"""Of structure, gradients and colours."""


class Distance(Protocol):
    """A perceptual distance in [0, 1] between the frames of two videos."""

    version: str

    def __call__(self, first: F32, second: F32) -> F32:
        """Distances [F] of two videos [F, H, W, 3] in [0, 1]."""
        ...


class MultiscaleDistance:
    """Distance in [0, 1] between images: 0 for equal ones, towards 1 for unrelated ones."""

    def __init__(self, config: PerceptualConfig) -> None:
        self.version, self.contrast = distance_version(config), config.contrast

    def __call__(self, first: F32, second: F32) -> F32:
        """Distances [F] of two videos [F, H, W, 3] in [0, 1]."""
        if first.shape != second.shape or first.ndim != 4 or first.shape[-1] != 3:
            raise ValueError(
                f"videos have shapes {first.shape} and {second.shape}; allowed: two equal "
                "[F, H, W, 3]"
            )
        pairs = zip(first, second, strict=True)
        return np.array([image_distance(a, b, self.contrast) for a, b in pairs], np.float32)


def distance_version(config: PerceptualConfig) -> str:
    """Name and version of the distance, without building it."""
    if config.backend == "lpips":
        return "lpips-0.1-alex"
    usual = config.contrast == PerceptualConfig().contrast
    return VERSION if usual else f"{VERSION}-contrast-{config.contrast:g}"


def build_distance(config: PerceptualConfig, device: str = "cpu") -> Distance:
    """The distance that the config names; WeightsMissing where its weights cannot be had."""
    if config.backend == "lpips":
        from rewards.lpips import LpipsDistance

        return LpipsDistance(config, device)
    return MultiscaleDistance(config)


def image_distance(first: F32, second: F32, contrast: float) -> float:
    """Distance of two images [H, W, 3] in [0, 1], averaged over scales 1, ½, ¼.

    Differences of structure and gradients are relative to the pictures' own where these are well
    above `contrast` (of 1), and count as they are below it.
    """
    first, second = (np.ascontiguousarray(x, dtype=np.float32) for x in (first, second))
    total, scales = 0.0, 0
    for _ in range(SCALES):
        parts = (
            _structure(first, second, contrast),
            _gradients(first, second, contrast),
            _colors(first, second),
        )
        total += sum(share * part for share, part in zip(SHARES, parts, strict=True))
        scales += 1
        if min(first.shape[:2]) < 16:
            break
        size = (first.shape[1] // 2, first.shape[0] // 2)
        first, second = _reduced(first, size), _reduced(second, size)
    return total / scales


def _blur(image: F32) -> F32:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), WINDOW), np.float32)


def _reduced(image: F32, size: tuple[int, int]) -> F32:
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.float32)


def _structure(first: F32, second: F32, contrast: float) -> float:
    """Half of 1 - the local correlation of the luminance (the last factor of SSIM)."""
    a, b = first.mean(axis=2), second.mean(axis=2)
    mean_a, mean_b = _blur(a), _blur(b)
    noise = contrast**2
    var_a = np.maximum(_blur(a * a) - mean_a**2, 0)
    var_b = np.maximum(_blur(b * b) - mean_b**2, 0)
    covariance = _blur(a * b) - mean_a * mean_b
    similarity = (2 * covariance + noise) / (var_a + var_b + noise)
    return float(np.clip(1 - similarity, 0, 1).mean())


def _gradients(first: F32, second: F32, contrast: float) -> float:
    """Difference of the image gradients relative to their size: misplaced or missing edges."""
    difference = size = np.zeros(first.shape[:2], np.float32)
    for axis in ((1, 0), (0, 1)):
        a, b = (cv2.Scharr(x, cv2.CV_32F, *axis, scale=1 / 32) for x in (first, second))
        difference = difference + np.square(a - b).sum(axis=2)
        size = size + np.square(a).sum(axis=2) + np.square(b).sum(axis=2)
    return float(np.sqrt(difference.mean() / (size.mean() + contrast**2)).clip(0, 1))


def _colors(first: F32, second: F32) -> float:
    """1 - exp(-rms colour difference / span), on smoothed images: wrong or drifting colours."""
    rms = np.sqrt(np.square(_blur(first) - _blur(second)).mean())
    return float(1 - np.exp(-rms / COLOR_SPAN))
