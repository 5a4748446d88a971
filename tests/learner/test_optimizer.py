"""AdamW on shards against torch's own over whole tensors, bit for bit.

Not covered: shards of several ranks, which tests/learner/test_distributed.py trains.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from learner import fsdp
from learner.config import LearnerConfig
from learner.optimizer import FINAL_SHARE, ShardedAdamW, learning_rate_after

CONFIG = LearnerConfig(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=1.0)


def test_a_gpu_without_an_index_is_the_first_that_the_process_sees() -> None:
    """torch.cuda.set_device takes no device without one; Ray's actors are told "cuda"."""
    with pytest.raises(ValueError, match="index"):
        torch.cuda.set_device(torch.device("cuda"))
    assert fsdp.gpu_index(torch.device("cuda")) == 0
    assert fsdp.gpu_index(torch.device("cuda:3")) == 3


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    yield fsdp.start_process_group(0, 1, fsdp.open_store(0, 1, None), torch.device("cpu"), 60.0)
    fsdp.stop_process_group()


def test_updates_are_those_of_adamw(mesh: DeviceMesh) -> None:
    """Three updates, the first two clipped, one tensor without a gradient: weights, moments and
    step; the norm is that of all gradients."""
    generator = torch.Generator().manual_seed(0)
    whole = {name: torch.randn(4, 3, generator=generator) for name in "abc"}
    plain = {name: nn.Parameter(tensor.clone()) for name, tensor in whole.items()}
    sharded = {
        name: nn.Parameter(distribute_tensor(tensor, mesh, [Shard(0)]))
        for name, tensor in whole.items()
    }
    adamw = torch.optim.AdamW(plain.values(), lr=1e-2, betas=(0.9, 0.999), weight_decay=0.1)
    optimizer = ShardedAdamW(sharded, CONFIG)
    for size in (3.0, 1.0, 0.1):
        gradients = {name: size * torch.randn(4, 3, generator=generator) for name in "ab"}
        norm = float(torch.cat(list(gradients.values())).norm())
        for name, gradient in gradients.items():
            plain[name].grad = gradient * min(1.0, 1.0 / (norm + 1e-6))
            sharded[name].grad = distribute_tensor(gradient, mesh, [Shard(0)])
        adamw.step()
        assert optimizer.gradient_norm() == pytest.approx(norm, rel=1e-6)
        optimizer.step(norm)
        optimizer.clear()
        assert all(parameter.grad is None for parameter in sharded.values())
    state = optimizer.state()
    for name, parameter in sharded.items():
        assert torch.equal(parameter.full_tensor(), plain[name])
        if name == "c":
            continue
        for key, value in adamw.state[plain[name]].items():
            mine = state[name][key]
            assert torch.equal(mine.full_tensor() if isinstance(mine, DTensor) else mine, value)
    assert torch.equal(state["c"]["step"], torch.tensor(0.0))
    assert torch.equal(plain["c"], whole["c"])


def test_what_is_loaded_into_the_state_is_used(mesh: DeviceMesh) -> None:
    """The state's tensors are the optimizer's own: written in place, they change the update."""
    moved = []
    for loaded in (False, True):
        weight = nn.Parameter(distribute_tensor(torch.zeros(2, 2), mesh, [Shard(0)]))
        optimizer = ShardedAdamW({"w": weight}, CONFIG)
        if loaded:
            optimizer.state()["w"]["step"].fill_(9.0)
            fsdp.local(optimizer.state()["w"]["exp_avg"]).fill_(-1.0)
        weight.grad = distribute_tensor(torch.full((2, 2), 0.5), mesh, [Shard(0)])
        optimizer.step(optimizer.gradient_norm())
        moved.append(weight.full_tensor())
    assert (moved[0] < 0).all()
    assert (moved[1] > 0).all()


def test_learning_rate_by_hand() -> None:
    assert {learning_rate_after(done, CONFIG) for done in (0, 1, 10**6)} == {1e-2}
    falling = CONFIG.model_copy(update={"decay_updates": 4})
    rates = [learning_rate_after(done, falling) for done in range(6)]
    assert rates == pytest.approx([1e-2, 7.75e-3, 5.5e-3, 3.25e-3, 1e-3, 1e-3])
    late = CONFIG.model_copy(update={"decay_after": 3, "decay_updates": 2})
    rates = [learning_rate_after(done, late) for done in range(7)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-2, 1e-2, 5.5e-3, 1e-3, 1e-3])


