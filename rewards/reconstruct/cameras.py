"""Cameras of a video, and sparse depth of its middle frame, from flow and then from colours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from prompts.camera import invert_pose
from rewards.reconstruct.bundle_adjustment import F64, Pinhole, State, adjust
from rewards.reconstruct.data_terms import ColorTerm, flow_term
from rewards.reconstruct.flow import (
    F32,
    agreement,
    dense_flow,
    gradients,
    luminance,
    reliability,
)
from rewards.reconstruct.planes import PlanePrior
from rewards.reconstruct.reconstruction import ReconstructionError

FLOW_STRIDE = 4
"""Pixels between the points of the adjustment on flow."""
FLOW_STEPS, SELECTION_STEPS = 15, 4
EDGE_NOISE = 0.1
"""Pixels: error of place of a picture's edges. A point's colour is uncertain by that much of its
gradient, so that silhouettes, sharp but jagged, do not outweigh everything else."""
SHARP_BLUR = 0.3


@dataclass(frozen=True)
class Stage:
    """One adjustment on colours."""

    points: int
    """About how many points, unless they came closer than `stride` pixels."""
    stride: int
    sharp: bool
    """Whether on frames blurred by `SHARP_BLUR` only: less blur bends silhouettes less, more of it
    averages noise."""
    noise: float
    """Colour difference (grey levels over three channels) that counts as noise."""
    steps: int
    tolerance: float
    hold: float
    """Weight of a deviation of 1 in log inverse depth from the stage before."""
    planes: tuple[float, float, float]
    """Weight, bend and edge of the `PlanePrior`."""


STAGES = (
    Stage(384, 3, False, 10.0, 6, 1e-3, 2.0, (100.0, 0.05, 10.0)),
    Stage(384, 3, False, 3.0, 6, 1e-4, 22.0, (100.0, 0.05, 10.0)),
    Stage(683, 3, False, 0.7, 6, 1e-4, 5.0, (3e3, 0.01, 10.0)),
    Stage(1536, 2, True, 0.7, 5, 1e-4, 5.0, (1e4, 0.01, 15.0)),
)
"""The first one finds the way from afar; in the last ones what the cameras cannot explain, such as
what is hidden in one of the frames, hardly pulls any more, and planes hold the depths."""
GROUND_SLOPE = 0.7
"""Log inverse depth at the lower edge of the image (and minus that at the upper one) in the prior:
what is lower in a picture is usually nearer. Depth with its sign reversed, the classic ambiguity
of small motions, explains a flow almost as well; the prior breaks the tie."""
FLOW_PRIOR, SELECTION_PRIOR = 0.3, 2.0
"""Weights of a deviation of 1 in log inverse depth, the first one per frame, the second one in the
choice between the two starts."""
MIN_INFORMATION = 1e-3
"""Mean share of reliable flow directions below which nothing can be followed."""
MIN_INSIDE = 0.05
"""Share of the points that must still lie inside every frame under the estimated cameras."""


@dataclass(frozen=True, eq=False)
class Cameras:
    """Estimated cameras of F frames; the world is the middle frame's camera."""

    w2c: F64
    """[F, 4, 4]."""
    log_inverse_depth: F64
    """[h, w] of the middle frame, on the grid of the colour adjustment."""
    motion_px: float
    """Mean flow between the middle frame and the others, per frame of distance."""


def estimate_cameras(video: NDArray[np.uint8], smooth: F32, camera: Pinhole) -> Cameras:
    """Cameras of `video` [F, H, W, 3]; `smooth` are its frames slightly blurred, float32.

    Raises ReconstructionError when nothing can be followed through the video, or when the cameras
    found look away from it.
    """
    frames, middle = len(video), len(video) // 2
    others = np.array([index for index in range(frames) if index != middle])
    grey = luminance(video)
    flow = dense_flow(grey, middle)[others]
    sure = reliability(grey[middle])
    agrees = agreement(smooth[middle], smooth[others], flow)
    if float((sure[0] + sure[2]).mean() * agrees.mean()) < MIN_INFORMATION:
        raise ReconstructionError("no camera found: nothing in the middle frame can be followed")
    colors = ColorTerm(smooth[others])
    state, shape = _from_flow(flow, sure, agrees, colors, smooth[middle], camera)
    raw = video.astype(np.float32)
    sharp = np.stack([cv2.GaussianBlur(frame, (0, 0), SHARP_BLUR) for frame in raw])
    for stage in STAGES:
        pictures = sharp if stage.sharp else smooth
        term = ColorTerm(sharp[others]) if stage.sharp else colors
        state, shape, pixels = _from_colors(state, shape, term, pictures[middle], camera, stage)
    w2c = np.tile(np.eye(4), (frames, 1, 1))
    w2c[others, :3, :3], w2c[others, :3, 3] = state.rotation, state.translation
    _require_plausible(w2c, state, pixels, smooth.shape[1:3], camera)
    steps = np.abs(others - middle)
    motion = float((np.linalg.norm(flow, axis=-1).mean(axis=(1, 2)) / steps).mean())
    return Cameras(w2c, state.log_inverse_depth.reshape(shape), motion)


