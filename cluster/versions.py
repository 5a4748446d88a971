"""Which weights are ancestors of the current ones, and how old they are (pure).

A `WeightsVersion` is (step, lineage). Every start of a run from a checkpoint, and every recovery of
the learner that does not reproduce its bits, opens a lineage of its own at that checkpoint's step.
Version 125 of a lineage that was left at step 120 is then no ancestor of anything, although 125 is
a plausible number: its weights are gone, and age is not what is wrong with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:  # torch is not needed to read a checkpoint's state
    from actors.trajectory import WeightsVersion

KEPT_LINEAGES = 64
"""Older ones are forgotten; no group is in flight for that many restarts."""


class Lineages(BaseModel):
    """The branches that lead to the current weights, oldest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    starts: tuple[tuple[str, int], ...] = ()
    """(lineage, step of the weights that it started from)."""

    @property
    def current(self) -> str:
        """Name of the lineage that trains now; empty before the first."""
        return self.starts[-1][0] if self.starts else ""

    def branch(self, lineage: str, step: int) -> Lineages:
        """The history after a restart from the weights of `step`."""
        return Lineages(starts=(*self.starts, (lineage, step))[-KEPT_LINEAGES:])

    def age(self, version: WeightsVersion, step: int) -> int | None:
        """Updates between a version and the weights of `step` of the current lineage.

        None where the version is no ancestor: its lineage is unknown, or was left before it.
        """
        names = [name for name, _ in self.starts]
        if version.lineage not in names:
            return None
        later = self.starts[names.index(version.lineage) + 1 :]
        if version.step > min((start for _, start in later), default=step):
            return None
        return step - version.step
