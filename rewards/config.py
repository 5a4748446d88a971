"""What the reward side can be told. Imports neither torch nor ray nor numpy."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

TrajectoryVariant = Literal["default", "paper", "release"]
MetaView = Literal["orbit", "pulled_back", "farthest"]


class PoolConfig(BaseModel):
    """How many workers of one kind run, and what each of them takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_workers: int = Field(default=1, ge=1, le=4096)
    """Workers that are always there."""
    max_workers: int = Field(default=1, ge=1, le=4096)
    """Workers that a growing queue may bring up."""
    gpus: float = Field(default=0.0, ge=0, le=8)
    """GPUs of each worker; the embedded backends run on the CPU."""
    cpus: float = Field(default=1.0, gt=0, le=256)
    """CPUs Ray books for each worker."""

    @model_validator(mode="after")
    def _bounds(self) -> PoolConfig:
        if self.max_workers < self.min_workers:
            raise ValueError(
                f"max_workers = {self.max_workers} is below min_workers = {self.min_workers}; "
                "it must be at least as large"
            )
        return self


class WeightsConfig(BaseModel):
    """Weights of the parts: R = recon + traj + meta + lambda_gen · gen (method section 3)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recon: float = Field(default=1.0, ge=0, le=1000, allow_inf_nan=False)
    """Weight of S_recon."""
    traj: float = Field(default=1.0, ge=0, le=1000, allow_inf_nan=False)
    """Weight of S_traj."""
    meta: float = Field(default=1.0, ge=0, le=1000, allow_inf_nan=False)
    """Weight of S_meta."""
    gen: float = Field(default=1.0, ge=0, le=1000, allow_inf_nan=False)
    """lambda_gen, the weight of R_gen."""


class ReconstructionConfig(PoolConfig):
    """Video → Gaussians, cameras, S_recon, S_traj and the meta-view."""

    backend: Literal["photometric"] = "photometric"
    """`photometric`: flow, bundle adjustment and Gaussians without learned weights, on the CPU."""
    renderer: Literal["torch"] = "torch"
    """Rasteriser of the Gaussians."""
    texture_threshold: float = Field(default=1.5, ge=0, le=255, allow_inf_nan=False)
    """Mean absolute difference of neighbouring pixels, in grey levels and at no more than 64 x 96
    pixels a frame, below which a video counts as without texture: S_recon is 0 by definition,
    since such a video reconstructs trivially."""
    meta_view: MetaView = "orbit"
    """Camera of the meta-view: the middle camera orbited about the scene's median depth point, the
    first camera pulled back, or the estimated camera farthest from the first (the release)."""
    azimuth_deg: float = Field(default=20.0, ge=-90, le=90, allow_inf_nan=False)
    """Orbit of the meta-view to the right."""
    elevation_deg: float = Field(default=10.0, ge=-89, le=89, allow_inf_nan=False)
    """Orbit of the meta-view upwards."""
    pull_back: float = Field(default=0.5, gt=0, le=10, allow_inf_nan=False)
    """Distance of the `pulled_back` meta-view behind the first camera, in median scene depths."""
    max_frames: int = Field(default=25, ge=3, le=481)
    """Frames that are reconstructed, evenly spaced; S_recon and S_traj are measured on them."""
    max_pixels: int = Field(default=16384, ge=1024, le=2**24)
    """Pixels of a frame above which the clip is reduced; S_recon is measured at that size."""
    color_steps: int = Field(default=5, ge=0, le=100)
    """Conjugate-gradient steps of the Gaussians' colours."""


class JudgeConfig(PoolConfig):
    """Judge of the meta-view image, S_meta."""

    backend: Literal["embedded"] = "embedded"
    """`embedded`: measures holes, specks, stretched texture and missing objects, on the CPU."""


class AestheticConfig(PoolConfig):
    """Scorer of single frames, R_gen."""

    backend: Literal["embedded"] = "embedded"
    """`embedded`: sharpness, contrast and the colours that the prompt names, on the CPU."""
    frames: int = Field(default=8, ge=1, le=481)
    """K: the first frames of the video that are scored and averaged."""
    offset: float = Field(default=5.0, ge=-100, le=100, allow_inf_nan=False)
    """Raw score that maps to 0."""
    scale: float = Field(default=5.0, gt=0, le=100, allow_inf_nan=False)
    """Raw points that map to 1: gen = (raw - offset) / scale, clipped to [-1, 1]."""


class PerceptualConfig(BaseModel):
    """Distance between the video and its re-rendering, S_recon = 1 - distance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Literal["multiscale"] = "multiscale"
    """`multiscale`: structure, gradients and colours at several scales, without weights."""


class ArtifactsConfig(BaseModel):
    """Groups whose videos, reconstructions and scores are kept for the report; changes no bit of
    what is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(default=0, ge=0, le=10**9)
    """Steps between steps that keep groups, besides the first, the middle and the last; 0: none."""
    keep: int = Field(default=2, ge=0, le=4096)
    """Groups kept of each such step; 0 keeps nothing."""


class RewardConfig(BaseModel):
    """R = S_recon + S_traj + S_meta + lambda · R_gen (paper section 3.3; method section 3)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: WeightsConfig = WeightsConfig()
    """Weights of the parts."""
    variant: TrajectoryVariant = "default"
    """Definition of S_traj; `paper` and `release` are kept for comparison."""
    min_group_size: int = Field(default=2, ge=2, le=1024)
    """Scored members below which a group is rolled out again."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """Attempts to score a sample before it counts as failed."""
    timeout_s: float = Field(default=300.0, gt=0, le=86400, allow_inf_nan=False)
    """A scoring that takes longer than this counts as a failed attempt."""
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    """S_recon and S_traj."""
    judge: JudgeConfig = JudgeConfig()
    """S_meta."""
    aesthetic: AestheticConfig = AestheticConfig()
    """R_gen."""
    perceptual: PerceptualConfig = PerceptualConfig()
    """Distance inside S_recon."""
    artifacts: ArtifactsConfig = ArtifactsConfig()
    """Groups that the report shows."""
