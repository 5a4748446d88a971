"""The messages that leave the rollout side: request, trajectory, weights version, report.

Producer of a `RolloutRequest`: the coordinator. Producer of the rest: `RolloutWorker`; consumers:
the coordinator (reports, metadata) and the learner ranks (trajectories). A `WeightsVersion` is
made by the learner and travels with every request and every trajectory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from prompts.schema import Prompt

LoraWeights = Mapping[str, np.ndarray]
"""LoRA tensors by their PEFT name, float32 numpy, as they travel through the object store."""


@dataclass(frozen=True, slots=True)
class WeightsVersion:
    """Identity of a set of LoRA weights."""

    step: int
    """Optimizer updates that made these weights; 0 is the untrained adapter."""
    lineage: str
    """Changes whenever a run is resumed, so that a replayed step is not taken for a stale one."""
    checksum: str
    """`weights_checksum` of the tensors."""


def weights_checksum(weights: LoraWeights) -> str:
    """SHA-256 over names, shapes and float32 bytes in the order of names; hex, 64 characters."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name], dtype=np.float32)
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """Everything that decides a group's samples; the same request gives the same samples."""

    group: int
    """Serial number of the group, unique in a run."""
    prompt: Prompt
    members: int
    """Samples to draw (G)."""
    seed: int
    """The run's seed; noise is keyed on (seed, group, member)."""
    window_start: int
    """First step of the stochastic window, the same for all members."""


@dataclass(frozen=True, slots=True)
class TrajectoryMeta:
    """What identifies a trajectory and the density it was drawn from."""

    group: int
    member: int
    prompt_id: str
    prompt_text: str
    seed: int
    window_start: int
    kernel: str
    noise_level: float
    guidance_scale: float
    schedule_hash: str
    """`actors.sde.schedule_hash` of `Trajectory.sigmas`."""
    weights: WeightsVersion


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One sample's stochastic window of W steps, all float32 on the CPU.

    Example (toy): 16 latent channels, F' = 3, 8 x 12 cells, W = 2, 10 steps.
    """

    meta: TrajectoryMeta
    sigmas: Tensor
    """[S + 1], the whole schedule from 1 to 0."""
    states: Tensor
    """[W + 1, 16, F', H/8, W/8], x_t before and after each window step."""
    means: Tensor
    """[W, 16, F', H/8, W/8], the kernel's mean of each window step."""
    log_probs: Tensor
    """[W], mean log-density of each window step under the behaviour policy."""

    def with_meta(self, **changes: object) -> Trajectory:
        """The same tensors under changed metadata."""
        return replace(self, meta=replace(self.meta, **changes))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class RolloutReport:
    """Small answer of a rollout, the only part that the coordinator reads."""

    group: int
    members: int
    window_start: int
    weights: WeightsVersion
    """Version the worker was asked for, with the checksum of the weights it *holds*."""
    worker: str
    """Host and process of the worker."""
    seconds: Mapping[str, float]
    """Wall seconds per stage: noise, prefix, branches, decode."""
    non_finite: tuple[int, ...] = ()
    """Members whose states or log-probabilities are not all finite: they must not train."""


def save_trajectory(trajectory: Trajectory, path: Path) -> None:
    """Write a trajectory as safetensors with its metadata as JSON in the header (for replay)."""
    tensors = {
        "sigmas": trajectory.sigmas,
        "states": trajectory.states,
        "means": trajectory.means,
        "log_probs": trajectory.log_probs,
    }
    save_file(tensors, path, metadata={"meta": json.dumps(asdict(trajectory.meta))})


def load_trajectory(path: Path) -> Trajectory:
    """Read what `save_trajectory` wrote; safetensors only, nothing is unpickled."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["meta"])
        # Copies: what safetensors returns is mapped to the file, and changes with it.
        tensors: dict[str, Tensor] = {
            name: file.get_tensor(name).clone()
            for name in file.keys()  # noqa: SIM118
        }
    header["weights"] = WeightsVersion(**header["weights"])
    return Trajectory(meta=TrajectoryMeta(**header), **tensors)


def is_finite(trajectory: Trajectory) -> bool:
    """Whether every state, mean and log-probability is a number."""
    tensors = (trajectory.states, trajectory.means, trajectory.log_probs)
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def require_float32(trajectory: Trajectory) -> None:
    """Raise ValueError unless every stored tensor is float32 (bfloat16 states are a known bug)."""
    for name in ("sigmas", "states", "means", "log_probs"):
        dtype = getattr(trajectory, name).dtype
        if dtype != torch.float32:
            raise ValueError(
                f"trajectory of group {trajectory.meta.group} member {trajectory.meta.member}: "
                f"{name} is stored as {dtype}; only torch.float32 is allowed"
            )
