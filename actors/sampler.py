"""Flow-GRPO-Fast: ODE prefix, one stochastic window, ODE to the end (method section 2).

Every draw is keyed: the initial noise on ("latents", seed, group[, member]), the noise of a window
step on ("window", seed, group, member, step). So a request always gives the same samples, in
whatever order, batch or process they are computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.config import RolloutConfig
from actors.noise_transport import initial_latents_batch
from actors.sde import log_prob, ode_step, sigma_schedule, step_moments
from actors.seeds import keyed_generator, keyed_seed
from actors.trajectory import RolloutRequest
from prompts.camera import requested_path
from prompts.config import CameraConfig
from prompts.schema import Prompt

Velocity = Callable[[Tensor, Tensor], Tensor]
"""Policy with its prompt bound: latents float32 [B, 16, F', h, w], sigma [] → the same shape."""


@dataclass(frozen=True, slots=True)
class GroupSamples:
    """The samples of one group of G members, float32 on the policy's device."""

    sigmas: Tensor
    """[S + 1], on the CPU."""
    states: Tensor
    """[G, W + 1, 16, F', h, w], before and after each window step."""
    means: Tensor
    """[G, W, 16, F', h, w]"""
    log_probs: Tensor
    """[G, W]"""
    latents: Tensor
    """[G, 16, F', h, w], the finished samples."""
    seconds: Mapping[str, float]
    """Wall seconds of noise, prefix and branches."""


@torch.no_grad()
def sample_group(
    velocity: Velocity,
    request: RolloutRequest,
    rollout: RolloutConfig,
    camera: CameraConfig,
    device: torch.device,
) -> GroupSamples:
    """Draw the `request.members` samples of a group.

    With `rollout.shared_prefix` the members share the initial noise and the ODE prefix, which is
    computed once, as is the velocity of the window's first step; otherwise each has its own. At
    most `rollout.max_batch` clips pass the network together, which changes nothing beyond float
    rounding. ValueError if the window does not fit the schedule.
    """
    sigmas = sigma_schedule(rollout.sampling_steps, rollout.shift)
    start, stop = _window(request, rollout)
    seconds: dict[str, float] = {}
    with stage(seconds, "noise", device):
        initial = _initial_noise(request, rollout, camera).to(device)
    with stage(seconds, "prefix", device):
        prefixed = torch.cat(
            [_ode(velocity, x, sigmas, 0, start) for x in torch.split(initial, rollout.max_batch)]
        )
    pieces = []
    with stage(seconds, "branches", device):
        # One state for all members, and so one velocity: as the learner computes it.
        first = velocity(prefixed, sigmas[start]) if rollout.shared_prefix else None
        for members in _chunks(request.members, rollout.max_batch):
            rows = [0] * len(members) if rollout.shared_prefix else members
            states, means, log_probs = _window_steps(
                velocity,
                prefixed[rows],
                sigmas,
                range(start, stop),
                request,
                members,
                rollout,
                first,
            )
            final = _ode(velocity, states[:, -1], sigmas, stop, rollout.sampling_steps)
            pieces.append((states, means, log_probs, final))
    states, means, log_probs, latents = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return GroupSamples(sigmas, states, means, log_probs, latents, seconds)


@torch.no_grad()
def sample_ode(
    bind: Callable[[Sequence[Prompt]], Velocity],
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    rollout: RolloutConfig,
    camera: CameraConfig,
    device: torch.device,
    steps: int,
) -> Tensor:
    """Deterministic samples [N, 16, F', h, w] of `prompts`, one per seed, by `steps` ODE steps.

    `bind` gives the policy's velocity for a batch of prompts. The noise is keyed on the seed alone,
    so that two policies, or two prompts, are compared on the same noise.
    """
    if len(prompts) != len(seeds) or not prompts:
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds; allowed: one seed each")
    sigmas = sigma_schedule(steps, rollout.shift)
    finished = []
    for chunk in _chunks(len(prompts), rollout.max_batch):
        chosen = [prompts[i] for i in chunk]
        noise = [
            _noise(prompt, [keyed_seed("evaluation", seeds[i])], rollout, camera)
            for i, prompt in zip(chunk, chosen, strict=True)
        ]
        finished.append(_ode(bind(chosen), torch.cat(noise).to(device), sigmas, 0, steps))
    return torch.cat(finished)


@contextmanager
def stage(seconds: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    """Record the wall seconds of a block, the device's queued work included."""
    began = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[name] = time.perf_counter() - began


def _window(request: RolloutRequest, rollout: RolloutConfig) -> tuple[int, int]:
    start, stop = request.window_start, request.window_start + rollout.window_size
    if start < 0 or stop >= rollout.sampling_steps:
        raise ValueError(
            f"request.window_start is {start}; allowed with rollout.sampling_steps = "
            f"{rollout.sampling_steps} and rollout.window_size = {rollout.window_size}: 0 to "
            f"{rollout.sampling_steps - rollout.window_size - 1} (the last step is not stochastic)"
        )
    if request.members < 1:
        raise ValueError(f"request.members is {request.members}; allowed: 1 or more")
    return start, stop


def _window_steps(
    velocity: Velocity,
    latents: Tensor,
    sigmas: Tensor,
    steps: range,
    request: RolloutRequest,
    members: Sequence[int],
    rollout: RolloutConfig,
    first: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """States [B, W + 1, ...], means [B, W, ...] and log-densities [B, W] of the window; `first`
    [1, ...] is the velocity of its first step where all members have the same."""
    states, means, log_probs = [latents], [], []
    for step in steps:
        if first is not None and step == steps.start:
            predicted = first.expand_as(latents)
        else:
            predicted = velocity(latents, sigmas[step])
        moments = step_moments(
            rollout.kernel,
            latents,
            predicted,
            sigmas[step],
            sigmas[step + 1],
            sigmas[1],
            rollout.resolved_noise_level,
        )
        keys = [("window", request.seed, request.group, member, step) for member in members]
        noise = torch.stack(
            [torch.randn(latents.shape[1:], generator=keyed_generator(*key)) for key in keys]
        )
        latents = moments.mean + moments.std * noise.to(latents.device)
        states.append(latents)
        means.append(moments.mean)
        # Of the rounded sample that is stored: the learner sees nothing else.
        log_probs.append(log_prob(latents, moments.mean, moments.std))
    return torch.stack(states, 1), torch.stack(means, 1), torch.stack(log_probs, 1)


def _ode(velocity: Velocity, latents: Tensor, sigmas: Tensor, start: int, stop: int) -> Tensor:
    """Euler steps `start` to `stop` (exclusive) of the schedule."""
    for step in range(start, stop):
        predicted = velocity(latents, sigmas[step])
        latents = ode_step(latents, predicted, sigmas[step], sigmas[step + 1])
    return latents


def _initial_noise(request: RolloutRequest, rollout: RolloutConfig, camera: CameraConfig) -> Tensor:
    """[1, ...] if the members share their noise, else [G, ...]."""
    key = ("latents", request.seed, request.group)
    if rollout.shared_prefix:
        seeds = [keyed_seed(*key)]
    else:
        seeds = [keyed_seed(*key, member) for member in range(request.members)]
    return _noise(request.prompt, seeds, rollout, camera)


def _noise(
    prompt: Prompt, seeds: Sequence[int], rollout: RolloutConfig, camera: CameraConfig
) -> Tensor:
    path = requested_path(prompt, rollout.frames, camera.amplitudes)
    return initial_latents_batch(
        path, rollout.latent_shape, camera, rollout.height, rollout.width, seeds
    )


def _chunks(count: int, size: int) -> Iterator[list[int]]:
    for start in range(0, count, size):
        yield list(range(start, min(start + size, count)))
