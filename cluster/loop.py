"""The algorithm: one asyncio loop over three pools and the learner.

      prompts ──RolloutRequest──▶ rollout pool ──Trajectory×G (refs)───────────────┐
         ▲                             │                                           │
         │                             └──video refs──▶ reward pools               │
         │                                              reconstruction ─▶ judge    │
      cursor                                            aesthetic                  │
         │                                                  │ Score | ScoreFailure │
         │                                                  ▼                      ▼
    weights(version) ◀── publish ◀── learner ranks.step ◀── buffer: ScoredGroup (sorted)
                                          │
                                          └──▶ checkpoint · metrics · samples

    stage     consumes                       produces                 waits for        unblocks
    collect   prompts, published weights     Batch (sorted groups)    room in buffer   step
    step      Batch                          StepReport               a full batch     publish
    publish   the ranks' LoRA shards         Published (version, ref) step             collect
    save      copies of shards, state        a durable checkpoint     the last save    old batches

The buffer has room for (max_staleness + 1) batches, counted until the weights made from them are
published: with 0 the stages follow each other and a run is deterministic, since what is computed is
decided by (seed, group serial, member) and never by the order in which anything arrives. With 1 and
more, collecting goes on while the learner works. Saving always does.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from cluster.artifacts import groups_to_keep, keep_groups
from cluster.checkpoint import CheckpointStore, RunState
from cluster.collect import Batch, Collector, RequestSource
from cluster.config import RunConfig, RunStopped
from cluster.elastic import Supervisor
from cluster.evaluate import Evaluator
from cluster.examination import Examination
from cluster.inflight import read_in_flight
from cluster.lease import Holding
from cluster.ledger import Ledger, SampleRow
from cluster.lost import MAX_LOSSES, ObjectGone
from cluster.metrics import MetricsLog, pool_state, stage_clocks, step_row
from cluster.patience import missing_is_fine
from cluster.pools import Published, Workers
from cluster.record import Recorder
from cluster.recovery import DurableLearner
from cluster.repeats import Repetition
from cluster.saving import Saver, Snapshot
from cluster.startup import prove_run
from cluster.storage import evaluated_kinds, evaluation_kind, missing_evaluations
from learner.batch import flat_keys
from learner.rank import StepReport
from learner.schedule import Phase, phase_of

T = TypeVar("T")

MAX_BAD_UPDATES = 3
"""Skipped (non-finite) updates in a row that stop a run."""


class DivergedError(RunStopped):
    """Several updates in a row were not finite."""

    advice = (
        "start again with a smaller learner.learning_rate: the run goes on from its newest "
        "checkpoint, or from an earlier one where you remove the newest"
    )


class _Stopping(Exception):
    """A stop was asked for: what is being waited for is given up."""


@dataclass(slots=True)
class Trainer:
    """A run in progress: its workers, its storage and the source of its requests."""

    config: RunConfig
    workers: Workers
    source: RequestSource
    checkpoints: CheckpointStore
    metrics: MetricsLog
    evaluator: Evaluator
    ledger: Ledger
    holding: Holding
    learner: DurableLearner = field(init=False)
    collector: Collector = field(init=False)
    saver: Saver = field(init=False)
    recorder: Recorder = field(init=False)
    supervisor: Supervisor = field(init=False)
    examination: Examination = field(init=False)
    repetition: Repetition = field(init=False)
    stopping: bool = field(default=False, init=False)
    """Whether a stop was asked for."""
    interrupted: bool = field(default=False, init=False)
    """Whether it was by Ctrl-C."""
    _waiting_for: asyncio.Task[Any] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        config, workers, say = self.config, self.workers, self.metrics.say
        rollouts = workers.rollouts
        self.learner = DurableLearner(workers.learner, rollouts, self.checkpoints, say)
        self.saver = Saver(
            config,
            self.checkpoints,
            self.ledger,
            self.learner,
            rollouts.pool,
            self._snapshot,
            self.holding.confirm,
            say,
        )
        self.recorder = Recorder(
            config.record, self.metrics.folder, rollouts.pool, self.learner, say
        )
        self.collector = Collector(
            self.source,
            rollouts,
            workers.rewards,
            config.rewards,
            self._phases,
            config.max_staleness,
            self.ledger.add,
            lambda step: groups_to_keep(
                config.rewards.artifacts, step, config.steps, config.schedule
            ),
        )
        limits = config.rewards
        reconstruction = workers.rewards.pools["reconstruction"]
        self.examination = Examination(
            limits.examine_every, reconstruction, self.metrics, limits.timeout_s
        )
        self.repetition = Repetition(limits.repeat_every, workers.rewards, self.metrics)
        self.supervisor = Supervisor(
            {kind: (pool, getattr(limits, kind)) for kind, pool in workers.rewards.pools.items()},
            config.supervision,
            self.ledger.decide,
        )

    async def train(self, state: RunState) -> RunState:
        """Prove the set-up, then step from `state` to `config.steps`; the state reached.

        SIGTERM or Ctrl-C ends it early, with a durable checkpoint of the last whole step; Ctrl-C
        once more ends it at once.
        """
        self.saver.durable = state.step
        with self._on_signals():
            try:
                weights = await self._give_up_if_stopped(self.learner.start(state))
                await self._prepare(state, weights)
                self.supervisor.start()
                while state.step < self.config.steps:
                    state, weights = await self._step(state, weights)
                    due = evaluated_kinds(self.config, state.step)
                    await self._evaluate_if_due(state.step, weights, due)
                    state, weights = await self._renewed(state, weights)
                    self.examination.begin(state.step)
                await self.saver.finish(state)  # whatever the examination finds
                await self._give_up_if_stopped(self.examination.finish())
            except _Stopping:
                self.metrics.say(f"stopped: leaving after step {state.step}")
            finally:
                await self.supervisor.stop()
                await self.examination.close()
                await self.repetition.close()
                await self.collector.close()
            self.holding.require()
            await self.saver.finish(state)
            await self.metrics.finish()
        return self.learner.current(state)

    async def _prepare(self, state: RunState, weights: Published) -> None:
        prompts, say = self.source.prompts, self.metrics.say
        await self._give_up_if_stopped(
            self.learner.guarded(
                lambda: prove_run(self.config, self.workers, prompts, weights, say)
            )
        )
        rows = self.metrics.rows(*map(evaluation_kind, (False, True)))
        missing = missing_evaluations(self.config, self.metrics.folder, state.step, rows)
        await self._evaluate_if_due(state.step, weights, missing)
        url = self.checkpoints.url(state.step)
        kept = await read_in_flight(url, self.workers.rollouts.pool) if state.step else []
        for ready, record in kept:
            self.collector.restore(record, ready)
        restored = {ready.group.group for ready, _ in kept}
        in_flight = [e for e in state.in_flight if e.group not in restored]
        self.collector.resume(in_flight, state.again)

    async def _step(self, state: RunState, weights: Published) -> tuple[RunState, Published]:
        """One optimizer step and the weights after it."""
        started, step = time.perf_counter(), state.step
        phase = phase_of(step, self.config.schedule)
        self.collector.publish(weights, self.learner.lineages)
        # Not given up at a stop, which would have to wait for the same checkpoint.
        await self.saver.hold_back(state)
        if self._outdated(weights):
            weights = await self.learner.publish(step)
            self.collector.publish(weights, self.learner.lineages)
        batch = await self._give_up_if_stopped(self.collector.batch(phase))
        self.repetition.begin(step, phase, batch)
        await self.recorder.before(step, batch)
        report = await self.learner.step(step, batch)
        weights = await self.learner.publish(step + 1)
        self.holding.require()  # before what came of it is written
        await self.recorder.after(phase, report, weights)
        self.ledger.add(consumed_rows(batch, report))
        state = self._advance(state, weights, report)
        await self.saver.save_if_due(state)
        state, weights = await self._renewed(state, weights)
        clocks = stage_clocks(self.workers)
        row = step_row(phase, batch, report, clocks, time.perf_counter() - started)
        self.metrics.write(row | pool_state(self.workers, self.saver.durable))
        self.repetition.finish(row)
        await self._keep(step, phase, batch)
        self.metrics.refresh_report()
        return state, weights

    def _outdated(self, weights: Published) -> bool:
        """Whether the ranks were replaced since, and repeated their steps with other bits."""
        return weights.version.lineage != self.learner.lineages.current

    async def _renewed(self, state: RunState, weights: Published) -> tuple[RunState, Published]:
        """State and weights as the ranks hold them after a call that may have met a recovery."""
        if self._outdated(weights):
            weights = await self.learner.publish(state.step)
        return self.learner.current(state), weights

    async def _keep(self, step: int, phase: Phase, batch: Batch) -> None:
        """Store what people want to see of a step, and let go of its videos."""
        config, workers = self.config, self.workers
        artifacts = config.rewards.artifacts
        keeps = groups_to_keep(artifacts, step, config.steps, config.schedule) > 0
        extremes = artifacts.extremes and keeps
        kept = f"what is kept of step {step}"
        # Pictures only; nothing depends on them.
        with contextlib.suppress(ObjectGone), missing_is_fine(kept, self.metrics.say):
            await keep_groups(
                self.metrics.folder,
                workers.rollouts.pool,
                workers.rewards,
                step,
                phase,
                batch,
                config.learner,
                extremes,
            )
        # A batch is held until a checkpoint covers it; that needs its trajectories alone.
        trained = {group.group for group in batch.groups}
        batch.records = {s: record for s, record in batch.records.items() if s in trained}
        for record in batch.records.values():
            record.rollout = replace(record.rollout, videos=())
            record.scores = [replace(scores, artifacts=None) for scores in record.scores]

    def _phases(self, step: int) -> Sequence[Phase]:
        """Phases of a step and of those after it that groups may be rolled out for."""
        last = min(step + self.config.max_staleness + 1, self.config.steps)
        return [phase_of(s, self.config.schedule) for s in range(step, last)]

    def _snapshot(self, state: RunState) -> Snapshot:
        """A state of the last whole step with the groups that were issued or dropped since then."""
        waiting = self.collector.waiting() if self.config.checkpoint.keep_inflight else ()
        return state.model_copy(update=self._groups()), waiting

    def _groups(self) -> dict[str, Any]:
        return {
            "next_group": self.source.next_group,
            "cursors": dict(self.source.cursors),
            "in_flight": self.collector.in_flight(),
            "again": self.collector.dropped(),
        }

    def _advance(self, state: RunState, weights: Published, report: StepReport) -> RunState:
        bad = state.consecutive_bad_updates + 1 if report.update_skipped else 0
        if bad >= MAX_BAD_UPDATES:
            raise DivergedError(
                f"{bad} updates in a row had a loss or gradient that is not finite; the last one "
                f"was step {state.step} ({report.skip_reason})"
            )
        return state.model_copy(
            update={
                "step": state.step + 1,
                **self._groups(),
                "lineages": self.learner.lineages,
                "account": report.account,
                "weights_checksum": weights.version.checksum,
                "consecutive_bad_updates": bad,
            }
        )

    async def _evaluate_if_due(self, step: int, weights: Published, kinds: Sequence[bool]) -> None:
        every = self.config.eval.every
        due = step in (0, self.config.steps) or (every and step % every == 0)
        if not (kinds and due):
            return
        for average in kinds:
            await self._give_up_if_stopped(self._evaluate(step, weights, average))
        self.metrics.refresh_report()

    async def _evaluate(self, step: int, weights: Published, average: bool) -> None:
        """Of the weights, or of their average; from its beginning where videos are lost."""
        held = await self.learner.publish_average(step) if average else weights
        for _ in range(MAX_LOSSES):
            with contextlib.suppress(ObjectGone):
                await self.evaluator.evaluate(step, held, self.workers, average)
                return
        raise RunStopped(f"the videos of the evaluation of step {step} were lost again and again")

    @contextlib.contextmanager
    def _on_signals(self) -> Iterator[None]:
        loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGINT)

        def interrupt(*_: object) -> None:
            # Here, and not in the loop, which a worker's call may hold under --local: the second
            # Ctrl-C ends that call.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.interrupted = True
            said = "leaving after this update, with a checkpoint; Ctrl-C again: at once"
            loop.call_soon_threadsafe(self.metrics.say, said)
            loop.call_soon_threadsafe(self.stop)

        try:
            loop.add_signal_handler(signal.SIGTERM, self.stop)
        except (RuntimeError, ValueError):  # not the main thread: whoever runs it ends it
            yield
            return
        handles = callable(before)  # not where whoever started it ignores Ctrl-C
        if handles:
            signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            if handles:
                signal.signal(signal.SIGINT, before)

    def stop(self) -> None:
        """Leave after the update in progress, with a durable checkpoint."""
        self.stopping = True
        if self._waiting_for is not None:
            self._waiting_for.cancel()

    async def _give_up_if_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Await something that a stop may cut short."""
        self._waiting_for = asyncio.get_running_loop().create_task(work)
        try:
            if self.stopping:
                self._waiting_for.cancel()
            return await self._waiting_for
        except asyncio.CancelledError:
            if self.stopping:
                raise _Stopping from None
            raise
        finally:
            self._waiting_for = None


def consumed_rows(batch: Batch, report: StepReport) -> list[SampleRow]:
    """Ledger rows of the batch that a step consumed: whose gradient was applied, and whose not."""
    applied = set(report.applied)
    advantage = dict(zip(flat_keys(batch.groups), report.advantages, strict=False))
    rows: list[SampleRow] = []
    for group in batch.groups:
        for row in batch.records[group.group].rows("trained", "", report.step):
            key = (row.group, row.member)
            own = replace(row, advantage=advantage.get(key))
            if own.status == "trained" and key not in applied:
                own = replace(own, status="skipped", reason=report.skip_reason)
            rows.append(own)
    return rows
