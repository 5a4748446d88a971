"""All figures of one clip: by the rewards' scorers, by the independent estimator, by the frames."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cluster.pools import Rewards, SampleScores
from prompts.config import CameraConfig
from prompts.schema import Prompt
from rewards.checks import BROKEN
from rewards.metrics.cameras import camera_errors, jitter
from rewards.metrics.coherence import coherence
from rewards.metrics.images import psnr_frames, resize_frames, ssim_frames
from rewards.metrics.independent import VERSION, second_opinion
from rewards.scoring import texture

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
    """One sentence by who failed: reconstruction, judge, aesthetic, second, frames, vbench, memory
    that did not hold all frames, the file itself, its length where that is another than the
    side's, or numbers, where a figure was measured and is none."""


def finite(clip: ClipFigures) -> ClipFigures:
    """A clip without the figures that are no numbers; those are a failure."""
    strange = {name: value for name, value in clip.figures.items() if not isfinite(value)}
    if not strange:
        return clip
    figures = {name: value for name, value in clip.figures.items() if name not in strange}
    reason = ", ".join(f"{name} is {value}" for name, value in strange.items())
    return replace(clip, figures=figures, failures={**clip.failures, "numbers": reason})


_Found: TypeAlias = tuple[dict[str, float], dict[str, str]]
"""Figures, and who failed why."""


class Measurer:
    """Measures clips: by the reward workers as a run does, by the independent estimator, by their
    frames."""

    def __init__(
        self, rewards: Rewards, camera: CameraConfig, max_frames: int, in_threads: bool = False
    ) -> None:
        """`rewards` have to take clips of any length, and reconstruct `max_frames` of their frames
        at most. `in_threads`: what is measured here holds up no other clip."""
        self.rewards, self.camera, self.max_frames = rewards, camera, max_frames
        self.in_threads = in_threads

    async def scorers(self) -> dict[str, str]:
        """Who measures, by role, with versions."""
        found = {}
        for name, pool in self.rewards.pools.items():
            found[str(name)] = str((await pool.call("describe"))["scorer"])
        return found | {"independent estimator": VERSION}

    async def measure(self, video: U8, prompt: Prompt, seed: int) -> ClipFigures:
        """All figures of a video uint8 [F, H, W, 3]."""
        ref = await self.rewards.pools["reconstruction"].store(video)
        scores = await self.rewards.score(ref, prompt, "main", keep_artifacts=True)
        figures, failures = _scored(video, scores, self.max_frames)
        if self.in_threads:
            here = await asyncio.to_thread(self._here, video, prompt)
        else:
            here = self._here(video, prompt)
        for part in here:
            figures |= part[0]
            failures |= part[1]
        return finite(ClipFigures(prompt.id, prompt.text, seed, figures, failures))

    def _here(self, video: U8, prompt: Prompt) -> tuple[_Found, ...]:
        return self._second(video, prompt), _moved(video)

    def _second(self, video: U8, prompt: Prompt) -> tuple[dict[str, float], dict[str, str]]:
        try:
            found = second_opinion(video, prompt, self.camera)
        except BROKEN:
            raise
        except Exception as error:  # whatever it raises is that clip's failure
            return {}, {"second": str(error)}
        own = ("mvcs", "depth_error", "gold")
        figures = {k if k in own else f"second.{k}": v for k, v in found.figures.items()}
        cameras = camera_figures(found.requested_c2w, found.c2w, found.frames)
        return figures | {f"second.{name}": value for name, value in cameras.items()}, {}


def _scored(
    video: U8, scores: SampleScores, max_frames: int
) -> tuple[dict[str, float], dict[str, str]]:
    """What the reward workers found, and who failed why."""
    failures = {str(failure.kind): failure.reason for failure in scores.failures}
    figures: dict[str, float] = {}
    aesthetic, judge = scores.scores.get("aesthetic"), scores.scores.get("judge")
    if aesthetic is not None:
        names = {"aesthetic_raw": "aesthetic", "content": "content"}
        figures |= {names[k]: v for k, v in aesthetic.raw.items() if k in names}
    score, artifacts = scores.scores.get("reconstruction"), scores.artifacts
    if score is None:
        return figures, failures
    figures |= {f"s_{name}": value for name, value in score.parts.items()}
    recon = score.parts["recon"]
    figures["proxy"] = recon + score.parts.get("traj", recon)
    if artifacts is None:  # a clip without texture: scores by definition, nothing to compare
        return figures, failures | {"reconstruction": "; ".join(score.notes)}
    figures |= rerendering_figures(video, artifacts.rerender)
    if "perceptual_distance" in score.raw:
        figures["perceptual"] = score.raw["perceptual_distance"]
    wanted, used = min(len(video), max_frames), len(artifacts.frames)
    if used < wanted:
        reason = f"memory held {used} of {wanted} frames: errors of cameras are sums over frames"
        failures |= {"memory": reason}
    else:
        figures |= camera_figures(
            artifacts.requested_c2w, artifacts.estimated_c2w, artifacts.frames
        )
    if judge is not None:
        figures["judge"] = judge.parts["meta"]
    return figures, failures


def _moved(video: U8) -> tuple[dict[str, float], dict[str, str]]:
    figures: dict[str, float] = {}
    try:
        figures["sharpness"] = texture(video)
        found = coherence(video)
    except BROKEN:
        raise
    except Exception as error:  # OpenCV's are of a kind of their own
        return figures, {"frames": str(error)}
    return figures | {"warp_error": found.warp_error, "motion": found.motion_share}, {}


def camera_figures(
    requested_c2w: F64 | None, estimated_c2w: F64, frames: NDArray[np.intp]
) -> dict[str, float]:
    """Jitter of a path at the frame indices [F], and its errors where one was requested; both in
    scene depths."""
    unsteady, unsteady_deg = jitter(estimated_c2w, frames)
    figures = {"jitter": unsteady, "jitter_deg": unsteady_deg}
    if requested_c2w is not None:
        figures |= asdict(camera_errors(requested_c2w, estimated_c2w))
    return figures


def rerendering_figures(video: U8, rerender: U8) -> dict[str, float]:
    """PSNR and SSIM against the re-rendering, at its frames and size."""
    picks = np.linspace(0, len(video) - 1, len(rerender)).round().astype(np.intp)
    height, width = rerender.shape[1:3]
    frames = video[picks]
    if frames.shape != rerender.shape:
        frames = resize_frames(frames, width, height)
    first, second = frames / 255.0, rerender / 255.0
    return {
        "psnr": float(psnr_frames(first, second).mean()),
        "ssim": float(ssim_frames(first, second).mean()),
    }
