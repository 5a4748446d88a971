"""The second opinion on a clip: followed corners, sparse structure from motion, swept depths.

It shares with the reward's reconstructor neither data (corners against dense flow and colours), nor
solver, nor scene (no Gaussians, nothing is re-rendered): what pleases both is hardly a weakness of
one. Only the definition of S_traj is common to both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from prompts.camera import relative_to_first, requested_path
from prompts.config import CameraConfig
from prompts.schema import Prompt
from rewards.metrics.sparse import NoCameraFound, SparseModel, solve_cameras
from rewards.metrics.sweep import photo_error, view_agreement
from rewards.metrics.tracks import follow_corners
from rewards.scoring import trajectory_score

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

VERSION = "corners-v2"
MAX_FRAMES = 25
"""Frames that are looked at, evenly spaced, first and last among them."""
SWEEP_PIXELS = 64 * 96
"""Pixels of a frame to which depth is swept; larger frames are reduced."""
NEAREST, FARTHEST = 0.6, 1.8
"""Swept depths begin and end at these multiples of the corners' 2nd and 98th percentile."""


@dataclass(frozen=True, eq=False)
class SecondOpinion:
    """What the independent estimator found in a clip."""

    frames: NDArray[np.intp]
    """[F] indices of the frames that were looked at."""
    figures: Mapping[str, float]
    """By name: consistency, traj (where a motion is requested), gold, error_px, found_share, mvcs,
    depth_error (where the camera moves enough)."""
    c2w: F64
    """[F, 4, 4] relative to the first camera, in median depths of its corners."""
    requested_c2w: F64 | None
    """[F, 4, 4] of the same frames; None where the prompt names no motion."""


def second_opinion(
    video: U8, prompt: Prompt, camera: CameraConfig, sweep: bool = True
) -> SecondOpinion:
    """Judge a video uint8 [F, H, W, 3] without the reward's reconstructor.

    `gold` is consistency + traj, or 2 x consistency where no motion is requested: the counterpart
    of S_recon + S_traj. Without `sweep`, mvcs and depth_error are left out, which is a few times
    faster. Raises NoCameraFound where nothing can be followed; callers count that.
    """
    chosen = np.unique(np.linspace(0, len(video) - 1, min(len(video), MAX_FRAMES)).round())
    indices = chosen.astype(np.intp)
    height, width = video.shape[1:3]
    focal = camera.focal * width
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    models = solve_cameras(follow_corners(video[indices]), intrinsics, (height, width))
    small, small_intrinsics = _reduced(video[indices], intrinsics)
    model = models[0]
    if len(models) > 1:

        def unexplained(one: SparseModel) -> float:
            return photo_error(small, one.w2c, small_intrinsics, *_depths(one))

        model = min(models, key=unexplained)
    c2w = relative_to_first(model.c2w)
    c2w[:, :3, 3] /= model.first_depth
    figures = {
        "consistency": model.consistency,
        "gold": 2 * model.consistency,
        "error_px": model.error_px,
        "found_share": model.found_share,
    }
    path = requested_path(prompt, len(video), camera.amplitudes)
    requested = None if path is None else path.c2w[indices]
    if requested is not None:
        figures["traj"] = trajectory_score(requested, c2w, 1.0).score
        figures["gold"] = model.consistency + figures["traj"]
    if sweep:
        figures |= _agreement(small, model, small_intrinsics)
    return SecondOpinion(indices, figures, c2w, requested)


def _reduced(video: U8, intrinsics: F64) -> tuple[NDArray[np.float32], F64]:
    """The video [F, h, w, 3] in [0, 1] at the size of the sweep, and its intrinsics."""
    height, width = video.shape[1:3]
    factor = min(1.0, float(np.sqrt(SWEEP_PIXELS / (height * width))))
    size = (max(round(width * factor), 16), max(round(height * factor), 16))
    if size != (width, height):
        video = np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in video])
        intrinsics = intrinsics * np.array([[size[0] / width], [size[1] / height], [1.0]])
    return video.astype(np.float32) / np.float32(255), intrinsics


def _depths(model: SparseModel) -> tuple[float, float]:
    """Nearest and farthest depth that is swept."""
    low, high = np.percentile(model.depth, (2, 98))
    return float(NEAREST * low), float(FARTHEST * high)


def _agreement(frames: NDArray[np.float32], model: SparseModel, K: F64) -> dict[str, float]:
    agreed = view_agreement(frames, model.w2c, K, *_depths(model))
    figures = {"mvcs": agreed.mvcs}
    if agreed.depth_error is not None:
        figures["depth_error"] = agreed.depth_error
    return figures


__all__ = ["VERSION", "NoCameraFound", "SecondOpinion", "second_opinion"]
