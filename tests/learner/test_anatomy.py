"""`benchmarks.anatomy` on gradients of which it is known where their signal lies."""

from __future__ import annotations

import pytest
import torch

from actors.seeds import keyed_generator
from benchmarks.anatomy import kinds, signals, weighed

GROUPS, MEMBERS, SIZE = 80, 8, 60


def test_kinds_of_modules_and_their_places() -> None:
    sizes = {
        "blocks.0.attn1.to_v.lora_B.weight": 2,
        "blocks.0.ffn.net.2.lora_B.weight": 3,
        "blocks.10.attn1.to_v.lora_B.weight": 1,
    }
    found = {kind: places.tolist() for kind, places in kinds(sizes).items()}
    assert found == {"attn1.to_v": [0, 1, 5], "ffn.net.2": [2, 3, 4]}


def test_weighing_by_hand() -> None:
    steps = torch.tensor([[[[1.0, 0.0], [2.0, 3.0]]], [[[4.0, 1.0], [0.0, 1.0]]]])  # N 2, G 1, W 2
    found = weighed(steps, torch.tensor([[10.0, 1.0], [2.0, 3.0]]))
    assert found["steps as they come"].tolist() == [[[3.0, 3.0]], [[4.0, 2.0]]]
    assert found["GRPO-Guard"].tolist() == [[[12.0, 3.0]], [[8.0, 5.0]]]


@pytest.mark.parametrize("seed", range(5))
def test_signal_is_found_where_it_is(seed: int) -> None:
    """A reward that rises along one direction of a sample's gradient, in the first places only."""
    generator = keyed_generator("anatomy", seed)
    samples = torch.randn(GROUPS, MEMBERS, 2 * SIZE, generator=generator)
    samples *= torch.cat([torch.ones(SIZE), torch.full((SIZE,), 3.0)])
    direction = torch.randn(SIZE, generator=generator)
    paid = {"recon": (samples[:, :, :SIZE] @ direction).tolist()}
    held = signals(samples[:, :, :SIZE], paid, clip=5.0)["recon"]
    free = signals(samples[:, :, SIZE:], paid, clip=5.0)["recon"]
    whole = signals(samples, paid, clip=5.0)["recon"]
    # Most of a sample's gradient is noise even where all of the reward comes from: eight members
    # draw eight directions of sixty.
    assert held["share"] > 0.05
    assert held["z"] > 10
    assert abs(free["z"]) < 4
    # Every place weighs as its spread: the second half has three times the first one's noise.
    assert whole["share"] == pytest.approx(held["share"] / 4, rel=0.4)
