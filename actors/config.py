"""What a rollout worker can be told. Imports neither torch nor ray."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from actors.wan_shape import PATCH, SPATIAL_STRIDE, TEMPORAL_STRIDE, latent_shape

KernelName = Literal["sde", "cps", "dance"]

DEFAULT_NOISE_LEVEL: dict[str, float] = {"sde": 0.7, "cps": 0.7, "dance": 0.3}
"""Noise level of each step kernel where `rollout.noise_level` is unset (Flow-GRPO, Fast, Dance)."""


class LoraConfig(BaseModel):
    """The adapter that is trained; everything else of the policy is frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=32, ge=1, le=1024)
    """Rank r of every adapter."""
    alpha: float = Field(default=64.0, gt=0, le=65536, allow_inf_nan=False)
    """The adapter's output is scaled by alpha / rank."""
    targets: tuple[str, ...] = Field(default=("to_q", "to_k", "to_v", "to_out.0"), min_length=1)
    """Suffixes of the module names that get an adapter: q, k, v, out of every attention."""


class PolicyConfig(BaseModel):
    """Which video model is the policy and how it is run, in rollout and training alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    """A directory with a diffusers pipeline in safetensors, or a hub id."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Weights and activations of the transformer; schedules, kernels and latents stay float32."""
    guidance_scale: float = Field(default=5.0, ge=1.0, le=50.0, allow_inf_nan=False)
    """Classifier-free guidance, part of the policy; 1 switches it off and halves the cost."""
    negative_prompt: str = ""
    """Prompt of the unconditional branch."""
    max_prompt_tokens: int = Field(default=512, ge=8, le=4096)
    """Prompts are padded or cut to this length (Wan2.1: 512)."""
    attention: Literal["native", "flash"] = "native"
    """Attention backend, by diffusers' own names; only those that have a backward pass, since
    rollout and learner must be the same policy. `flash` needs the package flash-attn, which no
    extra and no image of this project brings."""
    text_encoder: Literal["offload", "device", "cpu"] = "offload"
    """Where the text encoder (11 GB for Wan2.1) lives: `offload` keeps it in CPU memory and moves
    it to the device for prompts that are not cached, `cpu` encodes there, `device` stays."""
    cached_prompts: int = Field(default=256, ge=2, le=1_000_000)
    """Text embeddings that stay on the device; 60 tokens of Wan2.1's encoder are half a megabyte.
    More than the prompts of a run, and none is encoded twice."""
    compile: bool = False
    """Regional torch.compile of the repeated transformer blocks."""
    batched_guidance: bool = True
    """Both branches of the guidance in one forward pass; false: one after the other, which halves
    the activations of a rollout's forward pass."""
    vae_tiling: bool = False
    """Decode tiles of 256 x 256 pixels that overlap by 64, and blend them: a quarter of the
    memory at 480 x 832, and 1.65 times the operations."""
    vae_channels_last: bool = False
    """Keep the VAE's decoder in PyTorch's channels-last layout, which cuDNN's convolutions may run
    faster."""
    lora: LoraConfig = LoraConfig()
    """The trained adapter."""


class RolloutConfig(BaseModel):
    """Shape of a clip, the sampler and the size of a batch (Flow-GRPO-Fast)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int = Field(default=1, ge=1, le=4096)
    """Rollout actors."""
    gpus_per_worker: float = Field(default=1.0, ge=0, le=8)
    """GPUs each of them takes; 0 runs on the CPU."""
    cpus_per_worker: float = Field(default=1.0, gt=0, le=256)
    """CPUs Ray books for each of them."""
    height: int = Field(default=480, ge=16, le=2160)
    """Pixels, a multiple of 16."""
    width: int = Field(default=832, ge=16, le=4096)
    """Pixels, a multiple of 16."""
    frames: int = Field(default=81, ge=5, le=481)
    """Video frames, 4 k + 1."""
    sampling_steps: int = Field(default=16, ge=2, le=1000)
    """Denoising steps of a training sample."""
    eval_sampling_steps: int = Field(default=50, ge=2, le=1000)
    """Denoising steps of an evaluation sample (pure ODE)."""
    shift: float = Field(default=3.0, gt=0, le=100, allow_inf_nan=False)
    """Wan's timestep shift; 3.0 at 480p."""
    group_size: int = Field(default=8, ge=2, le=1024)
    """Members G of a group: samples of one prompt that are compared with each other."""
    groups_per_step: int = Field(default=48, ge=1, le=65536)
    """Groups (prompts) that one optimizer step consumes."""
    kernel: KernelName = "sde"
    """Stochastic step inside the window."""
    noise_level: float | None = Field(default=None, gt=0, le=10, allow_inf_nan=False)
    """Noise level a (sde, cps) or eta (dance); unset: the kernel's own default."""
    window_size: int = Field(default=2, ge=1, le=1000)
    """Stochastic steps of a trajectory; all others are ODE steps."""
    window_low: int = Field(default=1, ge=0, le=999)
    """Smallest index of the window's first step."""
    window_high: int | None = Field(default=None, ge=1, le=1000)
    """Exclusive bound of the window's first step; unset: 0.4 x sampling_steps."""
    shared_prefix: bool = True
    """Members share the initial noise and the ODE prefix; false: each has its own noise."""
    max_batch: int = Field(default=8, ge=1, le=1024)
    """Clips that one forward pass of the transformer carries (guidance doubles them)."""
    decode_batch: int = Field(default=1, ge=1, le=1024)
    """Clips that one pass of the VAE's decoder carries; more is faster for tiny clips."""

    @model_validator(mode="after")
    def _shapes(self) -> RolloutConfig:
        for name in ("height", "width"):
            value = getattr(self, name)
            if value % (SPATIAL_STRIDE * PATCH):
                raise ValueError(
                    f"rollout.{name} = {value} is not a multiple of {SPATIAL_STRIDE * PATCH} "
                    f"(VAE stride {SPATIAL_STRIDE} x patch {PATCH})"
                )
        if self.kernel == "cps" and self.resolved_noise_level > 1:
            raise ValueError(
                f"rollout.noise_level = {self.noise_level} is none of the cps kernel: its standard "
                "deviation goes with sin(a pi / 2); allowed: above 0, up to 1"
            )
        if self.frames % TEMPORAL_STRIDE != 1:
            raise ValueError(f"rollout.frames = {self.frames} is not 4 k + 1 (e.g. 5, 9, 49, 81)")
        last = self.sampling_steps - self.window_size
        if self.window_stop <= self.window_low:
            raise ValueError(
                f"rollout.window_high = {self.window_stop} leaves no start from "
                f"rollout.window_low = {self.window_low}; it must be larger"
            )
        if self.window_stop > last:
            raise ValueError(
                f"rollout.window_high = {self.window_stop} puts the window outside the schedule: "
                f"with sampling_steps = {self.sampling_steps} and window_size = {self.window_size} "
                f"it may be at most {last} (the final step is never stochastic)"
            )
        return self

    @property
    def window_stop(self) -> int:
        """Exclusive bound of the window's first step, resolved."""
        if self.window_high is not None:
            return self.window_high
        return max(self.window_low + 1, int(0.4 * self.sampling_steps))

    @property
    def resolved_noise_level(self) -> float:
        """Noise level of the chosen kernel."""
        return DEFAULT_NOISE_LEVEL[self.kernel] if self.noise_level is None else self.noise_level

    @property
    def latent_frames(self) -> int:
        """F' = (F - 1) / 4 + 1."""
        return self.latent_shape[1]

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """[16, F', H/8, W/8] of one clip."""
        return latent_shape(self.frames, self.height, self.width)
