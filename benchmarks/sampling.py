"""What the sampler costs beyond its forward passes: `python -m benchmarks.sampling`.

The same number of forward passes of the same network (adapter included) through diffusers' bare
`WanPipeline` and through `sample_ode`, in turn, in one process; then a group of 8 with a shared
prefix against 8 whole samples. CPU seconds, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from torch import Tensor

from actors.config import PolicyConfig, RolloutConfig
from actors.policy import Policy
from actors.sampler import Velocity, sample_group, sample_ode
from actors.trajectory import RolloutRequest
from actors.wan_shape import rollout_passes
from benchmarks.results import Result, machine, write
from cluster.config import load, resolve_model
from prompts.config import CameraConfig
from prompts.schema import Prompt

PROMPT = Prompt.from_text("p", "Camera push in. A red box on a green floor.")
CPU = torch.device("cpu")
MOST_OVERHEAD, FORWARDS_TOLERANCE = 1.02, 0.03


def seconds_of(*calls: Callable[[], object], repeats: int) -> list[float]:
    """Median CPU seconds of each call, called in turn `repeats` times after one warm-up."""
    spent: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, seconds in zip(calls, spent, strict=True):
            began = time.process_time()
            call()
            if repeat:
                seconds.append(time.process_time() - began)
    return [statistics.median(seconds) for seconds in spent]


def against_the_pipeline(policy: Policy, rollout: RolloutConfig, repeats: int) -> dict[str, Any]:
    """One clip by `sample_ode` and by WanPipeline on the same network, text already embedded."""
    cond, uncond = policy.encode([PROMPT.text]), policy.encode_negative()
    pipeline: Any = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=policy._vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=rollout.shift),
        transformer=policy.transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    steps, noise = rollout.sampling_steps, torch.randn(1, *rollout.latent_shape)

    def bare() -> Tensor:
        return pipeline(
            prompt_embeds=cond, negative_prompt_embeds=uncond, height=rollout.height,
            width=rollout.width, num_frames=rollout.frames, num_inference_steps=steps,
            guidance_scale=policy.config.guidance_scale, latents=noise, output_type="latent",
        ).frames  # fmt: skip

    def ours() -> Tensor:
        bind = _binder(policy, cond, uncond)
        # Strength 0: the pipeline is handed its noise too.
        camera = CameraConfig(strength=0.0)
        return sample_ode(bind, [PROMPT], [0], rollout, camera, CPU, steps)

    bare_s, ours_s = seconds_of(bare, ours, repeats=repeats)
    tokens = rollout.latent_frames * rollout.height * rollout.width // 256
    return {
        "run": f"against WanPipeline, {tokens} tokens, guidance {policy.config.guidance_scale:g}",
        "forwards": steps,
        "pipeline_cpu_s": round(bare_s, 4),
        "sampler_cpu_s": round(ours_s, 4),
        "ratio": round(ours_s / bare_s, 4),
    }


def shared_prefix(
    policy: Policy, rollout: RolloutConfig, start: int, repeats: int
) -> dict[str, Any]:
    """Clips that pass the network, and CPU seconds, of a group of 8 against 8 whole samples."""
    cond, uncond = policy.encode([PROMPT.text]), policy.encode_negative()
    counted = 0

    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        nonlocal counted
        counted += len(latents)
        return policy.velocity(latents, sigma, cond, uncond)

    def group(shared: bool) -> None:
        config = rollout.model_copy(update={"shared_prefix": shared})
        request = RolloutRequest(0, PROMPT, 8, 0, start)
        sample_group(velocity, request, config, CameraConfig(strength=0.0), CPU)

    group(True)
    forwards, steps = counted, rollout.sampling_steps
    together_s, apart_s = seconds_of(lambda: group(True), lambda: group(False), repeats=repeats)
    expected = rollout_passes(8, steps, start, shared_prefix=True) / (8 * steps)
    return {
        "run": f"group of 8, start {start} of {steps}",
        "forwards": forwards,
        "forwards_ratio": round(forwards / (8 * steps), 4),
        "expected_ratio": round(expected, 4),
        "cpu_s_ratio": round(together_s / apart_s, 4),
    }


def _binder(policy: Policy, cond: Tensor, uncond: Tensor | None) -> Callable[[Any], Velocity]:
    return lambda prompts: lambda x, sigma: policy.velocity(x, sigma, cond, uncond)


def main() -> int:
    """Measure, print, write the JSON; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    base: PolicyConfig = load("toy").policy
    size = RolloutConfig(height=128, width=192, frames=17, sampling_steps=16)
    small = size.model_copy(update={"height": 64, "width": 96, "frames": 9})
    rows, missed = [], []
    for guidance in (1.0, 2.5):
        changes = {"model": resolve_model(base.model), "guidance_scale": guidance}
        policy = Policy.load(base.model_copy(update=changes), "cpu")
        row = against_the_pipeline(policy, size, 1 if options.quick else 7)
        rows.append(row)
        if row["ratio"] > MOST_OVERHEAD:
            missed.append(f"{row['run']}: {row['ratio']} <= {MOST_OVERHEAD}")
        print(row, flush=True)
    for start in (1,) if options.quick else (1, 3, 6):
        row = shared_prefix(policy, small, start, 1 if options.quick else 3)
        rows.append(row)
        if abs(row["forwards_ratio"] / row["expected_ratio"] - 1) > FORWARDS_TOLERANCE:
            missed.append(f"{row['run']}: forwards within 3 % of {row['expected_ratio']}")
        print(row, flush=True)
    for goal in missed:
        print(f"MISSED {goal}")
    if options.json:
        write(options.json, Result("sampling", machine(), rows))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
