"""Runs in the environment that holds the vbench package: `python vbench_driver.py VIDEOS OUT`.

Imports nothing of this project. Weights are vbench's own affair: it looks for them in its cache and
fetches them where it may.
"""

from __future__ import annotations

import sys
from pathlib import Path

DIMENSIONS = (
    "aesthetic_quality",
    "imaging_quality",
    "motion_smoothness",
    "subject_consistency",
    "background_consistency",
)
"""The five that the World-R1 paper reports; vbench judges them without prompts of its own."""
NAME = "vbench"


def main(videos: str, out: str) -> None:
    """Judge every video of a folder; vbench writes OUT/vbench_eval_results.json."""
    import torch
    import vbench

    full_info = Path(vbench.__file__).parent / "VBench_full_info.json"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = vbench.VBench(torch.device(device), str(full_info), out)
    bench.evaluate(
        videos_path=videos, name=NAME, dimension_list=list(DIMENSIONS), mode="custom_input"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
