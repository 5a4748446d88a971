"""Stages that only wait: the real loop, buffer, ledger and checkpoints over workers that sleep.

A host waits for its GPU in the same way. Nothing is computed, so that what is measured is the
service itself.

The simulated learner keeps the account of what it was given, like the real one, writes it to its
checkpoints, and can be told to die.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fsspec.core import url_to_fs

from actors.sde import schedule_hash, sigma_schedule
from actors.seeds import keyed_seed
from actors.trajectory import (
    RolloutReport,
    RolloutRequest,
    WeightsVersion,
    weights_checksum,
)
from actors.worker import WorkerInfo
from cluster.checkpoint import CheckpointStore
from cluster.clocks import Meter
from cluster.collect import RequestSource
from cluster.config import RunConfig, to_json
from cluster.evaluate import Evaluator
from cluster.lease import Holding
from cluster.ledger import Ledger
from cluster.loop import Trainer
from cluster.lost import WorkerLost
from cluster.metrics import MetricsLog
from cluster.pool import bind
from cluster.pools import Learner, Rewards, Rollouts, Workers
from cluster.rows import read_rows
from cluster.runs import start_or_resume
from cluster.storage import RunFolder
from learner.account import EMPTY_ACCOUNT, extend_account
from learner.batch import BatchShape, RankPlan, ScoredGroup, flat_keys
from learner.proof import RatioProof
from learner.rank import RankInfo, StepReport
from prompts.dataset import load_prompts
from rewards.score import Score


@dataclass(frozen=True)
class Durations:
    """Seconds of one call of each stage."""

    rollout_s: float
    reconstruction_s: float
    judge_s: float = 0.0
    aesthetic_s: float = 0.0
    learner_s: float = 0.0
    publish_s: float = 0.0


class SimulatedPool:
    """Workers of one class, each of which sleeps through one call at a time."""

    def __init__(self, name: str, workers: int, methods: dict[str, Callable[..., Any]]) -> None:
        self.name, self._workers, self._methods = name, workers, methods
        self.meter = Meter(workers)
        self._free = asyncio.Semaphore(workers)

    @property
    def size(self) -> int:
        """Workers."""
        return self._workers

    async def call(
        self, method: str, *args: Any, returns: int = 1, timeout_s: float | None = None
    ) -> Any:
        """See `cluster.pool.Pool.call`."""
        self.meter.change(waiting=1)
        async with self._free:
            self.meter.change(waiting=-1, busy=1)
            started = time.perf_counter()
            try:
                return await self._methods[method](*bind(args))
            finally:
                self.meter.change(busy=-1)
                self.meter.ended(time.perf_counter() - started)

    async def call_all(
        self,
        method: str,
        arguments: Sequence[tuple[Any, ...]],
        returns: int = 1,
        limit_s: float | None = None,
    ) -> list[Any]:
        """See `cluster.pool.Pool.call_all`."""
        return list(await asyncio.gather(*(self._methods[method](*args) for args in arguments)))

    async def fetch(self, ref: Any) -> Any:
        """The object is its own ref."""
        return ref

    async def store(self, value: Any) -> Any:
        """The object is its own ref."""
        return value


@dataclass
class SimulatedRanks:
    """Learner ranks that sleep, keep the account, and fail when they are told to."""

    config: RunConfig
    durations: Durations
    save_s: float = 0.0
    """Duration of a background save."""
    fail_at: list[tuple[str, int]] = field(default_factory=list)
    """(method, step) at which the ranks are lost, once each; for methods without a step, -1."""
    name: str = "learner"

    def __post_init__(self) -> None:
        self.meter = Meter(1)
        self.restarts = 0
        self.publish_bits = ""
        self._forget()

    def _forget(self) -> None:
        self._account = EMPTY_ACCOUNT
        self._save: tuple[str, str, float] | None = None

    @property
    def size(self) -> int:
        """Ranks."""
        return self.config.learner.ranks

    async def call_all(
        self,
        method: str,
        arguments: Sequence[tuple[Any, ...]],
        returns: int = 1,
        limit_s: float | None = None,
    ) -> list[Any]:
        """One answer, as from every rank."""
        args = arguments[0]
        step = args[0] if method in ("step", "weights") else -1
        if (method, step) in self.fail_at:
            self.fail_at.remove((method, step))
            raise WorkerLost(f"a simulated rank died in {method} of step {step}")
        answer = await getattr(self, method)(*args)
        return [answer] * self.size

    async def restart(self) -> None:
        """Back to the initial state."""
        self.restarts += 1
        self._forget()

    async def fetch(self, ref: Any) -> Any:
        """The object is its own ref."""
        return ref

    async def store(self, value: Any) -> Any:
        """The object is its own ref."""
        return value

    async def describe(self) -> RankInfo:
        """A rank like the simulated rollout workers."""
        return RankInfo(0, self.size, "host", 1, "cpu", 1, 8, 1, False)

    async def hold(self, weights: dict[str, Any]) -> str:
        """Nothing is held that would have to be put back."""
        return weights_checksum(weights)

    async def prove(self, *trajectories: Any) -> RatioProof:
        """Nothing was computed, nothing differs."""
        return RatioProof(len(trajectories), 0, 0.0, 1e-5, 0.0, 1e-3, (), ())

    async def receive(self, *objects: Any) -> int:
        """How many arrived."""
        return len(objects)

    async def account(self) -> str:
        """See `LearnerRank.account`."""
        return self._account

    async def step(
        self, step: int, groups: Sequence[ScoredGroup], plan: RankPlan, *trajectories: Any
    ) -> StepReport:
        """Wait, and note what was given."""
        await asyncio.sleep(self.durations.learner_s)
        keys = flat_keys(groups)
        self._account = extend_account(self._account, step, keys)
        return StepReport(
            step=step,
            loss=0.0,
            metrics={"kl": 0.0, "ratio_max_dev": 0.0},
            grad_norm=1.0,
            update_skipped=False,
            skip_reason="",
            seconds=self.durations.learner_s,
            applied=keys,
            advantages=(0.0,) * len(keys),
            account=self._account,
        )

    async def weights(
        self, step: int, lineage: str, average: bool = False
    ) -> tuple[WeightsVersion, dict[str, Any]]:
        """Weights that are a function of what was trained on."""
        await asyncio.sleep(self.durations.publish_s)
        text = f"{self._account}{self.publish_bits}".encode()
        bits = np.frombuffer(hashlib.sha256(text).digest()[:8], dtype=np.uint8)
        weights = {"lora": bits.astype(np.float32)}
        return WeightsVersion(step, lineage, weights_checksum(weights)), weights

    async def begin_save(self, url: str) -> None:
        """Write the account below the URL after `save_s`."""
        self._save = (url, self._account, time.perf_counter() + self.save_s)

    async def saved(self, wait_s: float) -> bool:
        """See `LearnerRank.saved`."""
        if self._save is None:
            return True
        url, account, ready_at = self._save
        if time.perf_counter() < ready_at:
            return False
        fs, path = url_to_fs(url)
        await asyncio.to_thread(fs.makedirs, path, exist_ok=True)
        await asyncio.to_thread(fs.pipe_file, f"{path}/account", account.encode())
        self._save = None
        return True

    async def load(self, url: str) -> None:
        """Read what was saved."""
        fs, path = url_to_fs(url)
        self._account = (await asyncio.to_thread(fs.cat_file, f"{path}/account")).decode()


def rollout_methods(config: RunConfig, durations: Durations) -> dict[str, Callable[..., Any]]:
    """What a simulated rollout worker answers to."""
    held: dict[str, str] = {"checksum": ""}
    sigmas = sigma_schedule(config.rollout.sampling_steps, config.rollout.shift)

    async def rollout(request: RolloutRequest, version: WeightsVersion, weights: Any) -> Any:
        await asyncio.sleep(durations.rollout_s)
        report = RolloutReport(
            request.group, request.members, request.window_start, version, "simulated", {}
        )
        keys = [(request.group, member) for member in range(request.members)]
        return (report, *keys, *keys)

    async def load_weights(version: WeightsVersion, weights: Any) -> str:
        held["checksum"] = weights_checksum(weights)
        return held["checksum"]

    async def describe() -> WorkerInfo:
        return WorkerInfo("simulated", schedule_hash(sigmas), 1, 8, held["checksum"])

    return {"rollout": rollout, "load_weights": load_weights, "describe": describe}


def reward_methods(
    kind: Any, parts: tuple[str, ...], seconds: float
) -> dict[str, Callable[..., Any]]:
    """What a simulated reward worker answers to; scores are keyed on (part, group, member)."""

    async def score(sample: tuple[int, int], prompt: Any, *_: Any) -> Any:
        await asyncio.sleep(seconds)
        values = {part: keyed_seed("reward", part, *sample) / 2**63 for part in parts}
        answer = Score(kind, values, {}, "simulated")
        return (answer, sample, None) if kind == "reconstruction" else answer

    async def known_answers() -> dict[str, float]:
        return {"simulated": 1.0}

    async def examine() -> dict[str, dict[str, float]]:
        return {}

    return {"score": score, "known_answers": known_answers, "examine": examine}


def simulated_workers(
    config: RunConfig, durations: Durations, ranks: SimulatedRanks | None = None
) -> Workers:
    """Every pool of a run, simulated."""

    def rewards(kind: Any, parts: tuple[str, ...], seconds: float) -> SimulatedPool:
        workers = config.rewards.pools[kind].min_workers
        return SimulatedPool(kind, workers, reward_methods(kind, parts, seconds))

    rollouts = SimulatedPool("rollout", config.rollout.workers, rollout_methods(config, durations))
    return Workers(
        rollouts=Rollouts(rollouts),
        rewards=Rewards(
            rewards("reconstruction", ("recon", "traj"), durations.reconstruction_s),
            rewards("judge", ("meta",), durations.judge_s),
            rewards("aesthetic", ("gen",), durations.aesthetic_s),
            config.rewards,
        ),
        learner=Learner(
            ranks or SimulatedRanks(config, durations),
            BatchShape.of(config.learner, config.rollout),
        ),
    )


def simulated_trainer(
    config: RunConfig,
    workers: Workers,
    say: Callable[[str], None] = lambda line: None,
    holding: Holding | None = None,
) -> tuple[Trainer, Any]:
    """The real trainer over simulated workers, and the state that it starts from."""
    folder = RunFolder(config.run)
    Path(config.run).mkdir(parents=True, exist_ok=True)
    store = CheckpointStore(config.run)
    state = start_or_resume(config, store, say)
    folder.write_text("config.json", to_json(config))
    metrics = MetricsLog(folder, config.steps, state.step, say)
    prompts = {split: load_prompts(config.prompts.sources[split]) for split in ("train", "dynamic")}
    source = RequestSource(config.seed, config.rollout, prompts, state.next_group, state.cursors)
    trainer = Trainer(
        config=config,
        workers=workers,
        source=source,
        checkpoints=store,
        metrics=metrics,
        evaluator=Evaluator(config, (), folder, metrics),
        ledger=Ledger(folder, state.ledger),
        holding=holding or Holding.locked(),
    )
    return trainer, state


def rows(config: RunConfig) -> list[dict[str, Any]]:
    """Step rows of a run."""
    return [row for row in read_rows(RunFolder(config.run)) if row["kind"] == "step"]