def test_falling_rate_is_that_of_the_updates_applied_before(mesh: DeviceMesh) -> None:
    """Also where they were applied before a checkpoint: against AdamW with torch's linear rule."""
    falling = CONFIG.model_copy(update={"decay_updates": 3})
    plain = nn.Parameter(torch.zeros(2, 2))
    adamw = torch.optim.AdamW([plain], lr=1e-2, weight_decay=0.1)
    rule = torch.optim.lr_scheduler.LinearLR(adamw, 1.0, FINAL_SHARE, total_iters=3)
    weight = nn.Parameter(distribute_tensor(torch.zeros(2, 2), mesh, [Shard(0)]))
    optimizer = ShardedAdamW({"w": weight}, falling)
    for update in range(5):
        if update == 2:  # as a resumed run does
            saved = {
                key: fsdp.local(value).clone() for key, value in optimizer.state()["w"].items()
            }
            optimizer = ShardedAdamW({"w": weight}, falling)
            for key, value in optimizer.state()["w"].items():
                fsdp.local(value).copy_(saved[key])
        gradient = torch.full((2, 2), 0.1 * (update - 1.5))
        plain.grad = gradient.clone()
        weight.grad = distribute_tensor(gradient, mesh, [Shard(0)])
        adamw.step()
        rule.step()
        optimizer.step(0.0)
        torch.testing.assert_close(weight.full_tensor(), plain.detach(), rtol=1e-5, atol=1e-8)


def test_lora_a_moves_at_its_share_of_the_rate(mesh: DeviceMesh) -> None:
    """AdamW's first update is the rate times the gradient's sign, but for its epsilon; a share of 0
    leaves A alone, weight decay too."""
    names = ("to_q.lora_A.weight", "to_q.lora_B.weight")
    for share, falling in itertools.product((1.0, 0.25, 0.0), (0, 10)):
        config = CONFIG.model_copy(update={"lora_a_share": share, "decay_updates": falling})
        weights = {
            name: nn.Parameter(distribute_tensor(torch.ones(2, 2), mesh, [Shard(0)]))
            for name in names
        }
        optimizer = ShardedAdamW(weights, config)
        for weight in weights.values():
            weight.grad = distribute_tensor(torch.full((2, 2), 0.5), mesh, [Shard(0)])
        optimizer.step(optimizer.gradient_norm())
        a, b = (weights[name].full_tensor() for name in names)
        # Weight decay of 0.1 times the rate, then the update.
        assert b.unique().item() == pytest.approx(1 - 1e-2 * (0.1 + 1.0), rel=1e-6)
        assert a.unique().item() == pytest.approx(1 - share * 1e-2 * (0.1 + 1.0), rel=1e-6)
        assert torch.equal(a, torch.ones(2, 2)) is (share == 0.0)


def test_damping_says_what_epsilon_takes_from_a_step(mesh: DeviceMesh) -> None:
    """One element as small as epsilon loses half of its step, one of 3e-8 a quarter, a large one
    nothing; one without a gradient does not count."""
    start = torch.zeros(4)
    parameter = nn.Parameter(distribute_tensor(start, mesh, [Shard(0)]))
    optimizer = ShardedAdamW({"a": parameter}, CONFIG.model_copy(update={"weight_decay": 0.0}))
    assert optimizer.damping() == 0.0
    for _ in range(2):
        gradient = torch.tensor([1e-8, 3e-8, 0.5, 0.0])
        parameter.grad = distribute_tensor(gradient, mesh, [Shard(0)])
        optimizer.step(0.5)
        assert optimizer.damping() == pytest.approx((0.5 + 0.25 + 0.0) / 3, rel=1e-3)
    moved = parameter.detach().to_local() / (-2 * CONFIG.learning_rate)  # type: ignore[attr-defined]
    assert moved.tolist() == pytest.approx([0.5, 0.75, 1.0, 0.0], rel=1e-3)
