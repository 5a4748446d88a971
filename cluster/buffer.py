"""Group completion as a pure object: scored samples in, batches for the learner out.

Decides how many groups may be under way, which groups train, which are dropped for having no
gradient or for being stale, and which are rolled out again because too many of their members could
not be scored. Counts everything it does not pass on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from actors.trajectory import WeightsVersion
from cluster.config import RunStopped
from cluster.versions import Lineages
from learner.batch import ScoredGroup
from learner.schedule import Phase

Rejection = Literal["no_gradient", "too_few_scored", "quarantined", "stale", "orphaned"]
Verdict = Literal["train", "no_gradient", "too_few_scored", "quarantined"]

REJECTIONS: dict[Rejection, str] = {
    "no_gradient": "all their rewards were equal",
    "too_few_scored": "too few members could be scored",
    "quarantined": "rolling them out killed worker after worker",
    "stale": "the weights were too far ahead of them",
    "orphaned": "the weights they were drawn from are no ancestor of the current ones",
}
"""Why a group does not train."""


class NoProgressError(RunStopped):
    """So many groups were rejected that the step cannot be filled."""

    advice = "mend what it names, then start the same command again"


@dataclass(frozen=True, slots=True)
class MemberReward:
    """A member's total, and its parts without their weights."""

    member: int
    total: float | None
    """None where a scorer failed."""
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    """Why there is no total, where no scorer is to blame."""


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


@dataclass(frozen=True, slots=True)
class ReadyGroup:
    """A group that can train, and the weights that it was drawn from."""

    group: ScoredGroup
    phase: Phase
    version: WeightsVersion


@dataclass(frozen=True, slots=True)
class Expired:
    """A scored group that may no longer train."""

    ready: ReadyGroup
    reason: Literal["stale", "orphaned"]
    """Older than max_staleness, or drawn from weights that are no ancestor of the current ones."""


class GroupBuffer:
    """Groups between prompts and learner: how many may be there, and which make the next batch.

    A group is open from its issue until it is rejected or its batch has been published, and at most
    (max_staleness + 1) batches of groups are open. So with max_staleness 0 nothing is rolled out
    while the learner works, and otherwise at most max_staleness batches are rolled out ahead of it.
    """

    def __init__(
        self, per_step: int, max_staleness: int = 0, max_rejected: int | None = None
    ) -> None:
        """`per_step` groups make a batch; over `max_rejected` (4 x per_step + 16) groups rejected
        for one batch stop the run."""
        self.per_step = per_step
        self.max_staleness = max_staleness
        self.max_rejected = 4 * per_step + 16 if max_rejected is None else max_rejected
        self._open: dict[int, Phase] = {}
        self._ready: dict[int, ReadyGroup] = {}
        self._training: tuple[int, ...] = ()
        self._clear()

    def _clear(self) -> None:
        self.rejected: dict[Rejection, int] = dict.fromkeys(REJECTIONS, 0)
        self.failed_members = 0

    @property
    def capacity(self) -> int:
        """Groups that may be open at once."""
        return (self.max_staleness + 1) * self.per_step

    @property
    def open(self) -> int:
        """Groups issued, and neither rejected nor published."""
        return len(self._open)

    @property
    def room(self) -> int:
        """Groups that may be issued at this moment."""
        return self.capacity - len(self._open)

    def wanted(self, phases: Sequence[Phase]) -> Phase | None:
        """Phase of the next group to issue, or None where every step has its groups.

        `phases`: of the step whose weights are published, or made at present, and of the next
        max_staleness steps. Groups are only ever issued for one of these steps, so that those of a
        phase that is over cannot fill the buffer.
        """
        supply = Counter(self._open.values())
        for phase in phases[: self.max_staleness + 1]:
            supply[phase] -= self.per_step
            if supply[phase] < 0:
                return phase
        return None

    def issue(self, serial: int, phase: Phase) -> None:
        """A group was issued. ValueError without room, or for a serial that is open."""
        if self.room < 1:
            raise ValueError(f"group {serial} does not fit: {self.open} groups are open")
        if serial in self._open:
            raise ValueError(f"group {serial} was issued twice")
        self._open[serial] = phase

    def restore(self, ready: ReadyGroup) -> None:
        """A group that was scored before the run was stopped."""
        self.issue(ready.group.group, ready.phase)
        self._ready[ready.group.group] = ready

    def add(self, decision: GroupDecision, version: WeightsVersion) -> bool:
        """Take a decision on an open group; True when a replacement has to be issued for it.

        Raises NoProgressError past `max_rejected`, ValueError for a group that is not awaited.
        """
        if decision.serial not in self._open or decision.serial in self._ready:
            raise ValueError(f"group {decision.serial} was completed twice or never issued")
        self.failed_members += decision.failed
        if decision.group is not None:
            phase = self._open[decision.serial]
            self._ready[decision.serial] = ReadyGroup(decision.group, phase, version)
            return False
        assert decision.verdict != "train"
        self.reject(decision.serial, decision.verdict)
        return True

    def reject(self, serial: int, reason: Rejection) -> None:
        """Close an open group that will not train. Raises NoProgressError past `max_rejected`."""
        del self._open[serial]
        self._ready.pop(serial, None)
        self.rejected[reason] += 1
        # A recovery of the learner may orphan all groups there are, and no scorer is to blame.
        if sum(self.rejected.values()) - self.rejected["orphaned"] > self.max_rejected:
            counts = ", ".join(
                f"{count} because {REJECTIONS[name]}"
                for name, count in self.rejected.items()
                if count
            )
            raise NoProgressError(
                f"{sum(self.rejected.values())} groups of one step were rejected ({counts}) "
                f"while only {len(self._ready)} of {self.per_step} can train"
            )

    def expire(self, step: int, lineages: Lineages) -> list[Expired]:
        """Close and return the scored groups that step `step` could not train on any more, in the
        order of their serials."""
        found: list[Expired] = []
        for serial in sorted(self._ready):
            age = lineages.age(self._ready[serial].version, step)
            if age is not None and age <= self.max_staleness:
                continue
            expired = Expired(self._ready[serial], "orphaned" if age is None else "stale")
            self.reject(serial, expired.reason)
            found.append(expired)
        return found

    def ready(self, phase: Phase) -> bool:
        """Whether a batch of the phase is complete."""
        return sum(r.phase == phase for r in self._ready.values()) >= self.per_step

    def take(self, phase: Phase) -> tuple[ReadyGroup, ...]:
        """The batch: the oldest groups of the phase, in the order of serial numbers, whatever came
        first. They stay open until `published`, and counts begin anew. ValueError before it is
        complete, or while the one before is training."""
        if self._training:
            raise ValueError("the batch before is training; publish its weights first")
        if not self.ready(phase):
            found = sum(r.phase == phase for r in self._ready.values())
            raise ValueError(f"only {found} of {self.per_step} groups are complete")
        serials = [s for s in sorted(self._ready) if self._ready[s].phase == phase]
        self._training = tuple(serials[: self.per_step])
        self._clear()  # what is rejected from now on is counted with the next batch
        return tuple(self._ready.pop(serial) for serial in self._training)

    def published(self) -> None:
        """The weights made from the batch in training are out: its groups are closed."""
        for serial in self._training:
            del self._open[serial]
        self._training = ()

    def waiting(self) -> tuple[ReadyGroup, ...]:
        """Scored groups that no batch has taken, in the order of serial numbers."""
        return tuple(self._ready[serial] for serial in sorted(self._ready))
