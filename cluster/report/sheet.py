"""Pictures of a run: the same prompts and noises before and after training on one PNG sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.held_out import EvalSample, load_evaluation, video_file
from cluster.storage import RunFolder
from cluster.strips import U8, blank, caption, sheet_png, strip
from cluster.video import decode_mp4

SHEET_NAME = "before_after.png"
ROW_PROMPTS = 8


def write_sheet(folder: RunFolder, samples: Sequence[EvalSample], last_step: int) -> str:
    """Write `before_after.png` into the run; its path or URL.

    One block per prompt: a row of frames before training, a row after it, with their rewards.
    """
    after = {(s.prompt_id, s.seed): s for s in load_evaluation(folder, last_step)}
    common = [s for s in samples if (s.prompt_id, s.seed) in after][:ROW_PROMPTS]
    blocks = [
        _block(folder, sample, after[sample.prompt_id, sample.seed], last_step) for sample in common
    ]
    folder.write_bytes(SHEET_NAME, sheet_png(blocks))
    return f"{folder.url}/{SHEET_NAME}"


def _block(folder: RunFolder, before: EvalSample, after: EvalSample, last_step: int) -> U8:
    rows = [caption(before.prompt, bold=True)]
    for step, sample, word in ((0, before, "before"), (last_step, after, "after")):
        video = folder.read_bytes(video_file(step, sample.prompt_id, sample.seed))
        parts = "  ".join(f"{name} {value:.2f}" for name, value in sorted(sample.parts.items()))
        rows += [
            strip(decode_mp4(video)),
            caption(f"{word}: reward {sample.total:.2f}   {parts}"),
        ]
    return np.concatenate([*rows, blank()])
