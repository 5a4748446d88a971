"""`benchmarks.coupling` on gradients whose common part is known."""

from __future__ import annotations

import pytest
import torch

from actors.seeds import keyed_generator
from benchmarks.coupling import coupling, gradients_of
from tests.learner.test_signal import drawn

GROUPS, SIZE = 60, 400


def noise(seed: int) -> torch.Tensor:
    return torch.randn(GROUPS, SIZE, generator=keyed_generator("coupling-noise", seed))


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_a_common_direction_is_found_with_its_sign(direction: float) -> None:
    for seed in range(10):
        mean = noise(100 + seed)[0] * 0.15
        first, second = mean + noise(seed), direction * mean + noise(50 + seed)
        assert direction * coupling(first, second, seed) > 4


def test_what_a_group_has_alone_is_no_coupling() -> None:
    """The same noise in both gradients of a group correlates them there and nowhere else."""
    found = torch.tensor([coupling(noise(s), noise(s) + noise(50 + s), s) for s in range(40)])
    assert float(found.abs().max()) < 4
    assert abs(float(found.mean())) < 3 / 40**0.5


def test_a_figure_with_itself_is_its_signal() -> None:
    assert coupling(drawn(0.02, GROUPS, SIZE, 1), drawn(0.02, GROUPS, SIZE, 1)) > 10


def test_gradient_of_a_figure_by_hand() -> None:
    samples = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.0, 4.0]]])
    found = gradients_of(samples, [[5.0, 7.0], [2.0, 1.0]], clip=5.0)
    # Two members: advantages are -1 and 1, up to the epsilon of the deviation.
    assert found.flatten().tolist() == pytest.approx([-1.0, 2.0, 3.0, -4.0], rel=0.01)