def point_grid(size: tuple[int, ...], stride: int) -> tuple[F64, tuple[int, int]]:
    """Pixel centres [2, P] every `stride` pixels, and the shape (rows, columns) of their grid, in
    an image of `size` (height, width)."""
    rows = np.arange(stride // 2, size[0], stride, dtype=np.float64)
    columns = np.arange(stride // 2, size[1], stride, dtype=np.float64)
    v, u = np.meshgrid(rows, columns, indexing="ij")
    return np.stack([u.ravel(), v.ravel()]) + 0.5, (len(rows), len(columns))


def _from_flow(
    flow: F32, sure: F32, agrees: F32, colors: ColorTerm, middle: F32, camera: Pinhole
) -> tuple[State, tuple[int, int]]:
    """Bundle adjustment on flow from a sloping and a flat scene; the one whose colours fit best."""
    pixels, shape = point_grid(flow.shape[1:3], FLOW_STRIDE)
    u, v = pixels.astype(int)
    matches = pixels + np.moveaxis(flow[:, v, u], -1, 1).astype(np.float64)
    information = (sure[None, :, v, u] * agrees[:, None, v, u]).astype(np.float64)
    rays = camera.rays(pixels)
    ground = GROUND_SLOPE * rays[1] / np.abs(rays[1]).max()
    prior = np.full(len(ground), FLOW_PRIOR * len(flow))
    on_flow, on_colors = flow_term(matches, information), colors.at(middle[v, u])
    states = []
    for depth in (ground, np.zeros_like(ground)):
        state = State.at_rest(len(flow), depth)
        state = adjust(rays, camera, on_flow, state, FLOW_STEPS, (ground, prior))
        held = (state.log_inverse_depth, np.full(len(ground), SELECTION_PRIOR))
        states.append(adjust(rays, camera, on_colors, state, SELECTION_STEPS, held))
    return min(states, key=lambda state: state.cost), shape


def _from_colors(
    state: State,
    shape: tuple[int, int],
    colors: ColorTerm,
    middle: F32,
    camera: Pinhole,
    stage: Stage,
) -> tuple[State, tuple[int, int], F64]:
    """Bundle adjustment on the colours of a stage's grid, from depths on a grid of `shape`."""
    height, width = middle.shape[:2]
    stride = max(stage.stride, round(math.sqrt(height * width / stage.points)))
    pixels, finer = point_grid((height, width), stride)
    u, v = pixels.astype(int)
    depth = state.log_inverse_depth
    if finer != shape:
        depth = np.asarray(cv2.resize(depth.reshape(shape), finer[::-1]), np.float64).ravel()
    own = middle[v, u]
    steepness = sum(np.square(d).sum(axis=2) for d in gradients(middle))[v, u]
    noise = np.sqrt(stage.noise**2 + EDGE_NOISE**2 * steepness)
    held = (depth, stage.hold * np.square(stage.noise / noise).astype(np.float64))
    planes = PlanePrior(own.astype(np.float64), finer, *stage.planes)
    start = State(state.rotation, state.translation, depth)
    term = colors.at(own, noise=noise)
    state = adjust(
        camera.rays(pixels), camera, term, start, stage.steps, held, stage.tolerance, planes
    )
    return state, finer, pixels


def _require_plausible(
    w2c: F64, state: State, pixels: F64, size: tuple[int, ...], camera: Pinhole
) -> None:
    if not (np.isfinite(w2c).all() and np.isfinite(state.log_inverse_depth).all()):
        raise ReconstructionError("no camera found: the bundle adjustment diverged")
    points = camera.rays(pixels) / np.exp(state.log_inverse_depth)
    seen = w2c[:, :3, :3] @ points + w2c[:, :3, 3:]
    in_front = seen[:, 2] > 0
    z = np.where(in_front, seen[:, 2], 1.0)
    u = camera.focal * seen[:, 0] / z + camera.centre[0]
    v = camera.focal * seen[:, 1] / z + camera.centre[1]
    inside = in_front & (u > 0) & (u < size[1]) & (v > 0) & (v < size[0])
    worst = int(inside.mean(axis=1).argmin())
    if inside[worst].mean() < MIN_INSIDE:
        raise ReconstructionError(
            f"no camera found: frame {worst} would see {inside[worst].mean():.0%} of the scene"
        )


def relative_w2k(w2c: F64, key: int, targets: NDArray[np.intp]) -> F64:
    """Transforms [T, 4, 4] from camera `key` to the cameras `targets`."""
    return w2c[targets] @ invert_pose(w2c[key])
