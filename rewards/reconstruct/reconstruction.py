"""What every reconstructor answers: Gaussians and cameras from a video alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.gaussians import Gaussians


class ReconstructionError(RuntimeError):
    """No cameras could be found for a video; the sample is a failure, never a number."""


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
