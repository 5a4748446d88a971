"""How far a recovered camera path is from the requested one, and how smooth it is.

RotErr, TransErr and CamMC as CamI2V (arXiv 2410.15957) defines them and its successors report them:
sums over the frames of paths relative to their first camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prompts.camera import relative_to_first, rotation_angle_deg

F64 = NDArray[np.float64]

AT_REST = 1e-6
"""Extent, in scene depths, below which a path does not translate and is not divided by it."""


@dataclass(frozen=True, slots=True)
class CameraErrors:
    """Sums over all frames; 0 for equal paths."""

    rot_err: float
    """Geodesic angles, in radians."""
    trans_err_rel: float
    """Distances of the centres, each path divided by its own largest distance from its start."""
    trans_err_abs: float
    """Distances of the centres, both paths divided by the requested path's largest distance."""
    cam_mc_rel: float
    """Frobenius norms of the differences of [R | t], with translations as in `trans_err_rel`."""
    cam_mc_abs: float
    """The same with translations as in `trans_err_abs`."""


def camera_errors(requested_c2w: F64, estimated_c2w: F64) -> CameraErrors:
    """Errors of an estimated path [F, 4, 4]; both in scene depths, each relative to its first.

    A path that stays where it is cannot be divided by its extent and is left as it is: under a
    request without translation the `abs` figures are in scene depths.
    """
    if requested_c2w.shape != estimated_c2w.shape:
        raise ValueError(
            f"estimated path has shape {estimated_c2w.shape}, the requested one "
            f"{requested_c2w.shape}; they must be equal"
        )
    asked, made = relative_to_first(requested_c2w), relative_to_first(estimated_c2w)
    between = np.swapaxes(asked[:, :3, :3], 1, 2) @ made[:, :3, :3]
    angle = np.radians(rotation_angle_deg(between))
    asked_extent, made_extent = _extent(asked), _extent(made)
    errors = {}
    for name, scale in (("rel", made_extent), ("abs", asked_extent)):
        difference = _shortened(made, scale) - _shortened(asked, asked_extent)
        errors[f"trans_err_{name}"] = float(np.linalg.norm(difference[:, :3, 3], axis=1).sum())
        errors[f"cam_mc_{name}"] = float(np.linalg.norm(difference[:, :3], axis=(1, 2)).sum())
    return CameraErrors(rot_err=float(angle.sum()), **errors)


def _extent(path: F64) -> float:
    """What translations are divided by: the largest distance from the start, or 1 at rest."""
    largest = float(np.linalg.norm(path[:, :3, 3], axis=1).max())
    return largest if largest > AT_REST else 1.0


def _shortened(path: F64, scale: float) -> F64:
    out = path.copy()
    out[:, :3, 3] /= scale
    return out


def jitter(c2w: F64) -> tuple[float, float]:
    """Unsteadiness of a path [F, 4, 4]: mean change of the step from frame to frame.

    Returns the mean length of the centres' second differences, in the path's units per frame², and
    the mean angle between successive turns, in degrees per frame². Both are 0 for a camera that
    moves and turns evenly along a line or stands still; an even orbit leaves a little.
    """
    if len(c2w) < 3:
        raise ValueError(f"the path has {len(c2w)} cameras; allowed: 3 or more")
    centres = c2w[:, :3, 3]
    bend = centres[2:] - 2 * centres[1:-1] + centres[:-2]
    R = c2w[:, :3, :3]
    turns = np.swapaxes(R[:-1], 1, 2) @ R[1:]
    change = np.swapaxes(turns[:-1], 1, 2) @ turns[1:]
    return float(np.linalg.norm(bend, axis=1).mean()), float(rotation_angle_deg(change).mean())
