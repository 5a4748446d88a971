"""What the reward workers can be told. Imports neither torch nor ray."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RewardWeights(BaseModel):
    """Weight of each reward part in the total (method section 3; lambda_gen is `gen`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recon: float = Field(default=1.0, ge=0, le=1000, allow_inf_nan=False)
    """Weight of S_recon."""
    traj: float = Field(default=1.0, ge=0, le=1000, allow_inf_nan=False)
    """Weight of S_traj."""
    meta: float = Field(default=1.0, ge=0, le=1000, allow_inf_nan=False)
    """Weight of S_meta."""
    gen: float = Field(default=1.0, ge=0, le=1000, allow_inf_nan=False)
    """Weight of R_gen."""


class WorkerCounts(BaseModel):
    """Size of one reward pool."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_workers: int = Field(default=1, ge=1, le=4096)
    """Workers that are started."""
    max_workers: int = Field(default=1, ge=1, le=4096)
    """Workers that the pool may grow to."""
    gpus: float = Field(default=0.0, ge=0, le=8)
    """GPUs of each worker; 0 runs on the CPU."""
    cpus: float = Field(default=1.0, gt=0, le=256)
    """CPUs Ray books for each worker."""

    @model_validator(mode="after")
    def _ordered(self) -> WorkerCounts:
        if self.max_workers < self.min_workers:
            raise ValueError(
                f"max_workers = {self.max_workers} is smaller than min_workers = {self.min_workers}"
            )
        return self


class ReconstructionConfig(WorkerCounts):
    """Video -> Gaussians and cameras, S_recon and S_traj."""

    backend: Literal["photometric"] = "photometric"
    """photometric: the weight-free reconstructor (optical flow and bundle adjustment)."""
    texture_threshold: float = Field(default=0.01, ge=0, le=1, allow_inf_nan=False)
    """Mean absolute image gradient (per pixel, in [0, 1]) below which S_recon is 0 by definition."""
    meta_azimuth_deg: float = Field(default=20.0, ge=-180, le=180, allow_inf_nan=False)
    """Azimuth of the meta-view about the scene's median depth point."""
    meta_elevation_deg: float = Field(default=10.0, ge=-89, le=89, allow_inf_nan=False)
    """Elevation of the meta-view."""
    meta_view: Literal["orbit", "pulled_back", "farthest"] = "orbit"
    """Where the meta-view's camera stands."""


class JudgeConfig(WorkerCounts):
    """S_meta: a verdict on the meta-view."""

    backend: Literal["embedded"] = "embedded"
    """embedded: measurements of the rendered image; no language model."""


class AestheticConfig(WorkerCounts):
    """R_gen: how good the first frames look."""

    backend: Literal["embedded"] = "embedded"
    """embedded: measurements of the frames; no learned preference model."""
    frames: int = Field(default=8, ge=1, le=481)
    """First frames that are scored (K)."""
    offset: float = Field(default=0.5, allow_inf_nan=False)
    """Raw score that maps to 0."""
    scale: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    """Raw distance from `offset` that maps to 1; results are clipped to [-1, 1]."""


class PerceptualConfig(BaseModel):
    """Distance between a frame and its re-rendering."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Literal["multiscale"] = "multiscale"
    """multiscale: structure, gradients and colour at several scales; no learned features."""


class ArtifactsConfig(BaseModel):
    """Re-renderings kept for reports."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(default=0, ge=0, le=10**9)
    """Steps between kept artifacts; 0: none."""
    keep: int = Field(default=1, ge=1, le=10**6)
    """Groups whose artifacts are kept each time."""


class RewardConfig(BaseModel):
    """All rewards of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: RewardWeights = RewardWeights()
    """Weights of the parts."""
    variant: Literal["default", "paper", "release"] = "default"
    """Definition of S_traj."""
    min_group_size: int = Field(default=2, ge=2, le=1024)
    """Scored members below which a group is rolled out again."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """Scorings of a sample before it counts as failed."""
    timeout_s: float = Field(default=300.0, gt=0, le=86400, allow_inf_nan=False)
    """Seconds after which a scoring is given up and its worker restarted."""
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    """Reconstruction workers."""
    judge: JudgeConfig = JudgeConfig()
    """Judges."""
    aesthetic: AestheticConfig = AestheticConfig()
    """Aesthetic scorers."""
    perceptual: PerceptualConfig = PerceptualConfig()
    """Perceptual distance."""
    artifacts: ArtifactsConfig = ArtifactsConfig()
    """What is kept for pictures."""
