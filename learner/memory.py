"""Peak memory of a rollout worker and of a learner rank, by arithmetic. Torch-free.

Counted are the tensors that live at the worst moment, at full size in bfloat16, as they were found
under FakeTensorMode in the code of diffusers' Wan blocks and PEFT's LoRA layers; the unit `a` is a
block's input (tokens x width in the policy's dtype), `f` the feed-forward network's hidden tensor.
tests/learner/test_memory.py holds the estimate against such a trace. Not counted: what an allocator
loses between tensors, and whatever else runs on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from actors.config import PolicyConfig, RolloutConfig
from actors.wan_shape import (
    TEXT_ENCODER_PARAMETERS,
    VAE_PARAMETERS,
    VAE_TILE,
    WanShape,
    decoder_bytes,
    latent_shape,
)
from learner.config import LearnerConfig

CUDA_CONTEXT = 1_000_000_000
"""Context, kernels and workspaces of a process on a GPU; an allowance, not a measurement."""


@dataclass(frozen=True, slots=True)
class PoolMemory:
    """Bytes on one device, by what they are for."""

    resident: Mapping[str, int]
    """What stays between calls."""
    transient: Mapping[str, int]
    """What exists at the worst moment of each stage; the stages do not overlap."""

    @property
    def worst_stage(self) -> str:
        """The stage that decides the peak."""
        return max(self.transient, key=lambda name: self.transient[name])

    @property
    def peak(self) -> int:
        """Resident bytes and those of the worst stage."""
        return sum(self.resident.values()) + self.transient[self.worst_stage]


@dataclass(frozen=True, slots=True)
class _Block:
    """Bytes of a forward pass's tensors: `a` and `f` of all its clips, both guidance branches."""

    a: int
    f: int
    small: int
    """Latents in and out, rotary tables, text embeddings."""


def rollout_memory(policy: PolicyConfig, rollout: RolloutConfig, shape: WanShape) -> PoolMemory:
    """A rollout worker: transformer with adapter, VAE in float32, text encoder where it stays."""
    block = _block(policy, rollout, shape, rollout.max_batch, policy.batched_guidance)
    lora = 4 * shape.lora_parameters(policy.lora.rank, policy.lora.targets)
    resident = {
        "transformer": shape.weight_bytes(policy.dtype),
        "adapter": lora,
        "VAE": 4 * VAE_PARAMETERS,
    }
    transient = {
        "forward": _inference(block),
        "decode": rollout.decode_batch * _decode(policy, rollout),
    }
    _add_text_encoder(policy, resident, transient)
    # Latents of a group: window states and means, in float32.
    states = rollout.group_size * (2 * rollout.window_size + 2)
    resident["trajectories"] = states * _latent_bytes(rollout)
    return PoolMemory(resident, transient)


