"""S_reach: whether the picture moves as far as the camera was asked to go (ours, not the paper's).

Pure functions of arrays. Poses are float64 c2w [F, 4, 4] in OpenCV axes, translations in scene
depths.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prompts.camera import relative_to_first
from rewards.reconstruct.flow import FLOW_SIDE, dense_flow, luminance, reduced

U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]

NEAREST_SHARE = 0.1
"""Points of the plane that the path brings nearer than this share of its depth count as this
near."""
REST_PX = 1e-3
"""A request that moves no pixel farther than this is one to stand still."""


def reach_score(requested_c2w: F64, video: U8, focal: float, depth: float) -> float:
    """S_reach in [0, 1]: the share of the requested motion that is seen in a video [F, H, W, 3].

    The requested path [F, 4, 4] displaces the pixels of the first frame as if they lay on a
    fronto-parallel plane at `depth`; `focal` is in frame widths. With these displacements d and the
    optical flow d' from the first frame, over all frames and all pixels that d leaves in the
    picture, it is sum(d · d') / sum(d · d), clipped: half the way is 0.5, the opposite way 0,
    farther than asked no more than 1. A request at rest is reached by definition, and one that
    takes every pixel out of the picture at once is not, whatever the video shows. Unlike S_traj it
    fits no scale, and needs no recovered camera.
    """
    frames = reduced(video, FLOW_SIDE)
    height, width = frames.shape[1:3]
    asked, inside = plane_motion(requested_c2w, depth, focal * width, width, height)
    if np.abs(asked).max() <= REST_PX:
        return 1.0
    asked = asked * inside[..., None]
    power = float((asked * asked).sum())
    if power == 0:
        return 0.0
    seen = dense_flow(luminance(frames), 0).astype(np.float64)
    return float(np.clip((asked * seen).sum() / power, 0.0, 1.0))


def plane_motion(
    c2w: F64, depth: float, focal_px: float, width: int, height: int
) -> tuple[F64, NDArray[np.bool_]]:
    """Displacement [F, H, W, 2] in pixels of the first frame's pixels, on the plane at `depth`,
    under a path [F, 4, 4]; and whether it leaves them in the picture [F, H, W], in front of the
    camera."""
    path = relative_to_first(c2w)
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    centre = np.array([width / 2, height / 2])
    start = np.stack([u, v], axis=-1)
    rays = np.concatenate([(start - centre) / focal_px, np.ones((height, width, 1))], axis=-1)
    offsets = depth * rays - path[:, None, None, :3, 3]
    seen = np.einsum("fji,fhwj->fhwi", path[:, :3, :3], offsets)
    where = centre + focal_px * seen[..., :2] / np.maximum(seen[..., 2:], NEAREST_SHARE * depth)
    inside = (where >= 0).all(axis=-1) & (where < (width, height)).all(axis=-1)
    inside &= seen[..., 2] > 0
    return where - start, inside
