"""Startup proof: the learner differentiates the very density that the rollout drew from.

A run does not start unless every stored step agrees in log-density *and* in the residual of fixed
elements: the mean over two million dimensions hides a 1 % error of a coefficient (method
section 2). Everything here fails closed: what cannot be compared is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.config import PolicyConfig, RolloutConfig
from actors.sde import schedule_hash, sigma_schedule
from actors.seeds import keyed_generator
from actors.trajectory import Trajectory, require_float32

PROOF_ELEMENTS = 1024
"""Elements of a state whose residuals are compared one by one."""
LOG_RATIO_LIMIT = 1e-5
"""Largest |log r| of a float32 policy; a bfloat16 policy is allowed a fifth of the clip range."""
RESIDUAL_LIMIT = {"float32": 1e-3, "bfloat16": 3e-2}
"""Largest difference of (x' - mu) / std between rollout and learner, by the policy's dtype."""


class StartupProofError(RuntimeError):
    """Rollout and learner are not the same policy; the message names what differs."""


@dataclass(frozen=True, slots=True)
class RatioProof:
    """What was measured; both maxima are within their limits, or there would be no proof."""

    trajectories: int
    steps: int
    """Window steps compared, over all trajectories."""
    log_ratio_max: float
    log_ratio_limit: float
    residual_max: float
    residual_limit: float
    log_ratio_by_step: tuple[float, ...]
    """Largest |log r| at each step of the window: the gap of two orders of summation."""
    residual_by_step: tuple[float, ...]
    """Largest difference of residuals at each step of the window."""


def check_metadata(
    trajectory: Trajectory, policy: PolicyConfig, rollout: RolloutConfig, checksum: str
) -> None:
    """Raise StartupProofError unless the trajectory was drawn as this learner would have.

    `checksum` is that of the learner's own LoRA weights.
    """
    where = f"group {trajectory.meta.group} member {trajectory.meta.member}"
    try:
        require_float32(trajectory)
    except ValueError as error:
        raise StartupProofError(str(error)) from None
    expected = sigma_schedule(rollout.sampling_steps, rollout.shift)
    steps, window = len(trajectory.sigmas) - 1, len(trajectory.means)
    meta = trajectory.meta
    _require_equal(where, "number of sampling steps", steps, rollout.sampling_steps)
    _require_equal(
        where, "sigma schedule", schedule_hash(trajectory.sigmas), schedule_hash(expected)
    )
    _require_equal(where, "hash of the sigmas", meta.schedule_hash, schedule_hash(expected))
    _require_equal(where, "window size", window, rollout.window_size)
    _require_equal(where, "number of stored states", len(trajectory.states), window + 1)
    _require_equal(where, "number of stored log-densities", len(trajectory.log_probs), window)
    _require_equal(where, "kernel", meta.kernel, rollout.kernel)
    _require_equal(where, "noise level", meta.noise_level, rollout.resolved_noise_level)
    _require_equal(where, "guidance scale", meta.guidance_scale, policy.guidance_scale)
    _require_equal(where, "checksum of the LoRA weights", meta.weights.checksum, checksum)
    if not 0 <= meta.window_start < steps - window + 1:
        raise StartupProofError(
            f"{where}: window of {window} steps from step {meta.window_start} lies outside the "
            f"schedule of {steps} steps"
        )


def proof_elements(numel: int, seed: int) -> Tensor:
    """Indices [min(numel, 1024)] of the compared elements: fixed by the run's seed, distinct."""
    order = torch.randperm(numel, generator=keyed_generator("proof elements", seed))
    return order[:PROOF_ELEMENTS]


def residual_gap(
    sample: Tensor, old_mean: Tensor, mean: Tensor, std: Tensor, elements: Tensor
) -> float:
    """Largest |(x' - mu_old) / std - (x' - mu) / std| at `elements`; all [B, ...], std [B, 1]."""
    rows = [(sample - mu).div(std).flatten(1)[:, elements] for mu in (old_mean, mean)]
    return float((rows[0] - rows[1]).abs().max())


def judge(
    log_ratios: Sequence[float],
    residual_gaps: Sequence[float],
    trajectories: int,
    steps: int,
    policy: PolicyConfig,
    clip_range: float,
) -> RatioProof:
    """The proof, or StartupProofError saying which of the two measures is too large (or NaN).

    Both sequences hold `steps` values, all window steps of one trajectory after another.
    """
    log_limit = LOG_RATIO_LIMIT if policy.dtype == "float32" else clip_range / 5
    residual_limit = RESIDUAL_LIMIT[policy.dtype]
    measures = (
        ("|log r|", log_ratios, log_limit),
        ("residual difference", residual_gaps, residual_limit),
    )
    for name, values, limit in measures:
        # Written so that NaN fails.
        worst = next((v for v in values if not v <= limit), None)
        if worst is not None:
            raise StartupProofError(
                f"rollout and learner are not the same density: {name} is {worst:.3g} at a stored "
                f"step, allowed is {limit:.3g} for a {policy.dtype} policy"
            )
    window = steps // trajectories
    return RatioProof(
        trajectories=trajectories,
        steps=steps,
        log_ratio_max=max(log_ratios),
        log_ratio_limit=log_limit,
        residual_max=max(residual_gaps),
        residual_limit=residual_limit,
        log_ratio_by_step=tuple(max(log_ratios[w::window]) for w in range(window)),
        residual_by_step=tuple(max(residual_gaps[w::window]) for w in range(window)),
    )


def _require_equal(where: str, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise StartupProofError(
            f"rollout and learner differ in the {what}: {where} has {found!r}, "
            f"the learner expects {expected!r}"
        )
