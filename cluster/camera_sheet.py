"""The picture of `worldr1 camera`: path from above and from the side, flow, transported noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from actors.noise_transport import initial_latents, latent_homographies
from cluster.config import RunConfig
from prompts.config import CameraConfig
from prompts.schema import CameraPath

F64 = NDArray[np.float64]

CELL = 300
TITLE = 18
SHOWN_FRAMES = 4
CHANNEL = 0
"""Latent channel whose noise is drawn."""


def write_camera_sheet(file: Path, path: CameraPath, config: RunConfig, seed: int) -> None:
    """Write the PNG: path and flow above, below them one channel of the transported noise, alone
    (strength 1, degradation 0) and as the configured blend, at evenly spaced latent frames."""
    pure = config.camera.model_copy(update={"strength": 1.0, "degradation": 0.0})
    rows = [
        [
            ("from above: right, forward", _path_picture(path.c2w, (0, 2), up=1)),
            ("from the side: forward, down", _path_picture(path.c2w, (2, 1), up=-1)),
            ("flow, next latent frame", _flow_picture(path, config, last=1)),
            ("flow, whole clip", _flow_picture(path, config, last=None)),
        ],
        _noise_row("transported", path, pure, config, seed),
        _noise_row("as sampled", path, config.camera, config, seed),
    ]
    width = max(sum(image.width for _, image in row) for row in rows)
    height = sum(max(image.height for _, image in row) + TITLE for row in rows)
    sheet = Image.new("RGB", (width, height), "white")
    draw, y = ImageDraw.Draw(sheet), 0
    for row in rows:
        x = 0
        for title, image in row:
            draw.text((x + 4, y + 3), title, fill="black")
            sheet.paste(image, (x, y + TITLE))
            x += image.width
        y += max(image.height for _, image in row) + TITLE
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file, format="PNG")


def _path_picture(c2w: F64, axes: tuple[int, int], up: int) -> Image.Image:
    """Camera centres and viewing directions in the plane of two world axes, equal scales."""
    centres, views = c2w[:, axes, 3], c2w[:, axes, 2]
    low, high = centres.min(axis=0), centres.max(axis=0)
    extent = max(float((high - low).max()), 0.1) * 1.6
    middle = (low + high) / 2

    def place(point: F64) -> tuple[float, float]:
        x, y = (point - middle) / extent * CELL + CELL / 2
        return float(x), float(CELL - y if up > 0 else y)

    image = Image.new("RGB", (CELL, CELL), (246, 246, 246))
    draw = ImageDraw.Draw(image)
    draw.line([place(point) for point in centres], fill=(150, 150, 150), width=2)
    shown = np.unique(np.linspace(0, len(c2w) - 1, 9).round().astype(int))
    for i in shown:
        t = i / max(len(c2w) - 1, 1)
        color = (round(255 * t), 60, round(255 * (1 - t)))
        _arrow(draw, place(centres[i]), place(centres[i] + views[i] * extent * 0.14), color)
    return image


def _flow_picture(path: CameraPath, config: RunConfig, last: int | None) -> Image.Image:
    """Arrows from picture positions to where the plane's points go, after `last` latent frames."""
    rollout = config.rollout
    c2w = torch.from_numpy(path.c2w.copy())
    steps = latent_homographies(
        c2w, config.camera, (rollout.height, rollout.width), rollout.latent_shape[1:]
    )
    H = np.eye(3)
    for step in steps[:last].numpy():
        H = step @ H
    _, rows, columns = rollout.latent_shape[1:]
    scale = CELL / columns
    image = Image.new("RGB", (CELL, round(rows * scale)), (246, 246, 246))
    draw = ImageDraw.Draw(image)
    for y in (np.arange(7) + 0.5) * rows / 7:
        for x in (np.arange(11) + 0.5) * columns / 11:
            u = H @ (x, y, 1.0)
            if u[2] > 1e-9:
                end = u[:2] / u[2] * scale
                _arrow(draw, (x * scale, y * scale), (float(end[0]), float(end[1])), (30, 90, 200))
    return image


def _noise_row(
    title: str, path: CameraPath, camera: CameraConfig, config: RunConfig, seed: int
) -> list[tuple[str, Image.Image]]:
    rollout = config.rollout
    latents = initial_latents(
        path, rollout.latent_shape, camera, rollout.height, rollout.width, seed
    )
    shown = np.unique(np.linspace(0, rollout.latent_frames - 1, SHOWN_FRAMES).round().astype(int))
    pictures = []
    for frame in shown:
        z = latents[CHANNEL, frame].numpy()
        grey = (128 + 40 * z).clip(0, 255).astype(np.uint8)
        size = (CELL, round(CELL * z.shape[0] / z.shape[1]))
        image = Image.fromarray(grey).resize(size, Image.Resampling.NEAREST).convert("RGB")
        pictures.append((f"{title}: latent frame {frame}", image))
    return pictures


def _arrow(
    draw: ImageDraw.ImageDraw,
    start: tuple[float, float],
    end: tuple[float, float],
    color: tuple[int, int, int],
) -> None:
    draw.line([start, end], fill=color, width=1)
    x, y = end
    draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=color)
    x, y = start
    draw.ellipse([x - 1, y - 1, x + 1, y + 1], fill=color)
