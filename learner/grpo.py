"""GRPO on flow matching: advantages, ratios, clipped surrogate, KL. Pure functions of tensors.

Everything here is float32 or float64 tensors of shape [B] or [G] in, the same out; which rank or
micro-batch a sample sits in is not known here. Sources: Flow-GRPO (arXiv 2505.05470), GRPO-Guard,
method section 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ADVANTAGE_EPSILON = 1e-4
"""Added to the standard deviation, so that nearly equal rewards do not explode."""


@dataclass(frozen=True, slots=True)
class SurrogateOutput:
    """What one window step of B samples contributes, per sample ([B] each)."""

    loss: Tensor
    """Surrogate + beta x KL, differentiable."""
    ratio: Tensor
    """r, or the guarded ratio."""
    log_ratio: Tensor
    """log p_theta - log p_old, without the guard's correction."""
    muted: Tensor
    """bool: the clip removed the surrogate's gradient."""
    kl: Tensor
    """KL to the reference (0 where it was not asked for)."""


def has_gradient(rewards: Sequence[float]) -> bool:
    """False where all rewards are exactly equal: such a group says nothing about its members.

    Equality is exact on purpose: the standard deviation of eight equal float32 numbers is not
    exactly zero, and divided by itself it would make noise into advantages of size 1.
    """
    return any(reward != rewards[0] for reward in rewards[1:])


def group_advantages(rewards: Tensor, clip: float) -> Tensor:
    """(R - mean) / (std + 1e-4) over one group's rewards [G], clipped; population std (n, not
    n - 1, as in Flow-GRPO). All zero where the rewards are exactly equal."""
    if not has_gradient(rewards.tolist()):
        return torch.zeros_like(rewards)
    centred = rewards - rewards.mean()
    return (centred / (rewards.std(unbiased=False) + ADVANTAGE_EPSILON)).clamp(-clip, clip)


def batch_advantages(rewards: Sequence[Tensor], clip: float) -> tuple[Tensor, ...]:
    """(R - mean of its group) / (std of the whole batch + 1e-4), clipped; one [G_i] per group.

    The standard deviation is that of the rewards about the batch's mean over the groups that
    carry a gradient; groups of equal rewards are all zero and do not enter it.
    """
    informative = [group for group in rewards if has_gradient(group.tolist())]
    if not informative:
        return tuple(torch.zeros_like(group) for group in rewards)
    scale = torch.cat(informative).std(unbiased=False) + ADVANTAGE_EPSILON
    return tuple(
        ((group - group.mean()) / scale).clamp(-clip, clip)
        if has_gradient(group.tolist())
        else torch.zeros_like(group)
        for group in rewards
    )


def group_parts_advantages(
    parts: Mapping[str, Tensor], weights: Mapping[str, float], clip: float
) -> Tensor:
    """Weighted mean of the advantages of each reward part [G], normalised part by part.

    A part whose values are all equal contributes zeros but keeps its weight, so that losing a
    part never amplifies the others. Parts of weight 0 are ignored.

    Raises ValueError where a part has no weight or the weights sum to 0.
    """
    missing = sorted(set(parts) - set(weights))
    if missing:
        raise ValueError(f"reward parts {missing} have no weight; weights: {sorted(weights)}")
    total = sum(abs(weights[name]) for name in sorted(parts))
    if total == 0:
        raise ValueError(f"the weights of reward parts {sorted(parts)} sum to 0")
    mixed = torch.stack(
        [weights[name] / total * group_advantages(parts[name], math.inf) for name in sorted(parts)]
    ).sum(dim=0)
    return mixed.clamp(-clip, clip)


