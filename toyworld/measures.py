"""Judges of toy clips that share nothing with the rewards: camera, consistency, shape.

They know the toy world (its palette, its range of depths) and are themselves validated on clips
with known answers before they judge samples.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from prompts.camera import camera_path, invert_pose
from prompts.motions import PRIMITIVES, Motion
from toyworld.palette import FLOOR_COLORS, OBJECT_COLORS
from toyworld.raycast import F64, intrinsics

Video = NDArray[np.uint8]

DEPTHS = 1 / np.linspace(1 / 0.5, 1 / 3.2, 20)
"""Depth hypotheses, evenly spaced in inverse depth; everything in view lies within."""
CORNER, CORNER_FILLED = 0.2, 0.38
"""A box fills more than this share of its bounding box's corners (squares of a fifth of its sides),
a ball less: 99 % right on rendered clips that went through the VAE."""


def primitive_paths(frames: int) -> dict[Motion, F64]:
    """The path c2w [F, 4, 4] of each of the nine motions."""
    paths = {}
    for motion in PRIMITIVES:
        path = camera_path((motion,), frames)
        assert path is not None
        paths[motion] = path.c2w
    return paths


def sweep_error(video: Video, c2w: F64) -> float:
    """Photo-inconsistency of video uint8 [F, H, W, 3] under cameras c2w [F, 4, 4]; ≥ 0, squared.

    Plane sweep: the middle frame's pixels are looked up in the other frames at every depth
    hypothesis, the errors are averaged over small windows and frames, and each pixel keeps its
    best depth. A rigid world filmed along `c2w` leaves little; nothing else explains as much.
    """
    frames, height, width, _ = video.shape
    middle = frames // 2
    pixels = torch.from_numpy(video.astype(np.float32) / 255).permute(0, 3, 1, 2)
    others = [frame for frame in range(0, frames, 2) if frame != middle]
    to_other = invert_pose(c2w[others]) @ c2w[middle]
    grid = _sweep_grid(to_other, height, width)
    hypotheses = len(DEPTHS)
    looked_up = F.grid_sample(
        pixels[others].repeat_interleave(hypotheses, dim=0),
        grid.flatten(0, 1),
        align_corners=False,
        padding_mode="border",
    ).unflatten(0, (len(others), hypotheses))
    seen = (grid.abs() <= 1).all(dim=-1).float()
    error = (looked_up - pixels[middle]).square().mean(dim=2) * seen
    error, seen = error.sum(dim=0), seen.sum(dim=0)
    seen, error = _smoothed(seen), _smoothed(error)
    error = error / seen.clamp(min=1e-6)
    # A hypothesis that is hardly seen anywhere must not win by default.
    error = torch.where(seen > 0.25 * len(others), error, torch.inf)
    best = error.min(dim=0).values
    known = best.isfinite()
    return float(best[known].mean()) if known.any() else float("inf")


def _smoothed(images: Tensor) -> Tensor:
    """Means of images [N, H, W] over windows of 5×5 pixels."""
    return F.avg_pool2d(images[:, None], kernel_size=5, stride=1, padding=2)[:, 0]


def _sweep_grid(to_other: F64, height: int, width: int) -> Tensor:
    """Where each pixel of the middle frame lies in the others: [others, depths, H, W, 2] in ±1.

    `to_other` [others, 4, 4] takes the middle camera's frame to the other cameras'.
    """
    k = intrinsics(height, width)
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(k).T
    # Pixels along a ray land at K·(depth·R·ray + t): both terms are linear, the depth comes last.
    turned = torch.from_numpy(np.einsum("oij,hwj->ohwi", k @ to_other[:, :3, :3], rays)).float()
    offset = torch.from_numpy(to_other[:, :3, 3] @ k.T).float()
    depths = torch.from_numpy(DEPTHS).float().view(-1, 1, 1, 1)
    moved = turned[:, None] * depths + offset[:, None, None, None]
    projected = moved[..., :2] / moved[..., 2:].clamp(min=1e-6)
    return projected * torch.tensor([2 / width, 2 / height]) - 1


def best_motion(video: Video, paths: Mapping[Motion, F64] | None = None) -> Motion:
    """The primitive motion whose path explains the video best."""
    paths = paths or primitive_paths(len(video))
    return min(paths, key=lambda motion: sweep_error(video, paths[motion]))


def consistency_db(video: Video, c2w: F64) -> float:
    """`sweep_error` under the commanded path, in decibels: higher is more consistent."""
    return float(-10 * np.log10(max(sweep_error(video, c2w), 1e-9)))


def segment(frame: Video, color: str) -> NDArray[np.bool_]:
    """Mask [H, W] of the largest region of `frame` uint8 [H, W, 3] that has an object's colour.

    Pixels are compared by hue and saturation, which shading leaves alone, with all the colours of
    the toy world; what is nearer to another one is no part of the object.
    """
    palette = {**{f"floor {n}": c for n, c in FLOOR_COLORS.items()}, **OBJECT_COLORS}
    chroma = _chroma(frame.astype(np.float64) / 255)
    names = list(palette)
    distance = np.stack(
        [np.linalg.norm(chroma - _chroma(np.array(palette[name])), axis=-1) for name in names]
    )
    mine = np.array(names)[distance.argmin(axis=0)] == color
    count, regions, statistics, _ = cv2.connectedComponentsWithStats(mine.astype(np.uint8))
    if count == 1:
        return mine
    return regions == 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))


def _chroma(rgb: F64) -> F64:
    """Colour differences relative to brightness, [..., 2]: 0 for gray, shading cancels."""
    mean = rgb.mean(axis=-1) + 0.03
    return np.stack([(rgb[..., 0] - rgb[..., 1]) / mean, (rgb[..., 2] - rgb[..., 1]) / mean], -1)


def shape_of(mask: NDArray[np.bool_]) -> str:
    """Shape by how much of its bounding box's corners a mask fills; "none" under 30 pixels."""
    if mask.sum() < 30:
        return "none"
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    tight = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    h, w = (max(2, round(CORNER * side)) for side in tight.shape)
    corners = (tight[:h, :w], tight[:h, -w:], tight[-h:, :w], tight[-h:, -w:])
    return "box" if np.mean([c.mean() for c in corners]) > CORNER_FILLED else "ball"
