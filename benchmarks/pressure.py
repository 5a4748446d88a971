"""What a reward pays for besides itself: `python -m benchmarks.pressure`, in one process.

Groups of the untrained policy are rolled out and scored. Within each group, a part of the reward is
correlated with what nobody is paid for: motion, sharpness, content, and PSNR of the re-rendering.
The advantage pushes the policy along whatever correlates with it, wanted or not, so that a part
with a correlation of -0.2 with motion slowly stills the camera. `advantage` is that of all parts
together, as the learner makes it. Seven minutes on one core.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.exploration import scored_group
from benchmarks.results import Result, machine, write
from benchmarks.signal import advantages
from cluster.config import RunConfig, for_one_process, load
from cluster.local import local_workers
from cluster.pools import SampleScores
from prompts.dataset import load_prompts
from rewards.scoring import PARTS

BESIDES = ("motion", "sharpness", "content", "psnr")
ROTATION_ERROR = "rotation_error_deg"
"""Of the estimated camera against the requested one; members have it where a motion was requested.
For `benchmarks.coupling`."""

Group = Mapping[str, Sequence[float]]
"""Figures of a group's members by name."""


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson correlation within a group; None where either does not vary."""
    a, b = (np.asarray(values, np.float64) - np.mean(values) for values in (first, second))
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 1e-12 else None


def pressure(groups: Sequence[Group], paid: str, besides: str) -> tuple[float, float]:
    """Mean correlation of two figures within groups, and its standard error; NaN where fewer than
    two groups have one."""
    found = [
        value
        for group in groups
        if paid in group and (value := correlation(group[paid], group[besides])) is not None
    ]
    if len(found) < 2:
        return float("nan"), float("nan")
    return statistics.fmean(found), statistics.stdev(found) / len(found) ** 0.5


def figures(scores: Sequence[SampleScores], config: RunConfig) -> Group:
    """Parts, advantage, `BESIDES` and, where members have it, `ROTATION_ERROR` of a group whose
    members are all scored."""
    parts = {p: [s.parts[p] for s in scores] for p in PARTS if all(p in s.parts for s in scores)}
    tensors: dict[str, torch.Tensor] = {n: torch.tensor(v).double() for n, v in parts.items()}
    learned = advantages(tensors, config)[f"total, {config.learner.advantage}"].tolist()
    # Both know a sharpness: the reconstruction's is that of the evaluations, in grey levels.
    raw = [{**s.scores["aesthetic"].raw, **s.scores["reconstruction"].raw} for s in scores]
    known = [b for b in (*BESIDES, ROTATION_ERROR) if all(b in row for row in raw)]
    return parts | {"advantage": learned} | {b: [row[b] for row in raw] for b in known}


async def collect(config: RunConfig, groups: int) -> list[Group]:
    """Roll out and score groups; those with a failed score are left out."""
    prompts = load_prompts(config.prompts.train)
    low, span = config.rollout.window_low, config.rollout.window_stop - config.rollout.window_low
    found = []
    with local_workers(config) as workers:
        for group in range(groups):
            prompt = prompts[group * 5 % len(prompts)]
            _, scores = await scored_group(workers, config, prompt, group, low + group % span)
            if not any(score.failures for score in scores):
                found.append(figures(scores, config))
            print(f"\r{group + 1}/{groups} groups", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def rows(groups: Sequence[Group], name: str) -> list[dict[str, Any]]:
    """A row for each part and for the advantage."""
    found = []
    for paid in (p for p in (*PARTS, "advantage") if any(p in group for group in groups)):
        measured = {besides: pressure(groups, paid, besides) for besides in BESIDES}
        row: dict[str, Any] = {"run": f"{name}, {paid}", "groups": len(groups)}
        found.append(row | {b: [round(x, 3) for x in pair] for b, pair in measured.items()})
    return found


def group_options(description: str | None, groups: int) -> argparse.Namespace:
    """The command line of a benchmark that scores groups; `groups` by default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--groups", type=int, default=groups)
    parser.add_argument("--name", default="toy", help="of the rows in the JSON")
    parser.add_argument("--config", action="append", default=[], metavar="FILE")
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_args()


def main() -> int:
    """Measure, print, write the JSON."""
    options = group_options(__doc__, 56)
    config = for_one_process(load("toy", options.overrides, options.config))
    table = rows(asyncio.run(collect(config, options.groups)), options.name)
    print(f"{'':<28}" + "".join(f"{besides:>18}" for besides in BESIDES))
    for row in table:
        cells = "".join(f"{row[b][0]:>+10.2f} ± {row[b][1]:.2f} " for b in BESIDES)
        print(f"{row['run']:<28}{cells}")
    if options.json:
        write(options.json, Result("pressure", machine(), table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
