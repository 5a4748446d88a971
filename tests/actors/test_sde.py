"""Schedules and step kernels against hand-computed values; `test_gaussian_flow.py` has moments."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from actors.sde import (
    gaussian_kl,
    log_prob,
    ode_step,
    residual,
    schedule_hash,
    sigma_schedule,
    step_moments,
)

KERNELS = ("sde", "cps", "dance")


@pytest.mark.parametrize("steps", [2, 10, 16, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_schedule_is_that_of_the_wan_pipeline(steps: int, shift: float) -> None:
    """Equal, bit for bit, to the Euler scheduler after the pipeline's set_timesteps(steps)."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps, device="cpu")
    sigmas = sigma_schedule(steps, shift)
    assert sigmas.dtype == torch.float32
    assert len(sigmas) == steps + 1
    assert torch.equal(sigmas, scheduler.sigmas)
    assert torch.equal(sigmas[:-1] * 1000, scheduler.timesteps)
    assert (sigmas[0], sigmas[-1]) == (1.0, 0.0)
    assert bool((sigmas.diff() < 0).all())


def test_schedule_hash_tells_schedules_apart() -> None:
    """One unit in the last place is another schedule; a float64 schedule is refused."""
    sigmas = sigma_schedule(16, 3.0)
    nudged = sigmas.clone()
    nudged[5] = torch.nextafter(nudged[5], torch.tensor(0.0))
    assert schedule_hash(sigmas) == schedule_hash(sigma_schedule(16, 3.0))
    assert len({schedule_hash(s) for s in (sigmas, nudged, sigma_schedule(16, 5.0))}) == 3
    with pytest.raises(ValueError, match="float64"):
        schedule_hash(sigmas.double())


@pytest.mark.parametrize(("steps", "shift"), [(1, 3.0), (16, 0.0), (16, math.nan)])
def test_impossible_schedules_are_refused(steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match="allowed"):
        sigma_schedule(steps, shift)


@pytest.mark.parametrize(
    ("kernel", "level", "sigma", "sigma_next", "mean", "std"),
    [
        # s² = 0.49: x(1 - 0.049) + v·1.245·(-0.1); std = 0.7·√0.1.
        ("sde", 0.7, 0.5, 0.4, 0.702, 0.2213594),
        # At sigma = 1, sigma* = 0.9: s² = 4.9; x(1 - 0.245) + v·(-0.1); std = √0.49.
        ("sde", 0.7, 1.0, 0.9, 0.555, 0.7),
        # x̂0 = 0, x̂1 = 2: 2·√(0.16 - 0.35640²); std = 0.4·sin(0.35 π).
        ("cps", 0.7, 0.5, 0.4, 0.3631925, 0.3564026),
        # 1 - 0.2 - ½·0.09·1/0.25·0.1; std = 0.3·√0.1.
        ("dance", 0.3, 0.5, 0.4, 0.782, 0.0948683),
    ],
)
def test_moments_by_hand(
    kernel: str, level: float, sigma: float, sigma_next: float, mean: float, std: float
) -> None:
    """x = 1, v = 2, proxy 0.9."""
    x, v = torch.ones(1, 3), torch.full((1, 3), 2.0)
    got = step_moments(kernel, x, v, sigma, sigma_next, 0.9, level)
    assert got.mean[0].tolist() == pytest.approx([mean] * 3, abs=2e-6)
    assert float(got.std) == pytest.approx(std, abs=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_noise_every_kernel_is_the_euler_step(kernel: str) -> None:
    """Noise level 0: mean = x + v·dt, std = 0."""
    g = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 5, generator=g), torch.randn(2, 5, generator=g)
    got = step_moments(kernel, x, v, 0.6, 0.45, 0.9, 0.0)
    assert torch.allclose(got.mean, ode_step(x, v, 0.6, 0.45), atol=1e-6)
    assert float(got.std) == 0.0


@pytest.mark.parametrize("kernel", KERNELS)
def test_per_sample_sigmas_equal_one_sigma_at_a_time(kernel: str) -> None:
    """A batch of samples at different steps gives the bits of each alone, float or tensor."""
    g = torch.Generator().manual_seed(1)
    x, v = torch.randn(3, 4, 2, generator=g), torch.randn(3, 4, 2, generator=g)
    sigmas = sigma_schedule(8, 3.0)
    now, after = sigmas[[0, 2, 5]], sigmas[[1, 3, 6]]
    mean, std = step_moments(kernel, x, v, now, after, sigmas[1], 0.5)
    assert std.shape == (3, 1, 1)
    for i in range(3):
        alone = step_moments(
            kernel, x[i : i + 1], v[i : i + 1], float(now[i]), float(after[i]), sigmas[1], 0.5
        )
        assert torch.equal(alone.mean[0], mean[i])
        assert float(alone.std) == float(std[i])


def test_log_prob_and_kl_by_hand() -> None:
    """Two samples, three dimensions, std ½; means over the dimensions, not sums."""
    mean, std = torch.zeros(2, 3), torch.tensor(0.5)
    sample = torch.tensor([[0.5, 0.5, 0.5], [0.0, 1.0, 0.0]])
    constant = -math.log(0.5) - 0.5 * math.log(2 * math.pi)
    expected = [constant - 0.5, constant - (0 + 4 + 0) / 3 / 2]
    assert log_prob(sample, mean, std).tolist() == pytest.approx(expected, abs=1e-6)
    assert gaussian_kl(sample, mean, std).tolist() == pytest.approx([0.5, 2 / 3], abs=1e-6)
    assert residual(sample, mean, std).tolist() == [[1.0, 1.0, 1.0], [0.0, 2.0, 0.0]]


def test_log_prob_agrees_with_torch_distributions() -> None:
    """Per-sample stds, against torch's Normal averaged over the dimensions."""
    g = torch.Generator().manual_seed(2)
    sample, mean = torch.randn(4, 3, 5, generator=g), torch.randn(4, 3, 5, generator=g)
    std = torch.tensor([0.1, 0.5, 1.0, 2.0]).reshape(4, 1, 1)
    expected = torch.distributions.Normal(mean, std).log_prob(sample).mean(dim=(1, 2))
    assert torch.allclose(log_prob(sample, mean, std), expected, rtol=1e-5)


@pytest.mark.parametrize("bad", ["latents", "velocity"])
def test_bfloat16_is_refused(bad: str) -> None:
    tensors = {"latents": torch.zeros(1, 2), "velocity": torch.zeros(1, 2)}
    tensors[bad] = tensors[bad].bfloat16()
    with pytest.raises(ValueError, match=f"{bad} has dtype torch.bfloat16"):
        step_moments(
            "sde", **tensors, sigma=0.5, sigma_next=0.4, sigma_max_proxy=0.9, noise_level=1
        )


def test_wrong_arguments_are_refused() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="allowed: 'sde', 'cps', 'dance'"):
        step_moments("euler", x, x, 0.5, 0.4, 0.9, 0.7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="below sigma"):
        step_moments("sde", x, x, 0.4, 0.5, 0.9, 0.7)
    with pytest.raises(ValueError, match=r"allowed: \[\] or \[2\]"):
        step_moments("sde", x, x, torch.tensor([0.5, 0.5, 0.5]), 0.4, 0.9, 0.7)
