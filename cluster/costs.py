"""What one group, clip or update costs one worker: measured where there is a figure, else
arithmetic from counted operations and a stated share of the GPU's rate. Without torch or Ray.

Not counted: start-up, checkpoints, evaluations, rendering and perceptual distance of a
reconstruction, and the network between workers, over which a step moves megabytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from actors.wan_shape import (
    WanShape,
    decoder_flops,
    learner_flops,
    learner_passes,
    read_shape,
    rollout_passes,
)
from cluster.config import REPOSITORY, ConfigError, RunConfig, resolve_model
from cluster.gpus import NETWORK, GpuType

Source = Literal["measured", "arithmetic"]

UTILISATION = 0.40
"""Share of the bf16 rate that transformer passes are assumed to reach where no
`benchmarks/results/gpu_full_size.json` says otherwise: the goal of that benchmark."""
REWARD_UTILISATION = 0.30
"""The same for the reward models, whose batches are small; no figure exists yet."""
NOISE_S = 1.4
"""CPU seconds of one clip's transported noise at 480 x 832 x 81 (benchmarks/results:
noise_transport.json); it is proportional to the latent cells of a clip."""
EMBEDDED_S = {"reconstruction": 0.25, "judge": 0.01, "aesthetic": 0.02}
"""CPU seconds of the embedded scorers for a toy clip of 9 x 64 x 96 pixels, measured in demo runs;
proportional to the pixels that they look at."""
TOY_PIXELS = 9 * 64 * 96
JUDGE_PARAMETERS, AESTHETIC_PARAMETERS = 8_767_123_696, 8_291_375_616
"""Qwen3-VL-8B; Qwen2-VL-7B, of which HPSv3 is a head."""
DA3_PARAMETERS = 1_360_000_000
DA3_WIDTH, DA3_GLOBAL_LAYERS = 1536, 14
"""DA3-GIANT: a ViT-g with 40 layers, of which about a third attend over all frames at once."""
RUBRIC_TOKENS = 600
"""Text around a picture that judge and frame scorer read, rounded up."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one call on one worker, and where they come from."""

    seconds: float
    source: Source
    formula: str


@dataclass(frozen=True, slots=True)
class Utilisation:
    """Share of a GPU's bf16 rate that forward passes and learner steps reach."""

    forward: float
    learner: float
    source: Source


def read_utilisation(gpu: GpuType, model_name: str, results: Path | None = None) -> Utilisation:
    """Of the committed measurement on this type of GPU and model size, else the assumption."""
    file = results or REPOSITORY / "benchmarks/results/gpu_full_size.json"
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    except FileNotFoundError:
        rows = []
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{file} is no result of gpu_full_size: {error!r}") from None
    size = "14B" if "14B" in model_name else "1.3B"

    def found(what: str) -> float | None:
        for row in rows:
            if row["run"].startswith(f"{size}, {what}") and gpu.ray_name in row["run"]:
                return float(row["mfu_of_data_sheet"])
        return None

    forward, learner = found("forward"), found("learner step")
    if forward is None or learner is None:
        return Utilisation(UTILISATION, UTILISATION, "arithmetic")
    return Utilisation(forward, learner, "measured")


def unit_costs(config: RunConfig, gpu: GpuType, results: Path | None = None) -> Mapping[str, Cost]:
    """Cost of a group in `rollout`, and of a clip in `reconstruction`, `judge`, `aesthetic` and
    `learner` (on one of its ranks, all window steps)."""
    shape = model_shape(config)
    used = read_utilisation(gpu, config.policy.model, results)
    return {
        "rollout": _rollout(config, shape, gpu, used),
        **reward_costs(config, gpu),
        "learner": _learner(config, shape, gpu, used),
    }


def model_shape(config: RunConfig) -> WanShape:
    """Sizes of the policy's transformer; ConfigError where they cannot be known."""
    try:
        return read_shape(resolve_model(config.policy.model))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def mean_window_start(config: RunConfig) -> float:
    """Of the starts that groups draw."""
    return (config.rollout.window_low + config.rollout.window_stop - 1) / 2


def _branches(config: RunConfig) -> int:
    return 1 if config.policy.guidance_scale == 1.0 else 2


def _rollout(config: RunConfig, shape: WanShape, gpu: GpuType, used: Utilisation) -> Cost:
    rollout, policy = config.rollout, config.policy
    tokens = shape.tokens(rollout.latent_frames, rollout.height, rollout.width)
    once = sum(shape.forward_flops(tokens, policy.max_prompt_tokens)) * _branches(config)
    start = mean_window_start(config)
    passes = rollout_passes(
        rollout.group_size, rollout.sampling_steps, start, rollout.shared_prefix
    )
    network = passes * once / (gpu.bf16 * used.forward)
    size = (rollout.frames, rollout.height, rollout.width)
    decoded = rollout.group_size * decoder_flops(*size, tiled=policy.vae_tiling)
    decode = decoded / (gpu.tf32 * used.forward)
    cells = rollout.latent_frames * rollout.height * rollout.width
    noises = 1 if rollout.shared_prefix else rollout.group_size
    noise = noises * NOISE_S * cells / (21 * 480 * 832)
    return Cost(
        network + decode + noise,
        used.source,
        f"{passes:g} clip passes (window at {start:g} of {rollout.sampling_steps} steps) x "
        f"{once / 1e12:,.1f} TFLOP / ({gpu.bf16 / 1e12:g} TFLOP/s x {used.forward:.2f}) = "
        f"{network:,.1f} s; decode {rollout.group_size} x "
        f"{decoded / rollout.group_size / 1e12:,.1f} TFLOP / ({gpu.tf32 / 1e12:g} TFLOP/s TF32 x "
        f"{used.forward:.2f}) = {decode:,.1f} s; noise {noise:,.1f} s of CPU (measured)",
    )


