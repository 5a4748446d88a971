"""How well, and how fast, noise follows a camera: `python -m benchmarks.noise_transport`.

At 480 x 832, 81 frames, 16 channels: seconds of a whole clip; correlation along the flow at
degradation 0 and strength 1, averaged over seeds (next latent frame; first to last); whiteness.
Then the same for other transport grids, and for one transition per video frame, whose cost and
quality chose the default. `--quick` takes 2 seeds and the default grid alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from actors.noise_statistics import flow_correlation, whiteness
from actors.noise_transport import initial_latents, latent_homographies, transport_noise
from actors.seeds import keyed_generator
from benchmarks.results import Result, machine, write
from prompts.camera import camera_path
from prompts.config import CameraConfig
from prompts.motions import Motion

SHAPE = (16, 21, 60, 104)
VIDEO = (480, 832)
FRAMES = 81
GOALS = {
    Motion.PUSH_IN: (0.62, 0.50),
    Motion.ORBIT_LEFT: (0.78, 0.55),
    Motion.PAN_LEFT: (0.68, 0.55),
    Motion.MOVE_LEFT: (0.70, 0.65),
}
"""Least correlation along the flow: next latent frame, first to last."""


def steps_of(motion: Motion, cells: tuple[int, int], frames: int = SHAPE[1]) -> torch.Tensor:
    """Homographies between `frames` evenly spaced frames of a whole clip, on a grid of cells."""
    path = camera_path([motion], FRAMES)
    assert path is not None
    c2w = torch.from_numpy(path.c2w.copy())
    return latent_homographies(c2w, CameraConfig(), VIDEO, (frames, *cells))


def measure(motion: Motion, grid: int, seeds: int, per_frame: bool = False) -> dict[str, Any]:
    """Transport `seeds` clips one after the other; means over them."""
    channels, latent_frames, rows, columns = SHAPE
    frames = FRAMES if per_frame else latent_frames
    fine = steps_of(motion, (rows * grid, columns * grid), frames)
    coarse = steps_of(motion, (rows, columns))
    next_, whole, moments, seconds = [], [], [], []
    for seed in range(seeds):
        began = time.perf_counter()
        generators = [keyed_generator("benchmark", seed)]
        z = transport_noise(fine, channels, rows, columns, grid, generators)[0]
        seconds.append(time.perf_counter() - began)
        z = z[:, :: (FRAMES - 1) // (latent_frames - 1)] if per_frame else z
        last = latent_frames - 1
        next_ += [flow_correlation(z, coarse, i, i + 1) for i in range(last)]
        whole.append(flow_correlation(z, coarse, 0, last))
        moments.append(whiteness(z))
    mean = statistics.fmean
    return {
        "run": f"{motion.value}, grid {grid}" + (", every frame" if per_frame else ""),
        "seeds": seeds,
        "next": round(mean(next_), 4),
        "first_to_last": round(mean(whole), 4),
        "std": round(mean(m.std for m in moments), 5),
        "kurtosis": round(mean(m.kurtosis for m in moments), 4),
        "beside": round(mean(m.beside for m in moments), 5),
        "below": round(mean(m.below for m in moments), 5),
        "transport_s": round(statistics.median(seconds), 3),
    }


def clip_seconds(repeats: int = 3) -> dict[str, Any]:
    """Wall seconds of `initial_latents` of a whole clip at the defaults, all of its parts."""
    row: dict[str, Any] = {"run": "whole clip", "threads": torch.get_num_threads()}
    for motion in GOALS:
        path = camera_path([motion], FRAMES)
        seconds = []
        for seed in range(repeats):
            began = time.perf_counter()
            initial_latents(path, SHAPE, CameraConfig(), *VIDEO, seed)
            seconds.append(time.perf_counter() - began)
        row[f"{motion.value}_s"] = round(min(seconds), 3)
    return row


def judge(row: dict[str, Any], motion: Motion) -> list[str]:
    """Goals that a row misses."""
    near, far = GOALS[motion]
    goals = {
        f"next {row['next']} >= {near}": row["next"] >= near,
        f"first to last {row['first_to_last']} >= {far}": row["first_to_last"] >= far,
        f"std {row['std']} within .005 of 1": abs(row["std"] - 1) <= 0.005,
        f"kurtosis {row['kurtosis']} within .05 of 3": abs(row["kurtosis"] - 3) <= 0.05,
        f"neighbours {row['beside']}, {row['below']} within .005": max(
            abs(row["beside"]), abs(row["below"])
        )
        <= 0.005,
    }
    return [f"{row['run']}: {goal}" for goal, met in goals.items() if not met]


def main() -> int:
    """Measure, print, write the JSON; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only-time", action="store_true", help="the seconds of a clip alone")
    options = parser.parse_args()
    rows, missed = [clip_seconds()], []
    print(rows[0], flush=True)
    for motion in () if options.only_time else GOALS:
        row = measure(motion, CameraConfig().transport_grid, 2 if options.quick else options.seeds)
        rows.append(row)
        missed += judge(row, motion)
        print(row, flush=True)
    if not (options.quick or options.only_time):
        for motion in GOALS:
            for grid in (1, 2, 3, 6, 8):
                rows.append(measure(motion, grid, seeds=3))
                print(rows[-1], flush=True)
            rows.append(measure(motion, CameraConfig().transport_grid, seeds=3, per_frame=True))
            print(rows[-1], flush=True)
    for goal in missed:
        print(f"MISSED {goal}")
    if options.json:
        write(options.json, Result("noise_transport", machine(), rows))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
