"""Data terms of the bundle adjustment: matched flow vectors, and raw colours."""

from __future__ import annotations

import numpy as np
import torch
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
        # Colour and both derivatives, [T, 9, H, W], sampled together.
        maps = [np.concatenate([frame, *gradients(frame)], axis=2) for frame in targets]
        self._maps = torch.from_numpy(np.stack(maps)).permute(0, 3, 1, 2).contiguous()

    def at(
        self, colors: F32, frames: NDArray[np.intp] | None = None, noise: float | F32 = COLOR_NOISE
    ) -> DataTerm:
        """The term of points with `colors` [P, 3], over all targets or those in `frames`.

        `noise` is one for all points, or each point's own [P].
        """
        maps = self._maps if frames is None else self._maps[torch.from_numpy(frames)]
        last = np.array(maps.shape[:1:-1], np.float64)[:, None] - 1
        own = np.ascontiguousarray(colors.T)
        spread = np.asarray(noise, np.float32)

        def term(pixels: F64) -> tuple[float, F64, F64]:
            places = pixels - 0.5
            inside = ((places >= 0) & (places <= last)).all(axis=1)
            grid = np.moveaxis(places * (2 / last) - 1, 1, -1).astype(np.float32)
            # torch samples at exact places, OpenCV at multiples of 1/32 pixel: a cost in steps.
            sampled = torch.nn.functional.grid_sample(
                maps, torch.from_numpy(grid)[:, None], padding_mode="border", align_corners=True
            )[:, :, 0].numpy()
            value, du, dv = sampled[:, :3], sampled[:, 3:6], sampled[:, 6:]
            residual = (value - own) / spread
            squared = (residual * residual).sum(axis=1)
            cost = np.where(inside, 0.5 * np.log1p(squared), OUTSIDE_COST)
            scale = (inside / (1 + squared) / spread)[:, None]
            gradient = np.stack([(d * residual).sum(axis=1) for d in (du, dv)], axis=1)
            products = ((du, du), (du, dv), (dv, dv))
            information = np.stack([(a * b).sum(axis=1) for a, b in products], axis=1)
            return float(cost.sum()), gradient * scale, information * (scale / spread)

        return term
