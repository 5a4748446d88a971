"""Which workers go to which node: tables in, tables out, without Ray and without torch.

A layout is one share per node that is used: the workers of every pool that live there and what they
book together. `cluster/placement.py` reserves exactly these shares, all of them or none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cluster.config import RunConfig, RunStopped

REWARD_POOLS = ("reconstruction", "judge", "aesthetic")
"""In the order in which their workers are spawned."""
TINY = 1e-6
"""Ray counts resources in ten-thousandths."""


class PlacementError(RunStopped):
    """The cluster cannot hold the run's pools."""

    advice = (
        "`worldr1 plan PRESET --gpus N` says how the pools fit the GPUs that are there; another "
        "run may hold some of them"
    )


@dataclass(frozen=True, slots=True)
class PoolShape:
    """Demand of one pool: `workers` times (cpus, gpus) on one node each."""

    name: str
    workers: int
    cpus: float
    gpus: float
    strategy: Literal["PACK", "SPREAD"]
    """Learner ranks talk all the time and are packed on as few nodes as possible, which have one
    type of GPU; the others are spread."""
    gpu_type: str = ""
    """Type of GPU as Ray names it, e.g. H100; empty: any."""

    def bundle(self) -> dict[str, float]:
        """Resources of one worker as Ray counts them."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}


@dataclass(frozen=True, slots=True)
class Node:
    """What a node has free."""

    name: str
    cpus: float
    gpus: float = 0
    gpu_type: str = ""


@dataclass(frozen=True, slots=True)
class Share:
    """What a run takes of one node."""

    node: str
    workers: Mapping[str, int]
    """Workers by pool, only pools that are there."""
    cpus: float
    gpus: float
    """Whole GPUs: those that fractional workers share count once."""
    gpu_type: str = ""

    def bundle(self) -> dict[str, float]:
        """Resources as Ray counts them."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}


def layout(config: RunConfig) -> tuple[PoolShape, ...]:
    """The pools of a run, in the order in which their workers are spawned."""
    rollout, learner, rewards = config.rollout, config.learner, config.rewards
    types = config.placement
    shapes = [
        PoolShape(
            "rollout",
            rollout.workers,
            rollout.cpus_per_worker,
            rollout.gpus_per_worker,
            "SPREAD",
            types.rollout_gpu,
        ),
        PoolShape(
            "learner",
            learner.ranks,
            learner.cpus_per_rank,
            learner.gpus_per_rank,
            "PACK",
            types.learner_gpu,
        ),
    ]
    for name in REWARD_POOLS:
        family = getattr(rewards, name)
        shapes.append(
            PoolShape(
                name, family.min_workers, family.cpus, family.gpus, "SPREAD", types.reward_gpu
            )
        )
    return tuple(shapes)


def missing(shapes: Sequence[PoolShape], resources: Mapping[str, float]) -> str | None:
    """One sentence when the cluster's total resources cannot hold the pools."""
    for kind in ("GPU", "CPU"):
        needed = sum(shape.workers * shape.bundle().get(kind, 0.0) for shape in shapes)
        there = resources.get(kind, 0.0)
        if needed > there + TINY:
            detail = ", ".join(
                f"{shape.name} {shape.workers} x {shape.bundle()[kind]:g}"
                for shape in shapes
                if shape.bundle().get(kind)
            )
            return f"the run needs {needed:g} {kind}s ({detail}), the cluster has {there:g} free"
    return None


@dataclass(slots=True)
class _Room:
    """A node while workers are put on it."""

    node: Node
    cpus: float
    free: list[float] = field(default_factory=list)
    """Free share of each GPU."""
    workers: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, node: Node) -> _Room:
        return cls(node, node.cpus, [1.0] * int(node.gpus + TINY))

    def capacity(self, shape: PoolShape) -> int:
        """Workers of a pool that fit beside what is there."""
        if shape.gpu_type and shape.gpus and self.node.gpu_type != shape.gpu_type:
            return 0
        by_cpu = math.floor((self.cpus + TINY) / shape.cpus)
        if not shape.gpus:
            return by_cpu
        if shape.gpus < 1:
            return min(by_cpu, sum(math.floor((f + TINY) / shape.gpus) for f in self.free))
        whole = sum(f > 1 - TINY for f in self.free)
        return min(by_cpu, math.floor((whole + TINY) / shape.gpus))

    def fills_a_gap(self, shape: PoolShape) -> bool:
        """Whether a fractional worker fits on a GPU that another one has opened."""
        return any(shape.gpus - TINY <= f <= 1 - TINY for f in self.free)

    def put(self, shape: PoolShape) -> None:
        """Place one worker, a fractional one on the fullest GPU that holds it, as Ray does."""
        self.cpus -= shape.cpus
        self.workers[shape.name] = self.workers.get(shape.name, 0) + 1
        if 0 < shape.gpus < 1:
            best = min((f, i) for i, f in enumerate(self.free) if f >= shape.gpus - TINY)[1]
            self.free[best] -= shape.gpus
        elif shape.gpus:
            whole = [i for i, f in enumerate(self.free) if f > 1 - TINY][: round(shape.gpus)]
            for index in whole:
                self.free[index] = 0.0

    def share(self, order: Sequence[str]) -> Share:
        return Share(
            self.node.name,
            {name: self.workers[name] for name in order if name in self.workers},
            round(self.node.cpus - self.cpus, 4),
            float(sum(f < 1 - TINY for f in self.free)),
            self.node.gpu_type,
        )


