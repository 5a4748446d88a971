"""What a step along a reward changes: `python -m benchmarks.response [--groups 60]`.

`benchmarks.coupling` multiplies gradients, which says where a reward leads while samples explore.
Here the step is taken: the policy gradient of each part of the reward, averaged over the groups and
divided by each parameter's spread, as AdamW steps, is added to the untrained adapter at a root mean
square of `STEP`; then videos are sampled by the ODE on training prompts, the same noises before and
after, and measured by the preset's scorers. All steps have one length, so that rows compare; a part
without a signal shows where noise of that length leads. The standard errors are those of the pairs,
not of the gradient. About ten minutes for the groups and one more for each row, on one core.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from actors.lora import lora_parameters
from actors.policy import Policy
from benchmarks.coupling import gradients_of
from benchmarks.pressure import figures, group_options
from benchmarks.results import Result, machine, write
from benchmarks.signal import collect
from cluster.config import RunConfig, for_one_process, load
from cluster.evaluation.sources import fixed_pairs, listed, read_video
from cluster.generate import generate, load_policy
from cluster.storage import RunFolder
from rewards.metrics.coherence import coherence
from rewards.scoring import PARTS
from rewards.worker import ReconstructionWorker

STEP = 0.003
"""Root mean square of the change of the B matrices; training at 5e-4 is there in some 30 steps."""
PAIRS = 64
RELATIVE = ("motion", "sharpness")
"""Figures whose changes are given in percent."""

Clip = Mapping[str, float]


def add_step(policy: Policy, direction: Tensor, size: float) -> None:
    """Add `direction` [P], scaled to a root mean square of `size`, to the B matrices."""
    tensors = [p for name, p in lora_parameters(policy.transformer).items() if "lora_B" in name]
    scaled = direction * size / direction.square().mean().sqrt()
    with torch.no_grad():
        for tensor, change in zip(
            tensors, scaled.split([tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.add_(change.view_as(tensor))


def sampled(policy: Policy, config: RunConfig, worker: ReconstructionWorker) -> list[Clip]:
    """Figures of the clips that a policy samples on the first training prompts."""
    pairs = fixed_pairs(config, config.prompts.train, PAIRS)
    found: list[Clip] = []
    with tempfile.TemporaryDirectory() as folder:
        generate(policy, config, pairs, RunFolder(folder), "response", lambda: None)
        clips = listed(folder, None)
        for clip in clips:
            data = RunFolder(folder).read_bytes(clip.file)
            prompt, video = read_video(data, clip, None, config.camera.amplitudes)
            score, _, _ = worker.assess(video, prompt, keep_artifacts=False)
            row = {"motion": coherence(video).motion_share, "sharpness": score.raw["sharpness"]}
            row |= {"psnr": score.raw["psnr"], "recon": score.parts["recon"]}
            found.append(row | {k: score.parts[k] for k in ("traj",) if k in score.parts})
    return found


def change(before: Sequence[Clip], after: Sequence[Clip], name: str) -> list[float]:
    """Mean paired difference of a figure and its standard error; percent of the mean for the
    `RELATIVE` ones."""
    pairs = [(a[name], b[name]) for a, b in zip(before, after, strict=True) if name in a]
    scale = 100 / statistics.fmean(a for a, _ in pairs) if name in RELATIVE else 1.0
    moved = [scale * (b - a) for a, b in pairs]
    return [statistics.fmean(moved), statistics.stdev(moved) / len(moved) ** 0.5]


def rows(config: RunConfig, groups: int, name: str) -> list[dict[str, Any]]:
    """A row for each part of the reward that is scored, and for the advantage."""
    samples, scored, _ = asyncio.run(collect(config, groups))
    spread = samples.flatten(0, 1).std(dim=0).clamp_min(1e-12)
    known = [figures(scores, config) for scores in scored]
    paid = [part for part in PARTS if any(part in group for group in known)] + ["advantage"]
    preset = load("toy").rewards
    worker = ReconstructionWorker(preset, config.camera, config.rollout.frames, "cpu", 1)
    before = sampled(load_policy(config, None, "cpu"), config, worker)
    found = []
    for part in paid:
        with_it = [g for g, group in enumerate(known) if part in group]
        gradient = gradients_of(
            samples[with_it], [known[g][part] for g in with_it], config.learner.advantage_clip
        )
        policy = load_policy(config, None, "cpu")
        add_step(policy, gradient.mean(dim=0) / spread, STEP)
        after = sampled(policy, config, worker)
        measured = {figure: change(before, after, figure) for figure in before[0]}
        found.append(
            {"run": f"{name}, {part}", "groups": len(with_it), "pairs": PAIRS}
            | {figure: [round(x, 4) for x in pair] for figure, pair in measured.items()}
        )
        print(f"{found[-1]['run']:<28}" + _cells(measured), flush=True)
    return found


def _cells(measured: Mapping[str, Sequence[float]]) -> str:
    return "".join(f"  {k} {mean:+.3f} ± {error:.3f}" for k, (mean, error) in measured.items())


def main() -> int:
    """Measure, print, write the JSON."""
    options = group_options(__doc__, 60)
    config = for_one_process(load("toy", options.overrides, options.config))
    found = rows(config, options.groups, options.name)
    if options.json:
        write(options.json, Result("response", machine(), found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
