"""Sampling a flow whose every moment is known: data N(0.8, 0.5²) in each dimension.

With the exact velocity every step is affine, so that means and variances propagate in closed form;
the kernels' formulas are written out here a second time, straight from method section 2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from actors.config import DEFAULT_NOISE_LEVEL, KernelName, RolloutConfig
from actors.sampler import GroupSamples, sample_group
from actors.sde import ode_step, sigma_schedule, step_moments
from actors.trajectory import RolloutRequest
from prompts.config import CameraConfig
from prompts.schema import Prompt

MEAN, STD = 0.8, 0.5
SHIFT = 3.0
Affine = Callable[[KernelName | None, float, float, float], tuple[float, float, float]]
KERNELS: tuple[KernelName, ...] = ("sde", "cps", "dance")


def _slope(sigma: float) -> tuple[float, float]:
    """k and c of the exact velocity v = k·x + c at sigma: E[noise - data | x]."""
    variance = (1 - sigma) ** 2 * STD**2 + sigma**2
    k = (sigma - (1 - sigma) * STD**2) / variance
    return k, -k * (1 - sigma) * MEAN - MEAN


def _velocity(x: Tensor, sigma: Tensor) -> Tensor:
    k, c = _slope(float(sigma))
    return k * x + c


def _affine(
    kernel: KernelName | None, now: float, then: float, proxy: float
) -> tuple[float, float, float]:
    """x' = A·x + B + std·noise of one step (None: the ODE's), with v = k·x + c put in."""
    k, c = _slope(now)
    dt, level = then - now, 0.0 if kernel is None else DEFAULT_NOISE_LEVEL[kernel]
    match kernel:
        case None:
            return 1 + k * dt, c * dt, 0.0
        case "sde":
            s2 = level**2 * now / (1 - (proxy if now == 1 else now))
            on_x, on_v = 1 + s2 * dt / (2 * now), (1 + s2 * (1 - now) / (2 * now)) * dt
            std = math.sqrt(s2 * -dt)
        case "cps":
            std = then * math.sin(level * math.pi / 2)
            keep = math.sqrt(then**2 - std**2)
            # (1 - σ')·(x - σv) + keep·(x + (1 - σ)v)
            on_x, on_v = 1 - then + keep, -(1 - then) * now + keep * (1 - now)
        case "dance":
            # x + v·dt + ½η²·(x - (1 - σ)(x - σv)) / σ²·dt
            half = 0.5 * level**2 * dt / now**2
            on_x, on_v = 1 + half * now, dt + half * (1 - now) * now
            std = level * math.sqrt(-dt)
    return on_x + on_v * k, on_v * c, std


def _sampled(
    kernel: KernelName | None, now: float, then: float, proxy: float
) -> tuple[float, float, float]:
    """The same A, B and std of the sampler's own step, from what it makes of x = 0 and x = 1."""
    k, c = _slope(now)
    x, v = torch.tensor([[0.0], [1.0]]), torch.tensor([[c], [k + c]])
    if kernel is None:
        mean, std = ode_step(x, v, now, then), 0.0
    else:
        moments = step_moments(kernel, x, v, now, then, proxy, DEFAULT_NOISE_LEVEL[kernel])
        mean, std = moments.mean, float(moments.std)
    return float(mean[1] - mean[0]), float(mean[0]), std


def _propagate(
    kernel: KernelName, steps: int, window: range, affine: Affine = _affine
) -> list[tuple[float, float]]:
    """(mean, std) at every sigma of the schedule, from N(0, 1) at sigma = 1."""
    sigmas = sigma_schedule(steps, SHIFT).tolist()
    mean, variance = 0.0, 1.0
    moments = [(mean, 1.0)]
    for step, (now, then) in enumerate(itertools.pairwise(sigmas)):
        a, b, std = affine(kernel if step in window else None, now, then, sigmas[1])
        mean, variance = a * mean + b, a * a * variance + std * std
        moments.append((mean, math.sqrt(variance)))
    return moments


