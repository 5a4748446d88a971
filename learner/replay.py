"""Stored window steps, and the policy's density of them: what was drawn, by today's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from actors.config import KernelName
from actors.policy import Policy
from actors.sde import StepMoments, step_moments
from actors.trajectory import Trajectory, is_finite


class StoredStep(NamedTuple):
    """One window step of B trajectories, of which some have the S states before it in common."""

    latents: Tensor
    """States before the step, float32 [S, C, F', h, w]."""
    sample: Tensor
    """State after it of each trajectory, [B, C, F', h, w]."""
    sigma: Tensor
    """[S], as the next two."""
    sigma_next: Tensor
    proxy: Tensor
    """The schedule's second sigma."""
    noise_level: float
    cond: Tensor
    """Embeddings [S, L, D] of the texts that they were drawn with."""
    uncond: Tensor | None
    sharing: tuple[int, ...]
    """How many trajectories, one after another, have each state in common."""

    def each(self, values: Tensor) -> Tensor:
        """What belongs to a state [S, ...], for each of its trajectories [B, ...]."""
        if len(values) == len(self.sample):
            return values
        # Expanded, not indexed: its gradient is a sum in a fixed order.
        parts = zip(values.split(1), self.sharing, strict=True)
        return torch.cat([value.expand(count, *value.shape[1:]) for value, count in parts])


def stored_step(
    policy: Policy, batch: Sequence[Trajectory], w: int, sharing: Sequence[int]
) -> StoredStep:
    """Window step w of some trajectories, as the rollout stored it, on the policy's device.

    ValueError where trajectories that are to share a state were drawn from different ones.
    """
    starts = [sum(sharing[:i]) for i in range(len(sharing))]
    for start, count in zip(starts, sharing, strict=True):
        for other in batch[start + 1 : start + count]:
            _require_shared(batch[start], other, w)
    ones = [batch[start] for start in starts]
    places = [t.meta.window_start + w for t in ones]
    device = policy.device
    return StoredStep(
        latents=torch.stack([t.states[w] for t in ones]).to(device),
        sample=torch.stack([t.states[w + 1] for t in batch]).to(device),
        sigma=torch.stack([t.sigmas[i] for t, i in zip(ones, places, strict=True)]),
        sigma_next=torch.stack([t.sigmas[i + 1] for t, i in zip(ones, places, strict=True)]),
        proxy=torch.stack([t.sigmas[1] for t in ones]),
        noise_level=batch[0].meta.noise_level,
        cond=policy.encode([t.meta.prompt_text for t in ones]),
        uncond=policy.encode_negative(),
        sharing=tuple(sharing),
    )


def _require_shared(first: Trajectory, other: Trajectory, w: int) -> None:
    a, b = first.states[w], other.states[w]
    # What is not finite makes the loss so, and the update is skipped for that.
    if not torch.equal(a, b) and is_finite(first) and is_finite(other):
        raise ValueError(
            f"members {first.meta.member} and {other.meta.member} of group {other.meta.group} "
            f"begin window step {w} in different states; with rollout.shared_prefix they share the "
            "first"
        )


def moments(policy: Policy, kernel: KernelName, stored: StoredStep) -> StepMoments:
    """The policy's density [B, ...] of a stored step: same states and kernel as in the rollout."""
    velocity = policy.velocity(stored.latents, stored.sigma, stored.cond, stored.uncond)
    mean, std = step_moments(
        kernel,
        stored.latents,
        velocity,
        stored.sigma,
        stored.sigma_next,
        stored.proxy,
        stored.noise_level,
    )
    return StepMoments(stored.each(mean), stored.each(std))
