"""The embedded judge of the meta-view: does the scene hold together from off the camera's path?

It looks for what a 3D vision expert would name: holes, floaters and specks, stretched texture, and
whether the things that the prompt names are still there. Like the paper's judge it answers with a
distribution over ten digits, of which the expectation is the score.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from prompts.schema import Prompt
from rewards.content import content, named_colors
from rewards.scoring import digit_expectation

F32 = NDArray[np.float32]

VERSION = "embedded-geometry-judge-v1"
HOLE_LEVEL = 0.06
"""Brightness (of 1) below which a pixel shows the black behind the Gaussians."""
SPECK_LEVEL = 0.03
"""Mean deviation from the local median that costs two thirds of the tidiness."""
STREAK_LIMIT = 0.75
"""Coherence of the texture's direction from which it counts as stretched."""
SHARES = {"covered": 0.35, "tidy": 0.25, "unstretched": 0.1, "content": 0.3}
DIGIT_SPREAD = 1.0
"""Standard deviation of the answer, in digits."""


@dataclass(frozen=True)
class Judgement:
    """Measures of a meta-view, each in [0, 1], and the expected answer."""

    score: float
    """0.1 × the expected digit: [0, 0.9]."""
    covered: float
    tidy: float
    unstretched: float
    content: float
    digits: tuple[float, ...] = ()
    """Probabilities of the digits 0-9."""


class GeometryJudge:
    """Judges one image."""

    version = VERSION

    def __call__(self, meta_view: NDArray[np.uint8], prompt: Prompt) -> Judgement:
        """Judge a meta-view uint8 [H, W, 3], rendered over black."""
        image = np.asarray(meta_view / 255, np.float32)
        seen = _seen(image)
        measures = {
            "covered": float(seen.mean()),
            "tidy": _tidiness(image, seen),
            "unstretched": _unstretched(image, seen),
            "content": content(image, named_colors(prompt.text)),
        }
        # A picture without a scene is worth nothing, however tidy its emptiness is.
        quality = sum(SHARES[name] * value for name, value in measures.items())
        quality *= min(measures["covered"] / 0.25, 1.0)
        answer = digit_log_probabilities(quality)
        weights = np.exp(answer)
        digits = tuple(float(p) for p in weights / weights.sum())
        return Judgement(digit_expectation(answer), **measures, digits=digits)


def digit_log_probabilities(quality: float) -> list[float]:
    """Unnormalised log-probabilities of the digits 0-9 around 9 × `quality`, quality in [0, 1]."""
    return [-0.5 * ((digit - 9 * quality) / DIGIT_SPREAD) ** 2 for digit in range(10)]


def _seen(image: F32) -> F32:
    """Soft mask [H, W] of what is not a hole."""
    return np.clip(image.max(axis=2) / HOLE_LEVEL - 0.5, 0, 1)


def _tidiness(image: F32, seen: F32) -> float:
    """1 without specks: deviation from the local median, where the scene is."""
    grey = np.ascontiguousarray(image.mean(axis=2), dtype=np.float32)
    specks = np.abs(grey - cv2.medianBlur(grey, 3))
    return float(np.exp(-(specks * seen).sum() / (seen.sum() + 1) / SPECK_LEVEL))


def _unstretched(image: F32, seen: F32) -> float:
    """1 minus the excess coherence of the gradients' directions over windows of a few pixels."""
    grey = image.mean(axis=2)
    du = cv2.Scharr(grey, cv2.CV_32F, 1, 0, scale=1 / 32) * seen
    dv = cv2.Scharr(grey, cv2.CV_32F, 0, 1, scale=1 / 32) * seen
    xx, xy, yy = (cv2.GaussianBlur(p, (0, 0), 3.0) for p in (du * du, du * dv, dv * dv))
    energy = xx + yy + 1e-5
    coherence = np.sqrt((xx - yy) ** 2 + 4 * xy * xy) / energy
    excess = np.clip((coherence - STREAK_LIMIT) / (1 - STREAK_LIMIT), 0, 1)
    return float(1 - (excess * energy).sum() / energy.sum())
