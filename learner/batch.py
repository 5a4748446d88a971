"""Scored groups in, micro-batches per rank out. Pure: tables in, tables out.

Members of a group that share their ODE prefix meet the window's first step in one and the same
state: there the network's output is the same for all of them, and is computed once.

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

from actors.config import RolloutConfig
from learner.config import LearnerConfig
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
class BatchShape:
    """How a batch is cut into forward passes."""

    micro_batch: int
    """States in a forward pass."""
    updates: int
    """Optimizer updates of a batch."""
    window: int
    """Window steps of a trajectory."""
    shared_prefix: bool
    """Whether members of a group have the state before their first window step in common."""

    @classmethod
    def of(cls, learner: LearnerConfig, rollout: RolloutConfig) -> BatchShape:
        """That of a run."""
        return cls(
            learner.micro_batch,
            learner.updates_per_batch,
            rollout.window_size,
            rollout.shared_prefix,
        )


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Trajectories that share a forward pass, at each of some window steps in turn."""

    indices: tuple[int, ...]
    """Positions in the flat list of trajectories."""
    weights: tuple[float, ...]
    """Weight of each trajectory in the loss; over an update's ranks and each window step they sum
    to 1; 0 is padding."""
    steps: tuple[int, ...]
    """Window steps."""
    sharing: tuple[int, ...]
    """How many trajectories, one after another, have each state of the forward pass in common; 1
    where each has its own."""


@dataclass(frozen=True, slots=True)
class RankPlan:
    """One rank's part of a batch; all ranks have equally many forward passes."""

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
    groups: Sequence[ScoredGroup], ranks: int, shape: BatchShape
) -> tuple[RankPlan, ...]:
    """Split a batch over ranks, updates and forward passes; one plan per rank.

    Update u takes every `updates`-th trainable trajectory from u on, so that every update sees
    every group. A rank takes a contiguous share of it. Every trajectory weighs 1 / (trajectories
    of the update), whatever the number of ranks: the sum over all ranks is the mean over members,
    so that one rank and N ranks have the same loss and gradient. Ranks with a smaller share, or
    fewer groups in it, repeat a trajectory at weight 0, because a collective needs every rank in
    every forward pass.

    Groups of equal rewards are left out (no surrogate, no KL). An update without any trajectory
    has no micro-batches. Raises ValueError for unsorted groups or counts below 1.
    """
    keys = flat_keys(groups)
    counts = {"ranks": ranks, "micro_batch": shape.micro_batch, "updates": shape.updates}
    for name, value in {**counts, "window": shape.window}.items():
        if value < 1:
            raise ValueError(f"{name} = {value}; it must be at least 1")
    kept, group_of = trainable_indices(groups), [group for group, _ in keys]
    by_update = [
        _plan_update(kept[u :: shape.updates], group_of, ranks, shape) for u in range(shape.updates)
    ]
    plans = []
    for rank in range(ranks):
        own = tuple(update[rank] for update in by_update)
        samples = {i for update in own for micro in update for i in micro.indices}
        plans.append(RankPlan(tuple(sorted(samples)), own))
    return tuple(plans)


Row = tuple[int, float]
"""A trajectory's position in the flat list, and its weight."""


def _plan_update(
    indices: tuple[int, ...], group_of: Sequence[int], ranks: int, shape: BatchShape
) -> list[tuple[MicroBatch, ...]]:
    """Each rank's micro-batches of one update."""
    if not indices:
        return [()] * ranks
    shares = _shares(indices, ranks)
    first = [_by_group(share, group_of) if shape.shared_prefix else [] for share in shares]
    passes = max(math.ceil(len(states) / shape.micro_batch) for states in first)
    own_steps = tuple(range(shape.shared_prefix, shape.window))
    plan = []
    for share, states in zip(shares, first, strict=True):
        micros = [_micro_batch(chunk, (0,)) for chunk in _chunks(states, shape.micro_batch)]
        idle = _micro_batch([[(share[0][0], 0.0)]], (0,))
        micros += [idle] * (passes - len(micros))
        if own_steps:
            alone = [[row] for row in share]
            micros += [_micro_batch(c, own_steps) for c in _chunks(alone, shape.micro_batch)]
        plan.append(tuple(micros))
    return plan


def _shares(indices: tuple[int, ...], ranks: int) -> list[list[Row]]:
    """Each rank's contiguous share, padded to the same length at weight 0."""
    length = math.ceil(len(indices) / ranks)
    base, extra = divmod(len(indices), ranks)
    shares, start = [], 0
    for rank in range(ranks):
        own = indices[start : start + base + (rank < extra)]
        start += len(own)
        rows = [(index, 1.0 / len(indices)) for index in own]
        shares.append(rows + [(own[0] if own else indices[0], 0.0)] * (length - len(own)))
    return shares


def _by_group(share: Sequence[Row], group_of: Sequence[int]) -> list[list[Row]]:
    """Rows of the same group together, in the order of the share."""
    found: dict[int, list[Row]] = {}
    for row in share:
        found.setdefault(group_of[row[0]], []).append(row)
    return list(found.values())


def _micro_batch(states: Sequence[Sequence[Row]], steps: tuple[int, ...]) -> MicroBatch:
    """One forward pass of `states`, each with the trajectories that have it in common."""
    rows = [row for state in states for row in state]
    return MicroBatch(
        indices=tuple(index for index, _ in rows),
        weights=tuple(weight for _, weight in rows),
        steps=steps,
        sharing=tuple(len(state) for state in states),
    )


def _chunks(states: list[list[Row]], size: int) -> list[list[list[Row]]]:
    return [states[i : i + size] for i in range(0, len(states), size)]
