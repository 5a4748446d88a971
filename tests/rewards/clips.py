"""Toy clips of the reward tests, rendered once per session."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from prompts.motions import Motion
from toyworld.scenes import Clip, Scene, random_scene, render_clip

U8 = NDArray[np.uint8]


@cache
def scene(seed: int) -> Scene:
    return random_scene(np.random.default_rng(seed))


@cache
def clip(motion: Motion, corruption: str = "none", seed: int = 1) -> Clip:
    """The same seed gives the same scene, whatever the motion and the corruption."""
    return render_clip(scene(seed), (motion,), corruption)


def decoded(video: U8, seed: int = 0) -> U8:
    """What a small video VAE makes of a clip, roughly: a little blur, a little noise."""
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 0.7) for frame in video]).astype(float)
    noise = np.random.default_rng(seed).normal(0, 3, video.shape)
    return np.clip(blurred + noise, 0, 255).astype(np.uint8)


def independent(motion: Motion) -> U8:
    """Every frame from another scene."""
    return np.stack([clip(motion, seed=10 + i).video[i] for i in range(9)])
