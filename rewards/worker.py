"""The three reward workers are plain classes, wrapped as actors where they are spawned.

ReconstructionWorker (here)                 video → S_recon, S_traj, meta-view
JudgeWorker (judge_worker.py)               meta-view → S_meta
AestheticWorker (aesthetic_worker.py)       video → R_gen

Each may run in an environment of its own, so that none imports what another needs. A scorer's error
is a `ScoreFailure`, and so is a NaN; only a caller's mistake raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from prompts.camera import invert_pose, requested_path
from prompts.config import CameraConfig
from prompts.schema import Prompt
from rewards.checks import (
    guarded,
    pin_threads,
    psnr,
    require_cpu,
    require_video,
    to_uint8,
)
from rewards.config import ReconstructionConfig, RewardConfig
from rewards.gaussians import render
from rewards.metrics.independent import NoCameraFound, second_opinion
from rewards.perceptual import Distance, build_distance, distance_version
from rewards.ply import encode_ply, most_visible
from rewards.reach import reach_score
from rewards.reconstruct.photometric import PhotometricReconstructor
from rewards.reconstruct.reconstruction import Reconstruction, Reconstructor
from rewards.score import Score, ScoreFailure
from rewards.scoring import (
    meta_view_pose,
    reconstruction_score,
    texture,
    total_variation,
    trajectory_score,
)

U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]

MAX_SPLATS = 300_000
"""Gaussians in an artifact, the most visible ones: viewers in browsers open that many at once."""
NO_CAMERA_NOTE = "texture gate: no camera, S_traj = 0"


@dataclass(frozen=True, eq=False)
class Artifacts:
    """What a reconstruction looked like, for people."""

    frames: NDArray[np.intp]
    """[F] indices of the frames that were reconstructed."""
    rerender: U8
    """[F, H, W, 3] the Gaussians seen by the estimated cameras."""
    depth: NDArray[np.float32]
    """[F, H, W] of the Gaussians along the optical axis, in median scene depths; 0: nothing."""
    splats: bytes
    """The Gaussians as a .ply file, at most `MAX_SPLATS` of them."""
    estimated_c2w: F64
    """[F, 4, 4] relative to the first camera, in median scene depths."""
    requested_c2w: F64 | None
    """[F, 4, 4] of the same frames, in scene depths; None where the prompt names no motion."""
    scale: float
    """Factor on the estimated translations that S_traj fitted; 1 where none was."""
    meta_view: U8
    """[H, W, 3] the unseen view that the judge is shown."""


class ReconstructionWorker:
    """Reconstructs a clip and scores its consistency and its camera."""

    def __init__(
        self,
        config: RewardConfig,
        camera: CameraConfig,
        frames: int | None,
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        """Scores clips of `frames` frames alone, or of any length where that is None."""
        pin_threads(threads)
        self.config, self.camera, self.frames, self.device = config, camera, frames, device
        self.reconstructor = build_reconstructor(config.reconstruction, device)
        self.scorer = f"{self.reconstructor.version}+{distance_version(config.perceptual)}"

    @cached_property
    def distance(self) -> Distance:
        """Perceptual distance; WeightsMissing at its first use where its weights cannot be had."""
        return build_distance(self.config.perceptual, self.device)

    def describe(self) -> dict[str, str]:
        """Scorer and definitions, for the run's log."""
        return {"kind": "reconstruction", "scorer": self.scorer, "variant": self.config.variant}

    def score(
        self, video: U8, prompt: Prompt, keep_artifacts: bool = False
    ) -> tuple[Score | ScoreFailure, U8 | None, Artifacts | None]:
        """Score a video uint8 [F, H, W, 3]; also its meta-view uint8 [H, W, 3] and, if asked for,
        its artifacts. Both are None on failure."""
        extras: list[tuple[U8, Artifacts | None]] = []

        def scored() -> Score:
            require_video(video, self.frames)
            score, meta_view, artifacts = self.assess(video, prompt, keep_artifacts)
            extras.append((meta_view, artifacts))
            return score

        outcome = guarded("reconstruction", self.scorer, scored)
        if isinstance(outcome, ScoreFailure):
            return outcome, None, None
        return outcome, *extras[0]

    def second_opinion(self, video: U8, prompt: Prompt) -> dict[str, float] | str:
        """Figures of the independent estimator, or one sentence where it finds no camera."""
        try:
            return dict(second_opinion(video, prompt, self.camera, sweep=False).figures)
        except (NoCameraFound, np.linalg.LinAlgError) as error:
            return str(error)

    def known_answers(self) -> dict[str, float]:
        """Scores of the known-answer clips; KnownAnswerError when their order is wrong."""
        from rewards.known_answer import known_answer_reconstruction

        return known_answer_reconstruction(self)

    def examine(self) -> dict[str, dict[str, float]]:
        """Scores of every known-answer clip, for the standing examiner."""
        from rewards.examiner import examine

        return examine(self)

    def assess(
        self, video: U8, prompt: Prompt, keep_artifacts: bool
    ) -> tuple[Score, U8, Artifacts | None]:
        """`score` of a clip of any length, raising whatever goes wrong."""
        path = requested_path(prompt, len(video), self.camera.amplitudes)
        requested = None if path is None else path.c2w
        level = texture(video)
        if level < self.config.reconstruction.texture_threshold:
            return self._untextured(video, requested, level)
        height, width = video.shape[1:3]
        focal = self.camera.focal * width
        intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
        found = self.reconstructor(video, intrinsics)
        frames = (found.video / 255).astype(np.float32)
        distances = self.distance(frames, found.rerender)
        recon, notes = reconstruction_score(
            distances, level, self.config.reconstruction.texture_threshold
        )
        parts = {"recon": recon}
        raw = {
            "psnr": psnr(frames, found.rerender),
            "perceptual_distance": float(distances.mean()),
            "sharpness": total_variation(found.video),
            "motion": found.motion_px,
            "gaussians": float(len(found.gaussians)),
            "frames": float(len(found.frames)),
            # In widths, as camera.focal: the noise is transported by that one.
            "focal": float(np.median(found.intrinsics[:, 0, 0])) / found.video.shape[2],
            "confidence": float(found.confidence.mean()),
        }
        c2w, scale = invert_pose(found.w2c), 1.0
        if requested is not None:
            requested = requested[found.frames]
            traj = trajectory_score(requested, c2w, found.median_depth, self.config.variant)
            parts["traj"], scale = traj.score, traj.scale
            if self.config.weights.reach:
                parts["reach"] = reach_score(
                    requested, found.video, self.camera.focal, self.config.reach_depth
                )
            raw["rotation_error_deg"] = traj.rotation_error_deg
            raw["translation_error"] = traj.translation_error
            notes = notes + traj.notes
        meta_view = self._meta_view(found, c2w)
        artifacts = (
            self._artifacts(found, c2w, requested, scale, meta_view) if keep_artifacts else None
        )
        return Score("reconstruction", parts, raw, self.scorer, notes), meta_view, artifacts

    def _untextured(
        self, video: U8, requested: F64 | None, level: float
    ) -> tuple[Score, U8, Artifacts | None]:
        """By definition: nothing to reconstruct, no camera, an empty meta-view."""
        recon, notes = reconstruction_score(
            np.zeros(1), level, self.config.reconstruction.texture_threshold
        )
        parts = {"recon": recon}
        if requested is not None:
            parts["traj"], notes = 0.0, (*notes, NO_CAMERA_NOTE)
            if self.config.weights.reach:
                parts["reach"] = 0.0
        raw = {"sharpness": total_variation(video)}
        return (
            Score("reconstruction", parts, raw, self.scorer, notes),
            np.zeros_like(video[0]),
            None,
        )

    def _meta_view(self, found: Reconstruction, c2w: F64) -> U8:
        config = self.config.reconstruction
        pose = meta_view_pose(
            c2w,
            found.median_depth,
            found.middle_depth,
            config.meta_view,
            config.azimuth_deg,
            config.elevation_deg,
            config.pull_back,
        )
        with torch.no_grad():
            rgb, _, _ = render(
                found.gaussians,
                torch.from_numpy(invert_pose(pose)[None]),
                torch.from_numpy(found.intrinsics[:1]),
                found.video.shape[1],
                found.video.shape[2],
                renderer=config.renderer,
            )
        return to_uint8(rgb[0].permute(1, 2, 0).cpu().numpy())

    def _artifacts(
        self,
        found: Reconstruction,
        c2w: F64,
        requested: F64 | None,
        scale: float,
        meta_view: U8,
    ) -> Artifacts:
        estimated = invert_pose(c2w[0]) @ c2w
        estimated[:, :3, 3] /= found.median_depth
        with torch.no_grad():
            _, _, depth = render(
                found.gaussians,
                torch.from_numpy(found.w2c),
                torch.from_numpy(found.intrinsics),
                height=found.video.shape[1],
                width=found.video.shape[2],
                renderer=self.config.reconstruction.renderer,
            )
        return Artifacts(
            frames=found.frames,
            rerender=to_uint8(found.rerender),
            depth=(depth[:, 0] / found.median_depth).float().cpu().numpy(),
            splats=encode_ply(most_visible(found.gaussians, MAX_SPLATS)),
            estimated_c2w=estimated,
            requested_c2w=requested,
            scale=scale,
            meta_view=meta_view,
        )


def build_reconstructor(config: ReconstructionConfig, device: str) -> Reconstructor:
    """The reconstructor that the config names; ValueError for one that cannot use `device`."""
    if config.backend == "da3":
        from rewards.reconstruct.da3 import DepthAnything3

        return DepthAnything3(config, device)
    require_cpu("reconstruction.backend", config.backend, device)
    return PhotometricReconstructor(config)
