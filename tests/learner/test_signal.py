"""The gradient noise scale of `benchmarks.signal` on gradients whose signal is known."""

from __future__ import annotations

import torch

from actors.seeds import keyed_generator
from benchmarks.signal import gradient_signal


def drawn(share: float, groups: int, size: int, seed: int) -> torch.Tensor:
    """Gradients of unit noise per element whose mean has |G|^2 = share x tr(S) = share x size."""
    generator = keyed_generator("gradients", seed)
    mean = torch.randn(size, generator=generator)
    mean *= (share * size) ** 0.5 / mean.norm()
    return mean + torch.randn(groups, size, generator=generator)


def test_the_share_of_signal_is_found_without_bias() -> None:
    found = [gradient_signal(drawn(0.02, 60, 400, seed)) for seed in range(20)]
    shares = torch.tensor([signal.share for signal in found])
    assert abs(float(shares.mean()) - 0.02) < 3 * float(shares.std()) / 20**0.5
    assert float(shares.std()) < 0.003
    assert min(signal.z for signal in found) > 10


def test_noise_alone_is_no_signal() -> None:
    found = [gradient_signal(drawn(0.0, 60, 400, seed)) for seed in range(40)]
    z = torch.tensor([signal.z for signal in found])
    assert float(z.abs().max()) < 4
    assert abs(float(z.mean())) < 3 / 40**0.5
    assert 0.7 < float(z.std()) < 1.3
