"""Pictures of a run: the same prompts and noises before and after training on one PNG sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cluster.evaluate import EvalSample, load_evaluation, video_file
from cluster.storage import RunFolder
from cluster.video import decode_mp4

SHEET_NAME = "before_after.png"
ROW_PROMPTS = 8
SHOWN_FRAMES = 5
CELL_WIDTH = 144
TEXT_HEIGHT = 16
MARGIN = 6


def write_sheet(folder: RunFolder, samples: Sequence[EvalSample], last_step: int) -> str:
    """Write `before_after.png` into the run; its path or URL.

    One block per prompt: a row of frames before training, a row after it, with their rewards.
    """
    after = {(s.prompt_id, s.seed): s for s in load_evaluation(folder, last_step)}
    common = [s for s in samples if (s.prompt_id, s.seed) in after][:ROW_PROMPTS]
    blocks = [
        _block(folder, sample, after[sample.prompt_id, sample.seed], last_step) for sample in common
    ]
    half = -(-len(blocks) // 2)
    columns = [np.concatenate(side) for side in (blocks[:half], blocks[half:]) if side]
    height = max(column.shape[0] for column in columns)
    padded = [
        np.pad(c, ((0, height - c.shape[0]), (0, 0), (0, 0)), constant_values=255) for c in columns
    ]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(padded, axis=1)).save(buffer, format="PNG", optimize=True)
    folder.write_bytes(SHEET_NAME, buffer.getvalue())
    return f"{folder.url}/{SHEET_NAME}"


def _block(
    folder: RunFolder, before: EvalSample, after: EvalSample, last_step: int
) -> NDArray[np.uint8]:
    rows = [_caption(before.prompt, bold=True)]
    for step, sample, word in ((0, before, "before"), (last_step, after, "after")):
        video = folder.read_bytes(video_file(step, sample.prompt_id, sample.seed))
        strip = _strip(decode_mp4(video))
        parts = "  ".join(f"{name} {value:.2f}" for name, value in sorted(sample.parts.items()))
        rows += [strip, _caption(f"{word}: reward {sample.total:.2f}   {parts}")]
    rows.append(np.full((MARGIN, rows[0].shape[1], 3), 255, np.uint8))
    return np.concatenate(rows)


def _strip(video: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Evenly spaced frames of a video side by side."""
    picks = np.linspace(0, len(video) - 1, SHOWN_FRAMES).round().astype(int)
    height = round(video.shape[1] * CELL_WIDTH / video.shape[2])
    cells = [
        np.asarray(Image.fromarray(video[i]).resize((CELL_WIDTH, height), Image.Resampling.BICUBIC))
        for i in picks
    ]
    gap = np.full((height, MARGIN, 3), 255, np.uint8)
    return np.concatenate([part for cell in cells for part in (gap, cell)] + [gap], axis=1)


def _caption(text: str, bold: bool = False) -> NDArray[np.uint8]:
    width = SHOWN_FRAMES * (CELL_WIDTH + MARGIN) + MARGIN
    image = Image.new("RGB", (width, TEXT_HEIGHT), "white")
    ImageDraw.Draw(image).text((MARGIN, 2), text, fill="black" if bold else (90, 90, 90))
    return np.asarray(image)
