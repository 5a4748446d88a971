"""The reward's definitions: S_recon, S_traj, the meta-view's camera, the total (method section 3).

Pure functions of arrays. Poses are float64 c2w [F, 4, 4] in OpenCV axes; requested translations
are in scene depths, estimated ones are made so by the estimated median depth of frame 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prompts.camera import relative_to_first, rotation_angle_deg
from rewards.config import MetaView, TrajectoryVariant, WeightsConfig
from rewards.reconstruct.flow import reduced
from rewards.score import RewardPart

F64 = NDArray[np.float64]
Phase = Literal["main", "dynamic"]

MAX_SCALE = 3.0
MIN_ANGLE_SCALE_DEG = 10.0
GATE_SHARE = 0.1
TEXTURE_NOTE = "texture gate: S_recon = 0"
MOTION_NOTE = "motion gate: S_traj = 0"
PARTS: tuple[RewardPart, ...] = ("recon", "traj", "reach", "meta", "gen")
NEEDS_A_CAMERA: tuple[RewardPart, ...] = ("traj", "reach")


@dataclass(frozen=True)
class TrajectoryScore:
    """S_traj and what it was made of."""

    score: float
    translation_error: float
    """e_t: relative to the request where it translates, else in scene depths."""
    rotation_error: float
    """e_r: relative to the request (default), in radians (paper)."""
    rotation_error_deg: float
    """Mean geodesic angle between requested and estimated rotations."""
    scale: float
    """Factor on the estimated translations; 1 where none was fitted."""
    notes: tuple[str, ...] = ()


def total_variation(video: NDArray[np.uint8]) -> float:
    """Mean absolute difference of neighbouring pixels of [F, H, W, 3], in grey levels, averaged
    over the two directions."""
    pixels = video.astype(np.float32)
    across = np.abs(np.diff(pixels, axis=2)).mean()
    down = np.abs(np.diff(pixels, axis=1)).mean()
    return float((across + down) / 2)


def texture(video: NDArray[np.uint8]) -> float:
    """Total variation of a video [F, H, W, 3], `reduced` so that the same picture has the same
    texture at every resolution."""
    return total_variation(reduced(video))


def reconstruction_score(
    distances: NDArray[np.floating], texture_level: float, threshold: float
) -> tuple[float, tuple[str, ...]]:
    """S_recon = 1 - mean perceptual distance of the frames; 0 below the texture threshold.

    `distances` [F] lie in [0, 1]. Returns the score and the rules that decided by definition.
    """
    if texture_level < threshold:
        return 0.0, (TEXTURE_NOTE,)
    return float(1.0 - np.mean(distances)), ()


def trajectory_score(
    requested_c2w: F64,
    estimated_c2w: F64,
    median_depth: float,
    variant: TrajectoryVariant = "default",
) -> TrajectoryScore:
    """S_traj of an estimated path [F, 4, 4] against the requested one.

    Both are taken relative to their first frame. `default`: exp(-(e_t + e_r)) with both errors
    relative to what was requested, one least-squares scale clipped to [0, 3], and the motion gate.
    `paper`: e_t relative to the requested extent, e_r in radians, no gate, no cap on the scale.
    `release`: the authors' weighted mix of path, extent and error scores, without its alignment.
    """
    if requested_c2w.shape != estimated_c2w.shape:
        raise ValueError(
            f"estimated path has shape {estimated_c2w.shape}, the requested one "
            f"{requested_c2w.shape}; they must be equal"
        )
    if not median_depth > 0:
        raise ValueError(f"median_depth is {median_depth}; allowed: a number > 0")
    requested, estimated = relative_to_first(requested_c2w), relative_to_first(estimated_c2w)
    s, s_hat = requested[:, :3, 3], estimated[:, :3, 3] / median_depth
    asked_deg = rotation_angle_deg(requested[:, :3, :3])
    turned_deg = rotation_angle_deg(estimated[:, :3, :3])
    between = np.swapaxes(requested[:, :3, :3], 1, 2) @ estimated[:, :3, :3]
    error_deg = rotation_angle_deg(between)
    if variant == "release":
        return _release_score(s, s_hat, requested, estimated, error_deg)
    extent = float(np.linalg.norm(s, axis=1).max())
    translates = extent > 1e-9
    scale = _scale(s, s_hat, None if variant == "paper" else MAX_SCALE) if translates else 1.0
    e_t = float(np.linalg.norm(s - scale * s_hat, axis=1).mean())
    mean_deg = float(error_deg.mean())
    if variant == "paper":
        e_t = e_t / extent if translates else e_t
        e_r = float(np.radians(mean_deg))
    else:
        e_t = e_t / float(np.linalg.norm(s, axis=1).mean()) if translates else e_t
        e_r = mean_deg / max(float(asked_deg.mean()), MIN_ANGLE_SCALE_DEG)
    notes: tuple[str, ...] = ()
    score = float(np.exp(-(e_t + e_r)))
    if variant == "default" and _stands_still(s, s_hat, asked_deg, turned_deg):
        score, notes = 0.0, (MOTION_NOTE,)
    return TrajectoryScore(score, e_t, e_r, mean_deg, scale, notes)


def _scale(s: F64, s_hat: F64, cap: float | None) -> float:
    """The one scale c >= 0 that minimises ‖s - c ŝ‖², at most `cap`; 0 for a path at rest."""
    power = float((s_hat * s_hat).sum())
    if power <= 1e-18:
        return 0.0
    scale = max(float((s * s_hat).sum()) / power, 0.0)
    return scale if cap is None else min(scale, cap)


def _stands_still(s: F64, s_hat: F64, asked_deg: F64, turned_deg: F64) -> bool:
    """Whether a motion was requested and less than a tenth of it was made, in extent and angle.

    A request without translation (or rotation) is met in it by anything.
    """
    extent, angle = np.linalg.norm(s, axis=1).max(), asked_deg.max()
    if extent <= 1e-9 and angle <= 1e-6:
        return False
    moved = extent > 1e-9 and np.linalg.norm(s_hat, axis=1).max() >= GATE_SHARE * extent
    turned = angle > 1e-6 and turned_deg.max() >= GATE_SHARE * angle
    return not (moved or turned)


def _release_score(
    s: F64, s_hat: F64, requested: F64, estimated: F64, error_deg: F64
) -> TrajectoryScore:
    """The release's mix (its alignment fails on straight paths and is left out)."""
    asked, moved = _travelled(s), _travelled(s_hat)
    asked_deg, moved_deg = _turned(requested), _turned(estimated)
    error = float(np.linalg.norm(s - s_hat, axis=1).mean())
    if asked < 1e-4:
        translation = float(np.exp(-moved / 3.0))
    else:
        step = max(asked / max(len(s) - 1, 1), 1.0)
        norms = float(np.linalg.norm(s)) * float(np.linalg.norm(s_hat))
        cosine = float((s * s_hat).sum()) / norms if norms > 1e-12 else -1.0
        translation = (
            0.4 * 0.5 * (1 + cosine)
            + 0.3 * _ratio(moved, asked)
            + 0.3 * np.exp(-error / (2 * step))
        )
    if asked_deg < 1e-3:
        rotation = float(np.exp(-moved_deg / 5.0))
    else:
        rotation = (
            0.5 * np.exp(-error_deg.mean() / 6.0)
            + 0.3 * np.exp(-error_deg[-1] / 6.0)
            + 0.2 * _ratio(moved_deg, asked_deg)
        )
    if asked < 1e-4 and asked_deg < 1e-3:
        score = translation * rotation
    elif asked < 1e-4:
        score = 0.2 * translation + 0.8 * rotation
    elif asked_deg < 1e-3:
        score = 0.8 * translation + 0.2 * rotation
    else:
        score = 0.5 * (translation + rotation)
    mean_deg = float(error_deg.mean())
    return TrajectoryScore(float(np.clip(score, 0, 1)), error, mean_deg / 6.0, mean_deg, 1.0)


