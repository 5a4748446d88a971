"""The pretraining set: clips rendered once, by all cores, into a memory-mapped array."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toyworld.scenes import FRAMES, HEIGHT, WIDTH, sample_clip

CHUNK = 128


def render_set(
    folder: Path, count: int, seed: int, workers: int
) -> tuple[NDArray[np.uint8], list[str]]:
    """Videos uint8 [count, F, H, W, 3] (a read-only memory map) and their prompts' texts.

    Clip i depends on (seed, i) alone, never on the number of workers. A folder that already holds
    the same set is reused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    videos_file, texts_file = folder / "videos.npy", folder / "texts.json"
    expected = {"seed": seed, "count": count}
    if texts_file.exists():
        stored = json.loads(texts_file.read_text())
        if stored["set"] == expected:
            return np.load(videos_file, mmap_mode="r"), stored["texts"]
    np.lib.format.open_memmap(
        videos_file, mode="w+", dtype=np.uint8, shape=(count, FRAMES, HEIGHT, WIDTH, 3)
    ).flush()
    chunks = [
        (videos_file, seed, start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)
    ]
    with ProcessPoolExecutor(workers) as pool:
        texts = [text for part in pool.map(_render_chunk, chunks) for text in part]
    # The texts are written last: an interrupted rendering leaves no set that looks complete.
    texts_file.write_text(json.dumps({"set": expected, "texts": texts}))
    return np.load(videos_file, mmap_mode="r"), texts


def _render_chunk(chunk: tuple[Path, int, int, int]) -> list[str]:
    videos_file, seed, start, stop = chunk
    videos = np.load(videos_file, mmap_mode="r+")
    texts = []
    for index in range(start, stop):
        clip = sample_clip(np.random.default_rng((seed, index)))
        videos[index] = clip.video
        texts.append(clip.prompt.text)
    videos.flush()
    return texts
