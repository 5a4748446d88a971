"""Sigmas, step kernels and their log-densities; pure functions of tensors.

Source: method section 2; the kernels are those of Flow-GRPO (arXiv 2505.05470, `sde`), its
coefficient-preserving variant (`cps`) and DanceGRPO (`dance`). sigma runs from 1 (noise) to
0 (data), x_sigma = (1 - sigma) data + sigma noise, and the model's output is the velocity
v = noise - data. Latents are float32 [B, ...]; a sigma is a number, a scalar tensor or one value
per sample [B]. Coefficients are formed in float64 and rounded once, so that rollout and learner
get the same bits from the same sigmas.

As steps grow, `sde` and `dance` keep the ODE's marginals (from sigma < 1 on); `cps` does not, since
its noise does not shrink with the step.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from actors.config import KernelName

Sigma = float | Tensor
"""A noise level: a number, a 0-dim tensor, or one value per sample [B]."""

_TRAIN_STEPS = 1000
"""Wan's schedule divides time into so many training steps; the unshifted one ends at the first."""


class StepMoments(NamedTuple):
    """Mean [B, ...] and standard deviation (broadcastable to it) of one stochastic step."""

    mean: Tensor
    std: Tensor


def sigma_schedule(steps: int, shift: float) -> Tensor:
    """The `steps` + 1 sigmas of a sampling run, float32, from 1 to 0.

    Those that diffusers' `FlowMatchEulerDiscreteScheduler(shift=shift)` uses when WanPipeline
    calls `set_timesteps(steps)`: evenly spaced between 1 and the *shifted* smallest training
    sigma, then shifted (once more, for the last of them), then 0.
    """
    if steps < 2:
        raise ValueError(f"steps is {steps}; allowed: 2 or more")
    if not (math.isfinite(shift) and shift > 0):
        raise ValueError(f"shift is {shift}; allowed: a finite number above 0")
    first = torch.tensor(1.0) / _TRAIN_STEPS
    smallest = float(shift * first / (1 + (shift - 1) * first))  # in float32, as diffusers keeps it
    even = np.linspace(_TRAIN_STEPS, smallest * _TRAIN_STEPS, steps) / _TRAIN_STEPS
    shifted = shift * even / (1 + (shift - 1) * even)
    return torch.from_numpy(np.append(shifted, 0.0).astype(np.float32))


def schedule_hash(sigmas: Tensor) -> str:
    """SHA-256 (hex) of a schedule's little-endian float32 bytes; ValueError on another dtype."""
    if sigmas.dtype != torch.float32:
        raise ValueError(f"sigmas are stored as {sigmas.dtype}; only torch.float32 is allowed")
    return hashlib.sha256(sigmas.cpu().numpy().astype("<f4").tobytes()).hexdigest()


def step_moments(
    kernel: KernelName,
    latents: Tensor,
    velocity: Tensor,
    sigma: Sigma,
    sigma_next: Sigma,
    sigma_max_proxy: Sigma,
    noise_level: float,
) -> StepMoments:
    """Moments of the stochastic step from `sigma` to `sigma_next` < `sigma` (method section 2).

    `latents` and `velocity` are float32 [B, ...]. `sigma_max_proxy` is the schedule's second
    value, which stands in for sigma = 1 in the `sde` kernel (its noise would be infinite there);
    `noise_level` is a (sde, cps) or eta (dance).
    """
    _require_float32(latents=latents, velocity=velocity)
    s, s_next, proxy = (_per_sample(x, latents) for x in (sigma, sigma_next, sigma_max_proxy))
    if not bool((s_next < s).all()):
        raise ValueError(f"sigma_next is {sigma_next}; allowed: below sigma, which is {sigma}")
    dt = s_next - s
    if kernel == "sde":
        diffusion = noise_level**2 * s / (1 - torch.where(s == 1, proxy, s))
        on_latents = 1 + diffusion * dt / (2 * s)
        on_velocity = (1 + diffusion * (1 - s) / (2 * s)) * dt
        std = (diffusion * -dt).sqrt()
    elif kernel == "cps":
        # With x̂0 = x - σv and x̂1 = x + (1-σ)v: mean = (1-σ')·x̂0 + √(σ'² - std²)·x̂1.
        std = s_next * math.sin(noise_level * math.pi / 2)
        keep = (s_next**2 - std**2).sqrt()
        on_latents = (1 - s_next) + keep
        on_velocity = keep * (1 - s) - (1 - s_next) * s
    elif kernel == "dance":
        # x - (1-σ)·x̂0 = σx + (1-σ)σv, so the score term is ½η²·(x + (1-σ)v)/σ·dt.
        score = 0.5 * noise_level**2 * dt / s
        on_latents = 1 + score
        on_velocity = dt + score * (1 - s)
        std = noise_level * (-dt).sqrt()
    else:
        raise ValueError(f"kernel is {kernel!r}; allowed: 'sde', 'cps', 'dance'")
    mean = latents * _as_float32(on_latents, latents) + velocity * _as_float32(on_velocity, latents)
    return StepMoments(mean, _as_float32(std, latents))


def ode_step(latents: Tensor, velocity: Tensor, sigma: Sigma, sigma_next: Sigma) -> Tensor:
    """The Euler step x + v·(sigma_next - sigma), float32 [B, ...]."""
    _require_float32(latents=latents, velocity=velocity)
    dt = _per_sample(sigma_next, latents) - _per_sample(sigma, latents)
    return latents + velocity * _as_float32(dt, latents)


def log_prob(sample: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Gaussian log-density of `sample` [B, ...], averaged over all but the batch dimension: [B].

    The mean, not the sum (Flow-GRPO), so that the ratio's clip range is free of the clip's size.
    """
    squared = residual(sample, mean, std).square()
    constant = std.log() + 0.5 * math.log(2 * math.pi)
    return (-0.5 * squared - constant).flatten(1).mean(dim=1)


def residual(sample: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(sample - mean) / std [B, ...]: the standard-normal noise that made the sample."""
    _require_float32(sample=sample, mean=mean, std=std)
    return (sample - mean) / std


def gaussian_kl(mean: Tensor, mean_ref: Tensor, std: Tensor) -> Tensor:
    """KL of two Gaussians of equal std, averaged over all but the batch dimension: [B]."""
    return (0.5 * residual(mean, mean_ref, std).square()).flatten(1).mean(dim=1)


def _per_sample(sigma: Sigma, like: Tensor) -> Tensor:
    """`sigma` in float64 on the CPU or `like`'s device, shaped to broadcast over [B, ...]."""
    tensor = torch.as_tensor(sigma, dtype=torch.float64)
    if tensor.ndim == 0:
        return tensor
    if tensor.shape != like.shape[:1]:
        raise ValueError(
            f"a sigma has shape {list(tensor.shape)}; allowed: [] or [{like.shape[0]}]"
        )
    return tensor.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def _as_float32(coefficient: Tensor, like: Tensor) -> Tensor:
    return coefficient.to(device=like.device, dtype=torch.float32)


def _require_float32(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} has dtype {tensor.dtype}; only torch.float32 is allowed")
