"""Dense inverse depth of a frame whose cameras are known: colours pull, smoothness holds."""

from __future__ import annotations

import numpy as np

from rewards.reconstruct.bundle_adjustment import (
    F64,
    MAX_LOG_STEP,
    MIN_DEPTH,
    DataTerm,
    Pinhole,
)

SMOOTHNESS = 4.0
"""Weight of a difference of 1 in log inverse depth between two neighbours of equal colour."""
EDGE_COLOR = 20.0
"""Colour step (grey levels) across which neighbours hold each other half as much."""
SWEEPS = 20


def refine(
    log_inverse_depth: F64,
    rays: F64,
    camera: Pinhole,
    w2k: F64,
    data: DataTerm,
    bonds: tuple[F64, F64],
    iterations: int,
) -> F64:
    """Gauss-Newton on the log inverse depths [h, w] of a key frame's grid of rays [3, h · w].

    Args:
        w2k: [T, 4, 4] from the key camera to the target cameras.
        bonds: smoothness between neighbours, see `color_bonds`.
    """
    shape = log_inverse_depth.shape
    rotated = w2k[:, :3, :3] @ rays
    translation = w2k[:, :3, 3:]
    x = log_inverse_depth
    for _ in range(iterations):
        inverse_depth = np.exp(x.ravel())
        points = rotated + translation * inverse_depth
        z = np.maximum(points[:, 2], MIN_DEPTH)
        u, v = points[:, 0] / z, points[:, 1] / z
        pixels = camera.focal * np.stack([u, v], axis=1) + np.array(camera.centre)[:, None]
        _, gradient, information = data(pixels)
        near = camera.focal / z * inverse_depth
        du = near * (translation[:, 0] - u * translation[:, 2])
        dv = near * (translation[:, 1] - v * translation[:, 2])
        xx, xy, yy = information[:, 0], information[:, 1], information[:, 2]
        curvature = (xx * du * du + 2 * xy * du * dv + yy * dv * dv).sum(axis=0)
        slope = (gradient[:, 0] * du + gradient[:, 1] * dv).sum(axis=0)
        step = np.clip(-slope / (curvature + 1e-3), -MAX_LOG_STEP, MAX_LOG_STEP)
        x = relax(x + step.reshape(shape), curvature.reshape(shape), bonds, x)
    return x


def relax(target: F64, confidence: F64, bonds: tuple[F64, F64], start: F64) -> F64:
    """Minimise Σ confidence (x - target)² + Σ bond (x - neighbour)² by Jacobi sweeps; [h, w]."""
    right, down = bonds
    diagonal = confidence + 1e-6
    diagonal[:, :-1] += right
    diagonal[:, 1:] += right
    diagonal[:-1] += down
    diagonal[1:] += down
    pulled = confidence * target + 1e-6 * start
    x = start
    for _ in range(SWEEPS):
        total = pulled.copy()
        total[:, :-1] += right * x[:, 1:]
        total[:, 1:] += right * x[:, :-1]
        total[:-1] += down * x[1:]
        total[1:] += down * x[:-1]
        x = total / diagonal
    return x


def color_bonds(colors: F64) -> tuple[F64, F64]:
    """Smoothness weights to the right [h, w - 1] and down [h - 1, w] of a colour grid [h, w, 3]."""
    right = np.square(np.diff(colors, axis=1)).sum(axis=2)
    down = np.square(np.diff(colors, axis=0)).sum(axis=2)
    return (
        SMOOTHNESS / (1 + right / EDGE_COLOR**2),
        SMOOTHNESS / (1 + down / EDGE_COLOR**2),
    )
