"""What every reconstructor answers: Gaussians and cameras from a video alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rewards.gaussians import Gaussians


class ReconstructionError(RuntimeError):
    """No cameras could be found for a video; the sample is a failure, never a number."""

    def __init__(self, reason: str, retry: bool = True) -> None:
        """`retry`: whether another worker, or another moment, might answer differently."""
        super().__init__(reason)
        self.retry = retry


class Reconstructor(Protocol):
    """Video → Reconstruction."""

    version: str

    def __call__(self, video: NDArray[np.uint8], intrinsics: NDArray[np.float64]) -> Reconstruction:
        """Reconstruct a video uint8 [F, H, W, 3]; `intrinsics` [3, 3] in its pixels are those of
        the requested camera, for reconstructors that do not find them. ReconstructionError."""
        ...


def chosen_frames(frames: int, limit: int) -> NDArray[np.intp]:
    """Indices of at most `limit` evenly spaced frames, first and last among them."""
    return np.unique(np.linspace(0, frames - 1, min(frames, limit)).round().astype(np.intp))


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """F reconstructed frames of a video.

    World frame: the reconstructor's own choice, up to scale; compare paths relative to their
    first camera, and lengths relative to `median_depth`.
    """

    gaussians: Gaussians
    w2c: NDArray[np.float64]
    """[F, 4, 4] world-to-camera, OpenCV axes."""
    intrinsics: NDArray[np.float64]
    """[F, 3, 3] in pixels of `video`."""
    confidence: NDArray[np.float32]
    """[F, H, W] >= 0, in the reconstructor's own measure: comparable between videos of one
    reconstructor, not between reconstructors."""
    frames: NDArray[np.intp]
    """[F] indices of these frames in the video that was given."""
    video: NDArray[np.uint8]
    """[F, H, W, 3]: those frames, at the size that was reconstructed."""
    rerender: NDArray[np.float32]
    """[F, H, W, 3] in [0, 1]: the Gaussians seen by the estimated cameras, over black."""
    median_depth: float
    """Median depth of what frame 0 sees, in world units."""
    middle_depth: float
    """Median depth of what the middle frame sees, in world units."""
    motion_px: float
    """Mean length of the optical flow from the middle frame to the others, per frame step."""
