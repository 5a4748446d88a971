"""Ways to spoil a consistent clip uint8 [F, H, W, 3] that need no renderer; no randomness but
seeded, so that the same clip is always spoilt in the same way."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]

WARP_PX = 2.0
SHUFFLE_STEP = 4
"""Frame i of the shuffled clip is frame 4 i (mod F) of the consistent one."""
FLICKER = 0.25
"""Every other frame is brighter by this share, the others darker."""
GREY = 128


def shuffled(video: U8) -> U8:
    """The same frames in another order."""
    return video[np.arange(len(video)) * SHUFFLE_STEP % len(video)]


def frozen(video: U8) -> U8:
    """The first frame all along."""
    return np.repeat(video[:1], len(video), axis=0)


def warped(video: U8, pixels: float = WARP_PX) -> U8:
    """Every frame bent by waves of its own of that amplitude, which no camera could make."""
    height, width = video.shape[1:3]
    u, v = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    bent = []
    for index, frame in enumerate(video):
        phase = 2.4 * index
        du = pixels * np.sin(2 * np.pi * v / 32 + phase).astype(np.float32)
        dv = pixels * np.sin(2 * np.pi * u / 48 + 1.7 * phase).astype(np.float32)
        bent.append(
            cv2.remap(frame, u + du, v + dv, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        )
    return np.stack(bent)


def flickering(video: U8) -> U8:
    """The brightness jumps from frame to frame."""
    gain = 1 + FLICKER * np.where(np.arange(len(video)) % 2, 1.0, -1.0)
    return np.clip(video * gain[:, None, None, None] + 0.5, 0, 255).astype(np.uint8)


def noise(video: U8) -> U8:
    """Frames of noise, each of its own."""
    return np.random.default_rng(0).integers(0, 256, video.shape).astype(np.uint8)


def flat_grey(video: U8) -> U8:
    """Nothing at all: it would reconstruct perfectly."""
    return np.full_like(video, GREY)


def greyed(video: U8) -> U8:
    """The same pictures without their colours."""
    return np.repeat(video.mean(axis=-1, keepdims=True), 3, axis=-1).astype(np.uint8)


def speckled(video: U8) -> U8:
    """The same pictures under heavy noise, always the same one."""
    grains = np.random.default_rng(0).normal(0, 60, video.shape)
    return np.clip(video + grains, 0, 255).astype(np.uint8)
