"""The ways in which a toy clip can be inconsistent: what reinforcement learning should remove."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from prompts.camera import camera_path
from prompts.motions import PRIMITIVES, Motion
from toyworld.palette import OBJECT_COLORS
from toyworld.raycast import F64, Solid, Stage

CORRUPTIONS = ("drift", "slide", "wobble", "wrong_camera", "shake", "warp")
"""Colours drift, objects slide, sizes wobble, the camera does something else or shakes, and the
picture warps as no camera could make it."""
CORRUPTION_WEIGHTS = (0.2, 0.2, 0.2, 0.1, 0.1, 0.2)
"""Share of each among the corrupted pretraining clips: a wrong path is rare, so that the commanded
one remains the most likely."""


def corrupted(stage: Stage, kind: str, motions: tuple[Motion, ...], seed: int) -> Stage:
    """The stage spoilt in one of the `CORRUPTIONS`; the details are drawn from `seed`.

    `motions` are the commanded ones, which a wrong camera avoids.
    """
    rng = np.random.default_rng(seed)
    frames = len(stage.c2w)
    time = np.linspace(0, 1, frames, dtype=np.float32) if frames > 1 else np.zeros(1, np.float32)
    match kind:
        case "drift":
            return _drifting(stage, rng, time)
        case "slide":
            return _sliding(stage, rng, time)
        case "wobble":
            swing = 1 + 0.18 * np.sin(time * rng.uniform(7, 12) + rng.uniform(0, 6, (2, 1)))
            sizes = (swing / swing[:, :1]).astype(np.float32)
            solids = zip(stage.solids, sizes, strict=True)
            return replace(stage, solids=tuple(_resized(solid, size) for solid, size in solids))
        case "wrong_camera":
            others = [m for m in PRIMITIVES if m not in motions and m is not Motion.FIXED]
            path = camera_path((others[rng.integers(len(others))],), frames)
            assert path is not None
            return replace(stage, c2w=path.c2w)
        case "shake":
            return replace(stage, c2w=stage.c2w @ _jolts(rng, frames))
        case _:
            phase = rng.uniform(0, 6) + time * rng.uniform(5, 9) * rng.choice((-1, 1))
            amplitude = np.full(frames, rng.uniform(0.014, 0.024))
            columns = [amplitude, phase, np.full(frames, 1.6), np.full(frames, 2.0)]
            return replace(stage, ray_warp=np.stack(columns, axis=1).astype(np.float32))


def _drifting(stage: Stage, rng: np.random.Generator, time: NDArray[np.float32]) -> Stage:
    """Both objects fade to another colour, and the floor changes its brightness."""
    palette = np.array(list(OBJECT_COLORS.values()), np.float32)
    solids = []
    for solid in stage.solids:
        target = palette[rng.integers(len(palette))]
        mix = (0.85 * time)[:, None]
        solids.append(replace(solid, color=(1 - mix) * solid.color + mix * target))
    glow = 1 + rng.choice((-0.45, 0.6)) * time[:, None]
    return replace(stage, solids=tuple(solids), floor_color=stage.floor_color * glow)


def _sliding(stage: Stage, rng: np.random.Generator, time: NDArray[np.float32]) -> Stage:
    """Each object wanders over the floor by itself, though no prompt asked for it."""
    solids = []
    for solid in stage.solids:
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.12, 0.26)
        step = np.array([np.cos(angle), 0, np.sin(angle)], np.float32) * np.float32(reach)
        solids.append(replace(solid, centre=solid.centre + time[:, None] * step))
    return replace(stage, solids=tuple(solids))


def _resized(solid: Solid, factor: NDArray[np.float32]) -> Solid:
    """The solid scaled by `factor` [F], still standing on the floor."""
    centre = solid.centre.copy()
    centre[:, 1] += solid.radius * (1 - factor)
    return replace(solid, radius=solid.radius * factor, centre=centre)


def _jolts(rng: np.random.Generator, frames: int) -> F64:
    """Random camera displacements [F, 4, 4] about each pose; none in the first frame."""
    jolts = np.tile(np.eye(4), (frames, 1, 1))
    jolts[1:, :3, 3] = rng.normal(0, 0.025, (frames - 1, 3))
    for jolt, (pitch, yaw) in zip(jolts[1:], rng.normal(0, 0.02, (frames - 1, 2)), strict=True):
        (sp, sy), (cp, cy) = np.sin((pitch, yaw)), np.cos((pitch, yaw))
        around_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        around_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        jolt[:3, :3] = around_x @ around_y
    return jolts
