"""Sections of the run's configuration that the service reads: checkpoints, supervision, placement.

What the policy, the learner, rewards and prompts read stands beside them. No torch, no ray.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class CheckpointConfig(BaseModel):
    """When the run's state is made durable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(default=10, ge=1, le=10**9)
    """Steps between checkpoints; the last step always writes one."""
    keep: int = Field(default=3, ge=1, le=10**6)
    """Newest checkpoints that are kept."""
    keep_inflight: bool = False
    """Also save scored groups that no step has consumed, with their trajectories, so that a resumed
    asynchronous run need not roll them out again."""
    max_unsaved_steps: int | None = Field(default=None, ge=1, le=10**9)
    """Training pauses rather than run further than this beyond the newest durable checkpoint, for
    instance while the store is down; at least `every`; unset: 5 x `every`."""

    @property
    def unsaved_limit(self) -> int:
        """The resolved `max_unsaved_steps`."""
        return 5 * self.every if self.max_unsaved_steps is None else self.max_unsaved_steps

    @model_validator(mode="after")
    def _saves_in_time(self) -> CheckpointConfig:
        if self.unsaved_limit < self.every:
            raise ValueError(
                f"checkpoint.max_unsaved_steps = {self.max_unsaved_steps} is below "
                f"checkpoint.every = {self.every}; it must be at least as large"
            )
        return self


class RecordConfig(BaseModel):
    """Steps that are kept with all that they were made of, for `worldr1 replay`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(default=0, ge=0, le=10**9)
    """Steps between recordings; 0: none."""
    keep: int = Field(default=3, ge=1, le=10**6)
    """Newest recordings that are kept."""


class SupervisionConfig(BaseModel):
    """When a worker counts as dead, and how pools grow and shrink."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_deaths: int = Field(default=3, ge=1, le=100)
    """A sample in flight at this many deaths of workers is quarantined."""
    rollout_timeout_s: float = Field(default=3600.0, gt=0, le=86400, allow_inf_nan=False)
    """Over a group; also for a reward worker's start. A slower worker is killed and restarted; of
    rollouts, when 16 are known, one that takes five times the slowest, and five minutes at least.
    """
    learner_timeout_s: float = Field(default=7200.0, gt=0, le=604800, allow_inf_nan=False)
    """Learner ranks of which none answers within this are replaced; of several ranks, one that is
    frozen shows much earlier, by `learner.timeout_s`."""
    interval_s: float = Field(default=1.0, gt=0, le=3600, allow_inf_nan=False)
    """Time between two decisions about the size of the reward pools."""
    grow_wait_s: float = Field(default=2.0, gt=0, le=86400, allow_inf_nan=False)
    """A pool grows when its queue would take longer than this, twice in a row."""
    shrink_after_s: float = Field(default=60.0, gt=0, le=86400, allow_inf_nan=False)
    """A pool shrinks when one worker less would have done for this long; workers that were asked
    for and have not come are taken back first, after a quarter of an hour at least."""


class EvalConfig(BaseModel):
    """Held-out prompts with fixed noises, sampled by the ODE."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(default=50, ge=0, le=10**9)
    """Steps between evaluations besides those before the first and after the last step; 0: none."""
    prompts: int = Field(default=16, ge=0, le=100_000)
    """Held-out (prompt, noise) pairs; 0 switches evaluation off."""
    ema: bool = True
    """Evaluate the running average of the weights beside the weights, where there is one
    (`learner.ema_decay` > 0) and a step was done."""
    gold: bool = True
    """Let an estimator that is independent of the reward's reconstructor judge the held-out clips
    too, and raise an alarm when the two part."""
    max_fall: float = Field(default=0.15, gt=0, lt=1, allow_inf_nan=False)
    """Share by which motion or sharpness of the held-out clips may fall before that is an alarm."""


class MetricsConfig(BaseModel):
    """Where figures go besides `metrics.jsonl`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prometheus: bool = True
    """Export gauges through Ray's own metrics endpoint (ignored by --local)."""
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """Experiment tracker; `wandb` needs its package and reads its key from the environment."""
    report_every_s: float = Field(default=60.0, ge=0, le=86400, allow_inf_nan=False)
    """Least time between two refreshes of `report/index.html` during a run; 0: at its end only."""


class PlacementConfig(BaseModel):
    """How pools of actors are laid over the cluster's nodes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Literal["pools", "none"] = "pools"
    """pools: the layout of `worldr1 plan` (learner packed, others spread), reserved as a whole
    before any worker starts; none: Ray decides."""
    timeout_s: float = Field(default=300.0, gt=0, le=86400, allow_inf_nan=False)
    """How long to wait for the reservation, and with `autoscaler` for nodes, before giving up."""
    autoscaler: bool = False
    """Ask the cluster's autoscaler for the nodes that are missing and wait for them, instead of
    refusing to start."""
    check_nodes: bool = True
    """Look at every node as `worldr1 doctor` does before any worker starts, and refuse to start
    where a check fails."""
    learner_gpu: str = Field(default="", max_length=64, pattern=r"^[A-Za-z0-9._-]*$")
    """Type of GPU of the learner ranks as Ray names it, e.g. `H200`; empty: any one type."""
    rollout_gpu: str = Field(default="", max_length=64, pattern=r"^[A-Za-z0-9._-]*$")
    """Type of GPU of the rollout workers; empty: any."""
    reward_gpu: str = Field(default="", max_length=64, pattern=r"^[A-Za-z0-9._-]*$")
    """Type of GPU of the reward workers; empty: any."""
