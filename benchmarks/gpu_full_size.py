"""Wan2.1-T2V at full size on one GPU, random weights: `python -m benchmarks.gpu_full_size`.

832 x 480, 81 frames, bfloat16 with float32 adapters: seconds, model FLOP utilisation and peak
memory of a forward pass with guidance, of a group's rollout, of decoding a clip and of a learner
step, and the estimate of peak memory beside each. Random weights cost what trained ones do and need
no download. Refuses in one sentence without CUDA. `--size 14B` for the large model, `--attention`
and `--compile` for diffusers' own switches.
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
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor

from actors import wan
from actors.config import PolicyConfig, RolloutConfig
from actors.lora import add_lora, lora_parameters
from actors.policy import Policy
from actors.sampler import sample_group
from actors.sde import gaussian_kl, log_prob, sigma_schedule, step_moments
from actors.trajectory import RolloutRequest
from actors.wan_shape import WAN21_1_3B, WAN21_14B, WanShape, decoder_bytes, learner_flops
from benchmarks.results import Result, machine, write
from learner.config import LearnerConfig
from learner.fsdp import checkpoint_blocks
from learner.grpo import surrogate
from learner.memory import learner_memory, rollout_memory
from prompts.config import CameraConfig
from prompts.schema import Prompt

SIZES = {"1.3B": WAN21_1_3B, "14B": WAN21_14B}
GOAL = 0.40
"""Share of the measured bf16 matrix rate that forward and learner step should reach."""
PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bf16 rates by the vendor's data sheets, by a part of the device's name."""


def matrix_rate(device: torch.device, size: int = 8192, repeats: int = 20) -> float:
    """Operations per second of a large bf16 matrix product: what this device reaches at best."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = timed(lambda: a @ a, device, repeats)
    return 2 * size**3 / seconds


def timed(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median wall seconds of a call after one warm-up, the device's work included."""
    spent = []
    for repeat in range(repeats + 1):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        if repeat:
            spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def build(shape: WanShape, config: PolicyConfig, device: torch.device) -> Policy:
    """A policy of random weights with its VAE, without a text encoder."""
    transformer = wan.meta_transformer(shape, torch.bfloat16)
    matched = add_lora(transformer, config.lora)
    wan.materialise(transformer, device)
    if config.attention != "native":
        transformer.set_attention_backend(config.attention)
    if config.compile:
        transformer.compile_repeated_blocks()
    vae = AutoencoderKLWan().eval().requires_grad_(False).to(device)
    return Policy(config, device, transformer, matched, vae, None)


