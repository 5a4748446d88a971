"""Ray: connecting, spawning the workers as actors, calling them, shutting them down."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from actors.worker import RolloutWorker
from cluster.config import (
    LOG_ROTATION,
    LOOPBACK,
    REPOSITORY,
    RunConfig,
    RunStopped,
    resolve_model,
)
from cluster.placement import PoolShape, layout, place, release
from cluster.pools import Learner, Rewards, Rollouts, Workers
from cluster.ray_pool import RayPool, RayRanks
from learner.rank import LearnerRank
from learner.schedule import guard_active
from rewards.aesthetic_worker import AestheticWorker
from rewards.config import RewardConfig
from rewards.environments import (
    FAMILIES,
    environments_of,
    first_problem,
    located,
    python_of,
)
from rewards.judge_worker import JudgeWorker
from rewards.worker import ReconstructionWorker

ADMISSION = "known_answers"
"""What a reward worker that joins a run must answer before it scores anything."""


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables that pin every maths library of a process to some threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def connect() -> None:
    """Join the cluster of RAY_ADDRESS (set inside a Ray job), else start one on this machine.

    A cluster started here listens on loopback, has no dashboard and gets Ray's own token
    authentication; for an existing one, RAY_AUTH_MODE and its token are the user's to set.
    """
    for name, value in LOG_ROTATION.items():
        os.environ.setdefault(name, value)
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=True, logging_level=logging.WARNING)
    else:
        ray.init(
            include_dashboard=False,
            logging_level=logging.WARNING,
            _node_ip_address=LOOPBACK,
        )


@contextlib.contextmanager
def ray_workers(config: RunConfig) -> Iterator[Workers]:
    """Spawn every pool of a run on the connected cluster; all are gone when the block ends."""
    with _placed(config, layout(config)) as spawner:
        yield Workers(spawner.rollouts(), spawner.rewards(), spawner.learner())


@contextlib.contextmanager
def ray_rewards(config: RunConfig) -> Iterator[Rewards]:
    """The reward pools alone."""
    shapes = tuple(shape for shape in layout(config) if shape.name in FAMILIES)
    with _placed(config, shapes) as spawner:
        yield spawner.rewards()


@contextlib.contextmanager
def ray_stage(config: RunConfig, stage: str) -> Iterator[Rollouts | Rewards | Learner]:
    """The pools of one stage alone: "rollout", "rewards" or "learner"."""
    names = FAMILIES if stage == "rewards" else (stage,)
    shapes = tuple(shape for shape in layout(config) if shape.name in names)
    with _placed(config, shapes) as spawner:
        made: dict[str, Callable[[], Rollouts | Rewards | Learner]] = {
            "rollout": spawner.rollouts,
            "rewards": spawner.rewards,
            "learner": spawner.learner,
        }
        yield made[stage]()


@contextlib.contextmanager
def _placed(config: RunConfig, shapes: Sequence[PoolShape]) -> Iterator[_Spawner]:
    config = config.model_copy(update={"rewards": located(config.rewards)})
    require_environments(config.rewards)
    groups = place(config, shapes)
    spawner = _Spawner(config, shapes, groups)
    try:
        yield spawner
    finally:
        for pool in spawner.pools:
            pool.close()
        release(groups)


class EnvironmentMissing(RunStopped):
    """A node has not the Python environment that a reward pool is to start in."""

    advice = "build it on every node, then start the same command again"


def require_environments(rewards: RewardConfig) -> None:
    """Look at the reward pools' environments on every node; EnvironmentMissing with the first
    fault. Ray would wait for an interpreter that has no Ray, and say nothing."""
    wanted = environments_of(rewards)
    if not wanted:
        return
    look: Any = ray.remote(first_problem)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    answers = [
        look.options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(wanted)
        for node in nodes
    ]
    for node, problem in zip(nodes, ray.get(answers), strict=True):
        if problem:
            raise EnvironmentMissing(f"node {node['NodeManagerAddress']}: {problem}")


class _Spawner:
    """Starts the pools of a run, each in its placement group and its environment."""

    def __init__(
        self,
        config: RunConfig,
        shapes: Sequence[PoolShape],
        groups: dict[str, PlacementGroup | None],
    ) -> None:
        self.config, self.groups = config, groups
        self.shapes = {shape.name: shape for shape in shapes}
        model = resolve_model(config.policy.model)
        self.policy = config.policy.model_copy(update={"model": model})
        self.pools: list[RayPool | RayRanks] = []

    def rollouts(self) -> Rollouts:
        config = self.config
        pool = self._pool("rollout", RolloutWorker, self.policy, config.rollout, config.camera)
        return Rollouts(pool, config.supervision.rollout_timeout_s)

    def rewards(self) -> Rewards:
        config, rewards = self.config, self.config.rewards
        arguments = rewards, config.camera, config.rollout.frames
        return Rewards(
            self._pool("reconstruction", ReconstructionWorker, *arguments),
            self._pool("judge", JudgeWorker, rewards, calls_at_once=rewards.judge.calls_at_once),
            self._pool("aesthetic", AestheticWorker, rewards),
            rewards,
        )

    def learner(self) -> Learner:
        learner = self.config.learner
        ranks = RayRanks("learner", self._ranks, straggler_s=learner.timeout_s)
        self.pools.append(ranks)
        return Learner(
            ranks,
            learner.micro_batch,
            learner.updates_per_batch,
            self.config.supervision.learner_timeout_s,
        )

    def _pool(self, name: str, worker: type, *args: Any, calls_at_once: int = 1) -> RayPool:
        shape, threads = self.shapes[name], self.config.threads
        family = name in FAMILIES
        environment = getattr(self.config.rewards, name).env if family else ""

        def spawn(index: int) -> Any:
            remote: Any = ray.remote(worker)
            handle = remote.options(
                **_options(shape, self.groups[name], index),
                max_restarts=-1,
                max_concurrency=calls_at_once,
                runtime_env=runtime_environment(threads, environment),
            )
            return handle.remote(*args, self._device(name), threads)

        pool = RayPool(
            name,
            spawn,
            shape.workers,
            self.config.supervision.max_deaths,
            ADMISSION if family else None,
            calls_at_once,
        )
        self.pools.append(pool)
        return pool

    def _ranks(self) -> list[Any]:
        """Ranks on a meeting point of their own; they never restart one by one, since a process
        group does not heal."""
        config, shape, group = self.config, self.shapes["learner"], self.groups["learner"]
        guard = guard_active(config.learner, config.max_staleness)
        learner = config.learner.model_copy(update={"guard": guard})
        meeting_point = _rendezvous(shape, group)
        remote: Any = ray.remote(LearnerRank)
        return [
            remote.options(
                **_options(shape, group, rank),
                runtime_env=runtime_environment(config.threads),
            ).remote(
                rank,
                shape.workers,
                self.policy,
                learner,
                config.rollout,
                config.seed,
                meeting_point,
                self._device("learner"),
                config.threads,
            )
            for rank in range(shape.workers)
        ]

    def _device(self, name: str) -> str:
        return "cuda" if self.shapes[name].gpus else "cpu"


def runtime_environment(threads: int, environment: str = "") -> dict[str, Any]:
    """Ray's `runtime_env` of a worker with pinned threads, in a Python environment of its own if
    one is named; there this repository is found by path."""
    found: dict[str, Any] = {"env_vars": thread_environment(threads)}
    if environment:
        found["env_vars"]["PYTHONPATH"] = str(REPOSITORY)
        found["py_executable"] = python_of(environment)
    return found


def _options(shape: PoolShape, group: PlacementGroup | None, index: int) -> dict[str, Any]:
    """Actor options: a bundle of the pool's placement group while there is one; a worker that comes
    later takes what the cluster has, or waits and is demand that an autoscaler sees."""
    options: dict[str, Any] = {"num_cpus": shape.cpus, "num_gpus": shape.gpus}
    if group is not None and index < shape.workers:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=index
        )
    return options


def _rendezvous(shape: PoolShape, group: PlacementGroup | None) -> str:
    """A free TCP port on the node where rank 0 will live."""
    strategy = (
        {}
        if group is None
        else {
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_bundle_index=0
            )
        }
    )
    address = ray.remote(_free_address).options(num_cpus=shape.cpus, **strategy).remote()
    return f"tcp://{ray.get(address)}"


def _free_address() -> str:
    host = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"
