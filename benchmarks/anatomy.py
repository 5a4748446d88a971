"""Where in the policy a gradient's signal lies: `python -m benchmarks.anatomy [--groups 96]`.

`benchmarks.signal` says how much of a group's policy gradient is signal; here the same is asked of
parts of it, from the same groups of the untrained policy on the toy world: with the window's steps
weighed as they come and as GRPO-Guard weighs them (`learner.guard`), and, so weighed, of the B
matrices of each kind of module. An optimizer that divides by each parameter's spread moves all of
them alike, so that modules without signal add noise and nothing else. Gradients are divided by the
square root of each parameter's spread, as AdamW steps; every part of the reward is normalised in
its group. A quarter of an hour on one core.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.coupling import gradients_of
from benchmarks.pressure import figures, group_options
from benchmarks.results import Result, machine, write
from benchmarks.signal import Groups, collect_steps, gradient_signal
from cluster.config import RunConfig, for_one_process, load
from rewards.scoring import PARTS


def kinds(sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Places in the gradient of each kind of module, from the number of values of each B matrix in
    its order: "blocks.3.attn1.to_v.lora_B.weight" is of the kind "attn1.to_v"."""
    found: dict[str, list[Tensor]] = {}
    start = 0
    for name, size in sizes.items():
        kind = re.sub(r"^blocks\.\d+\.|\.lora_B\.weight$", "", name)
        found.setdefault(kind, []).append(torch.arange(start, start + size))
        start += size
    return {kind: torch.cat(places) for kind, places in found.items()}


def weighed(steps: Tensor, guard: Tensor) -> dict[str, Tensor]:
    """Gradients of the samples [N, G, P], summed over the window's steps [N, G, W, P] as they come
    and as GRPO-Guard scales them, by `guard` [N, W]."""
    return {
        "steps as they come": steps.sum(dim=2),
        "GRPO-Guard": torch.einsum("nw,ngwp->ngp", guard, steps),
    }


def signals(
    samples: Tensor, paid: Mapping[str, Sequence[Sequence[float]]], clip: float
) -> dict[str, dict[str, float]]:
    """Share of the signal and its z for each figure that `paid` has, [N][G] each; `samples`
    [N, G, P]."""
    scaled = samples / samples.flatten(0, 1).std(dim=0).clamp_min(1e-12).sqrt()
    found = {name: gradient_signal(gradients_of(scaled, v, clip)) for name, v in paid.items()}
    return {name: {"share": round(s, 6), "z": round(z, 2)} for name, (s, z) in found.items()}


def rows(config: RunConfig, groups: Groups, name: str) -> list[dict[str, Any]]:
    """A row for each weighing, and one for each kind of module."""
    known = [figures(scores, config) for scores in groups.scored]
    parts = [part for part in PARTS if all(part in group for group in known)]
    paid = {part: [group[part] for group in known] for part in (*parts, "advantage")}
    clip = config.learner.advantage_clip
    samples = weighed(groups.steps, groups.guard)
    found: list[dict[str, Any]] = [
        {"run": f"{name}, {how}", "groups": len(known)} | signals(gradients, paid, clip)
        for how, gradients in samples.items()
    ]
    found += [
        {"run": f"{name}, {kind}", "groups": len(known), "parameters": len(places)}
        | signals(samples["GRPO-Guard"][:, :, places], paid, clip)
        for kind, places in kinds(groups.sizes).items()
    ]
    return found


def main() -> int:
    """Measure, print, write the JSON."""
    options = group_options(__doc__, 96)
    config = for_one_process(load("toy", options.overrides, options.config))
    found = rows(config, asyncio.run(collect_steps(config, options.groups)), options.name)
    paid = [key for key in found[0] if key not in ("run", "groups")]
    print(f"{'|G|²/tr(S) x 1000 (z)':<32}" + "".join(f"{part:>17}" for part in paid))
    for row in found:
        cells = [f"{1e3 * row[part]['share']:+.2f} ({row[part]['z']:+.1f})" for part in paid]
        print(f"{row['run']:<32}" + "".join(f"{cell:>17}" for cell in cells))
    if options.json:
        write(options.json, Result("anatomy", machine(), found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