def _sample(kernel: KernelName, steps: int, window: range) -> GroupSamples:
    """Eight members with noise of their own: 8 x 16 x 3 x 16 x 24 = 147,456 values."""
    rollout = RolloutConfig(
        height=128, width=192, frames=9, sampling_steps=steps, shift=SHIFT, kernel=kernel,
        window_size=len(window), window_low=window.start, window_high=window.start + 1,
        shared_prefix=False,
    )  # fmt: skip
    request = RolloutRequest(
        group=1, prompt=Prompt.from_text("p", "A box."), members=8, seed=4,
        window_start=window.start,
    )  # fmt: skip
    return sample_group(_velocity, request, rollout, CameraConfig(), torch.device("cpu"))


@pytest.mark.parametrize("kernel", KERNELS)
def test_sampled_moments_equal_closed_form_propagation_at_every_sigma(kernel: KernelName) -> None:
    """Stochastic from step 1 to the last but one, 12 steps; five standard errors."""
    window = range(1, 11)
    samples, expected = _sample(kernel, 12, window), _propagate(kernel, 12, window)
    places = [samples.states[:, i] for i in range(len(window) + 1)] + [samples.latents]
    for values, (mean, std) in zip(places, expected[1:], strict=True):
        n = values.numel()
        assert float(values.double().mean()) == pytest.approx(mean, abs=5 * std / math.sqrt(n))
        assert float(values.double().std()) == pytest.approx(std, abs=5 * std / math.sqrt(2 * n))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_window_of_two_is_the_ode_everywhere_else(kernel: KernelName) -> None:
    """Default window at step 3 of 16: moments at its three states and at the end."""
    window = range(3, 5)
    samples, expected = _sample(kernel, 16, window), _propagate(kernel, 16, window)
    places = [(samples.states[:, i], expected[3 + i]) for i in range(3)]
    for values, (mean, std) in [*places, (samples.latents, expected[-1])]:
        n = values.numel()
        assert float(values.double().mean()) == pytest.approx(mean, abs=5 * std / math.sqrt(n))
        assert float(values.double().std()) == pytest.approx(std, abs=5 * std / math.sqrt(2 * n))


def _error(kernel: KernelName, steps: int) -> float:
    """Error of the final std against the data's, stochastic from step 1 to the last but one."""
    return abs(_propagate(kernel, steps, range(1, steps - 1), _sampled)[-1][1] - STD)


@pytest.mark.parametrize("kernel", ["sde", "dance"])
def test_the_error_against_the_true_marginal_falls_with_the_steps(kernel: KernelName) -> None:
    """At least threefold from 50 to 200 steps, and the mean is exact at any number."""
    assert _error(kernel, 50) >= 3 * _error(kernel, 200)
    for steps in (50, 200):
        moments = _propagate(kernel, steps, range(1, steps - 1), _sampled)
        sigmas = sigma_schedule(steps, SHIFT).tolist()
        for (mean, _), sigma in zip(moments, sigmas, strict=True):
            assert mean == pytest.approx((1 - sigma) * MEAN, abs=1e-4)  # float32, 200 steps


def test_cps_does_not_keep_the_marginals() -> None:
    """Its noise does not shrink with the step: the error stays as the steps go to infinity."""
    errors = [_error("cps", steps) for steps in (50, 200, 800)]
    assert min(errors) > 0.05
    assert errors[2] > 0.8 * errors[1]


@pytest.mark.parametrize("steps", [50, 400])
def test_a_stochastic_first_step_inflates_the_std(steps: int) -> None:
    """Its noise does not shrink with the step: why windows start at 1. At sigma = 1, std² is a² and
    x is scaled by 1 - a²/2: together 1.030 for a = 0.7, where the true std tends to 1."""
    first = _propagate("sde", steps, range(1), _sampled)[1][1]
    truth = _propagate("sde", steps, range(0), _sampled)[1][1]
    assert first / truth == pytest.approx(math.sqrt(0.755**2 + 0.49), abs=0.01)
