"""What every reward worker checks: its input, its threads, its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from rewards.reconstruct.reconstruction import ReconstructionError
from rewards.score import RewardKind, Score, ScoreFailure
from rewards.weights import WeightsMissing

U8 = NDArray[np.uint8]


class WorkerBroken(RuntimeError):
    """This process can score nothing any more; another one may."""


BROKEN = (WorkerBroken, torch.AcceleratorError)
"""What ends a worker: after an error of its GPU every call of a process fails, and at once, so that
it would be given all that waits."""


def guarded(kind: RewardKind, scorer: str, scored: Callable[[], Score]) -> Score | ScoreFailure:
    """Run a scorer; an exception or a part that is not finite becomes a `ScoreFailure`. Raises
    what is `BROKEN`."""
    start = time.perf_counter()
    try:
        score = scored()
    except BROKEN:
        raise
    except Exception as error:  # whatever a scorer raises is that sample's failure
        reason = f"{kind} failed: {error}"
        return ScoreFailure(
            kind, reason, type(error).__name__, scorer, _since(start), worth_a_retry(error)
        )
    bad = _not_finite(score.parts)
    if bad:
        reason = f"{kind} answered {', '.join(bad)}; only finite parts are scores"
        return ScoreFailure(kind, reason, "", scorer, _since(start))
    return replace(score, seconds=_since(start))


def worth_a_retry(error: Exception) -> bool:
    """Whether the same input might be scored by another attempt."""
    if isinstance(error, ReconstructionError):
        return error.retry
    return not isinstance(error, ValueError | WeightsMissing)


def _not_finite(parts: Mapping[str, float]) -> list[str]:
    return [f"{name} = {value}" for name, value in parts.items() if not np.isfinite(value)]


def _since(start: float) -> float:
    return time.perf_counter() - start


def pin_threads(threads: int) -> None:
    """Thread counts of torch and OpenCV; results depend on them in the last bit."""
    if threads < 1:
        raise ValueError(f"threads is {threads}; allowed: 1 or more")
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


def require_cpu(name: str, backend: str, device: str) -> None:
    """Raise ValueError for a GPU given to an embedded backend."""
    if torch.device(device).type != "cpu":
        raise ValueError(
            f"rewards.{name} = {backend!r} runs on the CPU only, but its worker was given "
            f"{device!r}; set its gpus to 0"
        )


def require_video(video: U8, frames: int | None) -> None:
    """Raise ValueError unless `video` is uint8 [F, H, W, 3] with pixels, of `frames` frames if
    given."""
    if not isinstance(video, np.ndarray) or video.dtype != np.uint8 or video.ndim != 4:
        found = getattr(video, "dtype", type(video).__name__), getattr(video, "shape", None)
        raise ValueError(f"video is {found[0]} {found[1]}; allowed: numpy uint8 [F, H, W, 3]")
    if video.shape[-1] != 3 or (frames is not None and len(video) != frames):
        expected = "F" if frames is None else frames
        raise ValueError(f"video has shape {video.shape}; allowed: [{expected}, H, W, 3]")
    if not video.size:
        raise ValueError(f"video has shape {video.shape}; allowed: one pixel or more")


def require_image(image: U8) -> None:
    """Raise ValueError unless `image` is uint8 [H, W, 3]."""
    shaped = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[-1] == 3
    if not shaped or image.dtype != np.uint8:
        found = getattr(image, "dtype", type(image).__name__), getattr(image, "shape", None)
        raise ValueError(f"meta-view is {found[0]} {found[1]}; allowed: numpy uint8 [H, W, 3]")


def to_uint8(image: NDArray[np.floating]) -> U8:
    """Values in [0, 1], clipped and rounded to uint8."""
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def psnr(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Peak signal-to-noise ratio in dB of values in [0, 1], at most 60 for equal images."""
    error = float(np.mean((first - second) ** 2))
    return float(-10 * np.log10(max(error, 1e-6)))
