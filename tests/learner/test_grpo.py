"""Advantages, ratios, clipping and KL against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from actors.sde import gaussian_kl, log_prob
from learner.grpo import (
    batch_advantages,
    clipped_surrogate,
    group_advantages,
    group_parts_advantages,
    has_gradient,
    log_ratio_to_ratio,
    summarize,
    summarize_window,
    surrogate,
)

F64 = torch.float64


def test_group_advantages_by_hand() -> None:
    """Rewards 1, 2, 3, 4: mean 2.5, population std 1.1180340."""
    got = group_advantages(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64), 5.0)
    expected = torch.tensor([-1.5, -0.5, 0.5, 1.5], dtype=F64) / (math.sqrt(1.25) + 1e-4)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


def test_exactly_equal_rewards_have_zero_advantage_and_nearly_equal_ones_do_not() -> None:
    """0.1 eight times has a rounded std that is not 0; the test of equality is exact."""
    equal = torch.full((8,), 0.1, dtype=F64)
    assert not has_gradient(equal.tolist())
    assert group_advantages(equal, 5.0).tolist() == [0.0] * 8
    nearly = equal.clone()
    nearly[0] += 1e-9
    assert has_gradient(nearly.tolist())
    assert 0 < float(group_advantages(nearly, 5.0).abs().max()) < 1e-4


def test_advantages_are_clipped() -> None:
    """One winner of 64: (1 - 1/64) / sqrt(63)/64 = sqrt(63) = 7.94, clipped to 5."""
    rewards = torch.zeros(64, dtype=F64)
    rewards[0] = 1.0
    assert float(group_advantages(rewards, 100.0)[0]) == pytest.approx(math.sqrt(63), rel=1e-3)
    assert float(group_advantages(rewards, 5.0)[0]) == 5.0
    assert float(group_advantages(-rewards, 5.0)[0]) == -5.0


def test_batch_advantages_share_one_scale_and_ignore_equal_groups() -> None:
    """Groups (0, 2), (5, 5), (0, 6): std of (0, 2, 0, 6) is sqrt(6)."""
    groups = [torch.tensor(v, dtype=F64) for v in ([0.0, 2.0], [5.0, 5.0], [0.0, 6.0])]
    got = batch_advantages(groups, 5.0)
    scale = math.sqrt(6) + 1e-4
    assert [a.tolist() for a in got] == [
        pytest.approx([-1 / scale, 1 / scale]),
        [0.0, 0.0],
        pytest.approx([-3 / scale, 3 / scale]),
    ]


def test_parts_count_by_weight_whatever_their_scale() -> None:
    """A part 1,000 times as large counts as much as its weight says; an equal part dilutes."""
    parts = {
        "gen": torch.tensor([0.0, 1000.0], dtype=F64),
        "recon": torch.tensor([1.0, 0.0]).double(),
    }
    got = group_parts_advantages(parts, {"gen": 1.0, "recon": 3.0}, 5.0)
    assert got.tolist() == pytest.approx([0.5, -0.5], abs=2e-4)
    parts["recon"] = torch.full((2,), 0.3, dtype=F64)
    got = group_parts_advantages(parts, {"gen": 1.0, "recon": 3.0}, 5.0)
    assert got.tolist() == pytest.approx([-0.25, 0.25], abs=1e-4)
    with pytest.raises(ValueError, match="have no weight"):
        group_parts_advantages(parts, {"gen": 1.0}, 5.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "muted"),
    [
        (1.0, 2.0, -2.0, -2.0, False),
        (1.5, 2.0, -2.4, 0.0, True),  # too likely already: no further push
        (0.5, 2.0, -1.0, -2.0, False),  # unlikely but good: pulled up
        (1.5, -2.0, 3.0, 2.0, False),  # likely but bad: pushed down
        (0.5, -2.0, 1.6, 0.0, True),  # unlikely already: no further push
        (1.1, 0.0, 0.0, 0.0, False),
    ],
)
def test_clipped_surrogate_and_its_gradient(
    ratio: float, advantage: float, loss: float, gradient: float, muted: bool
) -> None:
    """eps = 0.2; d loss / d ratio is -A where the clip does not win, else 0."""
    r = torch.tensor([ratio], dtype=F64, requires_grad=True)
    value, won = clipped_surrogate(r, torch.tensor([advantage], dtype=F64), 0.2)
    value.sum().backward()
    assert value.item() == pytest.approx(loss)
    assert r.grad is not None
    assert r.grad.item() == pytest.approx(gradient)
    assert bool(won) is muted


def test_surrogate_plus_kl_by_hand() -> None:
    """log r = ln 1.1, A = 2, KL 3, beta 0.1: loss -2.2 + 0.3; d loss / d log p = -2.2."""
    new = torch.tensor([math.log(1.1)], dtype=F64, requires_grad=True)
    zero = torch.zeros(1, dtype=F64)
    out = surrogate(new, zero, zero + 2, 0.2, kl=zero + 3, beta_kl=0.1)
    out.loss.sum().backward()
    assert out.loss.item() == pytest.approx(-1.9)
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(-2.2)
    assert out.kl.item() == 3.0


def test_guarded_loss_by_hand() -> None:
    """log r = -0.02, shift 0.04, std 0.5: (-0.02 + 0.04 / 0.5) x 0.5 = 0.03; dt = -0.1; A = 1."""
    one = torch.ones(1, dtype=F64)
    out = surrogate(
        -0.02 * one, 0 * one, one, 0.2, kl=one, beta_kl=0.5,
        guard=True, mean_shift=0.04 * one, std=0.5 * one, dt=-0.1 * one,
    )  # fmt: skip
    assert out.ratio.item() == pytest.approx(math.exp(0.03))
    assert out.loss.item() == pytest.approx(-math.exp(0.03) / 0.1 + 0.5)
    with pytest.raises(ValueError, match="guard = True needs dt"):
        surrogate(one, one, one, 0.2, guard=True, mean_shift=one, std=one)
    with pytest.raises(ValueError, match="needs mean_shift and std"):
        log_ratio_to_ratio(one, guard=True)


def test_kl_gradient_is_the_distance_over_the_variance() -> None:
    """KL = mean (mu - ref)^2 / (2 std^2) over 4 elements; gradient (mu - ref) / (4 std^2)."""
    mean = torch.tensor([[1.0, 2.0, 3.0, 4.0]], requires_grad=True)
    kl = gaussian_kl(mean, torch.zeros(1, 4), torch.full((1, 1), 0.5))
    assert kl.item() == pytest.approx(30 / 4 / 0.5)
    kl.sum().backward()
    assert mean.grad is not None
    torch.testing.assert_close(mean.grad, mean.detach() / (4 * 0.25))


def test_guard_frees_the_negative_samples_that_the_plain_ratio_mutes() -> None:
    """Method section 4: with eps = 1e-4 and a mean shift of 0.05 std, the bias -delta^2 / 2 puts
    all plain ratios below the clip; the guarded ratio is symmetric. 400 samples of 10,000
    elements; expected shares: plain > 0.97, guard 0.34 on both sides."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 10_000, generator=generator)
    std = torch.full((400, 1), 0.5)
    old = torch.zeros_like(noise)
    new = old + 0.05 * std
    sample = old + std * noise
    log_ratio = log_prob(sample, new, std) - log_prob(sample, old, std)
    shift = (new - old).square().mean(dim=1)
    shares = {}
    for guard in (False, True):
        ratio = log_ratio_to_ratio(log_ratio, guard, shift, std.flatten())
        for sign in (1.0, -1.0):
            advantage = torch.full((400,), sign)
            _, muted = clipped_surrogate(ratio, advantage, 1e-4)
            summary = summarize(torch.ones(400), advantage, ratio, log_ratio, muted, shift)
            shares[guard, sign] = summary["muted_positive" if sign > 0 else "muted_negative"]
    assert shares[False, -1.0] > 0.97
    assert shares[False, 1.0] < 0.01
    assert shares[True, -1.0] == pytest.approx(0.345, abs=0.07)
    assert shares[True, 1.0] == pytest.approx(0.345, abs=0.07)


