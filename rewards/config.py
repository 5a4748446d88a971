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
    env: str = ""
    """Python environment of the workers, made by `worldr1 envs build`: its name, or a path with a
    slash in it; empty: that of core. It has to be there on every node."""

    @model_validator(mode="after")
    def _bounds(self) -> PoolConfig:
        if self.max_workers < self.min_workers:
            raise ValueError(
                f"max_workers = {self.max_workers} is below min_workers = {self.min_workers}; "
                "it must be at least as large"
            )
        return self


class WeightsConfig(BaseModel):
    """Weights of the parts: R = recon + traj + meta + lambda_gen · gen (method section 3), and
    `reach` where it is wanted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recon: float = Field(default=1.0, ge=0, le=1000, allow_inf_nan=False)
    """Weight of S_recon."""
    traj: float = Field(default=1.0, ge=0, le=1000, allow_inf_nan=False)
    """Weight of S_traj."""
    reach: float = Field(default=0.0, ge=0, le=1000, allow_inf_nan=False)
    """Weight of S_reach, which is no part of the paper's reward: whether the picture moves as far
    as the camera was asked to go, which S_traj leaves open for translations and S_recon pays for
    not doing."""
    meta: float = Field(default=1.0, ge=0, le=1000, allow_inf_nan=False)
    """Weight of S_meta."""
    gen: float = Field(default=1.0, ge=0, le=1000, allow_inf_nan=False)
    """lambda_gen, the weight of R_gen."""


class ReconstructionConfig(PoolConfig):
    """Video → Gaussians, cameras, S_recon, S_traj and the meta-view."""

    backend: Literal["photometric", "da3"] = "photometric"
    """`photometric`: flow, bundle adjustment and Gaussians without learned weights, on the CPU;
    `da3`: Depth Anything 3 with its Gaussian head, on a GPU (or, slowly, on the CPU)."""
    renderer: Literal["auto", "torch", "gsplat"] = "auto"
    """Rasteriser of the Gaussians; `auto` is gsplat on CUDA and torch elsewhere."""
    model: str = Field(default="depth-anything/DA3-GIANT", min_length=1)
    """Weights of `da3`: a folder with config.json and model.safetensors, or a hub id. Only models
    with a Gaussian head serve: DA3-GIANT and DA3NESTED-GIANT-LARGE."""
    resolution: int = Field(default=504, ge=56, le=2016, multiple_of=14)
    """Longer side in pixels of what `da3` sees, rounded to its patches of 14; S_recon is measured
    at that size."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Arithmetic of the backbone of `da3`; its heads are float32."""
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
    """Frames that are reconstructed, evenly spaced, first and last among them; S_recon and S_traj
    are measured on them. Where a GPU's memory binds, `da3` takes two thirds of them, again and
    again until they fit, and says how many it took."""
    max_pixels: int = Field(default=16384, ge=1024, le=2**24)
    """Pixels of a frame above which `photometric` reduces the clip; S_recon is measured at that
    size."""
    color_steps: int = Field(default=5, ge=0, le=100)
    """Conjugate-gradient steps of the Gaussians' colours in `photometric`."""


JUDGE_CACHE_GB = 3.0
"""Keys and values of what a judge has in flight at once."""


class JudgeConfig(PoolConfig):
    """Judge of the meta-view image, S_meta."""

    backend: Literal["embedded", "vllm", "endpoint"] = "embedded"
    """`embedded`: measures holes, specks, stretched texture and missing objects, on the CPU;
    `vllm`: a vision-language model on a vLLM server that each worker starts for itself;
    `endpoint`: one on a server that is there, with vLLM's fields of the OpenAI protocol."""
    model: str = Field(default="Qwen/Qwen3-VL-8B-Instruct", min_length=1)
    """Hub id or folder of the model that `vllm` serves, or the name under which `endpoint` does."""
    url: str = Field(default="", pattern=r"^(https?://[^/\s@]+(/[^\s@]*)?)?$")
    """Of `endpoint`, such as http://judge:8000/v1, without credentials."""
    key_variable: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable of the workers that holds the endpoint's key; read there alone."""
    concurrency: int = Field(default=8, ge=1, le=1024)
    """Requests that a worker has in flight at once, which its server answers in one batch."""
    request_timeout_s: float = Field(default=60.0, gt=0, le=86400, allow_inf_nan=False)
    """For one request."""
    max_tokens: int = Field(default=4096, ge=256, le=2**20)
    """Longest request that `vllm` serves, the picture's tokens included."""
    image_limit: int = Field(default=1, ge=1, le=64)
    """Pictures in one request that `vllm` accepts; the judge sends one."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Of the served weights."""
    tensor_parallel: int = Field(default=1, ge=1, le=64)
    """GPUs over which a server shards the model; `gpus` has to be the same number."""
    gpu_memory: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    """Share of each GPU's memory that a server takes; unset: 0.9 x `gpus`, at most 0.9."""
    cache_gb: float | None = Field(default=None, gt=0, le=1000, allow_inf_nan=False)
    """GB of each GPU for keys and values; unset: what vLLM finds left of its share, or 3 where the
    worker shares a GPU, since vLLM takes for its own what others load there while it measures (20
    requests of 1,000 tokens for Qwen3-VL-8B)."""
    start_timeout_s: float = Field(default=1800.0, gt=0, le=86400, allow_inf_nan=False)
    """A server that is not healthy by then is started again, three times at most."""
    health_interval_s: float = Field(default=5.0, gt=0, le=3600, allow_inf_nan=False)
    """Time between two health checks; a server that misses three in a row is replaced."""

    @property
    def calls_at_once(self) -> int:
        """Calls that a worker takes at once."""
        return 1 if self.backend == "embedded" else self.concurrency

    @property
    def gpu_share(self) -> float:
        """The resolved `gpu_memory`."""
        return min(0.9, 0.9 * self.gpus) if self.gpu_memory is None else self.gpu_memory

    @property
    def cache_bytes(self) -> int | None:
        """The resolved `cache_gb`; None where vLLM measures."""
        shared_gb = JUDGE_CACHE_GB if 0 < self.gpus < 1 else None
        found_gb = shared_gb if self.cache_gb is None else self.cache_gb
        return None if found_gb is None else round(found_gb * 1e9)

    @model_validator(mode="after")
    def _served(self) -> JudgeConfig:
        if (self.backend == "endpoint") != bool(self.url):
            needs = "needs" if self.backend == "endpoint" else "has no use for"
            raise ValueError(
                f"rewards.judge.backend = {self.backend!r} {needs} rewards.judge.url"
                + (f" = {self.url!r}" if self.url else "")
            )
        if self.backend != "vllm" and self.tensor_parallel != 1:
            raise ValueError(
                f"rewards.judge.tensor_parallel = {self.tensor_parallel} needs "
                "rewards.judge.backend = 'vllm'"
            )
        if self.tensor_parallel > 1 and self.gpus != self.tensor_parallel:
            raise ValueError(
                f"rewards.judge.gpus = {self.gpus:g} is not rewards.judge.tensor_parallel = "
                f"{self.tensor_parallel}; a server shards over the GPUs that its worker holds"
            )
        if self.backend != "vllm" and self.gpus:
            raise ValueError(
                f"rewards.judge.backend = {self.backend!r} runs on the CPU only; "
                f"rewards.judge.gpus = {self.gpus:g} has to be 0"
            )
        return self


