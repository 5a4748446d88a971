"""Ray: connecting, spawning the workers as actors, calling them, shutting them down."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.worker import RolloutWorker
from cluster.config import (
    LOG_ROTATION,
    LOOPBACK,
    REPOSITORY,
    ConfigError,
    RunConfig,
    RunStopped,
    resolve_model,
    thread_environment,
)
from cluster.doctor import ClusterFacts, Finding, diagnose, probe_request
from cluster.layout import PoolShape, layout
from cluster.placement import TYPE_LABEL, Placement, nodes_for, place
from cluster.pools import Learner, Rewards, Rollouts, Workers
from cluster.probe import NodeReport, probe
from cluster.ray_pool import OVERDUE_S, RayPool
from cluster.ray_ranks import RayRanks
from cluster.storage import RunFolder, absolute_url
from learner.batch import BatchShape
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

log = logging.getLogger(__name__)

ADMISSION = "known_answers"
"""What a reward worker that joins a run or is restarted must answer before it scores anything, as
the first ones must before the run starts; an evaluation has no such proof."""


def connect() -> None:
    """Join the cluster of RAY_ADDRESS (set inside a Ray job), else start one on this machine.

    A cluster started here listens on loopback, has no dashboard and gets Ray's own token
    authentication; for an existing one, RAY_AUTH_MODE and its token are the user's to set.
    """
    if ray.is_initialized():  # one command may need workers more than once
        return
    for name, value in LOG_ROTATION.items():
        os.environ.setdefault(name, value)
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(log_to_driver=True, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"RAY_ADDRESS = {address!r} cannot be joined from this machine: {reason}; a driver "
                "runs on a node of the cluster, or in a job that `worldr1 submit` starts there"
            ) from None
    else:
        ray.init(
            "local",  # not whatever cluster somebody else runs on this machine
            include_dashboard=False,
            logging_level=logging.WARNING,
            _node_ip_address=LOOPBACK,
        )


@contextlib.contextmanager
def ray_workers(config: RunConfig) -> Iterator[Workers]:
    """Spawn every pool of a run on the connected cluster; all are gone when the block ends."""
    with _placed(config, layout(config), ADMISSION) as spawner:
        yield Workers(spawner.rollouts(), spawner.rewards(), spawner.learner())


@contextlib.contextmanager
def ray_rewards(config: RunConfig, any_length: bool = False) -> Iterator[Rewards]:
    """The reward pools alone: for clips of the run's length, or of any."""
    shapes = tuple(shape for shape in layout(config) if shape.name in FAMILIES)
    with _placed(config, shapes) as spawner:
        yield spawner.rewards(any_length)


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
def _placed(
    config: RunConfig, shapes: Sequence[PoolShape], admission: str | None = None
) -> Iterator[_Spawner]:
    config = config.model_copy(update={"rewards": located(config.rewards)})
    require_environments(config.rewards)
    placement = place(config, shapes)
    spawner = _Spawner(config, shapes, placement, admission)
    try:
        yield spawner
    finally:
        for pool in spawner.pools:
            pool.close()
        placement.release()


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
    answers = [look.options(num_cpus=0, **_on(node)).remote(wanted) for node in nodes]
    for node, problem in zip(nodes, ray.get(answers), strict=True):
        if problem:
            raise EnvironmentMissing(f"node {node['NodeManagerAddress']}: {problem}")


