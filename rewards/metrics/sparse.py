"""Structure from motion on followed corners: a camera that owes the reward nothing but arithmetic.

Unknowns are the pose of every frame but the source and an inverse depth for every corner; what is
minimised is how far predicted corners lie from followed ones, made robust. The normal equations are
solved by `bundle_adjustment.adjust`; data, cost, starting points and the choice among minima are
this module's own. World: the source frame's camera, OpenCV axes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prompts.camera import invert_pose, rotation_angle_deg
from rewards.metrics.tracks import Tracks
from rewards.reconstruct.bundle_adjustment import (
    DataTerm,
    Pinhole,
    State,
    adjust,
    project,
    transform,
)

F64 = NDArray[np.float64]

MIN_CORNERS, MIN_SEEN = 16, 8
"""Corners without which nothing is estimated: in the source frame, and in every other one."""
ROBUST = 0.006
"""Distance, in widths, from which a corner's pull stops to grow."""
TOLERANCE = 0.006
"""Distance, in widths, at which a corner counts as half explained."""
GROUND_SLOPE, DEPTH_PRIOR = 0.5, 0.5
"""What is lower in a picture is usually nearer: log inverse depth expected at the lower edge
(and minus that at the upper one), and the pull towards it. It holds the scale and the depths of a
camera that only turns, and tells apart the two explanations, depth turned inside out, that small
sideways motions leave: corners alone cannot."""
START_SHIFTS = (0.15, 0.4)
"""Shifts over the clip, in scene depths, of the paths from which the search starts, in each of six
directions and at rest: small motions leave several minima."""
TRIAL_STEPS, FINAL_STEPS = 12, 40
ALIKE, SAME_DEG, MOST = 0.5, 1.5, 4
"""Share by which another minimum may be worse and still be handed on, the least angle between the
first cameras of two that count as different, and how many there are at most."""
CONVERGED = 1e-5


class NoCameraFound(RuntimeError):
    """Too little can be followed through a clip: a failure, never a number."""


@dataclass(frozen=True, eq=False)
class SparseModel:
    """Cameras and corners of a clip of F frames."""

    w2c: F64
    """[F, 4, 4] world-to-camera; identity at the source frame."""
    depth: F64
    """[N] depth of the corners in the source frame, in world units."""
    consistency: float
    """[0, 1]: mean over corners and frames of 1 / (1 + (distance / TOLERANCE)²), where the model
    says that the corner is in view; a corner that was not found again counts 0."""
    error_px: float
    """Median distance between predicted and found corners."""
    found_share: float
    """Share of the corners in view that were found again."""
    first_depth: float
    """Median depth of the corners before the first camera: the unit of the path."""

    @property
    def c2w(self) -> F64:
        """[F, 4, 4] camera-to-world, in world units."""
        return invert_pose(self.w2c)


def solve_cameras(tracks: Tracks, intrinsics: F64, size: tuple[int, int]) -> list[SparseModel]:
    """Cameras of followed corners, the best first; `intrinsics` [3, 3] in pixels, `size` (height,
    width). More than one where corners alone cannot decide: pixels can.

    Raises NoCameraFound where too few corners lead through the clip.
    """
    frames, count = tracks.found.shape
    if count < MIN_CORNERS:
        raise NoCameraFound(f"no camera found: {count} corners, needed: {MIN_CORNERS}")
    fewest = int(tracks.found.sum(axis=1).min())
    if fewest < MIN_SEEN:
        raise NoCameraFound(f"no camera found: a frame has {fewest} corners, needed: {MIN_SEEN}")
    others = np.array([frame for frame in range(frames) if frame != tracks.source])
    camera = Pinhole(intrinsics[0, 0], (intrinsics[0, 2], intrinsics[1, 2]))
    rays = camera.rays(tracks.pixels[tracks.source].T)
    goal, seen = np.moveaxis(tracks.pixels[others], -1, 1), tracks.found[others]
    data = corner_term(goal, seen, ROBUST * size[1])
    ground = GROUND_SLOPE * rays[1] * 2 * camera.focal / size[0]
    prior = (ground, np.full(count, DEPTH_PRIOR))

    def improved(start: State, steps: int) -> State:
        return adjust(rays, camera, data, start, steps, prior, CONVERGED)

    time = (others - tracks.source) / (frames - 1)
    tried = [improved(start, TRIAL_STEPS) for start in _starts(time, ground)]
    best = sorted(tried, key=lambda state: state.cost)
    refined = sorted((improved(s, FINAL_STEPS) for s in best), key=lambda state: state.cost)
    models: list[SparseModel] = []
    for state in refined:
        if state.cost > (1 + ALIKE) * refined[0].cost or len(models) == MOST:
            break
        model = _model(tracks, others, state, rays, camera, size)
        if all(_differ(model, other) for other in models):
            models.append(model)
    return models


def _differ(first: SparseModel, second: SparseModel) -> bool:
    """Whether two models turn the first camera differently."""
    between = first.w2c[0, :3, :3] @ second.w2c[0, :3, :3].T
    return bool(rotation_angle_deg(between) > SAME_DEG)


def corner_term(goal: F64, seen: NDArray[np.bool_], unit: float) -> DataTerm:
    """Cost ½ log(1 + (d / unit)²) of the distance d to `goal` [T, 2, N], where `seen` [T, N]
    (Cauchy: a corner that slipped away stops to pull)."""

    def term(pixels: F64) -> tuple[float, F64, F64]:
        away = (pixels - goal) / unit
        grown = 1 + (away**2).sum(axis=1)
        weight = seen / (grown * unit**2)
        gradient = away * unit * weight[:, None]
        information = np.stack([weight, np.zeros_like(weight), weight], axis=1)
        return float((seen * 0.5 * np.log(grown)).sum()), gradient, information

    return term


def _starts(time: F64, depth: F64) -> Iterator[State]:
    """A camera at rest, and cameras that move evenly in each direction."""
    rest = State.at_rest(len(time), depth)
    yield rest
    for shift in START_SHIFTS:
        for way in (*np.eye(3), *-np.eye(3)):
            yield State(rest.rotation, shift * time[:, None] * way, rest.log_inverse_depth)


def _model(
    tracks: Tracks,
    others: NDArray[np.intp],
    state: State,
    rays: F64,
    camera: Pinhole,
    size: tuple[int, int],
) -> SparseModel:
    w2c = np.tile(np.eye(4), (len(tracks.found), 1, 1))
    w2c[others, :3, :3], w2c[others, :3, 3] = state.rotation, state.translation
    _, points = transform(state, rays)
    pixels = project(points, camera)
    u, v = pixels[:, 0], pixels[:, 1]
    in_view = (u > 0) & (u < size[1]) & (v > 0) & (v < size[0])
    seen = tracks.found[others]
    away = np.linalg.norm(pixels - np.moveaxis(tracks.pixels[others], -1, 1), axis=1)
    counted = in_view | seen
    worth = np.where(seen, 1 / (1 + (away / (TOLERANCE * size[1])) ** 2), 0.0)
    depth = np.exp(-state.log_inverse_depth)
    before_first = w2c[0, 2, :3] @ (rays * depth) + w2c[0, 2, 3]
    first_depth = float(np.median(before_first))
    if not (np.isfinite(w2c).all() and np.isfinite(depth).all() and first_depth > 0):
        raise NoCameraFound("no camera found: the adjustment of the corners diverged")
    return SparseModel(
        w2c=w2c,
        depth=depth,
        consistency=float(worth[counted].mean()),
        error_px=float(np.median(away[seen])),
        found_share=float(seen[counted].mean()),
        first_depth=first_depth,
    )