class AestheticConfig(PoolConfig):
    """Scorer of single frames, R_gen."""

    backend: Literal["embedded", "hpsv3"] = "embedded"
    """`embedded`: sharpness, contrast and the colours that the prompt names, on the CPU; `hpsv3`:
    the HPSv3 package, in its own environment."""
    model: str = "MizzenAI/HPSv3"
    """Weights of `hpsv3`: a .safetensors file, or a hub repository that holds HPSv3.safetensors."""
    base: str = "Qwen/Qwen2-VL-7B-Instruct"
    """Hub id or folder of the model that `hpsv3` was trained from: its tokenizer and shape."""
    batch: int = Field(default=8, ge=1, le=481)
    """Frames in one pass of `hpsv3`."""
    frames: int = Field(default=8, ge=1, le=481)
    """K: the first frames of the video that are scored and averaged."""
    offset: float = Field(default=5.0, ge=-100, le=100, allow_inf_nan=False)
    """Raw score that maps to 0."""
    scale: float = Field(default=5.0, gt=0, le=100, allow_inf_nan=False)
    """Raw points that map to 1: gen = (raw - offset) / scale, clipped to [-1, 1]."""


class PerceptualConfig(BaseModel):
    """Distance between the video and its re-rendering, S_recon = 1 - distance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Literal["multiscale", "lpips"] = "multiscale"
    """`multiscale`: structure, gradients and colours at several scales, without weights; `lpips`:
    LPIPS 0.1 on AlexNet, by the lpips package where torchvision works, else by a trunk of its own
    with the package's heads."""
    contrast: float = Field(default=0.02, gt=0, le=1, allow_inf_nan=False)
    """Contrast (of 1) up to which `multiscale` takes differences of structure and gradients as they
    are; above it they are relative to the picture's own, so that a small value pays for sharper
    pictures and a large one for softer ones."""
    weights: str | None = Field(default=None, min_length=1)
    """AlexNet's `features` for `lpips`: a safetensors file, a folder or hub id with
    model.safetensors; unset: fetched from PyTorch's server."""


class ArtifactsConfig(BaseModel):
    """Groups whose videos, reconstructions and scores are kept for the report; changes no bit of
    what is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(default=0, ge=0, le=10**9)
    """Steps between steps that keep groups, besides the first, the middle and the last; 0: none."""
    keep: int = Field(default=2, ge=0, le=4096)
    """Groups kept of each such step; 0 keeps nothing."""
    extremes: bool = True
    """Also keep the groups of such a step's best and worst sample; these two are reconstructed once
    more for their pictures."""


class RewardConfig(BaseModel):
    """R = S_recon + S_traj + S_meta + lambda · R_gen (paper section 3.3; method section 3)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: WeightsConfig = WeightsConfig()
    """Weights of the parts."""
    variant: TrajectoryVariant = "default"
    """Definition of S_traj; `paper` and `release` are kept for comparison."""
    reach_depth: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False)
    """Depth, in the unit of the requested translations, of the plane that S_reach expects to see
    moving."""
    min_group_size: int = Field(default=2, ge=2, le=1024)
    """Scored members below which a group is rolled out again."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """Attempts to score a sample before it counts as failed."""
    timeout_s: float = Field(default=300.0, gt=0, le=86400, allow_inf_nan=False)
    """A scoring that takes longer than this counts as a failed attempt."""
    examine_every: int = Field(default=100, ge=0, le=10**9)
    """Steps between examinations of the reconstruction on every known-answer clip; 0: none."""
    repeat_every: int = Field(default=10, ge=0, le=10**9)
    """Steps, at least, between two whose first sample is scored twice, which measures the reward's
    noise; 0: none."""
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

    @property
    def pools(self) -> dict[str, PoolConfig]:
        """Settings of every pool of reward workers, by their kind."""
        return {
            "reconstruction": self.reconstruction,
            "judge": self.judge,
            "aesthetic": self.aesthetic,
        }