def _ratio(made: float, asked: float) -> float:
    """exp(-|log(made / asked)|): the smaller over the larger."""
    return min(made + 1e-6, asked + 1e-6) / max(made + 1e-6, asked + 1e-6)


def _travelled(centres: F64) -> float:
    return float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum())


def _turned(poses: F64) -> float:
    """Sum of the angles between consecutive frames, in degrees."""
    R = poses[:, :3, :3]
    return float(rotation_angle_deg(np.swapaxes(R[:-1], 1, 2) @ R[1:]).sum())


def meta_view_pose(
    c2w: F64,
    first_depth: float,
    middle_depth: float,
    variant: MetaView = "orbit",
    azimuth_deg: float = 20.0,
    elevation_deg: float = 10.0,
    pull_back: float = 0.5,
) -> F64:
    """Camera [4, 4] (c2w, world of the estimated path) that looks at the scene from off the path.

    `orbit`: the middle camera walks `azimuth_deg` to the right and `elevation_deg` up on the sphere
    about the point at `middle_depth` on its optical axis, still facing it. `pulled_back`: the first
    camera, `pull_back` times `first_depth` backwards. `farthest`: the estimated camera with the
    largest distance from the first.
    """
    if variant == "farthest":
        distance = np.linalg.norm(c2w[:, :3, 3] - c2w[0, :3, 3], axis=1)
        return c2w[int(distance.argmax())].copy()
    forward = np.eye(4)
    if variant == "pulled_back":
        forward[2, 3] = -pull_back * first_depth
        return c2w[0] @ forward
    forward[2, 3] = middle_depth
    yaw, pitch = np.radians(azimuth_deg), np.radians(elevation_deg)
    # To the right of the centre one looks to the left; above it, one looks down.
    turn_left, turn_down = np.eye(4), np.eye(4)
    turn_left[[0, 0, 2, 2], [0, 2, 0, 2]] = np.cos(yaw), -np.sin(yaw), np.sin(yaw), np.cos(yaw)
    turn_down[[1, 1, 2, 2], [1, 2, 1, 2]] = (
        np.cos(pitch),
        np.sin(pitch),
        -np.sin(pitch),
        np.cos(pitch),
    )
    backward = forward.copy()
    backward[2, 3] = -middle_depth
    return c2w[len(c2w) // 2] @ forward @ turn_left @ turn_down @ backward


def digit_expectation(log_probabilities: Sequence[float]) -> float:
    """0.1 × the expected digit under ten log-probabilities of "0" … "9", renormalised: [0, 0.9]."""
    if len(log_probabilities) != 10:
        raise ValueError(
            f"{len(log_probabilities)} log-probabilities given; allowed: 10, one a digit"
        )
    logits = np.asarray(log_probabilities, np.float64)
    weights = np.exp(logits - logits.max())
    return float(0.1 * (weights @ np.arange(10)) / weights.sum())


def affine_to_unit(raw: float, offset: float, scale: float) -> float:
    """R_gen = (raw - offset) / scale, clipped to [-1, 1]."""
    return float(np.clip((raw - offset) / scale, -1.0, 1.0))


def combine(
    parts: Mapping[str, float], weights: WeightsConfig, phase: Phase
) -> tuple[float, dict[str, float]]:
    """R = R_3D + λ·R_gen and the parts that made it, as the workers gave them.

    Main phase: all parts; `traj` and `reach` are left out where there is no `traj`, that is where
    the prompt names no motion. Dynamic phase: gen alone. Raises ValueError when another needed part
    is missing, or any is not finite; a part of weight 0 is neither needed nor used.
    """
    needed: tuple[RewardPart, ...] = ("gen",) if phase == "dynamic" else PARTS
    used: dict[str, float] = {}
    total = 0.0
    for name in needed:
        weight = float(getattr(weights, name))
        if weight == 0 or (name in NEEDS_A_CAMERA and "traj" not in parts):
            continue
        if name not in parts or not np.isfinite(parts[name]):
            raise ValueError(
                f"reward part {name!r} is {parts.get(name, 'missing')}; the {phase} phase needs a "
                "finite number"
            )
        used[name] = float(parts[name])
        total += weight * used[name]
    return total, used
