"""How much of a group's policy gradient is signal: `python -m benchmarks.signal [--groups 96]`.

For each part of the reward, alone and mixed as the learner can mix them: the gradient of the
policy on one group after another, at the untrained adapter, on the toy world. The simple noise
scale (McCandlish et al., arXiv 1812.06162, equation 2.9), tr(S) / |G|^2 with the mean gradient G
over prompts and the covariance S of one group's, is the number of groups at which signal and noise
are equally large: fewer a step learn nothing from one step, and runs of fewer in all learn little.
Both settings of `rollout.shared_prefix`; CPU seconds per group, so that they can be compared by
what they cost. Ten minutes on one core for each setting; `--quick` shows the mechanics.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from actors.lora import lora_parameters
from actors.policy import Policy
from actors.sde import log_prob, step_moments
from actors.seeds import keyed_generator
from actors.trajectory import Trajectory
from benchmarks.exploration import SETTINGS, scored_group
from benchmarks.results import Result, machine, write
from cluster.config import RunConfig, for_one_process, load, resolve_model
from cluster.local import local_workers
from cluster.pools import SampleScores
from learner.grpo import group_advantages, group_parts_advantages
from prompts.dataset import load_prompts
from rewards.scoring import PARTS

SHOWN_Z = 2.0
"""A signal below so many standard errors is reported as not found."""


class Signal(NamedTuple):
    """What a set of groups says of the gradient."""

    share: float
    """|G|^2 / tr(S), unbiased; may be negative where there is no signal."""
    z: float
    """Of the share, against the same gradients under random signs."""


def gradient_signal(gradients: Tensor, seed: int = 0, flips: int = 200) -> Signal:
    """Signal of group gradients float [N, P], N >= 2.

    Products of different groups estimate |G|^2 without the noise's own square.
    """
    groups = len(gradients)
    products = (gradients @ gradients.T).double()
    own = products.diagonal().mean()
    off = products - torch.diag(products.diagonal())
    squared = off.sum() / (groups * (groups - 1))
    spread = flipped_spread(off, keyed_generator("signal", seed), flips)
    return Signal(float(squared / (own - squared)), float(off.sum() / spread))


def flipped_spread(products: Tensor, generator: torch.Generator, flips: int) -> Tensor:
    """Standard deviation of the sum of products float64 [N, N] of N groups, when the sign of each
    group is drawn anew `flips` times."""
    signs = torch.randint(0, 2, (flips, len(products)), generator=generator)
    signs = (2 * signs - 1).double()
    return torch.einsum("fi,ij,fj->f", signs, products, signs).std()


def step_gradients(policy: Policy, trajectory: Trajectory, kernel: Any) -> tuple[Tensor, Tensor]:
    """Gradients [W, P] of a trajectory's log-density at each step of its window, with respect to
    the B matrices (those of A are zero while B is), and what GRPO-Guard scales them by, std / -dt
    [W]."""
    tensors = [p for name, p in lora_parameters(policy.transformer).items() if "lora_B" in name]
    cond, uncond = policy.encode([trajectory.meta.prompt_text]), policy.encode_negative()
    sigmas, start = trajectory.sigmas, trajectory.meta.window_start
    rows, scales = [], []
    for w in range(len(trajectory.means)):
        sigma, following = sigmas[start + w], sigmas[start + w + 1]
        state = trajectory.states[w][None]
        velocity = policy.velocity(state, sigma, cond, uncond)
        level = trajectory.meta.noise_level
        moments = step_moments(kernel, state, velocity, sigma, following, sigmas[1], level)
        density = log_prob(trajectory.states[w + 1][None], moments.mean, moments.std).sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(density, tensors)]))
        scales.append(moments.std.flatten()[0] / (sigma - following))
    return torch.stack(rows), torch.stack(scales)


class Groups(NamedTuple):
    """Groups of the untrained policy, as many as had no failed score."""

    steps: Tensor
    """[N, G, W, P], see `step_gradients`."""
    guard: Tensor
    """[N, W] their scales."""
    sizes: dict[str, int]
    """Values of each B matrix, in the order of P."""
    scored: list[list[SampleScores]]
    cpu_s: float
    """CPU seconds of a group's rollout and rewards."""


