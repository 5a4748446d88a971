"""Group completion as a pure object: scored samples in, batches for the learner out.

Decides which groups train, which are dropped for having no gradient and which are rolled out
again because too many of their members could not be scored. Counts everything it does not pass on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cluster.config import RunStopped
from learner.batch import ScoredGroup

Verdict = Literal["train", "no_gradient", "too_few_scored"]


class NoProgressError(RunStopped):
    """So many groups were rejected that the step cannot be filled."""


@dataclass(frozen=True, slots=True)
class MemberReward:
    """A member's total and parts; `total` is None where a scorer failed."""

    member: int
    total: float | None
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupDecision:
    """What became of a group; `group` is set only where the verdict is "train"."""

    verdict: Verdict
    serial: int
    scored: int
    """Members with a total."""
    failed: int
    """Members without."""
    group: ScoredGroup | None = None


def decide_group(
    serial: int,
    prompt_id: str,
    members: Sequence[MemberReward],
    part_weights: Mapping[str, float],
    min_group_size: int,
) -> GroupDecision:
    """Judge one rolled-out group (method section 4).

    A group trains with its scored members when there are at least `min_group_size` (and two) of
    them; when their totals are all exactly equal it carries no gradient and is dropped.
    """
    scored = sorted((m for m in members if m.total is not None), key=lambda m: m.member)
    failed = len(members) - len(scored)
    if len(scored) < max(2, min_group_size):
        return GroupDecision("too_few_scored", serial, len(scored), failed)
    totals = tuple(float(m.total) for m in scored if m.total is not None)
    if all(total == totals[0] for total in totals):
        return GroupDecision("no_gradient", serial, len(scored), failed)
    names = tuple(name for name in part_weights if all(name in m.parts for m in scored))
    group = ScoredGroup(
        group=serial,
        prompt_id=prompt_id,
        members=tuple(m.member for m in scored),
        rewards=totals,
        parts={name: tuple(m.parts[name] for m in scored) for name in names},
        weights={name: part_weights[name] for name in names},
    )
    return GroupDecision("train", serial, len(scored), failed, group)


class GroupBuffer:
    """Collects decisions until a batch is full; the batch is sorted, whatever came first."""

    def __init__(self, wanted: int, max_rejected: int | None = None) -> None:
        """`wanted` groups make a batch; over `max_rejected` (4 x wanted + 16) of them stop it."""
        self.wanted = wanted
        self.max_rejected = 4 * wanted + 16 if max_rejected is None else max_rejected
        self._ready: dict[int, ScoredGroup] = {}
        self.rejected: dict[str, int] = {"no_gradient": 0, "too_few_scored": 0}
        self.failed_members = 0

    def add(self, decision: GroupDecision) -> bool:
        """Take a decision; True when a replacement has to be issued for it.

        Raises NoProgressError past `max_rejected`, ValueError for a serial that came before.
        """
        self.failed_members += decision.failed
        if decision.group is not None:
            if decision.serial in self._ready:
                raise ValueError(f"group {decision.serial} was completed twice")
            self._ready[decision.serial] = decision.group
            return False
        self.rejected[decision.verdict] += 1
        if sum(self.rejected.values()) > self.max_rejected:
            raise NoProgressError(
                f"{sum(self.rejected.values())} groups of one step were rejected "
                f"({self.rejected['no_gradient']} because all their rewards were equal, "
                f"{self.rejected['too_few_scored']} because too few members could be scored) "
                f"while only {len(self._ready)} of {self.wanted} can train; look at the scorers"
            )
        return True

    @property
    def full(self) -> bool:
        """Whether a batch is complete."""
        return len(self._ready) >= self.wanted

    def take(self) -> tuple[ScoredGroup, ...]:
        """The batch in the order of serial numbers. ValueError before it is full."""
        if not self.full:
            raise ValueError(f"only {len(self._ready)} of {self.wanted} groups are complete")
        return tuple(self._ready[serial] for serial in sorted(self._ready)[: self.wanted])