def _learner(config: RunConfig, shape: WanShape, gpu: GpuType, used: Utilisation) -> Cost:
    rollout, policy, learner = config.rollout, config.policy, config.learner
    tokens = shape.tokens(rollout.latent_frames, rollout.height, rollout.width)
    useful = learner_flops(shape, tokens, policy.max_prompt_tokens)
    again = (
        sum(shape.forward_flops(tokens, policy.max_prompt_tokens))
        if learner.activation_checkpointing
        else 0
    )
    passes = learner_passes(
        rollout.group_size, rollout.window_size, learner.updates_per_batch, rollout.shared_prefix
    )
    steps = passes * _branches(config)
    compute = steps * (useful + again) / (gpu.bf16 * used.learner)
    # Frozen weights are gathered for the reference pass, the forward and the backward pass, or
    # are whole on every rank.
    gathered = 0 if learner.frozen_whole else 3 * shape.weight_bytes(policy.dtype)
    link = gpu.link if learner.ranks <= 8 else NETWORK
    gather = passes * gathered / link / learner.micro_batch
    return Cost(
        max(compute, gather),
        used.source,
        f"{steps:g} passes ({passes:g} window steps x {_branches(config)} branches) x "
        f"({useful / 1e12:,.1f} + {again / 1e12:,.1f} recomputed) TFLOP / "
        f"({gpu.bf16 / 1e12:g} TFLOP/s x {used.learner:.2f}) = {compute:,.1f} s; beside it "
        f"{gathered / 1e9:,.1f} GB gathered per window step, {gather:,.1f} s, overlapped",
    )


def reward_costs(config: RunConfig, gpu: GpuType) -> dict[str, Cost]:
    """Seconds of one clip in each reward pool."""
    rewards, rollout = config.rewards, config.rollout
    frames = min(rewards.reconstruction.max_frames, rollout.frames)
    pixels = min(rewards.reconstruction.max_pixels, rollout.height * rollout.width)
    costs = {
        "reconstruction": _embedded("reconstruction", frames * pixels),
        "judge": _embedded("judge", 9 * pixels),
        "aesthetic": _embedded("aesthetic", 9 * rollout.height * rollout.width),
    }
    rate = gpu.bf16 * REWARD_UTILISATION
    if rewards.reconstruction.backend != "photometric":
        costs["reconstruction"] = _da3(frames, rewards.reconstruction.resolution, rollout, rate)
    if rewards.judge.backend != "embedded":
        tokens = rollout.height * rollout.width // 32**2 + RUBRIC_TOKENS
        costs["judge"] = _language(1, tokens, JUDGE_PARAMETERS, rate)
    if rewards.aesthetic.backend != "embedded":
        tokens = rollout.height * rollout.width // 28**2 + RUBRIC_TOKENS
        costs["aesthetic"] = _language(rewards.aesthetic.frames, tokens, AESTHETIC_PARAMETERS, rate)
    return costs


def _embedded(kind: str, pixels: int) -> Cost:
    seconds = EMBEDDED_S[kind] * pixels / TOY_PIXELS
    return Cost(
        seconds,
        "arithmetic",
        f"{EMBEDDED_S[kind]} s of CPU for a toy clip (measured) x {pixels / TOY_PIXELS:,.1f} "
        "times its pixels",
    )


def _da3(frames: int, resolution: int, rollout: Any, rate: float) -> Cost:
    long, short = max(rollout.width, rollout.height), min(rollout.width, rollout.height)
    tokens = frames * (resolution // 14) * round(resolution * short / long / 14)
    linear = 2 * DA3_PARAMETERS * tokens
    attention = 4 * tokens**2 * DA3_WIDTH * DA3_GLOBAL_LAYERS
    return Cost(
        (linear + attention) / rate,
        "arithmetic",
        f"{frames} frames, {tokens:,} tokens: 2 x {DA3_PARAMETERS / 1e9:.2f} G x tokens = "
        f"{linear / 1e12:,.0f} TFLOP, attention over all frames in {DA3_GLOBAL_LAYERS} layers "
        f"{attention / 1e12:,.0f} TFLOP, / {rate / 1e12:,.0f} TFLOP/s",
    )


def _language(pictures: int, tokens: int, parameters: int, rate: float) -> Cost:
    operations = 2 * parameters * tokens * pictures
    return Cost(
        operations / rate,
        "arithmetic",
        f"{pictures} pictures x {tokens:,} tokens x 2 x {parameters / 1e9:.2f} G = "
        f"{operations / 1e12:,.0f} TFLOP / {rate / 1e12:,.0f} TFLOP/s",
    )