def learner_memory(
    policy: PolicyConfig, rollout: RolloutConfig, learner: LearnerConfig, shape: WanShape
) -> PoolMemory:
    """A learner rank: its shard of frozen weights and of the adapter with both moments of AdamW and
    running average, the adapter's gradient, what FSDP gathers, and one micro-batch."""
    # Both branches of the guidance are in the graph, in one pass or in two.
    block = _block(policy, rollout, shape, learner.micro_batch, batched=True)
    weights = shape.weight_bytes(policy.dtype)
    lora = 4 * shape.lora_parameters(policy.lora.rank, policy.lora.targets)
    ranks = learner.ranks
    frozen = weights if learner.frozen_whole else -(-weights // ranks)
    resident = {
        "transformer" if learner.frozen_whole else "transformer's shard": frozen,
        "adapter's shard, moments, average": -(-4 * lora // ranks),
        # Whole on every rank: passes pile it up, and the last one alone reduces it.
        "adapter's gradient": lora,
    }
    one_block = (weights + lora) * shape.block_parameters // shape.parameters
    outside = weights - shape.layers * (weights * shape.block_parameters // shape.parameters)
    # FSDP holds the block that runs, the one it prefetches, and the root's own parameters; or,
    # where the frozen weights are whole anyway, the adapter.
    gathered = lora if learner.frozen_whole else 2 * one_block + outside
    transient = {
        # The whole model is on the device before it is sharded.
        "load": weights + lora - frozen,
        "reference pass": gathered + _inference(block),
        "forward and backward": gathered
        + _training(block, policy, shape, learner.activation_checkpointing),
    }
    _add_text_encoder(policy, resident, transient)
    return PoolMemory(resident, transient)


def _block(
    policy: PolicyConfig, rollout: RolloutConfig, shape: WanShape, clips: int, batched: bool
) -> _Block:
    passes = clips * (2 if policy.guidance_scale != 1.0 and batched else 1)
    size = 2 if policy.dtype == "bfloat16" else 4
    tokens = shape.tokens(rollout.latent_frames, rollout.height, rollout.width)
    rotary = 2 * 4 * tokens * shape.head_dim
    text = passes * policy.max_prompt_tokens * (shape.text_dim + 4 * shape.width) * size
    return _Block(
        a=passes * tokens * shape.width * size,
        f=passes * tokens * shape.ffn_dim * size,
        small=rotary + text + 4 * passes * _latent_bytes(rollout),
    )


def _inference(block: _Block) -> int:
    """Without gradients: either inside the feed-forward network (its input and output, the
    attention's output, the residual stream before and within the block: 4 a, and 2 f), or in the
    adapter of an attention's output (5 a of block inputs and projections, 2 a of attention and
    frozen output, and three float32 tensors: 13 a)."""
    return max(4 * block.a + 2 * block.f, 13 * block.a) + block.small


def _training(block: _Block, policy: PolicyConfig, shape: WanShape, checkpointing: bool) -> int:
    """Forward and backward of one micro-batch.

    With checkpointing every block keeps its input (a each), and one block at a time is recomputed:
    it saves 12 a of float32 norms, 7 a of attention, the adapters' float32 inputs and f of the
    feed-forward network; the peak is in the backward of the activation (2 f more) or, where the
    network is narrow, of the modulated norms (9 a more). Without it every block keeps what a
    recomputed one would.
    """
    cast = 2 if policy.dtype == "bfloat16" else 0
    sites = shape.lora_sites(policy.lora.targets)
    # Two of the eight projections read the text, which is short.
    from_clip = [name for name in sites if name not in ("attn2.to_k", "attn2.to_v")]
    adapters = cast * sum(block.f if name == "ffn.net.2" else block.a for name in from_clip)
    saved = 19 * block.a + adapters + block.f
    working = max(2 * block.f, 9 * block.a)
    if checkpointing:
        return shape.layers * block.a + saved + working + block.small
    return shape.layers * saved + working + block.small


def _decode(policy: PolicyConfig, rollout: RolloutConfig) -> int:
    """A clip, or with tiling one tile of it and the finished rows of tiles: twice the video."""
    whole = decoder_bytes(rollout.frames, rollout.height, rollout.width)
    if not policy.vae_tiling:
        return whole
    height, width = min(rollout.height, VAE_TILE), min(rollout.width, VAE_TILE)
    videos = 2 * 3 * 4 * rollout.frames * rollout.height * rollout.width
    return min(whole, decoder_bytes(rollout.frames, height, width) + videos)


def _add_text_encoder(
    policy: PolicyConfig, resident: dict[str, int], transient: dict[str, int]
) -> None:
    size = (2 if policy.dtype == "bfloat16" else 4) * TEXT_ENCODER_PARAMETERS
    if policy.text_encoder == "device":
        resident["text encoder"] = size
    elif policy.text_encoder == "offload":
        transient["encode a prompt"] = size


def _latent_bytes(rollout: RolloutConfig) -> int:
    channels, frames, rows, columns = latent_shape(rollout.frames, rollout.height, rollout.width)
    return 4 * channels * frames * rows * columns
