"""Does the independent estimator rank known-answer clips as the reward does, and rightly?

`python -m benchmarks.second_opinion`: clips of the toy world whose order is known, each judged by
the proxy (S_recon + S_traj of the reward's reconstructor, the baseline) and by the gold figure of
the independent estimator. Goals: the consistent clip of every scene beats each of its spoilt
versions in gold; Spearman's correlation of proxy and gold over all clips is at least 0.8, a clip in
which no camera is found coming last. The estimator was tuned on scenes 0 to 4; by default others
are judged.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.results import Result, machine, write
from cluster.config import load
from cluster.evaluation.statistics import rank_agreement
from prompts.motions import Motion
from prompts.schema import Prompt
from rewards.metrics.independent import NoCameraFound, second_opinion
from rewards.spoilt import frozen, shuffled
from rewards.worker import ReconstructionWorker
from toyworld.corruptions import CORRUPTIONS
from toyworld.scenes import random_scene, render_clip

U8 = NDArray[np.uint8]

MOTIONS = (Motion.PUSH_IN, Motion.PULL_OUT, Motion.ORBIT_LEFT, Motion.MOVE_RIGHT, Motion.PAN_LEFT)
GOAL = 0.8
MAY_TIE = ("drift",)
"""Colours that fade leave corners where they are: an estimator of geometry need not see it."""


def warped(video: U8, size_px: float) -> U8:
    """Every frame bent by waves of its own, `size_px` high, which no camera could make."""
    height, width = video.shape[1:3]
    u, v = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    bent = []
    for index, frame in enumerate(video):
        du = size_px * np.sin(2 * np.pi * v / 32 + 2.4 * index).astype(np.float32)
        dv = size_px * np.sin(2 * np.pi * u / 48 + 4.1 * index).astype(np.float32)
        bent.append(cv2.remap(frame, u + du, v + dv, cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT))
    return np.stack(bent).astype(np.uint8)


def versions(seed: int, motion: Motion) -> Iterator[tuple[str, U8, Prompt]]:
    """A scene filmed along a motion, and what can be wrong with it."""
    rng = np.random.default_rng((seed, 2604))
    scene = random_scene(rng)
    clip = render_clip(scene, (motion,))
    video = clip.video
    yield "consistent", video, clip.prompt
    for kind in CORRUPTIONS:
        yield kind, render_clip(scene, (motion,), kind).video, clip.prompt
    for size in (0.5, 1.0, 2.0):
        yield f"warped {size} px", warped(video, size), clip.prompt
    yield "frozen", frozen(video), clip.prompt
    yield "shuffled", shuffled(video), clip.prompt
    yield "looped", np.concatenate([video[:5], video[3::-1]]), clip.prompt
    others = [render_clip(random_scene(rng), (motion,)).video[i] for i in range(len(video))]
    yield "independent frames", np.stack(others), clip.prompt
    yield "noise", rng.integers(0, 256, video.shape, dtype=np.uint8), clip.prompt
    yield "grey", np.full_like(video, 128), clip.prompt


def main() -> int:
    """Judge all clips, print the table, write the JSON; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two scenes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=100, help="of the first scene (default 100)")
    options = parser.parse_args()
    config = load("toy")
    worker = ReconstructionWorker(config.rewards, config.camera, config.rollout.frames)
    motions = MOTIONS[:2] if options.quick else MOTIONS
    proxies: dict[str, list[float]] = {}
    golds: dict[str, list[float | None]] = {}
    seconds = 0.0
    for seed, motion in enumerate(motions, options.seed):
        for name, video, prompt in versions(seed, motion):
            score, _, _ = worker.assess(video, prompt, False)
            proxies.setdefault(name, []).append(score.parts["recon"] + score.parts["traj"])
            started = time.perf_counter()
            try:
                gold = second_opinion(video, prompt, config.camera, sweep=False).figures["gold"]
            except NoCameraFound:
                gold = None
            seconds += time.perf_counter() - started
            golds.setdefault(name, []).append(gold)
    rows = [_row(name, proxies[name], golds[name]) for name in proxies]
    flat_proxy = [value for values in proxies.values() for value in values]
    flat_gold = [value for values in golds.values() for value in values]
    rho = rank_agreement(flat_proxy, flat_gold)
    best = golds["consistent"]
    lost = [
        name
        for name, values in golds.items()
        if name not in ("consistent", *MAY_TIE)
        and any(_worth(value) >= _worth(top) for value, top in zip(values, best, strict=True))
    ]
    print(f"Spearman over {len(flat_gold)} clips: {rho}; {seconds / len(flat_gold):.2f} s a clip")
    print(f"not below the consistent clip of their scene in gold: {', '.join(lost) or 'none'}")
    if options.json:
        summary = {"run": "all clips", "spearman": rho, "clips": len(flat_gold), "unordered": lost}
        write(options.json, Result("second_opinion", machine(), [*rows, summary]))
    return 0 if rho is not None and rho >= GOAL and not lost else 1


def _worth(gold: float | None) -> float:
    return -1.0 if gold is None else gold


def _row(name: str, proxy: list[float], gold: list[float | None]) -> dict[str, object]:
    known = [value for value in gold if value is not None]
    mean = f"{np.mean(known):.3f}" if known else "  –  "
    failed = len(gold) - len(known)
    print(f"{name:<20} proxy {np.mean(proxy):.3f}  gold {mean}  no camera {failed}/{len(gold)}")
    return {"run": name, "proxy": proxy, "gold": gold, "no_camera": failed}


if __name__ == "__main__":
    sys.exit(main())
