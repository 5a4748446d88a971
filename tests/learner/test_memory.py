"""The estimate of peak memory against the peak of live tensors at full size, without the memory.

FakeTensorMode runs the real blocks, adapters, checkpointing, kernels and loss of a 480 x 832 clip
of 81 frames. Not covered: what CUDA kernels and its allocator hold beyond tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import torch.distributed._tools.fake_collectives  # fake tensors pass through collectives
from diffusers import AutoencoderKLWan
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from actors import wan
from actors.config import PolicyConfig, RolloutConfig
from actors.lora import add_lora
from actors.policy import velocity
from actors.sde import gaussian_kl, log_prob
from actors.wan_shape import VAE_PARAMETERS, WAN21_1_3B, WAN21_14B, WanShape, decoder_bytes
from learner.config import LearnerConfig
from learner.fsdp import checkpoint_blocks, shard_transformer
from learner.grpo import surrogate
from learner.memory import learner_memory, rollout_memory
from tests.learner.peak import LivePeak

SIZES = {"1.3B": WAN21_1_3B, "14B": WAN21_14B}
POLICY = PolicyConfig()
ROLLOUT = RolloutConfig()
TOLERANCE = 0.15


def _fake_transformer(shape: WanShape) -> wan.Transformer:
    """To be called before FakeTensorMode is entered; `_fill` gives it fake memory within."""
    model = wan.meta_transformer(shape, torch.bfloat16)
    add_lora(model, POLICY.lora)
    return model


def _inputs(clips: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    latents = torch.empty(clips, *ROLLOUT.latent_shape)
    cond = torch.empty(clips, 512, 4096, dtype=torch.bfloat16)
    return latents, cond, cond[:1].clone()


def _rollout_peak(shape: WanShape, clips: int) -> int:
    model = _fake_transformer(shape)
    with FakeTensorMode():
        wan.materialise(model, torch.device("cpu"))
        held = itertools.chain(model.parameters(), model.buffers())
        with LivePeak(held) as tracker, torch.no_grad():
            latents, cond, uncond = _inputs(clips)
            velocity(model, latents, torch.empty(clips), cond, uncond, 5.0)
    return tracker.peak


def _learner_peak(
    shape: WanShape,
    clips: int,
    recompute: bool = True,
    mesh: DeviceMesh | None = None,
    replicate_frozen: bool = False,
) -> int:
    """Reference pass, policy pass, loss, backward and what AdamW and the average hold; sharded
    over `mesh`, or whole."""
    model = _fake_transformer(shape)
    if recompute and mesh is None:
        checkpoint_blocks(model)
    with FakeTensorMode():
        wan.materialise(model, torch.device("cpu"))
        if mesh is not None:
            shard_transformer(model, mesh, recompute, replicate_frozen)
        parameters = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
        trained = [
            p
            for p, whole in zip(parameters, model.parameters(), strict=True)
            if whole.requires_grad
        ]
        moments = [torch.zeros_like(p) for p in trained for _ in range(3)]
        held = itertools.chain(parameters, model.buffers(), moments)
        with LivePeak(held) as tracker:
            latents, cond, uncond = _inputs(clips)
            sigma = torch.full((clips,), 0.9)
            with torch.no_grad():
                reference = _mean(latents, velocity(model, latents, sigma, cond, uncond, 5.0))
            mean = _mean(latents, velocity(model, latents, sigma, cond, uncond, 5.0))
            std = torch.empty(clips, 1, 1, 1, 1)
            sample = torch.empty_like(latents)
            output = surrogate(
                log_prob(sample, mean, std), torch.zeros(clips), torch.ones(clips), 1e-4,
                kl=gaussian_kl(mean, reference, std), beta_kl=0.004,
            )  # fmt: skip
            output.loss.sum().backward()
    return tracker.peak


def _mean(latents: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """A kernel's mean; `step_moments` looks at sigmas, whose values fake tensors do not have."""
    return latents * 0.95 - v * 0.06


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_learner_estimate_is_the_live_peak(size: str) -> None:
    """Not sharded: micro-batch 1, guidance, checkpointing, without FSDP's copy of the adapter."""
    config = LearnerConfig(ranks=1)
    estimate = learner_memory(POLICY, ROLLOUT, config, SIZES[size])
    assert estimate.worst_stage == "forward and backward"
    measured = _learner_peak(SIZES[size], clips=1)
    assert estimate.peak - _adapter(SIZES[size]) == pytest.approx(measured, rel=TOLERANCE)


@pytest.fixture
def eight_ranks() -> Iterator[DeviceMesh]:
    """A process group of eight that moves nothing; this process is its first rank."""
    dist.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    yield init_device_mesh("cpu", (8,), mesh_dim_names=("shard",))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("replicate_frozen", [False, True], ids=["gather each pass", "keep"])