def assign(shapes: Sequence[PoolShape], nodes: Sequence[Node]) -> tuple[Share, ...]:
    """Put every worker on a node, or raise PlacementError in one sentence.

    The learner comes first, on as few nodes as possible and on one type of GPU. The other pools
    follow from the largest worker to the smallest, each spread evenly; workers that take a part of
    a GPU fill one before they open the next.
    """
    total = {"CPU": sum(n.cpus for n in nodes), "GPU": sum(n.gpus for n in nodes)}
    if (reason := missing(shapes, total)) is not None:
        raise PlacementError(reason)
    rooms = [_Room.of(node) for node in nodes]
    packed = [shape for shape in shapes if shape.strategy == "PACK"]
    spread = [shape for shape in shapes if shape.strategy == "SPREAD"]
    for shape in packed:
        _pack(shape, rooms)
    for shape in sorted(spread, key=lambda s: (-s.gpus, -s.cpus)):
        for index in range(shape.workers):
            _spread_one(shape, index, rooms)
    order = [shape.name for shape in shapes]
    return tuple(room.share(order) for room in rooms if room.workers)


def _pack(shape: PoolShape, rooms: Sequence[_Room]) -> None:
    """All workers of a pool on as few nodes of one type as possible; the last node is the tightest
    one that holds the rest."""
    types = sorted({room.node.gpu_type for room in rooms}) if shape.gpus else [None]
    choices = []
    for kind in types:
        fitting = [r for r in rooms if kind is None or r.node.gpu_type == kind]
        fitting = sorted(
            (r for r in fitting if r.capacity(shape)), key=lambda r: r.capacity(shape), reverse=True
        )
        left, chosen = shape.workers, []
        while left > 0 and fitting:
            enough = [r for r in fitting if r.capacity(shape) >= left]
            room = min(enough, key=lambda r: r.capacity(shape)) if enough else fitting[0]
            chosen.append((room, min(left, room.capacity(shape))))
            fitting.remove(room)
            left -= chosen[-1][1]
        if left <= 0:
            choices.append(chosen)
    if not choices:
        raise PlacementError(_cannot_pack(shape, rooms))
    for room, count in min(choices, key=len):
        for _ in range(count):
            room.put(shape)


def _cannot_pack(shape: PoolShape, rooms: Sequence[_Room]) -> str:
    kinds: dict[str, int] = {}
    for room in rooms:
        name = room.node.gpu_type or "nodes without a named type"
        kinds[name] = kinds.get(name, 0) + room.capacity(shape)
    wanted = f" of type {shape.gpu_type}" if shape.gpu_type else ""
    there = ", ".join(f"{name}: {count}" for name, count in sorted(kinds.items()))
    return (
        f"the {shape.workers} workers of pool {shape.name!r} need {_demand(shape)} each, all on "
        f"one type of GPU{wanted}; so many fit: {there}"
    )


def _spread_one(shape: PoolShape, index: int, rooms: Sequence[_Room]) -> None:
    fitting = [room for room in rooms if room.capacity(shape)]
    if not fitting:
        kinds = sorted({room.node.gpu_type or "unnamed" for room in rooms})
        wanted = f" of type {shape.gpu_type} (there are: {', '.join(kinds)})"
        most = max((sum(f > 1 - TINY for f in room.free) for room in rooms), default=0)
        raise PlacementError(
            f"worker {index + 1} of {shape.workers} of pool {shape.name!r} needs {_demand(shape)}"
            f"{wanted if shape.gpu_type else ''} on one node; after the other pools no node has "
            f"that left: at most {most} whole GPUs and {max(r.cpus for r in rooms):g} CPUs"
        )
    partial = 0 < shape.gpus < 1
    best = min(
        fitting,
        key=lambda room: (
            partial and not room.fills_a_gap(shape),
            room.workers.get(shape.name, 0),
            -sum(room.free) if shape.gpus else -room.cpus,
        ),
    )
    best.put(shape)


def _demand(shape: PoolShape) -> str:
    gpus = f"{shape.gpus:g} GPUs and " if shape.gpus else ""
    return f"{gpus}{shape.cpus:g} CPUs"


def bundle_indices(shares: Sequence[Share], pool: str) -> tuple[int, ...]:
    """Index of the share in which each worker of a pool lives, in the order of the workers."""
    return tuple(
        index for index, share in enumerate(shares) for _ in range(share.workers.get(pool, 0))
    )


def describe(shares: Sequence[Share]) -> list[str]:
    """One line a node, for people; nodes that hold the same are one line."""
    seen: dict[str, list[str]] = {}
    for share in shares:
        workers = ", ".join(f"{name} {count}" for name, count in share.workers.items())
        kind = f" {share.gpu_type}" if share.gpu_type else ""
        text = f"{share.gpus:g}{kind} GPUs, {share.cpus:g} CPUs: {workers}"
        seen.setdefault(text, []).append(share.node)
    return [f"{len(names)} x {text}" for text, names in seen.items()]
