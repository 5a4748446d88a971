"""How many workers of which size a run needs, and their placement on the cluster's nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from cluster.config import RunConfig, RunStopped


class PlacementError(RunStopped):
    """The cluster cannot hold the run's pools."""


@dataclass(frozen=True, slots=True)
class PoolShape:
    """Demand of one pool: `workers` bundles of (cpus, gpus)."""

    name: str
    workers: int
    cpus: float
    gpus: float
    strategy: Literal["PACK", "SPREAD"]
    """Learner ranks talk all the time and are packed; the others are spread."""

    def bundle(self) -> dict[str, float]:
        """Resources of one worker as Ray counts them."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}


def layout(config: RunConfig) -> tuple[PoolShape, ...]:
    """The pools of a run, in the order in which they are placed (pure)."""
    rollout, learner, rewards = config.rollout, config.learner, config.rewards
    shapes = [
        PoolShape("learner", learner.ranks, learner.cpus_per_rank, learner.gpus_per_rank, "PACK"),
        PoolShape(
            "rollout", rollout.workers, rollout.cpus_per_worker, rollout.gpus_per_worker, "SPREAD"
        ),
    ]
    for name in ("reconstruction", "judge", "aesthetic"):
        family = getattr(rewards, name)
        shapes.append(PoolShape(name, family.min_workers, family.cpus, family.gpus, "SPREAD"))
    return tuple(shapes)


def missing(shapes: Sequence[PoolShape], resources: Mapping[str, float]) -> str | None:
    """One sentence when the cluster's total resources cannot hold the pools (pure)."""
    for kind in ("CPU", "GPU"):
        needed = sum(shape.workers * shape.bundle().get(kind, 0.0) for shape in shapes)
        there = resources.get(kind, 0.0)
        if needed > there + 1e-9:
            detail = ", ".join(
                f"{shape.name} {shape.workers} x {shape.bundle()[kind]:g}"
                for shape in shapes
                if shape.bundle().get(kind)
            )
            return f"the run needs {needed:g} {kind}s ({detail}), the cluster has {there:g}"
    return None


def place(config: RunConfig, shapes: Sequence[PoolShape]) -> dict[str, PlacementGroup | None]:
    """Reserve a placement group per pool; PlacementError when they are not granted in time."""
    if config.placement.strategy == "none":
        return dict.fromkeys((shape.name for shape in shapes), None)
    if (reason := missing(shapes, ray.cluster_resources())) is not None:
        raise PlacementError(reason)
    groups: dict[str, PlacementGroup | None] = {}
    for shape in shapes:
        group = placement_group(
            [shape.bundle()] * shape.workers, strategy=shape.strategy, name=f"worldr1-{shape.name}"
        )
        groups[shape.name] = group
        if not group.wait(config.placement.timeout_s):
            release(groups)
            raise PlacementError(
                f"pool {shape.name!r} ({shape.workers} workers of {shape.bundle()}) was not placed "
                f"within {config.placement.timeout_s:g} s; another run may hold the resources"
            )
    return groups


def release(groups: Mapping[str, PlacementGroup | None]) -> None:
    """Give all reservations back."""
    for group in groups.values():
        if group is not None:
            remove_placement_group(group)
