"""The figures of an evaluation: what each is called, where it comes from, which way is better.

Definitions and sources: docs/evaluation.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A column of every table."""

    name: str
    """Key in CSV and JSON."""
    title: str
    unit: str
    better: Better
    """`neither`: guards, of which more is not better, and less is a warning."""
    digits: int = 3


GROUPS: dict[str, tuple[Figure, ...]] = {
    "3D consistency, by the reward's reconstructor": (
        Figure("psnr", "PSNR", "dB", "higher", 2),
        Figure("ssim", "SSIM", "", "higher"),
        Figure("perceptual", "perceptual distance", "", "lower"),
        Figure("s_recon", "S_recon", "", "higher"),
    ),
    "3D consistency, by the independent estimator": (
        Figure("second.consistency", "consistency of corners", "", "higher"),
        Figure("second.error_px", "reprojection error", "px", "lower"),
        Figure("mvcs", "MVCS", "", "higher"),
        Figure("depth_error", "depth inconsistency", "", "lower"),
    ),
    "Camera, by the reward's reconstructor": (
        Figure("s_traj", "S_traj", "", "higher"),
        Figure("rot_err", "RotErr", "rad", "lower"),
        Figure("trans_err_rel", "TransErr rel", "", "lower"),
        Figure("trans_err_abs", "TransErr abs", "", "lower"),
        Figure("cam_mc_rel", "CamMC rel", "", "lower"),
        Figure("cam_mc_abs", "CamMC abs", "", "lower"),
        Figure("jitter", "jitter of the path", "depths/frame²", "lower", 4),
        Figure("jitter_deg", "jitter of the turn", "°/frame²", "lower"),
    ),
    "Camera, by the independent estimator": (
        Figure("second.traj", "S_traj", "", "higher"),
        Figure("second.rot_err", "RotErr", "rad", "lower"),
        Figure("second.trans_err_rel", "TransErr rel", "", "lower"),
        Figure("second.trans_err_abs", "TransErr abs", "", "lower"),
        Figure("second.cam_mc_rel", "CamMC rel", "", "lower"),
        Figure("second.cam_mc_abs", "CamMC abs", "", "lower"),
        Figure("second.jitter", "jitter of the path", "depths/frame²", "lower", 4),
        Figure("second.jitter_deg", "jitter of the turn", "°/frame²", "lower"),
    ),
    "From frame to frame": (
        Figure("warp_error", "flow-warped error", "", "lower", 4),
        Figure("motion", "motion", "% of width/frame", "neither"),
        Figure("sharpness", "sharpness", "grey levels", "neither", 2),
    ),
    "Frames": (
        Figure("content", "content", "", "neither"),
        Figure("judge", "judge of the unseen view", "", "higher"),
        Figure("aesthetic", "aesthetic, raw", "", "higher", 2),
    ),
    "Proxy and gold": (
        Figure("proxy", "proxy: S_recon + S_traj", "", "higher"),
        Figure("gold", "gold: the independent counterpart", "", "higher"),
    ),
}
"""Figures by chapter, in the order in which they are shown."""

VBENCH = "vbench."
"""Prefix of the figures that the vbench package adds, in percent."""

BY_NAME = {figure.name: figure for figures in GROUPS.values() for figure in figures}


def figure_of(name: str) -> Figure:
    """The figure with a name, those of VBench included; KeyError for an unknown one."""
    if name.startswith(VBENCH):
        return Figure(name, name.removeprefix(VBENCH).replace("_", " "), "%", "higher", 2)
    return BY_NAME[name]
