"""From cameras to a cloud of Gaussians: dense depth of key frames, finer where colours change."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from prompts.camera import invert_pose
from rewards.reconstruct.bundle_adjustment import F64, Pinhole
from rewards.reconstruct.cameras import Cameras, relative_w2k
from rewards.reconstruct.data_terms import ColorTerm
from rewards.reconstruct.depth import color_bonds, refine
from rewards.reconstruct.flow import F32

CELL = 2
"""Pixels per side of a depth cell."""
MIDDLE_STEPS, SIDE_STEPS = 3, 2
DETAIL = 100.0
"""Colour step to a neighbouring cell (grey levels, summed over channels) that asks for Gaussians of
one pixel instead of one cell."""
SPREAD = 0.5
"""Standard deviation of a Gaussian, in its own spacing."""
MIN_NEW = 0.01
"""Share of a side frame that must be new before Gaussians are added from it."""
FILL_RADII = (1.0, 2.0, 4.0, 8.0, 32.0)


@dataclass(frozen=True, eq=False)
class Cloud:
    """N isotropic Gaussians in the world of the cameras, and depths along the way."""

    means: F64
    """[N, 3]."""
    scales: F64
    """[N] standard deviations."""
    colors: F64
    """[N, 3] first guess in [0, 1]."""
    first_depth: float
    """Median depth that frame 0 sees."""
    middle_depth: float
    """Median depth that the middle frame sees."""


class SurfaceBuilder:
    """Gaussians of one video under known cameras."""

    def __init__(
        self, video: NDArray[np.uint8], smooth: F32, cameras: Cameras, camera: Pinhole
    ) -> None:
        """`video` [F, H, W, 3] and its frames slightly blurred, float32."""
        self.video, self.smooth, self.cameras, self.camera = video, smooth, cameras, camera
        height, width = video.shape[1:3]
        self.shape = (height // CELL, width // CELL)
        v, u = np.mgrid[: self.shape[0], : self.shape[1]]
        self.pixels = np.stack([u.ravel(), v.ravel()]) * float(CELL) + CELL / 2
        """[2, cells] centres of the cells."""
        self.rays = camera.rays(self.pixels)
        self.colors = ColorTerm(smooth)

    def build(self) -> Cloud:
        """Everything the middle frame sees, and what the first and last see beyond it."""
        frames, middle = len(self.video), len(self.video) // 2
        others = np.array([index for index in range(frames) if index != middle])
        sparse = self.cameras.log_inverse_depth
        start = np.asarray(cv2.resize(sparse, self.shape[::-1]), np.float64)
        depth = self._refined(middle, start, others, MIDDLE_STEPS)
        parts = [self._gaussians(middle, depth, np.ones(self.shape, bool))]
        first_depth = float(np.exp(-np.median(depth)))
        for key in (0, frames - 1):
            if key == middle:
                continue
            guess, covered = self._carried(depth, middle, key)
            if key == 0:
                first_depth = float(np.exp(-np.median(guess)))
            if (~covered).mean() > MIN_NEW:
                near = np.unique(np.linspace(key, middle, 5).round().astype(int))
                side = self._refined(key, guess, near[near != key], SIDE_STEPS)
                parts.append(self._gaussians(key, side, ~covered))
        means, scales, colors = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Cloud(means, scales, colors, first_depth, float(np.exp(-np.median(depth))))

    def _refined(self, key: int, start: F64, targets: NDArray[np.intp], steps: int) -> F64:
        """Log inverse depth [h, w] of a key frame, matched against the target frames."""
        u, v = (self.pixels - 0.5).astype(np.float32)[:, :, None]
        color = cv2.remap(self.smooth[key], u, v, cv2.INTER_LINEAR)[:, 0]
        w2k = relative_w2k(self.cameras.w2c, key, targets)
        data = self.colors.at(color, targets)
        bonds = color_bonds(color.reshape(*self.shape, 3).astype(np.float64))
        return refine(start, self.rays, self.camera, w2k, data, bonds, steps)

    def _carried(self, depth: F64, source: int, key: int) -> tuple[F64, NDArray[np.bool_]]:
        """Depth of another frame moved into `key`, holes filled from around them, and where the
        source covers it (single-cell gaps of the sampling count as covered)."""
        points = self.rays / np.exp(depth.ravel())
        w2k = relative_w2k(self.cameras.w2c, source, np.array([key]))[0]
        x, y, z = w2k[:3, :3] @ points + w2k[:3, 3:]
        safe = np.maximum(z, 1e-3)
        u = np.floor((self.camera.focal * x / safe + self.camera.centre[0]) / CELL).astype(int)
        v = np.floor((self.camera.focal * y / safe + self.camera.centre[1]) / CELL).astype(int)
        inside = (z > 1e-3) & (u >= 0) & (u < self.shape[1]) & (v >= 0) & (v < self.shape[0])
        total, count = np.zeros(self.shape), np.zeros(self.shape)
        np.add.at(total, (v[inside], u[inside]), -np.log(safe[inside]))
        np.add.at(count, (v[inside], u[inside]), 1.0)
        known = count > 0
        filled = np.where(known, total / np.maximum(count, 1), 0.0)
        covered = cv2.morphologyEx(known.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3))) > 0
        for radius in FILL_RADII:
            weight = cv2.GaussianBlur(count, (0, 0), radius)
            fresh = ~known & (weight > 0.02)
            filled[fresh] = cv2.GaussianBlur(total, (0, 0), radius)[fresh] / weight[fresh]
            known = known | fresh
        filled[~known] = np.median(depth)
        return filled, covered

    def _gaussians(self, key: int, depth: F64, wanted: NDArray[np.bool_]) -> tuple[F64, F64, F64]:
        """Means, scales and colours of the wanted cells [h, w] of a key frame."""
        fine = self._detailed(key) & wanted
        coarse = (wanted & ~fine).ravel()
        quarter = CELL / 4
        shifts = [
            (-quarter, -quarter),
            (quarter, -quarter),
            (-quarter, quarter),
            (quarter, quarter),
        ]
        pixels = np.concatenate(
            [self.pixels[:, coarse]]
            + [self.pixels[:, fine.ravel()] + np.array(shift)[:, None] for shift in shifts],
            axis=1,
        )
        z = np.exp(-depth.ravel())
        z = np.concatenate([z[coarse], np.tile(z[fine.ravel()], len(shifts))])
        spacing = np.where(np.arange(len(z)) < coarse.sum(), CELL, CELL / 2)
        c2w = invert_pose(self.cameras.w2c[key])
        means = (self.camera.rays(pixels) * z).T @ c2w[:3, :3].T + c2w[:3, 3]
        u, v = pixels.astype(int)
        mean_color = self._cell_colors(key).reshape(-1, 3)[coarse]
        colors = np.concatenate([mean_color, self.video[key][v, u][coarse.sum() :]]) / 255.0
        return means, z * spacing * SPREAD / self.camera.focal, colors

    def _cell_colors(self, key: int) -> F32:
        """Mean colours [h, w, 3] of the cells."""
        height, width = self.shape[0] * CELL, self.shape[1] * CELL
        frame = self.video[key, :height, :width].astype(np.float32)
        cells = cv2.resize(frame, self.shape[::-1], interpolation=cv2.INTER_AREA)
        return np.asarray(cells, np.float32)

    def _detailed(self, key: int) -> NDArray[np.bool_]:
        """Cells [h, w] with a large colour step to a neighbour."""
        cells = self._cell_colors(key)
        across = np.abs(np.diff(cells, axis=1)).sum(axis=2) > DETAIL
        down = np.abs(np.diff(cells, axis=0)).sum(axis=2) > DETAIL
        detailed = np.zeros(self.shape, bool)
        detailed[:, 1:] |= across
        detailed[:, :-1] |= across
        detailed[1:] |= down
        detailed[:-1] |= down
        return detailed
