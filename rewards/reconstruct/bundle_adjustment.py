"""Gauss-Newton over camera poses and inverse depths, with the depths eliminated (Schur complement).

One frame is the reference: its pixels carry the points, one unknown log inverse depth each; every
other frame carries an unknown pose. What a predicted pixel costs is left to a data term, so that
the same solver serves optical flow and raw images. Numpy float64, no randomness.

Frames of reference: the world is the reference camera, OpenCV axes; the scale is held by a weak
prior on the log inverse depths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rewards.reconstruct.planes import PlanePrior

F64 = NDArray[np.float64]

DataTerm = Callable[[F64], tuple[float, F64, F64]]
"""Predicted pixels [T, 2, P] → (cost, gradient [T, 2, P], information [T, 3, P] as xx, xy, yy),
where cost ≈ sum of ½ dᵀ information d + gradientᵀ d for small displacements d."""

MIN_DEPTH = 0.05
MAX_LOG_STEP = 0.7
FIRST_DAMPING = 1e-3


@dataclass(frozen=True)
class Pinhole:
    """Focal length and principal point in pixels; pixel centres lie at half integers."""

    focal: float
    centre: tuple[float, float]

    def rays(self, pixels: F64) -> F64:
        """Directions [3, P] with z = 1 through `pixels` [2, P]."""
        x = (pixels[0] - self.centre[0]) / self.focal
        y = (pixels[1] - self.centre[1]) / self.focal
        return np.stack([x, y, np.ones_like(x)])

    def intrinsics(self) -> F64:
        """[3, 3]."""
        (x, y), focal = self.centre, self.focal
        return np.array([[focal, 0.0, x], [0.0, focal, y], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class State:
    """Unknowns: w2c of T frames (world = reference camera) and log inverse depth of P points."""

    rotation: F64
    """[T, 3, 3]."""
    translation: F64
    """[T, 3]."""
    log_inverse_depth: F64
    """[P]."""
    cost: float = np.inf

    @staticmethod
    def at_rest(frames: int, log_inverse_depth: F64) -> State:
        """All cameras at the reference camera."""
        return State(np.tile(np.eye(3), (frames, 1, 1)), np.zeros((frames, 3)), log_inverse_depth)


def rotation_from_vector(omega: F64) -> F64:
    """Rotation matrices [..., 3, 3] of rotation vectors [..., 3] in radians (Rodrigues)."""
    angle = np.linalg.norm(omega, axis=-1)[..., None, None]
    skew = np.zeros((*omega.shape[:-1], 3, 3))
    skew[..., 0, 1], skew[..., 0, 2], skew[..., 1, 2] = (
        -omega[..., 2],
        omega[..., 1],
        -omega[..., 0],
    )
    skew -= np.swapaxes(skew, -1, -2)
    half = np.sinc(angle / (2 * np.pi))
    return np.eye(3) + np.sinc(angle / np.pi) * skew + 0.5 * half**2 * (skew @ skew)


def transform(state: State, rays: F64) -> tuple[F64, F64]:
    """Rotated rays and homogeneous points R ray + ρ t, both [T, 3, P]."""
    rotated = state.rotation @ rays
    inverse_depth = np.exp(state.log_inverse_depth)
    return rotated, rotated + state.translation[:, :, None] * inverse_depth


def project(points: F64, camera: Pinhole) -> F64:
    """Pixels [T, 2, P] of points [T, 3, P]; points behind the camera are held at a small depth."""
    z = np.maximum(points[:, 2:], MIN_DEPTH)
    return camera.focal * points[:, :2] / z + np.array(camera.centre)[:, None]


def adjust(
    rays: F64,
    camera: Pinhole,
    data: DataTerm,
    start: State,
    iterations: int,
    depth_prior: tuple[F64, F64],
    tolerance: float = 1e-3,
    planes: PlanePrior | None = None,
) -> State:
    """Minimise the data term plus ½ Σ weight (log ρ - mean)² plus that of `planes` from `start`.

    Args:
        rays: [3, P] in the reference camera, z = 1.
        depth_prior: mean [P] of the log inverse depths and weight [P].
        tolerance: stop once an accepted step lowers the cost by less than this share.

    Levenberg-Marquardt damping: a step that does not lower the cost is refused, never kept.
    """
    mean, weight = depth_prior

    def evaluate(state: State) -> tuple[State, tuple[F64, F64, F64, F64]]:
        rotated, points = transform(state, rays)
        cost, gradient, information = data(project(points, camera))
        deviation = state.log_inverse_depth - mean
        total = cost + 0.5 * float(weight @ deviation**2)
        total += 0.0 if planes is None else planes.cost(state.log_inverse_depth)
        return replace(state, cost=total), (rotated, points, gradient, information)

    state, view = evaluate(start)
    damping = FIRST_DAMPING
    system = _normal_equations(state, camera, view, depth_prior, planes)
    for _ in range(iterations):
        candidate, candidate_view = evaluate(_stepped(state, _solve(system, damping)))
        if candidate.cost < state.cost:
            converged = state.cost - candidate.cost < tolerance * state.cost
            state, damping = candidate, max(damping * 0.2, 1e-7)
            if converged:
                break
            system = _normal_equations(state, camera, candidate_view, depth_prior, planes)
        else:
            damping *= 10
            if damping > 1e3:
                break
    return state


@dataclass(frozen=True)
class _System:
    """Blocks of the normal equations: cameras [T, 6, 6], coupling [6 T, P], points [P]."""

    cameras: F64
    camera_gradient: F64
    coupling: F64
    points: F64
    point_gradient: F64
    planes: PlanePrior | None
    bands: F64
    """Coupling of the points among themselves, as `PlanePrior` has it."""

    def points_inverse(self, damping: float, right: F64) -> F64:
        """The damped block of the points, inverted, times `right` [P, K]."""
        points = self.points * (1 + damping) + 1e-9
        if self.planes is None:
            return right / points[:, None]
        return self.planes.solve(self.bands, points, right)


def _normal_equations(
    state: State,
    camera: Pinhole,
    view: tuple[F64, F64, F64, F64],
    depth_prior: tuple[F64, F64],
    planes: PlanePrior | None,
) -> _System:
    mean, weight = depth_prior
    x = state.log_inverse_depth
    bands, bent = (np.empty(0), 0.0) if planes is None else planes.normal_equations(x)
    rotated, points, gradient, information = view
    J_camera, J_depth = _jacobians(state, camera, rotated, points)
    xx, xy, yy = information[:, None, 0], information[:, None, 1], information[:, None, 2]
    weighted = np.empty_like(J_camera)
    weighted[:, :, 0] = xx * J_camera[:, :, 0] + xy * J_camera[:, :, 1]
    weighted[:, :, 1] = xy * J_camera[:, :, 0] + yy * J_camera[:, :, 1]
    frames, count = len(points), points.shape[-1]
    flat = weighted.reshape(frames, 6, 2 * count)
    blocks = flat @ np.swapaxes(J_camera.reshape(frames, 6, 2 * count), 1, 2)
    coupling = weighted[:, :, 0] * J_depth[:, None, 0] + weighted[:, :, 1] * J_depth[:, None, 1]
    du, dv = J_depth[:, 0], J_depth[:, 1]
    curvature = xx[:, 0] * du * du + 2 * xy[:, 0] * du * dv + yy[:, 0] * dv * dv
    return _System(
        cameras=blocks,
        camera_gradient=(J_camera.reshape(frames, 6, -1) @ gradient.reshape(frames, -1, 1))[..., 0],
        coupling=coupling.reshape(6 * frames, count),
        points=curvature.sum(axis=0) + weight,
        point_gradient=(J_depth * gradient).sum(axis=(0, 1)) + weight * (x - mean) + bent,
        planes=planes,
        bands=bands,
    )


def _jacobians(state: State, camera: Pinhole, rotated: F64, points: F64) -> tuple[F64, F64]:
    """Derivatives of the pixels by pose [T, 6, 2, P] (first rotation) and by log ρ [T, 2, P]."""
    scale = camera.focal / np.maximum(points[:, 2], MIN_DEPTH)
    x, y = points[:, 0] * scale / camera.focal, points[:, 1] * scale / camera.focal
    a, b, c = rotated[:, 0], rotated[:, 1], rotated[:, 2]
    near = scale * np.exp(state.log_inverse_depth)
    J = np.zeros((len(x), 6, 2, x.shape[1]))
    J[:, 0, 0], J[:, 0, 1] = -scale * x * b, -scale * (c + y * b)
    J[:, 1, 0], J[:, 1, 1] = scale * (c + x * a), scale * y * a
    J[:, 2, 0], J[:, 2, 1] = -scale * b, scale * a
    J[:, 3, 0] = J[:, 4, 1] = near
    J[:, 5, 0], J[:, 5, 1] = -near * x, -near * y
    t = state.translation[:, :, None]
    depth = np.stack([near * (t[:, 0] - x * t[:, 2]), near * (t[:, 1] - y * t[:, 2])], axis=1)
    return J, depth


def _solve(system: _System, damping: float) -> tuple[F64, F64]:
    """Damped step of the cameras [T, 6] and of the log inverse depths [P]."""
    frames = len(system.cameras)
    right = np.column_stack([system.coupling.T, system.point_gradient])
    solved = system.points_inverse(damping, right)
    scaled, alone = solved[:, :-1].T, solved[:, -1]
    reduced = -scaled @ system.coupling.T
    every, axes = np.arange(frames), np.arange(6 * frames)
    reduced.reshape(frames, 6, frames, 6)[every, :, every] += system.cameras
    own = np.diagonal(system.cameras, axis1=1, axis2=2).ravel()
    reduced[axes, axes] += own * damping + 1e-6
    pull = scaled @ system.point_gradient - system.camera_gradient.ravel()
    cameras: F64 = np.linalg.solve(reduced, pull).astype(np.float64)
    depths = -alone - scaled.T @ cameras
    return cameras.reshape(frames, 6), np.clip(depths, -MAX_LOG_STEP, MAX_LOG_STEP)


def _stepped(state: State, step: tuple[F64, F64]) -> State:
    cameras, depths = step
    return State(
        rotation_from_vector(cameras[:, :3]) @ state.rotation,
        state.translation + cameras[:, 3:],
        state.log_inverse_depth + depths,
    )
