"""The learner as the loop sees it: its ranks may die, its weights do not.

Batches stay held until a durable checkpoint covers them. When a rank dies, freezes or loses touch,
all ranks are replaced, load the newest durable checkpoint and train on the held batches again, in
order. Where that gives the same bits the run goes on as if nothing had happened; where it does not
(matrix products of a GPU need not), it opens a lineage, so that groups drawn from the weights that
were lost are not taken for current ones. Ranks whose recovery did not come to its end, whatever
ended it, are replaced once more before anything else is asked of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from cluster.checkpoint import CheckpointStore, RunState
from cluster.collect import Batch, GroupRecord, gather_or_cancel
from cluster.config import RunStopped
from cluster.lost import MAX_LOSSES, LearnerLost, ObjectGone
from cluster.patience import patiently
from cluster.pools import Learner, Published, Rollouts
from cluster.versions import Lineages
from learner.account import EMPTY_ACCOUNT
from learner.rank import StepReport

T = TypeVar("T")

MAX_RECOVERIES = 3
"""Recoveries in a row, without a step between them, that stop the run."""


class AccountError(RunStopped):
    """Weights that were loaded are not those that the checkpoint speaks of."""

    advice = (
        "move that checkpoint's folder away, so that the one before it is used, then start the "
        "same command again"
    )


class TrajectoriesGone(RunStopped):
    """A batch's trajectories were lost again and again, or cannot be made again."""

    advice = (
        "see why nodes or objects are lost (Ray's dashboard: nodes, the object store's memory), "
        "then start the same command again: it goes on from the newest checkpoint"
    )


@dataclass(slots=True)
class _Held:
    """A batch that was trained on and that no durable checkpoint covers."""

    step: int
    batch: Batch
    checksum: str = ""
    """Of the weights after it; empty before they were published."""


