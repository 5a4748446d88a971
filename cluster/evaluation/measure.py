"""All figures of one clip: by the rewards' scorers, by the independent estimator, by the frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from cluster.config import RunConfig
from prompts.schema import Prompt
from rewards.aesthetic_worker import AestheticWorker
from rewards.checks import guarded
from rewards.judge_worker import JudgeWorker
from rewards.metrics.cameras import camera_errors, jitter
from rewards.metrics.coherence import coherence
from rewards.metrics.images import psnr_frames, ssim_frames
from rewards.metrics.independent import VERSION, NoCameraFound, second_opinion
from rewards.reconstruct.reconstruction import ReconstructionError
from rewards.score import Score, ScoreFailure
from rewards.scoring import texture
from rewards.worker import Artifacts, ReconstructionWorker

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ClipFigures:
    """What was measured in one clip. A figure that could not be measured is absent, and the reason
    is in `failures`; it never becomes a number."""

    prompt_id: str
    prompt: str
    seed: int
    figures: Mapping[str, float]
    """By `cluster.evaluation.figures`' names."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """One sentence by who failed: reconstruction, judge, aesthetic, second, frames."""


class Measurer:
    """Measures clips of any length with the scorers that a configuration names, in this process."""

    def __init__(self, config: RunConfig, device: str = "cpu") -> None:
        threads, frames = config.threads, config.rollout.frames
        self.camera = config.camera
        self.reconstruction = ReconstructionWorker(
            config.rewards, config.camera, frames, device, threads
        )
        self.judge = JudgeWorker(config.rewards, device, threads)
        self.aesthetic = AestheticWorker(config.rewards, device, threads)

    def scorers(self) -> dict[str, str]:
        """Who measures, by role, with versions."""
        return {
            "reconstruction": self.reconstruction.scorer,
            "judge": self.judge.describe()["scorer"],
            "aesthetic": self.aesthetic.describe()["scorer"],
            "independent estimator": VERSION,
        }

    def measure(self, video: U8, prompt: Prompt, seed: int) -> ClipFigures:
        """All figures of a video uint8 [F, H, W, 3]."""
        figures: dict[str, float] = {}
        failures: dict[str, str] = {}
        for name, part in (
            ("reconstruction", self._reconstructed),
            ("aesthetic", self._framed),
            ("second", self._second),
            ("frames", self._moved),
        ):
            found, failed = part(video, prompt)
            figures |= found
            failures |= {name if key == "" else key: reason for key, reason in failed.items()}
        return ClipFigures(prompt.id, prompt.text, seed, figures, failures)

    def _reconstructed(self, video: U8, prompt: Prompt) -> tuple[dict[str, float], dict[str, str]]:
        kept: list[tuple[U8, Artifacts | None]] = []

        def scored() -> Score:
            score, meta_view, artifacts = self.reconstruction.assess(video, prompt, True)
            kept.append((meta_view, artifacts))
            return score

        outcome = guarded("reconstruction", self.reconstruction.scorer, scored)
        if isinstance(outcome, ScoreFailure):
            return {}, {"": outcome.reason}
        meta_view, artifacts = kept[0]
        figures = {f"s_{name}": value for name, value in outcome.parts.items()}
        recon = outcome.parts["recon"]
        figures["proxy"] = recon + outcome.parts.get("traj", recon)
        if artifacts is None:  # a clip without texture: scores by definition, nothing to compare
            return figures, {"judge": "; ".join(outcome.notes)}
        figures |= _rerendered(video, artifacts.rerender)
        if "perceptual_distance" in outcome.raw:
            figures["perceptual"] = outcome.raw["perceptual_distance"]
        figures |= camera_figures(artifacts.requested_c2w, artifacts.estimated_c2w)
        judged = self.judge.score(meta_view, prompt)
        if isinstance(judged, ScoreFailure):
            return figures, {"judge": judged.reason}
        return figures | {"judge": judged.parts["meta"]}, {}

    def _framed(self, video: U8, prompt: Prompt) -> tuple[dict[str, float], dict[str, str]]:
        outcome = self.aesthetic.score(video, prompt)
        if isinstance(outcome, ScoreFailure):
            return {}, {"": outcome.reason}
        names = {"aesthetic_raw": "aesthetic", "content": "content"}
        return {names[k]: v for k, v in outcome.raw.items() if k in names}, {}

    def _second(self, video: U8, prompt: Prompt) -> tuple[dict[str, float], dict[str, str]]:
        try:
            found = second_opinion(video, prompt, self.camera)
        except (NoCameraFound, ReconstructionError, ValueError, np.linalg.LinAlgError) as error:
            return {}, {"": str(error)}
        own = ("mvcs", "depth_error", "gold")
        figures = {k if k in own else f"second.{k}": v for k, v in found.figures.items()}
        cameras = camera_figures(found.requested_c2w, found.c2w)
        return figures | {f"second.{name}": value for name, value in cameras.items()}, {}

    def _moved(self, video: U8, prompt: Prompt) -> tuple[dict[str, float], dict[str, str]]:
        figures = {"sharpness": texture(video)}
        try:
            found = coherence(video)
        except ValueError as error:
            return figures, {"": str(error)}
        return figures | {"warp_error": found.warp_error, "motion": found.motion_share}, {}


def camera_figures(requested_c2w: F64 | None, estimated_c2w: F64) -> dict[str, float]:
    """Jitter of a path, and its errors where one was requested; both in scene depths."""
    unsteady, unsteady_deg = jitter(estimated_c2w)
    figures = {"jitter": unsteady, "jitter_deg": unsteady_deg}
    if requested_c2w is not None:
        figures |= asdict(camera_errors(requested_c2w, estimated_c2w))
    return figures


def _rerendered(video: U8, rerender: U8) -> dict[str, float]:
    """PSNR and SSIM against the re-rendering, at its frames and size."""
    picks = np.linspace(0, len(video) - 1, len(rerender)).round().astype(np.intp)
    height, width = rerender.shape[1:3]
    frames = video[picks]
    if frames.shape != rerender.shape:
        frames = np.stack(
            [cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA) for f in frames]
        )
    first, second = frames / 255.0, rerender / 255.0
    return {
        "psnr": float(psnr_frames(first, second).mean()),
        "ssim": float(ssim_frames(first, second).mean()),
    }
