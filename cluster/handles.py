"""Ray: connecting, spawning the workers as actors, calling them, shutting them down."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.worker import RolloutWorker
from cluster.config import LOOPBACK, RunConfig, resolve_model
from cluster.placement import PoolShape, layout, place, release
from cluster.pools import Learner, Rewards, Rollouts, Workers
from cluster.ray_pool import RayPool, RayRanks
from learner.rank import LearnerRank
from learner.schedule import guard_active
from rewards.worker import AestheticWorker, JudgeWorker, ReconstructionWorker

ADMISSION = "known_answers"
"""What a reward worker that joins a run must answer before it scores anything."""

LOG_BYTES, LOG_FILES = 64 << 20, 3
"""Ray's own logs are rotated at this size, and so many old ones kept."""


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables that pin every maths library of a process to some threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def connect() -> None:
    """Join the cluster of RAY_ADDRESS (set inside a Ray job), else start one on this machine.

    A cluster started here listens on loopback, has no dashboard and gets Ray's own token
    authentication; for an existing one, RAY_AUTH_MODE and its token are the user's to set.
    """
    os.environ.setdefault("RAY_ROTATION_MAX_BYTES", str(LOG_BYTES))
    os.environ.setdefault("RAY_ROTATION_BACKUP_COUNT", str(LOG_FILES))
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
    groups = place(config)
    pools: list[RayPool | RayRanks] = []
    try:
        yield _spawn_all(config, groups, pools)
    finally:
        for pool in pools:
            pool.close()
        release(groups)


def _spawn_all(
    config: RunConfig,
    groups: dict[str, PlacementGroup | None],
    pools: list[RayPool | RayRanks],
) -> Workers:
    policy = config.policy.model_copy(update={"model": resolve_model(config.policy.model)})
    shapes = {shape.name: shape for shape in layout(config)}
    environment = {"env_vars": thread_environment(config.threads)}
    threads, supervision = config.threads, config.supervision

    def device(name: str) -> str:
        return "cuda" if shapes[name].gpus else "cpu"

    def pool(name: str, worker: type, *args: Any, admission: str | None = None) -> RayPool:
        shape = shapes[name]

        def spawn(index: int) -> Any:
            options = _options(shape, groups[name], index)
            remote: Any = ray.remote(worker)
            handle = remote.options(**options, max_restarts=-1, runtime_env=environment)
            return handle.remote(*args, device(name), threads)

        pools.append(RayPool(name, spawn, shape.workers, supervision.max_deaths, admission))
        return pools[-1]  # type: ignore[return-value]

    def ranks() -> list[Any]:
        """Ranks on a meeting point of their own; they never restart one by one, since a process
        group does not heal."""
        shape, group = shapes["learner"], groups["learner"]
        guard = guard_active(config.learner, config.max_staleness)
        learner = config.learner.model_copy(update={"guard": guard})
        meeting_point = _rendezvous(shape, group)
        remote: Any = ray.remote(LearnerRank)
        return [
            remote.options(**_options(shape, group, rank), runtime_env=environment).remote(
                rank,
                shape.workers,
                policy,
                learner,
                config.rollout,
                config.seed,
                meeting_point,
                device("learner"),
                threads,
            )
            for rank in range(shape.workers)
        ]

    rollouts = pool("rollout", RolloutWorker, policy, config.rollout, config.camera)
    rewards = config.rewards
    learner = RayRanks("learner", ranks, straggler_s=config.learner.timeout_s)
    pools.append(learner)
    return Workers(
        rollouts=Rollouts(rollouts, supervision.rollout_timeout_s),
        learner=Learner(
            learner,
            config.learner.micro_batch,
            config.learner.updates_per_batch,
            supervision.learner_timeout_s,
        ),
        rewards=Rewards(
            pool(
                "reconstruction",
                ReconstructionWorker,
                rewards,
                config.camera,
                config.rollout.frames,
                admission=ADMISSION,
            ),
            pool("judge", JudgeWorker, rewards, admission=ADMISSION),
            pool("aesthetic", AestheticWorker, rewards, admission=ADMISSION),
            rewards,
        ),
    )


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
