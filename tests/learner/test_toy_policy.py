"""A policy of two parameters climbs to an optimum that is known in closed form; faults do not.

One stochastic step x' ~ N(m(θ), s²) in two dimensions whose velocity is θ itself, so that the sde
kernel gives m = m_ref + κ·θ. Reward R = -½‖x' - t‖². With d = t - m, Stein's lemma gives the
surrogate's gradient along m as d / (2·std(R)), std(R) = s·√(‖d‖² + s²), and the KL's is
β·(m - m_ref) / (2·s²). So the policy comes to rest on the line from m_ref to t, where

    ‖d‖ / (s·√(‖d‖² + s²)) = β·(‖t - m_ref‖ - ‖d‖) / s².

GRPO-Guard weighs the surrogate, not the KL, by s / -dt: the same optimum at β·s / -dt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.sde import gaussian_kl, log_prob, sigma_schedule, step_moments
from learner.grpo import SurrogateOutput, group_advantages, surrogate

GROUP = 512
BETA = 0.25
SIGMAS = sigma_schedule(16, 3.0)
NOW, THEN = SIGMAS[4], SIGMAS[5]
LATENT = torch.tensor([0.3, -0.2])
TARGET_OFFSET = torch.tensor([1.2, -0.9])
"""Target seen from the reference's mean, in standard deviations of the step."""


@dataclass(frozen=True)
class Maths:
    """What is under test, as a replaceable set."""

    surrogate: Callable[..., SurrogateOutput] = surrogate
    kl: Callable[[Tensor, Tensor, Tensor], Tensor] = gaussian_kl


def density(theta: Tensor, rows: int = 1) -> tuple[Tensor, Tensor]:
    """Mean [rows, 2] and std [1, 1] of the step."""
    latents, velocity = LATENT.expand(rows, 2), theta.expand(rows, 2)
    mean, std = step_moments("sde", latents, velocity, NOW, THEN, SIGMAS[1], 0.7)
    return mean, std.reshape(1, 1)


REFERENCE, _STD = density(torch.zeros(2))
STD = float(_STD)
TARGET = REFERENCE[0] + TARGET_OFFSET * STD
DT = float(THEN - NOW)


@dataclass
class Batch:
    """One group drawn from the policy θ_old."""

    old: Tensor
    sample: Tensor
    advantage: Tensor

    @classmethod
    def draw(cls, theta: Tensor, generator: torch.Generator) -> Batch:
        mean, std = density(theta, GROUP)
        sample = mean + std * torch.randn(GROUP, 2, generator=generator)
        rewards = -0.5 * (sample - TARGET).square().sum(dim=1)
        return cls(theta.clone(), sample, group_advantages(rewards, 5.0))

    def output(
        self, maths: Maths, theta: Tensor, clip_range: float, beta: float, guard: bool
    ) -> SurrogateOutput:
        mean, std = density(theta, GROUP)
        old_mean, _ = density(self.old, GROUP)
        return maths.surrogate(
            log_prob(self.sample, mean, std),
            log_prob(self.sample, old_mean, std),
            self.advantage,
            clip_range,
            kl=maths.kl(mean, REFERENCE, std),
            beta_kl=beta,
            guard=guard,
            mean_shift=(mean - old_mean).square().mean(dim=1),
            std=std.flatten(),
            dt=torch.tensor([DT]),
        )


def ascend(loss: Tensor, theta: Tensor, rate: float) -> None:
    """A plain gradient step of the mean m by `rate` standard deviations per unit of gradient."""
    (gradient,) = torch.autograd.grad(loss, theta)
    slope = float(density(torch.ones(2))[0][0, 0] - REFERENCE[0, 0])
    with torch.no_grad():
        theta -= rate * STD / slope**2 * gradient


def optimum() -> Tensor:
    """Where the policy comes to rest, by bisection of the equation above."""
    line = TARGET - REFERENCE[0]
    distance = float(line.norm())
    low, high = 0.0, distance
    for _ in range(60):
        d = (low + high) / 2
        pull = d / (STD * math.sqrt(d * d + STD**2)) - BETA * (distance - d) / STD**2
        low, high = (low, d) if pull > 0 else (d, high)
    return REFERENCE[0] + line * (1 - low / distance)


def check_climbs(maths: Maths, guard: bool) -> None:
    """90 batches, one update each: the last 30 lie within 0.08 std of the optimum on average."""
    generator = torch.Generator().manual_seed(0)
    scale = STD / -DT if guard else 1.0
    theta = torch.zeros(2, requires_grad=True)
    tail = []
    for batch_number in range(90):
        batch = Batch.draw(theta.detach(), generator)
        output = batch.output(maths, theta, 1e-4, BETA * scale, guard)
        ascend(output.loss.mean(), theta, 0.3 / scale)
        if batch_number >= 60:
            tail.append(density(theta.detach())[0][0])
    gap = float((torch.stack(tail).mean(dim=0) - optimum()).norm()) / STD
    assert gap < 0.08, f"comes to rest {gap:.2f} std from the optimum, guard {guard}"