class _Spawner:
    """Starts the pools of a run, each worker where the layout wants it and in its environment."""

    def __init__(
        self,
        config: RunConfig,
        shapes: Sequence[PoolShape],
        placement: Placement,
        admission: str | None,
    ) -> None:
        self.config, self.placement, self.admission = config, placement, admission
        self.shapes = {shape.name: shape for shape in shapes}
        model = resolve_model(config.policy.model)
        self.policy = config.policy.model_copy(update={"model": model})
        self.pools: list[RayPool | RayRanks] = []

    def rollouts(self) -> Rollouts:
        config = self.config
        pool = self._pool("rollout", RolloutWorker, self.policy, config.rollout, config.camera)
        return Rollouts(pool, config.supervision.rollout_timeout_s)

    def rewards(self, any_length: bool = False) -> Rewards:
        config, rewards = self.config, self.config.rewards
        arguments = rewards, config.camera, None if any_length else config.rollout.frames
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
        shape = BatchShape.of(learner, self.config.rollout)
        return Learner(ranks, shape, self.config.supervision.learner_timeout_s)

    def _pool(self, name: str, worker: type, *args: Any, calls_at_once: int = 1) -> RayPool:
        shape, threads = self.shapes[name], self.config.threads
        supervision = self.config.supervision
        family = self.config.rewards.pools.get(name)
        environment = family.env if family else ""

        def spawn(index: int) -> Any:
            remote: Any = ray.remote(worker)
            handle = remote.options(
                **worker_options(shape, self.placement, index),
                max_restarts=-1,
                max_concurrency=calls_at_once,
                runtime_env=runtime_environment(threads, environment),
            )
            return handle.remote(*args, self._device(name), threads)

        pool = RayPool(
            name,
            spawn,
            shape.workers,
            supervision.max_deaths,
            self.admission if family else None,
            calls_at_once,
            # As at a run's start: a scorer may take as long to start as a rollout worker a group.
            supervision.rollout_timeout_s,
        )
        self.pools.append(pool)
        return pool

    def _ranks(self) -> list[Any]:
        """Ranks on a meeting point of their own; they never restart one by one, since a process
        group does not heal."""
        config, shape, placement = self.config, self.shapes["learner"], self.placement
        guard = guard_active(config.learner, config.max_staleness)
        learner = config.learner.model_copy(update={"guard": guard})
        meeting_point, node = _rendezvous(shape, placement)
        # Where nothing is reserved, the first rank follows the port that was found for it.
        pinned = _on({"NodeID": node}) | {"label_selector": None}
        first = {} if placement.shares else pinned
        remote: Any = ray.remote(LearnerRank)
        return [
            remote.options(
                **worker_options(shape, placement, rank),
                **({} if rank else first),
                runtime_env=runtime_environment(config.threads),
            ).remote(
                rank,
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


def worker_options(shape: PoolShape, placement: Placement, index: int) -> dict[str, Any]:
    """Actor options: the worker's place in the layout; a worker that comes later takes what the
    cluster has of its type of GPU, or waits and is demand that an autoscaler sees."""
    where = placement.options(shape.name, index)
    if not where and shape.gpus and shape.gpu_type:
        where = {"label_selector": {TYPE_LABEL: shape.gpu_type}}
    return {"num_cpus": shape.cpus, "num_gpus": shape.gpus, **where}


def _rendezvous(shape: PoolShape, placement: Placement) -> tuple[str, str]:
    """A free TCP port on the node where rank 0 will live, and that node's id."""
    options = worker_options(shape, placement, 0)
    asked, waited_s = ray.remote(_free_address).options(**options).remote(), 0.0
    while not ray.wait([asked], timeout=OVERDUE_S)[0]:
        waited_s += OVERDUE_S
        log.warning("learner: rank 0 has waited %.0f min for a node", waited_s / 60)
    address, node = ray.get(asked)
    return f"tcp://{address}", node


def check_cluster(config: RunConfig) -> list[Finding]:
    """What `worldr1 doctor` finds on the connected cluster: every node looks at itself, and opens a
    connection to one that listens."""
    # First: an autoscaler's nodes come while it waits, and are looked at too.
    free = nodes_for(config, layout(config))
    nodes = [node for node in ray.nodes() if node["Alive"]]
    names = {n["NodeID"]: f"{n['NodeManagerHostname']}/{n['NodeID'][:6]}" for n in nodes}
    listener: Any = ray.remote(_Listener).options(num_cpus=0, **_on(nodes[0])).remote()
    look: Any = ray.remote(probe)
    clock: Any = ray.remote(_clock)
    folder, sign = RunFolder(absolute_url(config.run)), f".doctor-{uuid.uuid4().hex[:8]}"
    try:
        try:
            folder.write_bytes(sign, b"coordinator")
        except Exception:  # the nodes, which try to write too, report what is wrong
            sign = ""
        request = probe_request(config, ray.get(listener.address.remote()), sign)
        asked = [look.options(num_cpus=0, **_on(node)).remote(request) for node in nodes]
        reports: list[NodeReport] = []
        clocks: list[tuple[float, float]] = []
        for node, answer in zip(nodes, asked, strict=True):
            report = ray.get(answer)
            # Asked again for the time alone: looking takes longer than a clock may be off.
            before = time.time()
            there = ray.get(clock.options(num_cpus=0, **_on(node)).remote())
            clocks.append((before, time.time()))
            reports.append(replace(report, node=names[node["NodeID"]], time=there))
    finally:
        ray.kill(listener)
        if sign:
            with contextlib.suppress(Exception):
                folder.remove(sign)
    facts = ClusterFacts(
        tuple(replace(node, name=names.get(node.name, node.name)) for node in free),
        ray.get_runtime_context().gcs_address,
        ray.__version__,
        platform.python_version(),
        tuple(clocks),
    )
    return diagnose(config, reports, facts)


class _Listener:
    """A TCP port of its node that accepts connections."""

    def __init__(self) -> None:
        host = ray.util.get_node_ip_address()
        self._server = socket.create_server((host, 0), backlog=4096)

    def address(self) -> str:
        """host:port"""
        host, port = self._server.getsockname()[:2]
        return f"{host}:{port}"


def _clock() -> float:
    return time.time()


def _on(node: dict[str, Any]) -> dict[str, Any]:
    """Options of an actor or task that runs on that node."""
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)}


def _free_address() -> tuple[str, str]:
    host = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}", ray.get_runtime_context().get_node_id()
