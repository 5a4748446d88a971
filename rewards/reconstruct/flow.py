"""Dense optical flow from one frame to others, and how far it can be trusted in each direction.

Everything is numpy and OpenCV on one thread; images are float32 luminance in [0, 255] and flows
are in pixels, `flow[v, u] = (du, dv)`.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

PIXELS = 64 * 96
"""Of a frame in which motion and texture are measured."""
FLOW_SIDE = 16
"""Pixels a side that the search for flow needs."""
PATCH, PATCH_STRIDE = 8, 4
DESCENT_STEPS, VARIATIONAL_STEPS = 16, 5
PRE_BLUR, GUESS_BLUR = 0.7, 8.0
"""Pixels: of the frames, against noise, and of the first guess, against its outliers."""
NOISE_GRADIENT = 3.0
"""Image gradient (grey levels per pixel) at which a direction counts as half reliable."""
NOISE_LEVEL = 12.0
"""Colour difference after warping (grey levels) at which a match counts as half reliable."""


def luminance(video: U8) -> U8:
    """Grey frames [F, H, W] of an RGB video uint8 [F, H, W, 3] (ITU-R BT.601 weights)."""
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video])


def dense_flow(grey: U8, source: int) -> F32:
    """Flow [F, H, W, 2] from frame `source` to every frame of `grey` [F, H, W]; 0 to itself.

    Dense inverse search (Kroeger et al. 2016) at full resolution with variational refinement. Going
    outwards from the source, each search starts at the flow found for the frame before: far frames
    are out of reach of a search that starts at rest.
    """
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    search.setFinestScale(0)
    search.setPatchSize(PATCH)
    search.setPatchStride(PATCH_STRIDE)
    search.setGradientDescentIterations(DESCENT_STEPS)
    search.setVariationalRefinementIterations(VARIATIONAL_STEPS)
    smooth = [cv2.GaussianBlur(frame, (0, 0), PRE_BLUR) for frame in grey]
    flow = np.zeros((*grey.shape, 2), np.float32)
    for direction, last in ((1, len(grey)), (-1, -1)):
        for target in range(source + direction, last, direction):
            before = flow[target - direction]
            guess = cv2.GaussianBlur(before, (0, 0), GUESS_BLUR)
            flow[target] = search.calc(smooth[source], smooth[target], guess)
    return flow


def reduced(video: U8, least: int = 1) -> U8:
    """A video [F, H, W, 3] at about `PIXELS` a frame, by area averaging, or as it is where it has
    no more: motion and texture are measured there, alike for every resolution. A side of fewer
    than `least` pixels is enlarged to as many."""
    height, width = video.shape[1:3]
    factor = min(1.0, float(np.sqrt(PIXELS / (height * width))))
    size = (max(round(width * factor), least), max(round(height * factor), least))
    small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in video]
    return np.stack(small).astype(np.uint8)


def mean_motion(video: U8) -> float:
    """Mean length of the flow from the middle frame of [F, H, W, 3] to the others, per frame step,
    in pixels of the frames `reduced`."""
    middle = len(video) // 2
    flow = dense_flow(luminance(reduced(video, FLOW_SIDE)), middle)
    others = np.array([index for index in range(len(video)) if index != middle])
    lengths = np.linalg.norm(flow[others], axis=-1).mean(axis=(1, 2))
    return float((lengths / np.abs(others - middle)).mean())


def gradients(image: F32) -> tuple[F32, F32]:
    """Derivatives per pixel along u and v of an image [H, W] or [H, W, C] (Scharr)."""
    du = cv2.Scharr(image, cv2.CV_32F, 1, 0, scale=1 / 32)
    dv = cv2.Scharr(image, cv2.CV_32F, 0, 1, scale=1 / 32)
    return np.asarray(du, np.float32), np.asarray(dv, np.float32)


def reliability(source: U8, window: float = 1.5) -> F32:
    """Information matrix [3, H, W] (xx, xy, yy, eigenvalues in [0, 1]) of a flow from `source`.

    From the structure tensor S: S (S + n²)⁻¹. Along an edge, where the flow is a guess (aperture
    problem), the information is near 0.
    """
    du, dv = gradients(source.astype(np.float32))
    xx, xy, yy = (cv2.GaussianBlur(p, (0, 0), window) for p in (du * du, du * dv, dv * dv))
    noise = NOISE_GRADIENT**2
    scale = noise / ((xx + noise) * (yy + noise) - xy * xy)
    return np.stack([1 - scale * (yy + noise), scale * xy, 1 - scale * (xx + noise)])


def agreement(source: F32, targets: F32, flow: F32) -> F32:
    """Weight in [0, 1] [T, H, W]: whether `targets` warped back along `flow` look like `source`.

    `source` [H, W, 3] and `targets` [T, H, W, 3] in grey levels; 0 where the flow leaves the frame.
    """
    height, width = source.shape[:2]
    grid_u, grid_v = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    weights = np.empty(flow.shape[:3], np.float32)
    for index, target in enumerate(targets):
        u, v = grid_u + flow[index, ..., 0], grid_v + flow[index, ..., 1]
        warped = cv2.remap(target, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        difference = cv2.blur(np.abs(warped - source).mean(axis=2), (5, 5)) / NOISE_LEVEL
        inside = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
        weights[index] = inside / (1 + difference**2)
    return weights