class DurableLearner:
    """Collective calls that are repeated on fresh ranks when the ranks are lost."""

    def __init__(
        self,
        learner: Learner,
        rollouts: Rollouts,
        checkpoints: CheckpointStore,
        say: Callable[[str], None],
    ) -> None:
        self.learner = learner
        self.recoveries = 0
        """Times that all ranks were replaced."""
        self.lineages = Lineages()
        self._rollouts, self._checkpoints, self._say = rollouts, checkpoints, say
        self._base, self._account = 0, EMPTY_ACCOUNT
        self._checksum = ""
        """Of the weights after the last step, as they were published or repeated last."""
        self._loading: int | None = None
        self._held: list[_Held] = []
        self._in_a_row = 0
        self._unfit = ""
        """Why the ranks do not hold the run's weights; empty where they do."""

    async def start(self, state: RunState) -> Published:
        """Bring the ranks to a checkpoint's state and publish its weights.

        Raises AccountError where they were trained on something else than `state` says.
        """
        self._base, self._account = state.step, state.account
        self.lineages = state.lineages
        await self.guarded(self._load_base)
        return await self.publish(state.step)

    async def step(self, step: int, batch: Batch) -> StepReport:
        """Train on a batch, once, whatever dies meanwhile."""
        meter = self.learner.ranks.meter
        meter.change(busy=1)
        try:
            report = await self.guarded(lambda: self._step(step, batch))
        finally:
            meter.change(busy=-1)
        self._held.append(_Held(step, batch))
        self._in_a_row = 0
        return report

    async def publish(self, step: int) -> Published:
        """The weights after `step` updates, under the current lineage."""
        published = await self.guarded(lambda: self.learner.publish(step, self.lineages.current))
        self._checksum = published.version.checksum
        if self._held:
            self._held[-1].checksum = self._checksum
        return published

    async def publish_average(self, step: int) -> Published:
        """The running average of the weights, under a lineage of its own: no worker may take it
        for the weights of `step`."""
        lineage = f"{self.lineages.current}-ema"
        return await self.guarded(lambda: self.learner.publish(step, lineage, average=True))

    async def begin_save(self, url: str) -> None:
        """See `Learner.begin_save`."""
        await self.guarded(lambda: self.learner.begin_save(url))

    def durable(self, state: RunState) -> None:
        """A checkpoint of `state` exists: the batches before it are let go."""
        self._base, self._account = state.step, state.account
        self._held = [held for held in self._held if held.step >= state.step]

    @property
    def needed(self) -> frozenset[int]:
        """Steps of the checkpoints that a recovery, now or under way, reads."""
        return frozenset({self._base} | ({self._loading} if self._loading is not None else set()))

    def current(self, state: RunState) -> RunState:
        """`state` as the ranks hold it now: a recovery since its step may have given other bits."""
        if not self._checksum:
            return state  # nothing was loaded yet
        now = {"lineages": self.lineages, "weights_checksum": self._checksum}
        return state.model_copy(update=now)

    def distrust(self, reason: str) -> None:
        """Have the ranks replaced before the next call on them. However often it happens, it is
        none of the losses in a row that stop the run."""
        self._unfit, self._in_a_row = reason, 0

    async def guarded(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await something that the ranks take part in; on fresh ranks again where they are lost."""
        while True:
            if self._unfit:
                await self._recover(LearnerLost(self._unfit))
            try:
                return await call()
            except LearnerLost as lost:
                await self._recover(lost)

    async def _recover(self, lost: LearnerLost) -> None:
        # Until the last repeated step is trained, an error or a stop must leave no rank in use.
        self._unfit = "a recovery of the learner did not come to its end"
        while True:
            self.recoveries += 1
            self.learner.ranks.meter.lost(deaths=1)
            self._in_a_row += 1
            if self._in_a_row > MAX_RECOVERIES:
                raise lost
            self._say(
                f"{lost}; replacing all ranks, from step {self._base}, and repeating "
                f"{len(self._held)} steps"
            )
            try:
                await self.learner.restart()
                # A save may become durable meanwhile: checkpoint and batches must be of one moment.
                base, held = self._base, list(self._held)
                await self._load_base()
                await self._replay(base, held)
                self._unfit = ""
                return
            except LearnerLost as again:
                lost = again

    async def _load_base(self) -> None:
        """Raises AccountError, and StoreRefused where the checkpoint cannot be read."""
        base, account = self._base, self._account
        self._loading = base
        try:
            if base:
                url = self._checkpoints.learner_url(base)
                await patiently(f"loading {url}", lambda: self.learner.load(url), self._say)
        finally:
            self._loading = None
        if (found := await self.learner.account()) != account:
            raise AccountError(
                f"the weights of step {base} were trained on other samples (account "
                f"{found[:12]}) than the checkpoint's state says ({account[:12]})"
            )

    async def _replay(self, base: int, batches: Sequence[_Held]) -> None:
        same = True
        for held in batches:
            await self._step(held.step, held.batch)
            if held.checksum:
                version = (await self.learner.publish(held.step + 1, "replay")).version
                same = same and version.checksum == held.checksum
                self._checksum = held.checksum = version.checksum
        if not same:
            self.lineages = self.lineages.branch(secrets.token_hex(4), base)
            self._say(f"the repeated steps gave other bits: lineage {self.lineages.current}")

    async def _step(self, step: int, batch: Batch) -> StepReport:
        for _ in range(MAX_LOSSES):
            try:
                return await self.learner.step(step, batch.groups, batch.trajectories)
            except ObjectGone as gone:
                self._say(f"trajectories of step {step} were lost ({gone}); rolling out again")
                await self._roll_out_again(batch)
        try:
            return await self.learner.step(step, batch.groups, batch.trajectories)
        except ObjectGone as gone:
            raise TrajectoriesGone(f"trajectories of step {step} are lost: {gone}") from gone

    async def _roll_out_again(self, batch: Batch) -> None:
        """The same requests with the same weights give the same trajectories."""

        async def repeat(record: GroupRecord) -> None:
            rollout = await self._rollouts.rollout(record.request, record.rollout.published)
            shown = rollout.videos if record.rollout.videos else ()  # a step lets go of its own
            record.rollout = replace(rollout, videos=shown)

        records = [batch.records[group.group] for group in batch.groups]
        # Groups that a checkpoint brought live with the coordinator; their weights are gone.
        made_here = [record for record in records if record.rollout.published.weights is not None]
        await gather_or_cancel([repeat(record) for record in made_here])
        batch.refresh()
