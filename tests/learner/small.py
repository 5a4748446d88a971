"""A tiny policy, two groups rolled out by the real worker, and ranks in processes of their own."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch.multiprocessing

from actors.config import LoraConfig, PolicyConfig, RolloutConfig
from actors.trajectory import RolloutRequest, Trajectory, WeightsVersion
from actors.worker import RolloutWorker
from learner.batch import BatchShape, ScoredGroup, plan_batch
from learner.config import LearnerConfig
from learner.rank import LearnerRank, StepReport
from learner.schedule import window_start
from prompts.config import CameraConfig
from prompts.schema import Prompt

SEED = 5
ROLLOUT = RolloutConfig(
    height=32, width=48, frames=9, sampling_steps=6, group_size=3, groups_per_step=2,
    window_low=1, window_high=3,
)  # fmt: skip
LEARNER = LearnerConfig(
    learning_rate=1e-2, micro_batch=3, clip_range=0.2, beta_kl=0.01, ema_decay=0.9,
    activation_checkpointing=False, timeout_s=120.0,
)  # fmt: skip
TEXTS = ("Camera push in. A red box.", "Camera pan left. A blue ball on the floor.")

Published = tuple[WeightsVersion, Mapping[str, np.ndarray]]


def policy_config(model: Path, **changes: Any) -> PolicyConfig:
    """The tiny policy in float32 with guidance and a LoRA of rank 2."""
    fields = {
        "model": str(model),
        "dtype": "float32",
        "guidance_scale": 2.0,
        "max_prompt_tokens": 16,
        "lora": LoraConfig(rank=2, alpha=4.0),
    }
    return PolicyConfig(**(fields | changes))


def roll_out(
    policy: PolicyConfig, published: Published, rollout: RolloutConfig = ROLLOUT
) -> tuple[Trajectory, ...]:
    """Trajectories of two groups, sorted by (group, member), by the real rollout worker."""
    worker = RolloutWorker(policy, rollout, CameraConfig(), "cpu", 1)
    trajectories: list[Trajectory] = []
    for group in range(2):
        request = RolloutRequest(
            group=group,
            prompt=Prompt.from_text(f"p-{group}", TEXTS[group]),
            members=rollout.group_size,
            seed=SEED,
            window_start=window_start(SEED, group, rollout.window_low, rollout.window_stop),
        )
        values = worker.rollout(request, *published)
        trajectories += [value for value in values if isinstance(value, Trajectory)]
    return tuple(trajectories)


def score(
    trajectories: tuple[Trajectory, ...], failed: tuple[tuple[int, int], ...] = ()
) -> tuple[tuple[ScoredGroup, ...], tuple[Trajectory, ...]]:
    """Groups with made-up rewards and the trajectories of the members that did not fail."""
    kept = tuple(t for t in trajectories if (t.meta.group, t.meta.member) not in failed)
    groups = []
    for group in sorted({t.meta.group for t in kept}):
        members = tuple(t.meta.member for t in kept if t.meta.group == group)
        rewards = tuple(float((7 * group + 3 * m * m) % 5) for m in members)
        groups.append(ScoredGroup(group, f"p-{group}", members, rewards))
    return tuple(groups), kept


def make_rank(
    policy: PolicyConfig,
    learner: LearnerConfig = LEARNER,
    rollout: RolloutConfig = ROLLOUT,
    rank: int = 0,
    world_size: int = 1,
    init_url: str | None = None,
) -> LearnerRank:
    """A rank on one CPU thread."""
    learner = learner.model_copy(update={"ranks": world_size})
    return LearnerRank(rank, policy, learner, rollout, SEED, init_url, "cpu", 1)


def train_step(
    learner: LearnerRank,
    scored: tuple[tuple[ScoredGroup, ...], tuple[Trajectory, ...]],
    config: LearnerConfig = LEARNER,
    rank: int = 0,
    world_size: int = 1,
    rollout: RolloutConfig = ROLLOUT,
) -> StepReport:
    """One step of one rank, with the share of the trajectories that its plan names."""
    groups, trajectories = scored
    plans = plan_batch(groups, world_size, BatchShape.of(config, rollout))
    plan = plans[rank]
    return learner.step(0, groups, plan, *(trajectories[i] for i in plan.samples))


def run_ranks(world_size: int, job: Callable[..., Any], *args: Any) -> list[Any]:
    """Run job(rank, world_size, init_url, *args) in `world_size` processes; answers by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    answers = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(
        _answer, (world_size, url, answers, job, args), nprocs=world_size, join=True
    )
    by_rank = dict(answers.get() for _ in range(world_size))
    return [by_rank[rank] for rank in range(world_size)]


def _answer(
    rank: int, world_size: int, url: str, answers: Any, job: Callable[..., Any], args: Any
) -> None:
    answers.put((rank, job(rank, world_size, url, *args)))
