"""Scored groups in, micro-batches per rank out. Pure: tables in, tables out.

Producer of a `ScoredGroup`: the coordinator's buffer, when every member of a group has a score or
is given up. Consumer: every learner rank (the metadata is small; the trajectories travel beside
it as a flat tuple, sorted by (group, member), of which a rank needs only its own share).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from learner.grpo import (
    batch_advantages,
    group_advantages,
    group_parts_advantages,
    has_gradient,
)


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """The scored members of one group (n <= G of them), sorted by member.

    Example: ScoredGroup(group=7, prompt_id="toy-3", members=(0, 1, 3), rewards=(1.4, 0.9, 1.1),
    parts={"recon": (0.8, 0.5, 0.6), "gen": (0.6, 0.4, 0.5)}, weights={"recon": 1.0, "gen": 1.0}).
    """

    group: int
    """Serial number of the group, unique in a run."""
    prompt_id: str
    members: tuple[int, ...]
    """Members that were scored, ascending."""
    rewards: tuple[float, ...]
    """Combined reward of each member."""
    parts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Reward parts, each aligned with `members`."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of each part in the combined reward."""

    def __post_init__(self) -> None:
        where = f"scored group {self.group}"
        if not self.members:
            raise ValueError(f"{where} has no members; at least one is needed")
        if any(a >= b for a, b in itertools.pairwise(self.members)):
            raise ValueError(f"{where}: members {self.members} are not strictly ascending")
        lengths = {"rewards": len(self.rewards)} | {k: len(v) for k, v in self.parts.items()}
        for name, length in lengths.items():
            if length != len(self.members):
                raise ValueError(
                    f"{where}: {name} has {length} values for {len(self.members)} members"
                )

    @property
    def keys(self) -> tuple[tuple[int, int], ...]:
        """(group, member) of every member, in order."""
        return tuple((self.group, member) for member in self.members)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Trajectories that share a forward pass, at each step of their windows in turn."""

    indices: tuple[int, ...]
    """Positions in the flat list of trajectories."""
    weights: tuple[float, ...]
    """Weight of each trajectory in the loss; over an update's ranks they sum to 1; 0 is padding."""


@dataclass(frozen=True, slots=True)
class RankPlan:
    """One rank's part of a batch; all ranks have equally many micro-batches of equal sizes."""

    samples: tuple[int, ...]
    """Positions in the flat list that the rank reads, ascending: all that is shipped to it."""
    updates: tuple[tuple[MicroBatch, ...], ...]
    """Micro-batches of each optimizer update."""


def flat_keys(groups: Sequence[ScoredGroup]) -> tuple[tuple[int, int], ...]:
    """(group, member) of every trajectory, in the order of the flat list.

    Raises ValueError unless the groups are strictly ascending by serial number: order of arrival
    must not change a sum.
    """
    for before, after in itertools.pairwise(groups):
        if before.group >= after.group:
            raise ValueError(
                f"scored groups are not strictly ascending: {before.group} before {after.group}"
            )
    return tuple(key for group in groups for key in group.keys)


def non_finite_reward(groups: Sequence[ScoredGroup]) -> str | None:
    """One sentence naming the first reward or part that is NaN or infinite, or None."""
    for group in groups:
        for name, values in [("reward", group.rewards), *sorted(group.parts.items())]:
            for member, value in zip(group.members, values, strict=True):
                if not math.isfinite(value):
                    return f"{name} of group {group.group} member {member} is {value}"
    return None


def advantages(
    groups: Sequence[ScoredGroup],
    kind: Literal["group", "batch", "group_parts"],
    clip: float,
) -> tuple[float, ...]:
    """Advantage of every trajectory, in the order of the flat list, computed in float64."""
    rewards = [torch.tensor(group.rewards, dtype=torch.float64) for group in groups]
    if kind == "batch":
        values = batch_advantages(rewards, clip)
    elif kind == "group":
        values = tuple(group_advantages(group, clip) for group in rewards)
    else:
        values = tuple(_parts_advantages(group, clip) for group in groups)
    return tuple(float(value) for group in values for value in group)


def _parts_advantages(group: ScoredGroup, clip: float) -> torch.Tensor:
    if not group.parts:
        raise ValueError(
            f"scored group {group.group} has no parts; learner.advantage = 'group_parts' needs them"
        )
    parts = {k: torch.tensor(v, dtype=torch.float64) for k, v in group.parts.items()}
    return group_parts_advantages(parts, group.weights, clip)


def trainable_indices(groups: Sequence[ScoredGroup]) -> tuple[int, ...]:
    """Positions in the flat list of the members of groups whose rewards are not all equal."""
    start = 0
    kept: list[int] = []
    for group in groups:
        if has_gradient(group.rewards):
            kept.extend(range(start, start + len(group.members)))
        start += len(group.members)
    return tuple(kept)


def update_keys(
    groups: Sequence[ScoredGroup], update: int, updates: int
) -> tuple[tuple[int, int], ...]:
    """(group, member) of the trajectories that one of a batch's updates trains on."""
    keys = flat_keys(groups)
    return tuple(keys[i] for i in trainable_indices(groups)[update::updates])


def plan_batch(
    groups: Sequence[ScoredGroup], ranks: int, micro_batch: int, updates: int
) -> tuple[RankPlan, ...]:
    """Split a batch over ranks, updates and forward passes; one plan per rank.

    Update u takes every `updates`-th trainable trajectory from u on, so that every update sees
    every group. A rank takes a contiguous share of it. Every trajectory weighs 1 / (trajectories
    of the update), whatever the number of ranks: the sum over all ranks is the mean over members,
    so that one rank and N ranks have the same loss and gradient. Ranks with a smaller share repeat
    a trajectory at weight 0, because a collective needs every rank in every forward pass.

    Groups of equal rewards are left out (no surrogate, no KL). An update without any trajectory
    has no micro-batches. Raises ValueError for unsorted groups or counts below 1.
    """
    flat_keys(groups)
    for name, value in {"ranks": ranks, "micro_batch": micro_batch, "updates": updates}.items():
        if value < 1:
            raise ValueError(f"{name} = {value}; it must be at least 1")
    kept = trainable_indices(groups)
    by_update = [_plan_update(kept[u::updates], ranks, micro_batch) for u in range(updates)]
    plans = []
    for rank in range(ranks):
        own = tuple(update[rank] for update in by_update)
        samples = {i for update in own for micro in update for i in micro.indices}
        plans.append(RankPlan(tuple(sorted(samples)), own))
    return tuple(plans)


def _plan_update(
    indices: tuple[int, ...], ranks: int, micro_batch: int
) -> list[tuple[MicroBatch, ...]]:
    """Each rank's micro-batches of one update."""
    if not indices:
        return [()] * ranks
    share = math.ceil(len(indices) / ranks)
    base, extra = divmod(len(indices), ranks)
    plan, start = [], 0
    for rank in range(ranks):
        own = indices[start : start + base + (rank < extra)]
        start += len(own)
        rows = [(index, 1.0 / len(indices)) for index in own]
        rows += [(own[0] if own else indices[0], 0.0)] * (share - len(own))
        chunks = [rows[i : i + micro_batch] for i in range(0, share, micro_batch)]
        plan.append(
            tuple(
                MicroBatch(tuple(i for i, _ in chunk), tuple(w for _, w in chunk))
                for chunk in chunks
            )
        )
    return plan
