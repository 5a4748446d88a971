"""Reserving a run's layout on the connected cluster: all of it or none.

One placement group holds the whole run; a bundle is a run's share of one node, and bundles lie on
different nodes while there are enough. So the reservation is what `cluster.layout.assign` decided:
groups for each pool would leave it to Ray how they meet on a node, where the last pool may not fit.
A bundle whose node dies is placed again on any node that holds it, beside another one if need be.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.config import RunConfig
from cluster.layout import Node, PlacementError, PoolShape, Share, assign, bundle_indices

TYPE_LABEL = "ray.io/accelerator-type"
"""Label that Ray gives a node with GPUs."""
POLL_S = 1.0
SETTLE_S = 10.0
"""How long resources that another run held may take to come back."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A run's reservation; without one Ray decides where workers go."""

    shares: tuple[Share, ...] = ()
    group: PlacementGroup | None = None

    def options(self, pool: str, index: int) -> dict[str, Any]:
        """Actor options that put worker `index` of a pool where the layout wants it; empty for a
        worker beyond the layout, which takes what the cluster has left."""
        indices = bundle_indices(self.shares, pool)
        if self.group is None or index >= len(indices):
            return {}
        strategy = PlacementGroupSchedulingStrategy(
            placement_group=self.group, placement_group_bundle_index=indices[index]
        )
        return {"scheduling_strategy": strategy}

    def nodes(self) -> tuple[str, ...]:
        """Id of the node of every share, as Ray has placed it."""
        if self.group is None:
            return ()
        table = placement_group_table(self.group)["bundles_to_node_id"]
        return tuple(str(table[index]) for index in range(len(self.shares)))

    def release(self) -> None:
        """Give the reservation back."""
        if self.group is not None:
            remove_placement_group(self.group)


def free_nodes() -> tuple[Node, ...]:
    """What every living node of the cluster has free, by id, largest first."""
    from ray._private.state import available_resources_per_node

    return _nodes(available_resources_per_node())


def all_nodes() -> tuple[Node, ...]:
    """What every living node has in all."""
    return _nodes({entry["NodeID"]: entry["Resources"] for entry in ray.nodes()})


def _nodes(resources: Mapping[str, Mapping[str, float]]) -> tuple[Node, ...]:
    nodes = []
    for entry in ray.nodes():
        if entry["Alive"]:
            here = resources.get(entry["NodeID"], {})
            kind = entry["Labels"].get(TYPE_LABEL) or _type_by_resource(entry["Resources"])
            nodes.append(Node(entry["NodeID"], here.get("CPU", 0.0), here.get("GPU", 0.0), kind))
    return tuple(sorted(nodes, key=lambda n: (-n.gpus, -n.cpus, n.name)))


def _type_by_resource(resources: Mapping[str, float]) -> str:
    prefix = "accelerator_type:"
    return next((name[len(prefix) :] for name in resources if name.startswith(prefix)), "")


def place(config: RunConfig, shapes: Sequence[PoolShape]) -> Placement:
    """Reserve a layout of pools; PlacementError where it does not fit or is not granted in time."""
    if config.placement.strategy == "none":
        return Placement()
    shares = assign(shapes, nodes_for(config, shapes))
    group = placement_group(
        [share.bundle() for share in shares],
        strategy="SPREAD",  # a strict one would never place the share of a lost node beside another
        name="worldr1",
        bundle_label_selector=_selectors(shares),
    )
    if not group.wait(config.placement.timeout_s):
        remove_placement_group(group)
        raise PlacementError(
            f"the run's {len(shares)} shares of nodes were not placed within "
            f"{config.placement.timeout_s:g} s; another run may have taken the resources meanwhile"
        )
    return Placement(shares, group)


def nodes_for(config: RunConfig, shapes: Sequence[PoolShape]) -> tuple[Node, ...]:
    """What the nodes have free, as soon as it holds the pools, or when waiting is over.

    Resources of a run that has just ended come back within seconds. With `placement.autoscaler`
    nodes that are missing are asked for and waited for.
    """
    patience_s = SETTLE_S
    if config.placement.autoscaler:
        patience_s = config.placement.timeout_s
        request_resources(bundles=[s.bundle() for s in shapes for _ in range(s.workers)])
    deadline = time.monotonic() + patience_s
    try:
        while True:
            free = free_nodes()
            hopeless = not config.placement.autoscaler and not _holds(shapes, all_nodes())
            if hopeless or _holds(shapes, free) or time.monotonic() > deadline:
                return free
            time.sleep(POLL_S)
    finally:
        if config.placement.autoscaler:
            # It stays until it is replaced, and would keep the nodes after the run. Until the
            # reservation is made they are idle for a moment, which no autoscaler ends at once.
            request_resources(bundles=[])


def _holds(shapes: Sequence[PoolShape], nodes: Sequence[Node]) -> bool:
    try:
        assign(shapes, nodes)
    except PlacementError:
        return False
    return True


def _selectors(shares: Sequence[Share]) -> list[dict[str, str]] | None:
    """Nodes of the right type, where there is more than one."""
    if len({share.gpu_type for share in shares}) < 2:
        return None
    return [{TYPE_LABEL: share.gpu_type} if share.gpu_type else {} for share in shares]
