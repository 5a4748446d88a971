"""The same loop over plain objects in one process: for debugging and fast tests, without Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from actors.worker import RolloutWorker
from cluster.config import RunConfig, resolve_model
from cluster.pools import Learner, Rewards, Rollouts, Workers
from learner.rank import LearnerRank
from rewards.worker import AestheticWorker, JudgeWorker, ReconstructionWorker


class LocalPool:
    """A pool of one object whose methods are called in place; refs are the objects themselves."""

    def __init__(self, name: str, worker: Any) -> None:
        self.name = name
        self.worker = worker

    @property
    def size(self) -> int:
        """Always 1."""
        return 1

    async def call(
        self, method: str, *args: Any, returns: int = 1, timeout_s: float | None = None
    ) -> Any:
        """Call the method; `returns` says how long the answer is, `timeout_s` cannot be kept."""
        answer = getattr(self.worker, method)(*args)
        if returns > 1 and len(answer) != returns:
            raise ValueError(f"{self.name}.{method} returned {len(answer)} values, not {returns}")
        return answer

    async def call_all(
        self, method: str, arguments: Sequence[tuple[Any, ...]], returns: int = 1
    ) -> list[Any]:
        """Call the method once, since there is one worker."""
        (args,) = arguments
        return [await self.call(method, *args, returns=returns)]

    async def fetch(self, ref: Any) -> Any:
        """The object is its own ref."""
        return ref


@contextlib.contextmanager
def local_workers(config: RunConfig) -> Iterator[Workers]:
    """One worker of each kind in this process, on the CPU."""
    policy = config.policy.model_copy(update={"model": resolve_model(config.policy.model)})
    device, threads = "cpu", config.threads
    reconstruction = ReconstructionWorker(
        config.rewards, config.camera, config.rollout.frames, device, threads
    )
    rank = LearnerRank(
        0, 1, policy, config.learner, config.rollout, config.seed, None, device, threads
    )
    workers = Workers(
        rollouts=Rollouts(
            LocalPool(
                "rollout", RolloutWorker(policy, config.rollout, config.camera, device, threads)
            )
        ),
        rewards=Rewards(
            LocalPool("reconstruction", reconstruction),
            LocalPool("judge", JudgeWorker(config.rewards, device, threads)),
            LocalPool("aesthetic", AestheticWorker(config.rewards, device, threads)),
            config.rewards,
        ),
        learner=Learner(
            LocalPool("learner", rank), config.learner.micro_batch, config.learner.updates_per_batch
        ),
    )
    try:
        yield workers
    finally:
        rank.close()