def check_clip_holds(maths: Maths) -> None:
    """60 updates on one batch at ε = 0.1 without KL: the clip ends the climb near the old policy.

    Half of the samples leave the clip range when m has moved about 0.1·√2 std; unclipped updates
    go on to the best sample.
    """
    batch = Batch.draw(torch.zeros(2), torch.Generator().manual_seed(1))
    theta = torch.zeros(2, requires_grad=True)
    for _ in range(60):
        ascend(batch.output(maths, theta, 0.1, 0.0, False).loss.mean(), theta, 0.1)
    moved = float((density(theta.detach())[0] - REFERENCE).norm()) / STD
    assert 0.05 < moved < 0.35, f"one batch moves the policy by {moved:.2f} std"


def check_guard_is_unbiased(maths: Maths) -> None:
    """Half a std off the old policy, the guarded log-ratio averages 0 over its samples (four
    standard errors); the plain one averages -δ²/2."""
    batch = Batch.draw(torch.zeros(2), torch.Generator().manual_seed(2))
    slope = float(density(torch.ones(2))[0][0, 0] - REFERENCE[0, 0])
    theta = torch.tensor([0.5, 0.5]) * STD / slope
    guarded = batch.output(maths, theta, 10.0, 0.0, True).ratio.log() / STD
    plain = batch.output(maths, theta, 10.0, 0.0, False).log_ratio
    error = 0.5 / math.sqrt(2 * GROUP)
    assert float(plain.mean()) == pytest.approx(-0.125, abs=4 * error)
    bias = float(guarded.mean())
    assert abs(bias) < 4 * error, f"the guarded log-ratio is biased by {bias:.3f}"


def check_all(maths: Maths) -> None:
    check_climbs(maths, guard=False)
    check_climbs(maths, guard=True)
    check_clip_holds(maths)
    check_guard_is_unbiased(maths)


def _wrong_side(
    new: Tensor, old: Tensor, advantage: Tensor, eps: float, **rest: Any
) -> SurrogateOutput:
    """The larger of the clipped and the unclipped gain in place of the smaller."""
    output = surrogate(new, old, advantage, eps, **rest)
    ratio = (new - old).exp()
    gain = torch.maximum(ratio * advantage, ratio.clamp(1 - eps, 1 + eps) * advantage)
    return replace(output, loss=-gain + rest["beta_kl"] * rest["kl"])


def _no_std(
    new: Tensor, old: Tensor, advantage: Tensor, eps: float, **rest: Any
) -> SurrogateOutput:
    """The guard's ratio without its factor std."""
    if rest["guard"]:
        std = rest["std"]
        new = (new - old + rest["mean_shift"] / (2 * std**2)) / std
        old, rest = torch.zeros(()), rest | {"mean_shift": torch.zeros(())}
    return surrogate(new, old, advantage, eps, **rest)


FAULTS: dict[str, Maths] = {
    "sign of the advantage": Maths(lambda n, o, a, e, **k: surrogate(n, o, -a, e, **k)),
    "ratio turned over": Maths(lambda n, o, a, e, **k: surrogate(o, n, a, e, **k)),
    "ratio of summed densities": Maths(lambda n, o, a, e, **k: surrogate(2 * n, 2 * o, a, e, **k)),
    "no clip": Maths(lambda n, o, a, e, **k: surrogate(n, o, a, 1e9, **k)),
    "clip on the wrong side": Maths(_wrong_side),
    "KL twice as large": Maths(kl=lambda m, r, s: 2 * gaussian_kl(m, r, s)),
    "KL without the variance": Maths(kl=lambda m, r, s: gaussian_kl(m, r, torch.ones_like(s))),
    "KL subtracted": Maths(kl=lambda m, r, s: -gaussian_kl(m, r, s)),
    "KL to the old policy": Maths(kl=lambda m, r, s: gaussian_kl(m, m.detach(), s)),
    "guard without its correction": Maths(
        lambda n, o, a, e, **k: surrogate(n, o, a, e, **k | {"mean_shift": 0 * o})
    ),
    "guard without std": Maths(_no_std),
    "guard without dt": Maths(
        lambda n, o, a, e, **k: surrogate(n, o, a, e, **k | {"dt": torch.tensor([-1.0])})
    ),
}


def test_the_policy_climbs_to_its_optimum_and_stays_in_its_bounds() -> None:
    """The optimum is no trivial point: 1.1 std from the reference, 0.3 std short of the target."""
    best = optimum()
    assert float((best - REFERENCE[0]).norm()) / STD == pytest.approx(1.18, abs=0.1)
    assert float((TARGET - best).norm()) / STD == pytest.approx(0.31, abs=0.1)
    check_all(Maths())


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(fault: str) -> None:
    with pytest.raises(AssertionError, match=r"comes to rest|moves the policy|is biased"):
        check_all(FAULTS[fault])
