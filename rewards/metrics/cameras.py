"""How far a recovered camera path is from the requested one, and how smooth it is.

RotErr, TransErr and CamMC as CamI2V (arXiv 2410.15957) defines them and its successors report them:
sums over the frames of paths relative to their first camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

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
    """Distances of the centres, each path divided by its own largest distance from its start; under
    a request that stays where it is, both in scene depths."""
    trans_err_abs: float
    """Distances of the centres, both paths divided by the requested path's largest distance."""
    cam_mc_rel: float
    """Frobenius norms of the differences of [R | t], with translations as in `trans_err_rel`."""
    cam_mc_abs: float
    """The same with translations as in `trans_err_abs`."""


def camera_errors(requested_c2w: F64, estimated_c2w: F64) -> CameraErrors:
    """Errors of an estimated path [F, 4, 4]; both in scene depths, each relative to its first.

    Under a request that stays in place, as a pan does, nothing is divided and `rel` equals `abs`:
    an estimate divided by its own extent would count the smallest drift like a whole move.
    """
    if requested_c2w.shape != estimated_c2w.shape:
        raise ValueError(
            f"estimated path has shape {estimated_c2w.shape}, the requested one "
            f"{requested_c2w.shape}; they must be equal"
        )
    asked, made = relative_to_first(requested_c2w), relative_to_first(estimated_c2w)
    between = np.swapaxes(asked[:, :3, :3], 1, 2) @ made[:, :3, :3]
    angle = np.radians(rotation_angle_deg(between))
    moves = _extent(asked) > AT_REST
    asked_scale = _extent(asked) if moves else 1.0
    made_scale = _extent(made) if moves and _extent(made) > AT_REST else 1.0
    errors = {}
    for name, scale in (("rel", made_scale), ("abs", asked_scale)):
        difference = _shortened(made, scale) - _shortened(asked, asked_scale)
        errors[f"trans_err_{name}"] = float(np.linalg.norm(difference[:, :3, 3], axis=1).sum())
        errors[f"cam_mc_{name}"] = float(np.linalg.norm(difference[:, :3], axis=(1, 2)).sum())
    return CameraErrors(rot_err=float(angle.sum()), **errors)


def _extent(path: F64) -> float:
    """The largest distance from the start."""
    return float(np.linalg.norm(path[:, :3, 3], axis=1).max())


def _shortened(path: F64, scale: float) -> F64:
    out = path.copy()
    out[:, :3, 3] /= scale
    return out


def jitter(c2w: F64, frames: NDArray[np.intp]) -> tuple[float, float]:
    """Unsteadiness of a path [F, 4, 4] at the given frame indices [F]: mean change of velocity.

    Returns the mean length of the change of the centres' velocity, in the path's units per frame²,
    and of the turning rate, in degrees per frame². Both are 0 for a camera that moves and turns
    evenly along a line or stands still, however its frames are spaced; an even orbit leaves a
    little.
    """
    if len(c2w) < 3 or len(c2w) != len(frames):
        raise ValueError(
            f"the path has {len(c2w)} cameras at {len(frames)} frames; allowed: 3 or more at as "
            "many"
        )
    spans = np.diff(frames)[:, None]
    between = (spans[1:] + spans[:-1]) / 2
    velocity = np.diff(c2w[:, :3, 3], axis=0) / spans
    R = c2w[:, :3, :3]
    turns = Rotation.from_matrix(np.swapaxes(R[:-1], 1, 2) @ R[1:])
    rate = turns.as_rotvec(degrees=True) / spans
    bend, swerve = np.diff(velocity, axis=0) / between, np.diff(rate, axis=0) / between
    return (
        float(np.linalg.norm(bend, axis=1).mean()),
        float(np.linalg.norm(swerve, axis=1).mean()),
    )
