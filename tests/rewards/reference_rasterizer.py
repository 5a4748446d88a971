"""Per-pixel rasteriser, slow and readable: what `rewards.rasterizer` must agree with."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def quaternion_matrix(wxyz: F64) -> F64:
    """Rotation matrix of one quaternion."""
    w, x, y, z = wxyz / np.linalg.norm(wxyz)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def project_one(
    mean: F64, scale: F64, wxyz: F64, w2c: F64, K: F64, size: tuple[int, int]
) -> tuple[float, F64, F64]:
    """Depth, centre in pixels and 2D covariance of one Gaussian; `size` is (height, width).

    The slope at which the projection is linearised is held within 1.3 × the view.
    """
    height, width = size
    x, y, z = w2c[:3, :3] @ mean + w2c[:3, 3]
    axes = w2c[:3, :3] @ quaternion_matrix(wxyz) @ np.diag(scale)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    a = np.clip(x / z, -cx / fx - 0.15 * width / fx, (1.15 * width - cx) / fx)
    b = np.clip(y / z, -cy / fy - 0.15 * height / fy, (1.15 * height - cy) / fy)
    J = np.array([[fx / z, 0, -fx * a / z], [0, fy / z, -fy * b / z]])
    covariance = J @ axes @ axes.T @ J.T + 0.3 * np.eye(2)
    centre = np.array([fx * x / z + cx, fy * y / z + cy])
    return z, centre, covariance


def render_pixel(
    u: int, v: int, seen: list[tuple[float, F64, F64, float, F64]]
) -> tuple[F64, float]:
    """Colour and alpha of a pixel; `seen` are (depth, centre, covariance, opacity, colour)."""
    color, transmittance = np.zeros(3), 1.0
    for _, centre, covariance, opacity, own in sorted(seen, key=lambda g: g[0]):
        d = np.array([u + 0.5, v + 0.5]) - centre
        extent = min(3.33, math.sqrt(2 * math.log(255 * opacity)))
        radius = np.ceil(extent * np.sqrt(np.diag(covariance)))
        low, high = np.floor(centre - radius), np.ceil(centre + radius)
        if not (low[0] <= u < high[0] and low[1] <= v < high[1]):
            continue
        alpha = min(0.999, opacity * math.exp(-0.5 * d @ np.linalg.inv(covariance) @ d))
        if alpha < 1 / 255:
            continue
        if transmittance * (1 - alpha) <= 1e-4:
            break
        color = color + alpha * transmittance * own
        transmittance *= 1 - alpha
    return color, 1 - transmittance
