"""Colours of Gaussians by ridge least squares: rendering is linear in them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from rewards.rasterizer import Splats

F32 = NDArray[np.float32]

RIDGE = 0.05
"""Weight of staying at the first colours, in pixels."""


def solve_colors(splats: Splats, first: F32, video: F32, iterations: int) -> tuple[F32, F32]:
    """Colours [N, 3] that best reproduce `video` [F, H, W, 3], and what they render [F, H, W, 3].

    Minimises ‖W c - video‖² + ridge ‖c - first‖² by a few steps of preconditioned conjugate
    gradients, W the blending weights over a black background. Colours are clipped to [0, 1]
    afterwards, so that the Gaussians stay displayable.
    """
    rows = video.shape[0] * video.shape[1] * video.shape[2]
    columns, starts = (x.numpy().astype(np.int32) for x in (splats.gaussian, splats.starts))
    weights = csr_matrix(
        (splats.weight.numpy(), columns, starts),
        shape=(rows, len(first)),
    )
    target = video.reshape(rows, 3)
    diagonal = weights.multiply(weights).sum(axis=0).A1[:, None] + RIDGE
    colors = first.astype(np.float32)
    residual = weights.T @ (target - weights @ colors)
    direction = residual / diagonal
    energy = (residual * direction).sum(axis=0)
    for _ in range(iterations):
        image = weights.T @ (weights @ direction) + RIDGE * direction
        step = energy / np.maximum((direction * image).sum(axis=0), 1e-20)
        colors = colors + step * direction
        residual = residual - step * image
        scaled = residual / diagonal
        renewed = (residual * scaled).sum(axis=0)
        direction = scaled + renewed / np.maximum(energy, 1e-20) * direction
        energy = renewed
    colors = np.clip(colors, 0.0, 1.0).astype(np.float32)
    return colors, (weights @ colors).reshape(video.shape)
