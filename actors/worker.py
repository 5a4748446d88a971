"""The rollout worker: prompts in, trajectories and videos out. A plain class."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.config import PolicyConfig, RolloutConfig
from actors.policy import Policy
from actors.sampler import GroupSamples, sample_group, sample_ode, stage
from actors.sde import schedule_hash, sigma_schedule
from actors.trajectory import (
    LoraWeights,
    RolloutReport,
    RolloutRequest,
    Trajectory,
    TrajectoryMeta,
    WeightsVersion,
    is_finite,
)
from prompts.config import CameraConfig
from prompts.schema import Prompt

Video = NDArray[np.uint8]
"""uint8 [F, H, W, 3]"""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a rollout worker is, for comparison with its siblings and with the learner."""

    name: str
    """host:process id."""
    schedule_hash: str
    """`actors.sde.schedule_hash` of its training schedule."""
    lora_modules_matched: int
    """Modules of the network that carry an adapter."""
    trainable_parameters: int
    """Values of the adapter."""
    weights_checksum: str
    """`weights_checksum` of the adapter that it holds."""


class RolloutWorker:
    """Samples groups with the weights that each call names.

    It has no state that a restart would lose: weights travel with every call and are loaded where
    the held version is another one.
    """

    def __init__(
        self,
        policy: PolicyConfig,
        rollout: RolloutConfig,
        camera: CameraConfig,
        device: str,
        threads: int,
    ) -> None:
        """Load the policy to `device`; `threads` CPU threads, since results depend on their
        number in the last bit."""
        torch.set_num_threads(threads)
        self._rollout = rollout
        self._camera = camera
        self._device = torch.device(device)
        self._policy = Policy.load(policy, self._device)
        self._version: WeightsVersion | None = None
        self._checksum = self._policy.checksum()
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    def describe(self) -> WorkerInfo:
        """Who this worker is and what it holds."""
        sigmas = sigma_schedule(self._rollout.sampling_steps, self._rollout.shift)
        return WorkerInfo(
            name=self._name,
            schedule_hash=schedule_hash(sigmas),
            lora_modules_matched=self._policy.lora_modules_matched,
            trainable_parameters=self._policy.trainable_parameters,
            weights_checksum=self._checksum,
        )

    def load_weights(self, version: WeightsVersion, weights: LoraWeights) -> str:
        """Load weights now; the checksum of what the model holds afterwards."""
        return self._hold(version, weights).checksum

    def untrained(self) -> tuple[WeightsVersion, LoraWeights]:
        """The adapter that this worker started with, which changes nothing.

        RuntimeError once it holds other weights.
        """
        if self._version is not None:
            raise RuntimeError(f"{self._name} holds the weights of step {self._version.step}")
        return WeightsVersion(0, "untrained", self._checksum), self._policy.lora_weights()

    def rollout(
        self, request: RolloutRequest, version: WeightsVersion, weights: LoraWeights
    ) -> tuple[RolloutReport | Trajectory | Video, ...]:
        """Sample a group: 1 + 2 G values, the report, G trajectories and G videos.

        The values are separate so that each can travel as an object of its own. `weights` are read
        only where another version is held. The version in the answer carries the checksum of the
        weights that the model holds; the caller compares it with the one it asked for.
        """
        held = self._hold(version, weights)
        velocity = self._policy.bind([request.prompt])
        samples = sample_group(velocity, request, self._rollout, self._camera, self._device)
        seconds = dict(samples.seconds)
        trajectories = [
            self._trajectory(request, member, held, samples) for member in range(request.members)
        ]
        finite = torch.isfinite(samples.latents).flatten(1).all(dim=1)
        with stage(seconds, "decode", self._device):
            # What diverged is reported below and gets no score; its video stands for nothing.
            shown = samples.latents.where(finite.view(-1, 1, 1, 1, 1), 0.0)
            videos = self._policy.decode(shown, self._rollout.decode_batch)
        report = RolloutReport(
            group=request.group,
            members=request.members,
            window_start=request.window_start,
            weights=held,
            worker=self._name,
            seconds=seconds,
            non_finite=tuple(
                member
                for member, drawn in enumerate(trajectories)
                if not (finite[member] and is_finite(drawn))
            ),
        )
        return (report, *trajectories, *_to_numpy(videos))

    def sample(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        version: WeightsVersion,
        weights: LoraWeights,
    ) -> tuple[WeightsVersion | Video, ...]:
        """Evaluation samples, one per prompt and seed, by `eval_sampling_steps` ODE steps: the
        version with the checksum of the weights held, then the videos."""
        held = self._hold(version, weights)
        latents = sample_ode(
            self._policy.bind,
            prompts,
            seeds,
            self._rollout,
            self._camera,
            self._device,
            self._rollout.eval_sampling_steps,
        )
        return (held, *_to_numpy(self._policy.decode(latents, self._rollout.decode_batch)))

    def _hold(self, version: WeightsVersion, weights: LoraWeights) -> WeightsVersion:
        """Load `weights` unless `version` is held; the version with the true checksum."""
        if version != self._version:
            # Forgotten first: weights that do not load must not pass for the version before them.
            self._version = None
            self._policy.load_lora(weights)
            self._checksum = self._policy.checksum()
            self._version = version
        return replace(version, checksum=self._checksum)

    def _trajectory(
        self, request: RolloutRequest, member: int, held: WeightsVersion, samples: GroupSamples
    ) -> Trajectory:
        meta = TrajectoryMeta(
            group=request.group,
            member=member,
            prompt_id=request.prompt.id,
            prompt_text=request.prompt.text,
            seed=request.seed,
            window_start=request.window_start,
            kernel=self._rollout.kernel,
            noise_level=self._rollout.resolved_noise_level,
            guidance_scale=self._policy.config.guidance_scale,
            schedule_hash=schedule_hash(samples.sigmas),
            weights=held,
        )
        return Trajectory(
            meta=meta,
            sigmas=samples.sigmas.clone(),
            states=_own(samples.states[member]),
            means=_own(samples.means[member]),
            log_probs=_own(samples.log_probs[member]),
        )


def _own(tensor: Tensor) -> Tensor:
    """A CPU copy with storage of its own: a pickled view would carry the whole group along."""
    return tensor.to("cpu", copy=True).contiguous()


def _to_numpy(videos: Tensor) -> list[Video]:
    return [video.numpy().copy() for video in videos]
