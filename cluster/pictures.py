"""Pictures of one scored sample for people: depth in colours, and cameras drawn into the video."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from prompts.camera import rotation_angle_deg
from rewards.metrics.images import resize_frames
from rewards.worker import Artifacts

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

MIN_HEIGHT = 256
"""Smaller videos are enlarged by a whole factor, so that the map in their corner can be read."""
MAP_SHARE = 0.42
SHEET_FRAMES, SHEET_HEIGHT = 5, 160
REQUESTED, ESTIMATED = (255, 255, 255), (255, 140, 0)
"""RGB of the two paths: white and orange."""


def depth_video(depth: F32) -> U8:
    """Depth [F, H, W] as colours [F, H, W, 3]: near red, far blue, nothing black; one scale for the
    whole clip, linear in inverse depth between its 2nd and 98th percentile."""
    seen = depth > 0
    inverse = np.where(seen, 1 / np.maximum(depth, 1e-6), 0)
    low, high = np.percentile(inverse[seen], (2, 98)) if seen.any() else (0.0, 1.0)
    level = np.clip((inverse - low) / max(high - low, 1e-9), 0, 1)
    grey = (level * 255 + 0.5).astype(np.uint8)
    colored = [cv2.applyColorMap(frame, cv2.COLORMAP_TURBO)[..., ::-1] for frame in grey]
    return np.stack(colored).astype(np.uint8) * seen[..., None].astype(np.uint8)


def camera_overlay(video: U8, estimated_c2w: F64, requested_c2w: F64 | None) -> U8:
    """The video [F, H, W, 3] with a map of the cameras from above in its corner.

    Both paths [F, 4, 4] are relative to their first camera and in the same unit: requested white,
    estimated orange, the present camera a dot with its viewing direction; one line of numbers.
    """
    factor = max(-(-MIN_HEIGHT // video.shape[1]), 1)
    height, width = video.shape[1] * factor, video.shape[2] * factor
    side = int(MAP_SHARE * min(height, width))
    paths = [p for p in (requested_c2w, estimated_c2w) if p is not None]
    points = np.concatenate([p[:, :3, 3] for p in paths])[:, (0, 2)]
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    reach = max(float(np.ptp(points, axis=0).max()), 0.1) * 0.8
    frames = []
    for index, frame in enumerate(video):
        image = cv2.resize(frame, (width, height), interpolation=cv2.INTER_NEAREST)
        corner = image[height - side :, width - side :]
        corner[:] = corner // 3
        for path, color in ((requested_c2w, REQUESTED), (estimated_c2w, ESTIMATED)):
            if path is not None:
                _draw_path(corner, path, index, color, middle, reach)
        text = _numbers(index, estimated_c2w, requested_c2w)
        size = height / 900 + 0.15
        cv2.putText(image, text, (6, height - 8), cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 3)
        cv2.putText(image, text, (6, height - 8), cv2.FONT_HERSHEY_SIMPLEX, size, REQUESTED, 1)
        frames.append(image)
    return np.stack(frames).astype(np.uint8)


def _draw_path(
    image: U8, c2w: F64, index: int, color: tuple[int, int, int], middle: F64, reach: float
) -> None:
    """Draw a path from above, forward up, and the camera at `index`, into a square image."""
    side = image.shape[0]

    def place(point: F64) -> tuple[int, int]:
        x, z = (point - middle) / (2 * reach) * side
        return int(side / 2 + x), int(side / 2 - z)

    corners = np.array([place(p) for p in c2w[:, (0, 2), 3]], np.int32)
    cv2.polylines(image, [corners[:, None]], False, color, 1, cv2.LINE_AA)
    here, view = c2w[index, (0, 2), 3], c2w[index, (0, 2), 2]
    cv2.circle(image, place(here), max(side // 40, 2), color, -1, cv2.LINE_AA)
    cv2.line(image, place(here), place(here + 0.3 * reach * view), color, 1, cv2.LINE_AA)


def _numbers(index: int, estimated: F64, requested: F64 | None) -> str:
    moved = float(np.linalg.norm(estimated[index, :3, 3]))
    if requested is None:
        return f"frame {index + 1}: moved {moved:.2f}"
    turn = requested[index, :3, :3].T @ estimated[index, :3, :3]
    off = float(np.linalg.norm(estimated[index, :3, 3] - requested[index, :3, 3]))
    return f"frame {index + 1}: off by {off:.2f}, {float(rotation_angle_deg(turn)):.1f} deg"


def score_sheet(video: U8, artifacts: Artifacts) -> U8:
    """One picture of a score: frames, their re-rendering, five times their difference, depth; below
    them the meta-view and the cameras."""
    shown = np.unique(np.linspace(0, len(artifacts.frames) - 1, SHEET_FRAMES).round().astype(int))
    height, width = artifacts.rerender.shape[1:3]
    frames = resize_frames(video[artifacts.frames], width, height)
    difference = np.abs(frames.astype(np.int16) - artifacts.rerender) * 5
    rows = {
        "video": frames,
        "re-rendering": artifacts.rerender,
        "5 x difference": np.clip(difference, 0, 255).astype(np.uint8),
        "depth": depth_video(artifacts.depth),
    }
    path = artifacts.estimated_c2w.copy()
    path[:, :3, 3] *= artifacts.scale
    cameras = camera_overlay(video[artifacts.frames], path, artifacts.requested_c2w)[-1]
    lines = [_row(name, clip[shown]) for name, clip in rows.items()]
    lines.append(_row("unseen view, cameras", [artifacts.meta_view, cameras]))
    width = max(line.shape[1] for line in lines)
    padded = [
        np.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0)), constant_values=255) for x in lines
    ]
    return np.concatenate(padded).astype(np.uint8)


def _row(title: str, pictures: Iterable[U8]) -> U8:
    """A titled row of pictures, each as high as `SHEET_HEIGHT`."""
    cells = []
    for picture in pictures:
        height, width = picture.shape[:2]
        size = (round(width * SHEET_HEIGHT / height), SHEET_HEIGHT)
        cells.append(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
    row = np.concatenate(cells, axis=1)
    strip = np.full((22, row.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, title, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([strip, row]).astype(np.uint8)


def even_sides(video: U8) -> U8:
    """The video without a last odd row or column, as H.264 needs it."""
    return video[:, : video.shape[1] // 2 * 2, : video.shape[2] // 2 * 2]