def test_window_steps_are_summarised_apart() -> None:
    """Two steps of two samples: each step's own figures, and all four together."""
    summary = summarize_window(
        window_step=torch.tensor([0.0, 1.0, 0.0, 1.0]),
        weight=torch.full((4,), 0.25),
        advantage=torch.tensor([1.0, 1.0, -1.0, -1.0]),
        ratio=torch.tensor([1.1, 1.2, 0.9, 0.6]),
        log_ratio=torch.tensor([0.1, 0.2, -0.1, -0.5]),
        muted=torch.tensor([False, False, False, True]),
        kl=torch.tensor([1.0, 2.0, 3.0, 4.0]),
    )
    expected = {
        "log_ratio_max": 0.5, "window_0/log_ratio_max": 0.1, "window_1/log_ratio_max": 0.5,
        "kl": 2.5, "window_0/kl": 2.0, "window_1/kl": 3.0,
        "muted_negative": 0.5, "window_0/muted_negative": 0.0, "window_1/muted_negative": 1.0,
        "window_0/ratio_mean": 1.0, "window_1/ratio_max_dev": 0.4,
        "window_1/clip_fraction": 0.5, "window_1/muted_positive": 0.0,
    }  # fmt: skip
    assert {name: summary[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_summary_by_hand_ignores_padding() -> None:
    """Three samples and one padded row of weight 0."""
    summary = summarize(
        weight=torch.tensor([0.3, 0.3, 0.3, 0.0]),
        advantage=torch.tensor([1.0, -1.0, -2.0, 9.0]),
        ratio=torch.tensor([1.5, 0.5, 1.0, 99.0]),
        log_ratio=torch.tensor([0.3, -0.6, 0.0, 9.0]),
        muted=torch.tensor([True, True, False, True]),
        kl=torch.tensor([1.0, 2.0, 3.0, 99.0]),
    )
    assert summary == pytest.approx(
        {
            "ratio_mean": 1.0,
            "ratio_max_dev": 0.5,
            "log_ratio_abs": 0.3,
            "log_ratio_max": 0.6,
            "clip_fraction": 2 / 3,
            "muted_positive": 1.0,
            "muted_negative": 0.5,
            "kl": 2.0,
            "advantage_abs": 4 / 3,
        },
        abs=1e-6,
    )
    assert (
        summarize(*(torch.zeros(2) for _ in range(4)), torch.zeros(2).bool(), torch.zeros(2)) == {}
    )
