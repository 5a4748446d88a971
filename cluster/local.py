"""The same loop over plain objects in one process: for debugging and fast tests, without Ray."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from actors.config import PolicyConfig
from actors.worker import RolloutWorker
from cluster.clocks import Meter
from cluster.config import RunConfig, resolve_model
from cluster.lost import WorkerLost
from cluster.pool import bind
from cluster.pools import Learner, Rewards, Rollouts, Workers
from learner.batch import BatchShape
from learner.rank import LearnerRank
from learner.schedule import guard_active
from rewards.aesthetic_worker import AestheticWorker
from rewards.environments import located
from rewards.judge_worker import JudgeWorker
from rewards.worker import ReconstructionWorker


class LocalPool:
    """A pool of one object whose methods are called in place; refs are the objects themselves."""

    def __init__(self, name: str, worker: Any) -> None:
        self.name = name
        self.worker = worker
        self.meter = Meter(1)

    @property
    def size(self) -> int:
        """Always 1."""
        return 1

    async def call(
        self, method: str, *args: Any, returns: int = 1, timeout_s: float | None = None
    ) -> Any:
        """Call the method; `returns` says how long the answer is, `timeout_s` cannot be kept."""
        self.meter.change(busy=1)
        started = time.perf_counter()
        try:
            answer = getattr(self.worker, method)(*bind(args))
        finally:
            self.meter.change(busy=-1)
            self.meter.ended(time.perf_counter() - started)
        if returns > 1 and len(answer) != returns:
            raise ValueError(f"{self.name}.{method} returned {len(answer)} values, not {returns}")
        return answer

    async def call_all(
        self,
        method: str,
        arguments: Sequence[tuple[Any, ...]],
        returns: int = 1,
        limit_s: float | None = None,
    ) -> list[Any]:
        """Call the method once, since there is one worker; `limit_s` cannot be kept."""
        (args,) = arguments
        return [await self.call(method, *args, returns=returns)]

    async def fetch(self, ref: Any) -> Any:
        """The object is its own ref."""
        return ref

    async def store(self, value: Any) -> Any:
        """The object is its own ref."""
        return value

    async def restart(self) -> None:
        """A worker of this process does not die alone."""
        raise WorkerLost(f"{self.name} failed in this process, where nothing can replace it")


@contextlib.contextmanager
def local_rewards(config: RunConfig, any_length: bool = False) -> Iterator[Rewards]:
    """One reward worker of each kind in this process, on the CPU: for clips of the run's length, or
    of any."""
    device, threads, rewards = "cpu", config.threads, located(config.rewards)
    frames = None if any_length else config.rollout.frames
    judge = JudgeWorker(rewards, device, threads)
    try:
        yield Rewards(
            LocalPool(
                "reconstruction",
                ReconstructionWorker(rewards, config.camera, frames, device, threads),
            ),
            LocalPool("judge", judge),
            LocalPool("aesthetic", AestheticWorker(rewards, device, threads)),
            rewards,
        )
    finally:
        judge.close()


def local_rollouts(config: RunConfig, device: str = "cpu") -> Rollouts:
    """A rollout worker in this process. ValueError or OSError where its model cannot be loaded."""
    policy, threads = _found(config.policy), config.threads
    worker = RolloutWorker(policy, config.rollout, config.camera, device, threads)
    return Rollouts(LocalPool("rollout", worker))


@contextlib.contextmanager
def local_workers(config: RunConfig) -> Iterator[Workers]:
    """One worker of each kind in this process, on the CPU."""
    policy = _found(config.policy)
    guard = guard_active(config.learner, config.max_staleness)
    learner = config.learner.model_copy(update={"guard": guard, "ranks": 1})
    device, threads = "cpu", config.threads
    rank = LearnerRank(0, policy, learner, config.rollout, config.seed, None, device, threads)
    rollouts = local_rollouts(config)
    with contextlib.closing(rank), local_rewards(config) as rewards:
        yield Workers(
            rollouts=rollouts,
            rewards=rewards,
            learner=Learner(
                LocalPool("learner", rank), BatchShape.of(config.learner, config.rollout)
            ),
        )


def _found(policy: PolicyConfig) -> PolicyConfig:
    """With the model where this machine has it."""
    return policy.model_copy(update={"model": resolve_model(policy.model)})
