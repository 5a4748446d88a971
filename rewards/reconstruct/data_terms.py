"""Data terms of the bundle adjustment: matched flow vectors, and raw colours."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from rewards.reconstruct.bundle_adjustment import F64, DataTerm
from rewards.reconstruct.flow import F32, gradients

HUBER_PX = 0.5
COLOR_NOISE = 10.0
"""Colour difference (grey levels over three channels) at which a match stops to count fully, unless
another is given."""
OUTSIDE_COST = 0.5 * float(np.log(3.0))
"""Cost of a point that leaves the image: that of a poor match, so that fleeing never pays."""


def flow_term(matches: F64, information: F64) -> DataTerm:
    """Huber cost of the distance to `matches` [T, 2, P], measured by `information` [T, 3, P]."""

    def term(pixels: F64) -> tuple[float, F64, F64]:
        d = pixels - matches
        xx, xy, yy = information[:, 0], information[:, 1], information[:, 2]
        gradient = np.stack([xx * d[:, 0] + xy * d[:, 1], xy * d[:, 0] + yy * d[:, 1]], axis=1)
        distance = np.sqrt(np.maximum((gradient * d).sum(axis=1), 1e-18))
        weight = np.minimum(1.0, HUBER_PX / distance)
        cost = np.where(
            distance < HUBER_PX, 0.5 * distance**2, HUBER_PX * (distance - 0.5 * HUBER_PX)
        )
        return float(cost.sum()), gradient * weight[:, None], information * weight[:, None]

    return term


class ColorTerm:
    """Cauchy cost of the colour difference between points of one frame and where they land.

    Built once per set of target frames (float32 [T, H, W, 3] in grey levels, slightly blurred so
    that a gradient reaches further than a pixel); `at` fixes the points.
    """

    def __init__(self, targets: F32) -> None:
        self._size = targets.shape[1:3]
        # Colour and both derivatives, sampled together; remap takes at most four channels.
        self._maps = [(frame, *gradients(frame)) for frame in targets]

    def at(
        self, colors: F32, frames: NDArray[np.intp] | None = None, noise: float = COLOR_NOISE
    ) -> DataTerm:
        """The term of points with `colors` [P, 3], over all targets or those in `frames`."""
        maps = self._maps if frames is None else [self._maps[index] for index in frames]
        height, width = self._size

        def term(pixels: F64) -> tuple[float, F64, F64]:
            count = pixels.shape[-1]
            gradient = np.empty((len(maps), 2, count))
            information = np.empty((len(maps), 3, count))
            cost = 0.0
            for index, images in enumerate(maps):
                u, v = (pixels[index] - 0.5).astype(np.float32)[:, :, None]
                inside = ((u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1))[:, 0]
                value, du, dv = (
                    cv2.remap(image, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0]
                    for image in images
                )
                residual = (value - colors) / noise
                squared = np.einsum("pc,pc->p", residual, residual)
                weight = inside / (1 + squared)
                cost += float(np.where(inside, 0.5 * np.log1p(squared), OUTSIDE_COST).sum())
                scaled = weight / noise
                gradient[index, 0] = scaled * np.einsum("pc,pc->p", du, residual)
                gradient[index, 1] = scaled * np.einsum("pc,pc->p", dv, residual)
                scaled = scaled / noise
                information[index, 0] = scaled * np.einsum("pc,pc->p", du, du)
                information[index, 1] = scaled * np.einsum("pc,pc->p", du, dv)
                information[index, 2] = scaled * np.einsum("pc,pc->p", dv, dv)
            return cost, gradient, information

        return term
