"""Checkpoints beside training: the ranks write copies, the coordinator commits, nothing waits.

    begin     every rank copies its shard and starts to write; training goes on
    commit    when all have written: in-flight groups, ledger, state.json, manifest (last)
    durable   the batches before it are let go, older checkpoints are deleted

One save is under way at a time. While the store fails, training goes on up to
`checkpoint.max_unsaved_steps` beyond the newest durable checkpoint, and pauses there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from cluster.checkpoint import CheckpointStore, RunState
from cluster.config import RunConfig, RunStopped, fingerprint
from cluster.inflight import Waiting, write_in_flight
from cluster.ledger import Ledger
from cluster.lost import LearnerLost, WorkerLost
from cluster.patience import FIRST_PAUSE_S, LONGEST_PAUSE_S
from cluster.pool import Pool
from cluster.recovery import DurableLearner
from learner.storage_errors import is_transient

POLL_S = 0.1


ROOM_S = 5.0
"""How long a step of training waits at first for the store to make room for a checkpoint."""

Snapshot = tuple[RunState, Waiting]
"""A state with the groups that are in flight now, and those of them that are scored."""


class SaveFailed(RunStopped):
    """The store refuses, for a reason that waiting does not mend."""

    advice = "give room and access below the run's URL, then start the same command again"


class Saver:
    """Makes the run's state durable; the loop's only way to write a checkpoint."""

    def __init__(
        self,
        config: RunConfig,
        checkpoints: CheckpointStore,
        ledger: Ledger,
        learner: DurableLearner,
        pool: Pool,
        snapshot: Callable[[RunState], Snapshot],
        confirm_held: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        """`pool` fetches the trajectories of groups in flight; `snapshot` brings a state's groups
        up to the moment; `confirm_held` asks the store whose run it is (`cluster.lease`)."""
        self.durable = 0
        """Step of the newest durable checkpoint; 0 for none."""
        self.seconds = 0.0
        """Duration of the newest save, from copy to manifest."""
        self._config, self._checkpoints = config, checkpoints
        self._ledger, self._learner, self._pool, self._say = ledger, learner, pool, say
        self._snapshot, self._confirm_held = snapshot, confirm_held
        self._task: asyncio.Task[None] | None = None
        self._making: tuple[int, asyncio.Task[str]] | None = None
        """A step whose room is made; one at a time, since a second could delete what was saved."""
        self._room_s = ROOM_S
        self._overdue = False
        self._pause_s, self._not_before = FIRST_PAUSE_S, 0.0

    async def save_if_due(self, state: RunState) -> None:
        """Start a save every `checkpoint.every` steps, or as soon as the one before has ended."""
        last = state.step == self._config.steps
        self._overdue |= last or state.step % self._config.checkpoint.every == 0
        if self._task is not None and self._task.done():
            self._task.result()
        idle = self._task is None or self._task.done()
        if self._overdue and idle and time.monotonic() >= self._not_before:
            await self._begin(state)

    async def hold_back(self, state: RunState) -> None:
        """Return when there is room for one more unsaved step."""
        while state.step - self.durable >= self._config.checkpoint.unsaved_limit:
            await self.finish(state, at_least=self.durable + 1)

    async def finish(self, state: RunState, at_least: int | None = None) -> None:
        """Return when a checkpoint of `at_least` (the state's step) is durable."""
        wanted = state.step if at_least is None else at_least
        while True:
            if self._task is not None:
                await self._task
            if self.durable >= wanted:
                return
            if (pause_s := self._not_before - time.monotonic()) > 0:
                self._say(
                    f"step {state.step} waits for a durable checkpoint (the newest is of step "
                    f"{self.durable}); trying again in {pause_s:.1f} s"
                )
                await asyncio.sleep(pause_s)
            await self._begin(state)

    async def _begin(self, state: RunState) -> None:
        self._overdue = False
        # Of one moment, which may be long after the step: what the ledger says of a group and what
        # the state does must not contradict each other.
        state, kept = self._snapshot(state)
        pending = self._ledger.pending()
        started = time.perf_counter()
        try:
            await self._learner.begin_save(await self._room(state.step))
        except LearnerLost:
            raise  # fresh ranks were lost again and again: no repetition mends that
        except Exception as error:
            self._failed(state.step, error)
            return
        state = self._learner.current(state)
        recoveries = self._learner.recoveries

        async def complete() -> None:
            try:
                while not await self._learner.learner.saved(0.0):
                    await asyncio.sleep(POLL_S)
                if self._learner.recoveries != recoveries:
                    # The ranks that answer know nothing of it: those that wrote are gone.
                    raise LearnerLost("the ranks were replaced while they wrote")
                await asyncio.to_thread(self._confirm_held)
                # Refs are read here, in the loop; everything slow happens in a thread.
                await write_in_flight(self._checkpoints.url(state.step), self._pool, kept)
                head = await asyncio.to_thread(
                    self._ledger.write, state.step, state.lineages.current, pending
                )
                saved = state.model_copy(update={"ledger": head})
                await asyncio.to_thread(self._commit, saved)
            except Exception as error:
                if _lost_touch(error) and self._learner.recoveries == recoveries:
                    # Training may not notice: the group in which ranks save is one of its own, and
                    # of no use after an error, on ranks that are otherwise well.
                    self._learner.distrust(f"the ranks could not save together ({error})")
                self._failed(state.step, error)
                return
            self._ledger.flushed(head, pending)
            self._learner.durable(state)
            self.durable, self._pause_s = state.step, FIRST_PAUSE_S
            self.seconds = time.perf_counter() - started
            await self._delete_older()

        self._task = asyncio.get_running_loop().create_task(complete())

    async def _room(self, step: int) -> str:
        """URL of a step's checkpoint, where nothing is. TimeoutError where a store in trouble takes
        its time: training goes on, and the next attempt waits twice as long."""
        while True:
            if self._making is None:
                work = asyncio.to_thread(self._make_room, step)
                self._making = step, asyncio.get_running_loop().create_task(work)
            made_for, making = self._making
            limit_s = self._room_s
            if not (await asyncio.wait({making}, timeout=limit_s))[0]:
                self._room_s *= 2
                raise TimeoutError(f"the store has made no room for it within {limit_s:g} s")
            self._making = None
            url = making.result()
            if made_for == step:
                self._room_s = ROOM_S
                return url

    async def _delete_older(self) -> None:
        """What was saved counts, whether or not the store deletes anything."""
        try:
            await asyncio.to_thread(self._retain)
        except Exception as error:
            if isinstance(error, RunStopped):
                raise
            why = f"older checkpoints cannot be deleted: {type(error).__name__}: {error}"
            if not is_transient(error):
                raise SaveFailed(why) from error
            self._say(f"{why}; the next save tries again")

    # Each of these overwrites or deletes: not in a run that another process trains.

    def _make_room(self, step: int) -> str:
        self._confirm_held()
        return self._checkpoints.begin(step)

    def _commit(self, state: RunState) -> None:
        self._confirm_held()
        self._checkpoints.commit(state.step, state, fingerprint(self._config))

    def _retain(self) -> None:
        self._confirm_held()
        self._checkpoints.retain(self._config.checkpoint.keep, self._learner.needed)

    def _failed(self, step: int, error: Exception) -> None:
        """Try again later what waiting may mend; stop for the rest."""
        if not (isinstance(error, LearnerLost) or is_transient(error)):
            if isinstance(error, RunStopped):
                raise error
            raise SaveFailed(
                f"the checkpoint of step {step} cannot be written: {type(error).__name__}: {error}"
            ) from error
        self._say(f"the checkpoint of step {step} failed ({error}); it will be repeated")
        self._overdue = True
        self._not_before = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


def _lost_touch(error: Exception) -> bool:
    """Whether ranks live and cannot reach each other: a dead or frozen one shows in any call."""
    known = isinstance(error.__cause__, (WorkerLost, TimeoutError, type(None)))
    return isinstance(error, LearnerLost) and not known
