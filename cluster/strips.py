"""Rows of frames and captions, of which sheets of pictures are made."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

U8 = NDArray[np.uint8]

SHOWN_FRAMES = 5
CELL_WIDTH = 144
TEXT_HEIGHT = 16
MARGIN = 6
WIDTH = SHOWN_FRAMES * (CELL_WIDTH + MARGIN) + MARGIN
"""Pixels of a row."""


def strip(video: U8) -> U8:
    """Evenly spaced frames of a uint8 [F, H, W, 3] video side by side, [h, WIDTH, 3]."""
    picks = np.linspace(0, len(video) - 1, SHOWN_FRAMES).round().astype(int)
    height = round(video.shape[1] * CELL_WIDTH / video.shape[2])
    cells = [
        np.asarray(Image.fromarray(video[i]).resize((CELL_WIDTH, height), Image.Resampling.BICUBIC))
        for i in picks
    ]
    gap = np.full((height, MARGIN, 3), 255, np.uint8)
    return np.concatenate([part for cell in cells for part in (gap, cell)] + [gap], axis=1)


def caption(text: str, bold: bool = False) -> U8:
    """One line of text, [TEXT_HEIGHT, WIDTH, 3]; what does not fit is cut off with an ellipsis."""
    font = ImageFont.load_default()
    while font.getlength(text) > WIDTH - 2 * MARGIN:
        text = f"{text.removesuffix('…')[:-2]}…"
    image = Image.new("RGB", (WIDTH, TEXT_HEIGHT), "white")
    fill = "black" if bold else (90, 90, 90)
    ImageDraw.Draw(image).text((MARGIN, 2), text, fill=fill, font=font)
    return np.asarray(image)


def blank(height: int = MARGIN) -> U8:
    """White space, [height, WIDTH, 3]."""
    return np.full((height, WIDTH, 3), 255, np.uint8)


def sheet_png(blocks: Sequence[U8]) -> bytes:
    """Blocks of rows [h, WIDTH, 3] in two columns, the left one first, as a PNG file."""
    half = -(-len(blocks) // 2)
    columns = [np.concatenate(side) for side in (blocks[:half], blocks[half:]) if side]
    height = max(column.shape[0] for column in columns)
    padded = [
        np.pad(c, ((0, height - c.shape[0]), (0, 0), (0, 0)), constant_values=255) for c in columns
    ]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(padded, axis=1)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