class Bench:
    """One policy on one GPU, and a row per measurement."""

    def __init__(
        self, size: str, config: PolicyConfig, rollout: RolloutConfig, device: torch.device
    ) -> None:
        self.size, self.shape, self.config, self.rollout = size, SIZES[size], config, rollout
        self.device = device
        self.policy = build(self.shape, config, self.device)
        self.rate = matrix_rate(self.device)
        self.tokens = self.shape.tokens(rollout.latent_frames, rollout.height, rollout.width)
        generator = torch.Generator(self.device).manual_seed(0)
        draw: dict[str, Any] = {"device": self.device, "generator": generator}
        self.latents = torch.randn(1, *rollout.latent_shape, **draw)
        text = (1, config.max_prompt_tokens, self.shape.text_dim)
        self.cond = torch.randn(text, **draw).bfloat16()
        self.uncond = torch.randn(text, **draw).bfloat16()

    def velocity(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """The policy's velocity with the drawn text."""
        return self.policy.velocity(latents, sigma, self.cond, self.uncond)

    def row(
        self, name: str, call: Callable[[], object], flops: float, estimate: int, repeats: int
    ) -> dict[str, Any]:
        """Seconds, utilisation against data sheet and measured rate, peak bytes and estimate."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        seconds = timed(call, self.device, repeats)
        peak = torch.cuda.max_memory_allocated(self.device)
        gpu = torch.cuda.get_device_name(self.device)
        sheet = next((rate for part, rate in PEAK_BF16.items() if part in gpu), None)
        row = {
            "run": f"{self.size}, {name}, {gpu}, {self.config.attention}"
            + (", compiled" if self.config.compile else ""),
            "seconds": round(seconds, 4),
            "model_tflop": round(flops / 1e12, 1),
            "mfu_of_data_sheet": round(flops / seconds / sheet, 4) if sheet and flops else None,
            "mfu_of_matrix_rate": round(flops / seconds / self.rate, 4) if flops else None,
            "matrix_tflops": round(self.rate / 1e12, 1),
            "peak_gb": round(peak / 1e9, 2),
            "estimated_gb": round(estimate / 1e9, 2),
            "estimate_over_peak": round(estimate / peak, 3),
        }
        print(row, flush=True)
        return row

    def forward(self) -> dict[str, Any]:
        """One guided forward pass of one clip."""
        linear, attention = self.shape.forward_flops(self.tokens, self.config.max_prompt_tokens)
        one = self.rollout.model_copy(update={"max_batch": 1})
        memory = rollout_memory(self.config, one, self.shape)
        estimate = sum(memory.resident.values()) + memory.transient["forward"]

        @torch.no_grad()
        def call() -> None:
            self.velocity(self.latents, torch.tensor(0.7))

        return self.row("forward with guidance", call, 2 * (linear + attention), estimate, 5)

    def group(self) -> dict[str, Any]:
        """A group of 8 with a shared prefix, its window at step 1, all latents finished."""
        rollout = self.rollout
        request = RolloutRequest(0, Prompt.from_text("p", "Camera push in."), 8, 0, 1)
        passes = 1 + 8 * (rollout.sampling_steps - 1)
        flops = (
            2 * passes * sum(self.shape.forward_flops(self.tokens, self.config.max_prompt_tokens))
        )
        memory = rollout_memory(self.config, rollout, self.shape)
        estimate = sum(memory.resident.values()) + memory.transient["forward"]

        def call() -> None:
            sample_group(self.velocity, request, rollout, CameraConfig(), self.device)

        name = f"group of 8, {rollout.sampling_steps} steps, batches of {rollout.max_batch}"
        return self.row(name, call, flops, estimate, 1)

    def decode(self) -> dict[str, Any]:
        """One clip through the VAE, to uint8 on the CPU."""
        rollout = self.rollout
        memory = rollout_memory(self.config, rollout, self.shape)
        video = decoder_bytes(rollout.frames, rollout.height, rollout.width)
        estimate = sum(memory.resident.values()) + video
        return self.row("decode", lambda: self.policy.decode(self.latents), 0.0, estimate, 2)

    def learner_step(self) -> dict[str, Any]:
        """One trajectory, one window step: reference pass, policy pass, backward, AdamW."""
        checkpoint_blocks(self.policy.transformer)
        lora = lora_parameters(self.policy.transformer)
        optimizer = torch.optim.AdamW(lora.values(), lr=0.0)
        average = [p.detach().clone() for p in lora.values()]
        sigmas, noise = sigma_schedule(16, 3.0), torch.randn_like(self.latents)

        def moments() -> Any:
            v = self.velocity(self.latents, sigmas[2])
            return step_moments("sde", self.latents, v, sigmas[2], sigmas[3], sigmas[1], 0.7)

        def call() -> None:
            with torch.no_grad(), self.policy.adapter_disabled():
                reference = moments().mean
            mean, std = moments()
            sample = mean.detach() + std * noise
            new = log_prob(sample, mean, std)
            output = surrogate(
                new, new.detach(), torch.ones(1, device=self.device), 1e-4,
                kl=gaussian_kl(mean, reference, std), beta_kl=0.004,
            )  # fmt: skip
            output.loss.sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        flops = 2 * learner_flops(self.shape, self.tokens, self.config.max_prompt_tokens)
        memory = learner_memory(
            self.config, self.rollout, LearnerConfig(ranks=1, micro_batch=1), self.shape
        )
        # Not sharded here: no gathered copies, but the VAE is there.
        gathered = memory.transient["reference pass"] - self._inference_bytes()
        estimate = sum(memory.resident.values()) + memory.transient["forward and backward"]
        estimate += self._vae_bytes() - gathered
        row = self.row("learner step, micro-batch 1, one window step", call, flops, estimate, 3)
        del average
        return row

    def _inference_bytes(self) -> int:
        one = self.rollout.model_copy(update={"max_batch": 1})
        return rollout_memory(self.config, one, self.shape).transient["forward"]

    def _vae_bytes(self) -> int:
        return rollout_memory(self.config, self.rollout, self.shape).resident["VAE"]


def main() -> int:
    """Measure, print, write the JSON; 1 when the goal is missed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="1.3B")
    parser.add_argument("--attention", default="native")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--max-batch", type=int, default=4)
    parser.add_argument("--skip-group", action="store_true", help="the longest measurement")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_full_size needs an NVIDIA GPU with CUDA; none is visible here", file=sys.stderr)
        return 2
    config = PolicyConfig(attention=options.attention, compile=options.compile, text_encoder="cpu")
    device = torch.device("cuda", 0)
    bench = Bench(options.size, config, RolloutConfig(max_batch=options.max_batch), device)
    rows = [bench.forward()]
    if not options.skip_group:
        rows.append(bench.group())
    rows += [bench.decode(), bench.learner_step()]
    for row in rows:
        used = row["mfu_of_matrix_rate"]
        if used is not None and used < GOAL:
            print(f"MISSED {row['run']}: {used:.0%} of the bf16 rate, goal {GOAL:.0%}")
    if options.json:
        write(options.json, Result("gpu_full_size", machine(), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
