"""Depth of single frames by plane sweep, and what two frames of one place must have in common.

A frame's depth is found on its own, by comparing it with some frames of the clip; then it is
compared through that depth with others. Nothing is fused into one scene, and no frame that a depth
was fitted to is compared through it, so that agreement is a finding and no construction.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from prompts.camera import invert_pose
from rewards.metrics.images import ssim_map

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

HYPOTHESES, WINDOW = 28, 5
KEYS, TARGETS = 3, 4
"""Frames whose depth is swept; frames with which each is compared while sweeping, at most, and as
many further ones with which it is compared through its depth."""
MIN_BASELINE = 0.02
"""Distance between cameras, in median depths, below which depth cannot be seen."""
OCCLUSION = 0.5
"""Relative depth by which a point lies behind what a frame shows there, and is hidden from it."""
MIN_GRADIENT = 0.01
"""Image gradient (of 1 per pixel) from which a pixel's depth can be told from its neighbours'."""


@dataclass(frozen=True, slots=True)
class ViewAgreement:
    """What key frames of a clip agree on."""

    mvcs: float
    """Mean SSIM between a key frame and frames that its depth was not fitted to, seen from its
    camera, in [-1, 1]. Points that another frame hides count as they look there."""
    depth_error: float | None
    """Median relative difference of two key frames' depths at the points that both see; None where
    the camera hardly moves, so that depth cannot be seen."""


def view_agreement(video: F32, w2c: F64, intrinsics: F64, near: float, far: float) -> ViewAgreement:
    """Compare frames of video [F, H, W, 3] in [0, 1] through swept depths.

    `w2c` [F, 4, 4]; `intrinsics` [3, 3] in pixels; depths are searched in [near, far], world units.
    Raises ValueError for fewer than 3 frames, or where no two see the same place.
    """
    frames = len(video)
    if frames < 3:
        raise ValueError(f"the clip has {frames} frames; allowed: 3 or more")
    keys = np.unique(np.linspace(0, frames - 1, KEYS).round().astype(int))
    hypotheses = 1 / np.linspace(1 / near, 1 / far, HYPOTHESES)
    centres = invert_pose(w2c)[:, :3, 3]
    depths, alike = {}, []
    for key in keys:
        others = [f for f in range(frames) if f != key]
        swept, compared = _spread(others[::2]), _spread(others[1::2])
        depths[key] = sweep_depth(video, w2c, intrinsics, int(key), swept, hypotheses)
        for target in compared:
            warped, inside = seen_from(
                video[target], depths[key], w2c[target] @ invert_pose(w2c[key]), intrinsics
            )
            if inside.any():
                similar = ssim_map(video[key].astype(np.float64), warped.astype(np.float64))
                alike.append(float(similar[inside].mean()))
    reach = max(np.linalg.norm(centres[a] - centres[b]) for a in keys for b in keys)
    moved = reach > MIN_BASELINE * float(np.median(depths[keys[0]]))
    errors = _depth_errors(video, depths, w2c, intrinsics) if moved else []
    if not alike:
        raise ValueError("no two frames see the same place")
    return ViewAgreement(float(np.mean(alike)), float(np.mean(errors)) if errors else None)


def _spread(frames: list[int]) -> list[int]:
    """At most `TARGETS` of some frames, evenly spread."""
    count = min(len(frames), TARGETS)
    return [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)]


def sweep_depth(
    video: F32, w2c: F64, intrinsics: F64, key: int, targets: list[int], hypotheses: F64
) -> F64:
    """Depth [H, W] of frame `key`: at each pixel the hypothesis whose windows look most alike."""
    costs = _sweep(video, w2c, intrinsics, key, targets, hypotheses)
    return np.asarray(hypotheses[costs.argmin(axis=0)], np.float64)


def photo_error(video: F32, w2c: F64, intrinsics: F64, near: float, far: float) -> float:
    """Mean colour difference that cameras leave in the middle frame at its best depths: what they
    cannot explain. Infinite where nothing is seen twice."""
    key, last = len(video) // 2, len(video) - 1
    hypotheses = 1 / np.linspace(1 / near, 1 / far, HYPOTHESES)
    costs = _sweep(video, w2c, intrinsics, key, [0, last], hypotheses).min(axis=0)
    known = np.isfinite(costs)
    return float(costs[known].mean()) if known.mean() > 0.5 else float("inf")


def _sweep(
    video: F32, w2c: F64, intrinsics: F64, key: int, targets: list[int], hypotheses: F64
) -> F64:
    """Costs [D, H, W] of the depth hypotheses; infinite where hardly any target sees them."""
    height, width = video.shape[1:3]
    costs = np.full((len(hypotheses), height, width), np.inf)
    for index, depth in enumerate(hypotheses):
        plane = np.full((height, width), depth)
        total, seen = np.zeros((height, width)), np.zeros((height, width))
        for target in targets:
            to_target = w2c[target] @ invert_pose(w2c[key])
            warped, inside = seen_from(video[target], plane, to_target, intrinsics)
            total += np.abs(warped - video[key]).mean(axis=-1) * inside
            seen += inside
        total, seen = _windows(total), _windows(seen)
        # A depth that hardly any frame sees must not win by default.
        enough = seen > 0.25 * len(targets)
        costs[index] = np.where(enough, total / np.maximum(seen, 1e-6), np.inf)
    return costs


def _windows(image: F64) -> F64:
    return np.asarray(cv2.blur(image, (WINDOW, WINDOW)), np.float64)


def seen_from(
    other: F32, depth: F64, to_other: F64, intrinsics: F64
) -> tuple[F32, NDArray[np.bool_]]:
    """`other` [H, W, C] looked up at a frame's points (at `depth` [H, W]), and where it sees them.

    `to_other` [4, 4] takes the frame's camera coordinates to the other's.
    """
    points = lifted(depth, intrinsics) @ to_other[:3, :3].T + to_other[:3, 3]
    u, v, ahead = projected(points, intrinsics)
    height, width = depth.shape
    inside = ahead & (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
    warped = cv2.remap(
        other,
        u.astype(np.float32),
        v.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(warped, np.float32), inside


def lifted(depth: F64, intrinsics: F64) -> F64:
    """Points [H, W, 3] in camera coordinates of the pixels at `depth` [H, W] along the axis."""
    height, width = depth.shape
    v, u = np.mgrid[0:height, 0:width] + 0.5
    x = (u - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (v - intrinsics[1, 2]) / intrinsics[1, 1]
    return np.stack([x * depth, y * depth, depth], axis=-1)


def projected(points: F64, intrinsics: F64) -> tuple[F64, F64, NDArray[np.bool_]]:
    """Array indices u, v of points [..., 3] (pixel centres at whole numbers) and whether they lie
    in front of the camera."""
    ahead = points[..., 2] > 1e-6
    z = np.where(ahead, points[..., 2], 1.0)
    u = intrinsics[0, 0] * points[..., 0] / z + intrinsics[0, 2] - 0.5
    v = intrinsics[1, 1] * points[..., 1] / z + intrinsics[1, 2] - 0.5
    return u, v, ahead


def _depth_errors(video: F32, depths: dict[int, F64], w2c: F64, intrinsics: F64) -> list[float]:
    errors = []
    for key, depth in depths.items():
        textured = _gradient(video[key]) > MIN_GRADIENT
        for other, theirs in depths.items():
            if other == key:
                continue
            to_other = w2c[other] @ invert_pose(w2c[key])
            points = lifted(depth, intrinsics) @ to_other[:3, :3].T + to_other[:3, 3]
            found, inside = seen_from(
                theirs.astype(np.float32)[..., None], depth, to_other, intrinsics
            )
            there = np.maximum(found.reshape(depth.shape), 1e-6)
            relative = (points[..., 2] - there) / there
            counted = inside & textured & (relative < OCCLUSION)
            if counted.any():
                errors.append(float(np.median(np.abs(relative[counted]))))
    return errors


def _gradient(image: F32) -> F64:
    grey = np.ascontiguousarray(image.mean(axis=-1), np.float32)
    du = cv2.Scharr(grey, cv2.CV_32F, 1, 0, scale=1 / 32)
    dv = cv2.Scharr(grey, cv2.CV_32F, 0, 1, scale=1 / 32)
    return np.asarray(np.hypot(du, dv), np.float64)
