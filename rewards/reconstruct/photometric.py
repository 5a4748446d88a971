"""The weight-free reconstructor: video → Gaussians and cameras, without any learned weights.

Flow from the middle frame → bundle adjustment on it from two starts → bundle adjustment on colours,
lowest cost kept → dense depth of the middle frame, and of the first and last where they see more →
Gaussians, finer where colours change → their colours by least squares. Numpy and OpenCV on one
thread, no randomness: same video, same bits.

The focal length is that of the requested camera. Work is bounded: at most `max_frames` evenly
spaced frames are reconstructed, at no more than `max_pixels` a frame (reduced by area averaging).
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from rewards.config import ReconstructionConfig
from rewards.gaussians import Gaussians, splat
from rewards.metrics.images import resize_frames
from rewards.reconstruct.bundle_adjustment import F64, Pinhole
from rewards.reconstruct.cameras import estimate_cameras
from rewards.reconstruct.colors import solve_colors
from rewards.reconstruct.reconstruction import (
    Reconstruction,
    ReconstructionError,
    chosen_frames,
)
from rewards.reconstruct.surfaces import Cloud, SurfaceBuilder

VERSION = "photometric-v3"
OPACITY = 0.95
PRE_BLUR = 0.6
"""Pixels: a colour gradient then reaches beyond its pixel, and noise counts for less. More of it
makes a frame seen from near and one from afar unlike each other, which bends the path."""
EXPLAINED = 0.05
"""Colour difference (of 1, mean over channels) at which a pixel is half explained."""
MIN_FRAMES, MIN_SIDE = 3, 32


class PhotometricReconstructor:
    """Video → Reconstruction, on the CPU."""

    version = VERSION

    def __init__(self, config: ReconstructionConfig) -> None:
        self.config = config

    def __call__(self, video: NDArray[np.uint8], intrinsics: F64) -> Reconstruction:
        """Reconstruct a video uint8 [F, H, W, 3]; `intrinsics` [3, 3] in its pixels.

        Raises ReconstructionError when no cameras can be found.
        """
        frames = chosen_frames(len(video), self.config.max_frames)
        video, intrinsics = _reduced(video[frames], intrinsics, self.config.max_pixels)
        if len(video) < MIN_FRAMES or min(video.shape[1:3]) < MIN_SIDE:
            raise ReconstructionError(
                f"no camera found: {len(video)} frames of {video.shape[1]} x {video.shape[2]} "
                f"pixels; needed: {MIN_FRAMES} frames and {MIN_SIDE} pixels a side",
                retry=False,
            )
        # A reduced frame's pixels are square but for the rounding of its sides. One focal length is
        # solved and rendered alike: with two, the re-rendering would shrink along one axis.
        focal = (intrinsics[0, 0] + intrinsics[1, 1]) / 2
        camera = Pinhole(focal, (intrinsics[0, 2], intrinsics[1, 2]))
        raw = video.astype(np.float32)
        smooth = np.stack([cv2.GaussianBlur(frame, (0, 0), PRE_BLUR) for frame in raw])
        cameras = estimate_cameras(video, smooth, camera)
        cloud = SurfaceBuilder(video, smooth, cameras, camera).build()
        gaussians = _gaussians(cloud)
        every = np.tile(camera.intrinsics(), (len(video), 1, 1))
        with torch.no_grad():
            splats = splat(
                gaussians,
                torch.from_numpy(cameras.w2c),
                torch.from_numpy(every),
                *video.shape[1:3],
            )
        colors, rerender = solve_colors(
            splats, gaussians.colors.numpy(), raw / np.float32(255), self.config.color_steps
        )
        return Reconstruction(
            gaussians=gaussians.with_colors(torch.from_numpy(colors)),
            w2c=cameras.w2c,
            intrinsics=every,
            confidence=_confidence(video, rerender),
            frames=frames,
            video=video,
            rerender=rerender,
            median_depth=cloud.first_depth,
            middle_depth=cloud.middle_depth,
            motion_px=cameras.motion_px,
        )


def _reduced(
    video: NDArray[np.uint8], intrinsics: F64, limit: int
) -> tuple[NDArray[np.uint8], F64]:
    """The video at no more than `limit` pixels a frame, and its intrinsics."""
    height, width = video.shape[1:3]
    factor = min(1.0, float(np.sqrt(limit / (height * width))))
    size = (int(width * factor) // 2 * 2, int(height * factor) // 2 * 2)
    if factor == 1.0:
        return video, intrinsics
    small = resize_frames(video, *size)
    scale = np.array([[size[0] / width], [size[1] / height], [1.0]])
    return small, intrinsics * scale


def _confidence(video: NDArray[np.uint8], rerender: NDArray[np.float32]) -> NDArray[np.float32]:
    """How well each pixel is explained [F, H, W], in (0, 1]: ½ at a colour difference of
    `EXPLAINED`."""
    difference = np.abs(video / np.float32(255) - rerender).mean(axis=-1) / EXPLAINED
    return (1 / (1 + difference**2)).astype(np.float32)


def _gaussians(cloud: Cloud) -> Gaussians:
    count = len(cloud.means)
    return Gaussians(
        means=torch.from_numpy(cloud.means.astype(np.float32)),
        scales=torch.from_numpy(np.repeat(cloud.scales[:, None], 3, axis=1).astype(np.float32)),
        quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(count, 1),
        opacities=torch.full((count,), OPACITY),
        colors=torch.from_numpy(cloud.colors.astype(np.float32)),
    )