def log_ratio_to_ratio(
    log_ratio: Tensor, guard: bool, mean_shift: Tensor | None = None, std: Tensor | None = None
) -> Tensor:
    """r [B] from log p_theta - log p_old [B].

    Plain: exp(log_ratio). Guard (GRPO-Guard): exp((log_ratio + mean|mu - mu_old|^2 / (2 std^2)) *
    std), with `mean_shift` = mean|mu - mu_old|^2 over all non-batch dimensions [B] and `std` [B]
    the kernel's. The correction removes the bias -delta^2 / 2 of the mean log-ratio, the factor
    std makes the steps comparable.
    """
    if not guard:
        return log_ratio.exp()
    if mean_shift is None or std is None:
        raise ValueError("guard = True needs mean_shift and std; got None")
    return ((log_ratio + mean_shift / (2 * std**2)) * std).exp()


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r, 1 - eps, 1 + eps) A) [B], and whether the clip won (bool [B])."""
    unclipped = ratio * advantage
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range) * advantage
    return -torch.minimum(unclipped, clipped), (clipped < unclipped).detach()


def surrogate(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    clip_range: float,
    kl: Tensor | None = None,
    beta_kl: float = 0.0,
    guard: bool = False,
    mean_shift: Tensor | None = None,
    std: Tensor | None = None,
    dt: Tensor | None = None,
) -> SurrogateOutput:
    """Per-sample loss of one window step: clipped surrogate + beta KL; all tensors [B].

    With `guard` the surrogate (not the KL) is divided by -dt, dt = sigma_next - sigma < 0 [B], so
    that the window's steps weigh alike (GRPO-Guard's gradient reweighting).
    """
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio_to_ratio(log_ratio, guard, mean_shift, std)
    loss, muted = clipped_surrogate(ratio, advantage, clip_range)
    if guard:
        if dt is None:
            raise ValueError("guard = True needs dt; got None")
        loss = loss / -dt
    penalty = torch.zeros_like(log_ratio) if kl is None else kl
    return SurrogateOutput(
        loss=loss + beta_kl * penalty,
        ratio=ratio.detach(),
        log_ratio=log_ratio.detach(),
        muted=muted,
        kl=penalty.detach(),
    )


def summarize(
    weight: Tensor, advantage: Tensor, ratio: Tensor, log_ratio: Tensor, muted: Tensor, kl: Tensor
) -> dict[str, float]:
    """Metrics over all samples of a step [N]; rows of weight 0 (padding) are ignored.

    `muted_positive` and `muted_negative` are the shares of A > 0 and of A < 0 whose surrogate
    lost its gradient to the clip: with the plain ratio the second drifts to 1 (method section 4).
    """
    real = weight > 0
    if not bool(real.any()):
        return {}
    positive, negative = real & (advantage > 0), real & (advantage < 0)
    return {
        "ratio_mean": float(ratio[real].mean()),
        "ratio_max_dev": float((ratio[real] - 1).abs().max()),
        "log_ratio_abs": float(log_ratio[real].abs().mean()),
        "log_ratio_max": float(log_ratio[real].abs().max()),
        "clip_fraction": float(muted[real].double().mean()),
        "muted_positive": _share(muted, positive),
        "muted_negative": _share(muted, negative),
        "kl": float(kl[real].mean()),
        "advantage_abs": float(advantage[real].abs().mean()),
    }


def summarize_window(
    window_step: Tensor,
    weight: Tensor,
    advantage: Tensor,
    ratio: Tensor,
    log_ratio: Tensor,
    muted: Tensor,
    kl: Tensor,
) -> dict[str, float]:
    """`summarize` of all samples, and of each window step under "window_<w>/" ([N] each).

    Steps differ: their noise, and with it the scale of log p, falls along the window. Where the
    policy has not moved since the rollout, `log_ratio_max` is the gap between the rollout's and
    the learner's arithmetic.
    """
    columns = (weight, advantage, ratio, log_ratio, muted, kl)
    metrics = summarize(*columns)
    for w in sorted({int(step) for step in window_step.tolist()}):
        chosen = window_step == w
        part = summarize(*(column[chosen] for column in columns))
        metrics |= {f"window_{w}/{name}": value for name, value in part.items()}
    return metrics


def _share(flag: Tensor, among: Tensor) -> float:
    """Share of `among` where `flag` holds; 0 where `among` is empty."""
    count = int(among.sum())
    return float((flag & among).sum()) / count if count else 0.0
