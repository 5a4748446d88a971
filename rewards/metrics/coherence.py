"""Frame to frame: how much moves, and how well each frame is the one before, moved."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rewards.reconstruct.flow import F32, dense_flow, luminance

U8 = NDArray[np.uint8]

RETURN_SHARE, RETURN_PX = 0.01, 0.5
"""A pixel counts as hidden where the flows there and back differ, squared, by more than this share
of their squared lengths plus this many pixels (Sundaram et al. 2010)."""


@dataclass(frozen=True, slots=True)
class Coherence:
    """Means over all pairs of consecutive frames."""

    warp_error: float
    """Root mean square colour difference (of 1) between a frame and the next one warped back along
    the flow, where nothing is hidden (Lai et al. 2018, as a root). 0 for a frozen clip: read it
    beside `motion_share` and the sharpness."""
    motion_px: float
    """Length of the flow in pixels per frame."""
    motion_share: float
    """The same in percent of the width."""
    visible_share: float
    """Share of the pixels that the flow finds again."""


def coherence(video: U8) -> Coherence:
    """Measure a video uint8 [F, H, W, 3] with F >= 2 by dense flow between consecutive frames."""
    if len(video) < 2:
        raise ValueError(f"the video has {len(video)} frames; allowed: 2 or more")
    grey = luminance(video)
    errors, lengths, shares = [], [], []
    for index in range(len(video) - 1):
        pair = grey[index : index + 2]
        flow, back = dense_flow(pair, 0)[1], dense_flow(pair, 1)[0]
        error, visible = warped_difference(video[index], video[index + 1], flow, back)
        lengths.append(float(np.linalg.norm(flow, axis=-1).mean()))
        shares.append(float(visible.mean()))
        if visible.any():
            errors.append(float(np.sqrt(np.square(error[visible]).mean())))
    if not errors:
        raise ValueError("no frame is found again in the next one")
    motion = float(np.mean(lengths))
    share = 100 * motion / video.shape[2]
    return Coherence(float(np.mean(errors)), motion, share, float(np.mean(shares)))


def warped_difference(first: U8, second: U8, flow: F32, back: F32) -> tuple[F32, NDArray[np.bool_]]:
    """Difference [H, W, 3] of `first` and `second` warped back along `flow` [H, W, 2], and where
    it counts [H, W]: inside the frame, and where `back` leads back again."""
    height, width = first.shape[:2]
    u, v = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    at_u, at_v = u + flow[..., 0], v + flow[..., 1]
    warped = cv2.remap(second, at_u, at_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    returned = cv2.remap(back, at_u, at_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    away = np.square(flow + returned).sum(axis=-1)
    long = np.square(flow).sum(axis=-1) + np.square(returned).sum(axis=-1)
    inside = (at_u >= 0) & (at_u <= width - 1) & (at_v >= 0) & (at_v <= height - 1)
    visible = inside & (away < RETURN_SHARE * long + RETURN_PX)
    return (warped.astype(np.float32) - first) / np.float32(255), visible
