"""What the learner can be told. Imports neither torch nor ray."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class LearnerConfig(BaseModel):
    """GRPO on FSDP2 ranks (paper section 4; Flow-GRPO, arXiv 2505.05470)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ranks: int = Field(default=1, ge=1, le=4096)
    """FSDP ranks; they must divide groups_per_step x group_size."""
    gpus_per_rank: float = Field(default=1.0, ge=0, le=1)
    """GPUs of each rank; 0 runs on the CPU over gloo."""
    cpus_per_rank: float = Field(default=1.0, gt=0, le=256)
    """CPUs Ray books for each rank."""
    micro_batch: int = Field(default=1, ge=1, le=1024)
    """States of one window step that share a forward pass; members of a group may have one state in
    common (`rollout.shared_prefix`)."""
    updates_per_batch: int = Field(default=1, ge=1, le=64)
    """Optimizer updates per batch (the samples are split evenly among them)."""
    learning_rate: float = Field(default=1e-4, ge=0, le=1, allow_inf_nan=False)
    """AdamW's step size; 0 trains nothing."""
    lora_a_share: float = Field(default=1.0, ge=0, le=1, allow_inf_nan=False)
    """Step size of the adapter's A matrices as a share of `learning_rate`, which is B's (LoRA+,
    arXiv 2402.12354); 0 leaves A as it was drawn (LoRA-FA, arXiv 2308.03303). While B is near zero,
    as it begins, A's gradient is too, but AdamW moves A just as far."""
    decay_after: int = Field(default=0, ge=0, le=10**9)
    """Applied updates at the full step size, before it falls."""
    decay_updates: int = Field(default=0, ge=0, le=10**9)
    """Applied updates over which the step size then falls in a line to a tenth, where it stays; 0:
    it never falls (the paper's). Noise of the gradient keeps a constant step from settling."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's moment decays."""
    adam_epsilon: float = Field(default=1e-8, ge=1e-20, le=1, allow_inf_nan=False)
    """AdamW's epsilon (Flow-GRPO and torch: 1e-8). Gradients of long, large clips may be as small:
    where the step's `adam_damping` is far above 0, a smaller one gives them their steps back."""
    weight_decay: float = Field(default=1e-4, ge=0, le=1, allow_inf_nan=False)
    """AdamW's decoupled weight decay."""
    beta_kl: float = Field(default=0.004, ge=0, le=1000, allow_inf_nan=False)
    """Weight of the KL to the adapter-free reference; 0 skips the reference pass."""
    clip_range: float = Field(default=1e-4, gt=0, le=1, allow_inf_nan=False)
    """Epsilon of the clipped surrogate (the release: 1e-3)."""
    advantage: Literal["group", "batch", "group_parts"] = "group"
    """Standard deviation of the group, of the batch, or each reward part normalised in its group
    and averaged with the reward weights (robust when one part's scale dwarfs the others)."""
    advantage_clip: float = Field(default=5.0, gt=0, le=1000, allow_inf_nan=False)
    """Advantages are clipped to plus or minus this."""
    guard: bool | None = None
    """GRPO-Guard's ratio; unset: on when max_staleness >= 1 or updates_per_batch > 1."""
    max_grad_norm: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)
    """Norm that the gradient is clipped to."""
    ema_decay: float = Field(default=0.99, ge=0, lt=1, allow_inf_nan=False)
    """Decay of the running average of the trained weights, which a young average grows to
    (`learner.lora.average_decay`); 0 keeps the raw weights."""
    activation_checkpointing: bool = True
    """Recompute each transformer block in the backward pass instead of storing it."""
    replicate_frozen: bool = False
    """Keep the frozen weights whole on every rank and shard the adapter alone, gathered once per
    update, instead of gathering each transformer block for every pass: faster where the whole
    model fits beside the activations. One rank has them whole in any case."""
    timeout_s: float = Field(default=600.0, gt=0, le=86400, allow_inf_nan=False)
    """A collective that takes longer than this kills the process group."""

    @model_validator(mode="after")
    def _one_gpu_each(self) -> LearnerConfig:
        if self.ranks > 1 and 0 < self.gpus_per_rank < 1:
            raise ValueError(
                f"learner.gpus_per_rank = {self.gpus_per_rank} would put ranks on one GPU, which "
                f"NCCL refuses; allowed with {self.ranks} ranks: 0 or 1"
            )
        return self

    @property
    def frozen_whole(self) -> bool:
        """Whether each rank holds all of the frozen weights: asked for, or nobody to share with."""
        return self.replicate_frozen or self.ranks == 1


class ScheduleConfig(BaseModel):
    """Periodic decoupled training (paper section 3.4)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    main_steps: int = Field(default=100, ge=1, le=10**9)
    """Optimizer steps with all rewards."""
    dynamic_steps: int = Field(default=50, ge=0, le=10**9)
    """Optimizer steps on dynamic prompts with the general reward alone; 0: never."""