@pytest.mark.parametrize(
    "shape",
    [
        WanShape(heads=40, head_dim=128, ffn_dim=13824, layers=6),
        pytest.param(WAN21_1_3B, marks=pytest.mark.hand),
        pytest.param(WAN21_14B, marks=pytest.mark.hand),
    ],
    ids=["14B cut to 6 blocks", "1.3B", "14B"],
)
def test_learner_estimate_is_the_live_peak_of_a_sharded_rank(
    shape: WanShape, replicate_frozen: bool, eight_ranks: DeviceMesh
) -> None:
    """One of eight ranks: its shards, the gathered blocks as FSDP holds and frees them, and all."""
    config = LearnerConfig(ranks=8, replicate_frozen=replicate_frozen)
    estimate = learner_memory(POLICY, ROLLOUT, config, shape)
    used = sum(estimate.resident.values()) + estimate.transient["forward and backward"]
    measured = _learner_peak(shape, clips=1, mesh=eight_ranks, replicate_frozen=replicate_frozen)
    print(f"estimate {used / 1e9:.2f} GB, live peak {measured / 1e9:.2f} GB")
    assert used == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.slow
def test_learner_estimate_follows_batch_and_checkpointing() -> None:
    """1.3B cut to four blocks: two clips; and every activation stored."""
    shape = WanShape(heads=12, head_dim=128, ffn_dim=8960, layers=4)
    for clips, recompute in ((2, True), (1, False)):
        config = LearnerConfig(ranks=1, micro_batch=clips, activation_checkpointing=recompute)
        estimate = learner_memory(POLICY, ROLLOUT, config, shape).peak - _adapter(shape)
        assert estimate == pytest.approx(_learner_peak(shape, clips, recompute), rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "clips"), [("1.3B", 8), ("14B", 1)])
def test_rollout_estimate_is_the_live_peak(size: str, clips: int) -> None:
    """Forward passes of 8 clips and of 1, with guidance; VAE and trajectories are arithmetic."""
    rollout = ROLLOUT.model_copy(update={"max_batch": clips})
    estimate = rollout_memory(POLICY, rollout, SIZES[size])
    held = estimate.resident["transformer"] + estimate.resident["adapter"]
    measured = _rollout_peak(SIZES[size], clips)
    assert held + estimate.transient["forward"] == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [pytest.param(81, 480, 832, marks=pytest.mark.slow), (17, 320, 512)],
)
def test_decoder_estimate_is_the_live_peak(frames: int, height: int, width: int) -> None:
    with torch.device("meta"):
        vae = AutoencoderKLWan().requires_grad_(False).eval()
    with FakeTensorMode():
        for module in vae.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    drawn = torch.empty(parameter.shape)
                    module._parameters[name] = torch.nn.Parameter(drawn, requires_grad=False)
        rollout = RolloutConfig(frames=frames, height=height, width=width)
        with LivePeak() as tracker, torch.no_grad():
            wan.decode_clips(vae, torch.empty(1, *rollout.latent_shape))
    # Weights are seen as soon as an operation returns a view of them.
    measured = tracker.peak
    estimate = decoder_bytes(frames, height, width)
    assert estimate == pytest.approx(measured, abs=4 * VAE_PARAMETERS + TOLERANCE * measured)
    assert estimate == pytest.approx(measured, rel=TOLERANCE)


def test_ranks_share_weights_but_not_activations() -> None:
    """14B on 4 and on 8 ranks: a quarter and an eighth of 28.6 GB, two gathered blocks, the same
    activations. One rank has nothing to gather but its adapter."""
    one, four, eight = (
        learner_memory(POLICY, ROLLOUT, LearnerConfig(ranks=n), WAN21_14B) for n in (1, 4, 8)
    )
    shard = "transformer's shard"
    assert eight.resident[shard] == pytest.approx(28.635e9 / 8, rel=1e-3)
    assert four.transient["forward and backward"] == eight.transient["forward and backward"]
    assert four.peak - eight.peak == pytest.approx((28.635 + 4 * 0.419) / 8 * 1e9, rel=1e-3)
    assert one.resident["transformer"] == pytest.approx(28.635e9, rel=1e-3)
    two_blocks, outside = 2 * 0.98371 * (28.635 + 0.4194) / 40, 0.4664
    less = eight.transient["forward and backward"] - one.transient["forward and backward"]
    assert less == pytest.approx((two_blocks + outside - 0.4194) * 1e9, rel=1e-3)


def test_the_text_encoder_counts_where_it_lives() -> None:
    """11.36 GB that stay, that visit, or that are never on the device."""
    peaks = {}
    for home in ("device", "offload", "cpu"):
        policy = POLICY.model_copy(update={"text_encoder": home})
        memory = learner_memory(policy, ROLLOUT, LearnerConfig(ranks=8), WAN21_1_3B)
        peaks[home] = memory
    assert peaks["device"].peak - peaks["cpu"].peak == 2 * 5_680_910_336
    assert peaks["offload"].transient["encode a prompt"] == 2 * 5_680_910_336
    assert peaks["offload"].peak == peaks["cpu"].peak


def _adapter(shape: WanShape) -> int:
    return 4 * shape.lora_parameters(32, POLICY.lora.targets)
