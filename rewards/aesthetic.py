"""The embedded scorer of single frames: is it sharp, well exposed, and does it show what was asked?

A few measures with fixed constants, no learned taste. The content measure is what keeps a policy
from erasing objects or fading colours in order to be reconstructed more easily.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from prompts.schema import Prompt
from rewards.config import AestheticConfig
from rewards.content import content, named_colors

F32 = NDArray[np.float32]

VERSION = "embedded-frame-scorer-v2"
FULL_SCORE = 10.0
SHARES = {"content": 0.5, "sharpness": 0.25, "contrast": 0.15, "exposure": 0.1}
EDGE_SHARE = 0.05
"""Share of the pixels with the largest gradients, which are the edges of a picture."""
SHARP_GRADIENT = 0.07
"""Mean gradient of the edges (of 1 per pixel) at which sharpness is 0.63; half as much again is
sharp enough. A score that kept rising would pay for any perturbation of the policy that roughens
its pictures: in a run with noise for rewards it did."""
NOISE_FLOOR = 0.02
"""Pixel noise (mean absolute difference to the local median) that costs two thirds of sharpness."""
SOME_CONTRAST = 0.09
"""Standard deviation of the luminance at which contrast is 0.63; half as much again is enough."""


@dataclass(frozen=True)
class FrameScore:
    """Measures of a clip's first frames, each in [0, 1], and their weighted sum."""

    raw: float
    """In [0, FULL_SCORE]."""
    content: float
    sharpness: float
    contrast: float
    exposure: float


class FrameScorer:
    """Scores the first K frames of a clip and averages them."""

    version = VERSION

    def __init__(self, config: AestheticConfig) -> None:
        self.config = config

    def __call__(self, video: NDArray[np.uint8], prompt: Prompt) -> FrameScore:
        """Score a video uint8 [F, H, W, 3]."""
        things = named_colors(prompt.text)
        rows = []
        for frame in video[: self.config.frames]:
            image = frame.astype(np.float32) / 255
            rows.append((content(image, things), sharpness(image), *exposure(image)))
        shown, sharp, contrast, exposed = (float(x) for x in np.mean(rows, axis=0))
        measures = {
            "content": shown, "sharpness": sharp, "contrast": contrast, "exposure": exposed
        }  # fmt: skip
        raw = FULL_SCORE * sum(SHARES[name] * value for name, value in measures.items())
        return FrameScore(raw, **measures)


def sharpness(image: F32) -> float:
    """Saturating gradient at the edges of a denoised picture [H, W, 3], less what noise costs."""
    grey = image.mean(axis=2)
    median = cv2.medianBlur(np.ascontiguousarray(grey, dtype=np.float32), 3)
    noise = float(np.median(np.abs(grey - median)))
    du = cv2.Scharr(median, cv2.CV_32F, 1, 0, scale=1 / 32)
    dv = cv2.Scharr(median, cv2.CV_32F, 0, 1, scale=1 / 32)
    steep = np.sort(np.sqrt(du * du + dv * dv), axis=None)
    gradient = float(steep[-max(int(EDGE_SHARE * steep.size), 1) :].mean())
    return enough(gradient / SHARP_GRADIENT) * float(np.exp(-noise / NOISE_FLOOR))


def enough(ratio: float) -> float:
    """1 - exp(-ratio⁴): 0.06 at ½, 0.63 at 1, and flat (0.99) from 1.5 on."""
    return 1 - math.exp(-(ratio**4))


def exposure(image: F32) -> tuple[float, float]:
    """Contrast of the luminance, and the share of pixels that are neither blown out nor black."""
    grey = image.mean(axis=2)
    contrast = enough(float(grey.std()) / SOME_CONTRAST)
    clipped = (image.min(axis=2) > 0.985) | (image.max(axis=2) < 0.03)
    return contrast, float(1 - clipped.mean())