async def collect_steps(config: RunConfig, groups: int) -> Groups:
    """Roll out, score and differentiate groups."""
    prompts = load_prompts(config.prompts.train)
    policy = Policy.load(
        config.policy.model_copy(update={"model": resolve_model(config.policy.model)}),
        "cpu",
        with_decoder=False,
    )
    low, span = config.rollout.window_low, config.rollout.window_stop - config.rollout.window_low
    gradients, scales, spent = list[Tensor](), list[Tensor](), 0.0
    scored: list[list[SampleScores]] = []
    with local_workers(config) as workers:
        for group in range(groups):
            prompt = prompts[group % len(prompts)]
            # Every prompt meets every start.
            start = low + (group + group // len(prompts)) % span
            began = time.process_time()
            rollout, scores = await scored_group(workers, config, prompt, group, start)
            spent += time.process_time() - began
            if any(score.failures for score in scores):
                continue
            kernel = config.rollout.kernel
            rows = [step_gradients(policy, t, kernel) for t in rollout.trajectories]
            gradients.append(torch.stack([steps for steps, _ in rows]))
            scales.append(rows[0][1])
            scored.append(scores)
            print(f"\r{group + 1}/{groups} groups", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    tensors = lora_parameters(policy.transformer)
    sizes = {name: tensor.numel() for name, tensor in tensors.items() if "lora_B" in name}
    return Groups(torch.stack(gradients), torch.stack(scales), sizes, scored, spent / groups)


async def collect(config: RunConfig, groups: int) -> tuple[Tensor, list[list[SampleScores]], float]:
    """Sample gradients [N, G, P], summed over the window, each group's scores [G], CPU seconds of
    a group's rollout and rewards."""
    found = await collect_steps(config, groups)
    return found.steps.sum(dim=2), found.scored, found.cpu_s


def advantages(parts: dict[str, Tensor], config: RunConfig) -> dict[str, Tensor]:
    """Advantages [G] of each part alone, and of the total in the learner's two ways."""
    clip, weights = config.learner.advantage_clip, config.rewards.weights.model_dump()
    found = {part: group_advantages(values, clip) for part, values in parts.items()}
    total = torch.stack([weights[part] * values for part, values in parts.items()]).sum(dim=0)
    found["total, group"] = group_advantages(total, clip)
    found["total, group_parts"] = group_parts_advantages(parts, weights, clip)
    return found


def measure(name: str, config: RunConfig, groups: int) -> dict[str, Any]:
    """One setting's row."""
    gradients, scored, cpu_s = asyncio.run(collect(config, groups))
    named: list[str] = [p for p in PARTS if all(p in s.parts for scores in scored for s in scores)]
    parts = [
        {p: torch.tensor([s.parts[p] for s in scores]).double() for p in named} for scores in scored
    ]
    by_group = [advantages(values, config) for values in parts]
    signals = {}
    for reward in by_group[0]:
        weight = torch.stack([values[reward] for values in by_group]).float()
        signals[reward] = gradient_signal(torch.einsum("ng,ngp->np", weight, gradients))
    print(f"{name}, {len(parts)} groups, {cpu_s:.2f} CPU s a group without the learner")
    for reward, (share, z) in signals.items():
        scale = f"{1 / share:,.0f} groups" if z > SHOWN_Z and share > 0 else "not found"
        print(f"  {reward:<20} |G|²/tr(S) {share:+.5f}  z {z:+5.1f}  noise scale {scale}")
    return {
        "run": f"signal, {name}",
        "groups": len(parts),
        "members": config.rollout.group_size,
        "cpu_s_per_group": round(cpu_s, 2),
        "signal": {r: {"share": round(s, 6), "z": round(z, 2)} for r, (s, z) in signals.items()},
    }


def main() -> int:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--groups", type=int, default=96)
    parser.add_argument("--only", choices=list(SETTINGS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, shared in SETTINGS.items():
        if options.only in (None, name):
            chosen = [f"rollout.shared_prefix={str(shared).lower()}", *options.overrides]
            config = for_one_process(load("toy", chosen))
            rows.append(measure(name, config, 3 if options.quick else options.groups))
            if options.json:
                write(options.json, Result("signal", machine(), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
