"""Ray: connecting, spawning the workers as actors, calling them, shutting them down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OwnerDiedError,
    RayTaskError,
)
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.worker import RolloutWorker
from cluster.config import LOOPBACK, RunConfig, resolve_model
from cluster.placement import PoolShape, layout, place, release
from cluster.pools import Learner, Rewards, Rollouts, WorkerLost, Workers
from learner.rank import LearnerRank
from rewards.worker import AestheticWorker, JudgeWorker, ReconstructionWorker

MAX_DEATHS = 3
"""A call that was in flight at this many worker deaths is given up."""

MAX_TASK_RETRIES = 2
"""Ray's own retries of a call whose actor died; the actor is restarted for them."""


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables that pin every maths library of a process to some threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def connect() -> None:
    """Join the cluster of RAY_ADDRESS (set inside a Ray job), else start one on this machine.

    A cluster started here listens on loopback, has no dashboard and gets Ray's own token
    authentication; for an existing one, RAY_AUTH_MODE and its token are the user's to set.
    """
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=True, logging_level=logging.WARNING)
    else:
        ray.init(
            include_dashboard=False,
            logging_level=logging.WARNING,
            _node_ip_address=LOOPBACK,
        )


class RayPool:
    """Actors of one class; a free one takes the next call."""

    def __init__(self, name: str, actors: Sequence[Any]) -> None:
        self.name = name
        self.actors = tuple(actors)
        self._idle: asyncio.Queue[Any] = asyncio.Queue()
        for actor in self.actors:
            self._idle.put_nowait(actor)

    @property
    def size(self) -> int:
        """Actors in the pool."""
        return len(self.actors)

    async def call(
        self, method: str, *args: Any, returns: int = 1, timeout_s: float | None = None
    ) -> Any:
        """See `cluster.pools.Pool.call`. A worker that is too slow is killed and restarted."""
        for _ in range(MAX_DEATHS):
            actor = await self._idle.get()
            try:
                return await asyncio.wait_for(_invoke(actor, method, args, returns), timeout_s)
            except (ActorDiedError, ActorUnavailableError, OwnerDiedError) as error:
                lost = error
            except (TimeoutError, asyncio.CancelledError):
                ray.kill(actor, no_restart=False)
                raise
            finally:
                self._idle.put_nowait(actor)
        raise WorkerLost(
            f"{self.name}.{method} was given up: {MAX_DEATHS} workers died while they ran it; "
            f"the last one because: {str(lost).splitlines()[0]}"
        )

    async def call_all(
        self, method: str, arguments: Sequence[tuple[Any, ...]], returns: int = 1
    ) -> list[Any]:
        """See `cluster.pools.Pool.call_all`."""
        calls = zip(self.actors, arguments, strict=True)
        try:
            return list(
                await asyncio.gather(*(_invoke(actor, method, a, returns) for actor, a in calls))
            )
        except (ActorDiedError, ActorUnavailableError, OwnerDiedError) as error:
            raise WorkerLost(
                f"a {self.name} worker died in {method}: {str(error).splitlines()[0]} "
                "Start the same command again to go on from the newest checkpoint."
            ) from error

    async def fetch(self, ref: Any) -> Any:
        """See `cluster.pools.Pool.fetch`."""
        return await ref


async def _invoke(actor: Any, method: str, args: tuple[Any, ...], returns: int) -> Any:
    refs = getattr(actor, method).options(num_returns=returns).remote(*args)
    try:
        if returns == 1:
            return await refs
        return (await refs[0], *refs[1:])
    except RayTaskError as error:
        # What the method raised, as under --local; the remote traceback stays attached.
        raise error.cause from error


@contextlib.contextmanager
def ray_workers(config: RunConfig) -> Iterator[Workers]:
    """Spawn every pool of a run on the connected cluster; all are gone when the block ends."""
    groups = place(config)
    spawned: list[Any] = []
    try:
        yield _spawn_all(config, groups, spawned)
    finally:
        for actor in spawned:
            ray.kill(actor)
        release(groups)


def _spawn_all(
    config: RunConfig, groups: dict[str, PlacementGroup | None], spawned: list[Any]
) -> Workers:
    policy = config.policy.model_copy(update={"model": resolve_model(config.policy.model)})
    shapes = {shape.name: shape for shape in layout(config)}
    environment = {"env_vars": thread_environment(config.threads)}

    def spawn(name: str, worker: type, *args: Any, per_rank: bool = False) -> RayPool:
        shape, actors = shapes[name], list[Any]()
        for index in range(shape.workers):
            options = _options(shape, groups[name], index, restart=not per_rank)
            head = (index, shape.workers) if per_rank else ()
            remote: Any = ray.remote(worker)
            handle = remote.options(**options, runtime_env=environment).remote(*head, *args)
            actors.append(handle)
            spawned.append(actors[-1])
        return RayPool(name, actors)

    def device(name: str) -> str:
        return "cuda" if shapes[name].gpus else "cpu"

    threads = config.threads
    meeting_point = _rendezvous(shapes["learner"], groups["learner"])
    return Workers(
        rollouts=Rollouts(
            spawn(
                "rollout",
                RolloutWorker,
                policy,
                config.rollout,
                config.camera,
                device("rollout"),
                threads,
            )
        ),
        learner=Learner(
            spawn(
                "learner",
                LearnerRank,
                policy,
                config.learner,
                config.rollout,
                config.seed,
                meeting_point,
                device("learner"),
                threads,
                per_rank=True,
            ),
            config.learner.micro_batch,
            config.learner.updates_per_batch,
        ),
        rewards=Rewards(
            spawn(
                "reconstruction",
                ReconstructionWorker,
                config.rewards,
                config.camera,
                config.rollout.frames,
                device("reconstruction"),
                threads,
            ),
            spawn("judge", JudgeWorker, config.rewards, device("judge"), threads),
            spawn("aesthetic", AestheticWorker, config.rewards, device("aesthetic"), threads),
            config.rewards,
        ),
    )


def _options(
    shape: PoolShape, group: PlacementGroup | None, index: int, restart: bool
) -> dict[str, Any]:
    """Actor options: reward and rollout workers restart, learner ranks never do (their process
    group does not heal)."""
    options: dict[str, Any] = {
        "num_cpus": shape.cpus,
        "num_gpus": shape.gpus,
        "max_restarts": -1 if restart else 0,
        "max_task_retries": MAX_TASK_RETRIES if restart else 0,
    }
    if group is not None:
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
