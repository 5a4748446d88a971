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

    stage     consumes                       produces                 waits for      unblocks
    collect   prompts, published weights     Batch (sorted groups)    publish        step
    step      Batch                          StepReport               collect        publish
    publish   the ranks' LoRA shards         Published (version, ref) step           collect
    save      state, shards                  a durable checkpoint     publish        nothing

With `max_staleness` 0 the stages follow each other and a run is deterministic: what is computed is
decided by (seed, group serial, member) and never by the order in which anything arrives.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from cluster.artifacts import groups_to_keep, keep_groups
from cluster.checkpoint import CheckpointStore, RunState
from cluster.collect import Batch, Collector, RequestSource
from cluster.config import RunConfig, RunStopped, fingerprint
from cluster.evaluate import Evaluator
from cluster.metrics import MetricsLog, step_row
from cluster.pools import Published, Workers
from cluster.startup import prove_run
from learner.rank import StepReport
from learner.schedule import Phase, phase_of

MAX_BAD_UPDATES = 3
"""Skipped (non-finite) updates in a row that stop a run."""


class DivergedError(RunStopped):
    """Several updates in a row were not finite."""


@dataclass(frozen=True, slots=True)
class Trainer:
    """A run in progress: its workers, its storage and the source of its requests."""

    config: RunConfig
    workers: Workers
    source: RequestSource
    checkpoints: CheckpointStore
    metrics: MetricsLog
    evaluator: Evaluator

    async def train(self, state: RunState) -> RunState:
        """Prove the set-up, then step from `state` to `config.steps`."""
        weights = await self._restore(state)
        await prove_run(self.config, self.workers, self.source.prompts, weights, self.metrics.say)
        if not self.evaluator.is_done(state.step):
            await self._evaluate_if_due(state.step, weights)
        collector = Collector(
            self.source, self.workers.rollouts, self.workers.rewards, self.config.rewards
        )
        while state.step < self.config.steps:
            started = time.perf_counter()
            phase = phase_of(state.step, self.config.schedule)
            keep = groups_to_keep(self.config.rewards.artifacts, state.step, self.config.steps)
            batch = await collector.collect(phase, weights, keep)
            report = await self._update(state.step, batch)
            weights = await self._publish(state.step + 1, state.lineage)
            state = self._advance(state, weights, report)
            await self._save_if_due(state)
            self.metrics.write(step_row(phase, batch, report, time.perf_counter() - started))
            await self._keep(report.step, phase, batch)
            await self._evaluate_if_due(state.step, weights)
        return state

    async def _restore(self, state: RunState) -> Published:
        if state.step > 0:
            await self.workers.learner.load(self.checkpoints.learner_url(state.step))
        return await self.workers.learner.publish(state.step, state.lineage)

    async def _update(self, step: int, batch: Batch) -> StepReport:
        started = time.perf_counter()
        report = await self.workers.learner.step(step, batch.groups, batch.trajectories)
        batch.seconds["learner"] = time.perf_counter() - started
        return report

    async def _keep(self, step: int, phase: Phase, batch: Batch) -> None:
        pool, folder = self.workers.rollouts.pool, self.metrics.folder
        await keep_groups(folder, pool, step, phase, batch, self.config.learner)

    async def _publish(self, step: int, lineage: str) -> Published:
        return await self.workers.learner.publish(step, lineage)

    def _advance(self, state: RunState, weights: Published, report: StepReport) -> RunState:
        bad = state.consecutive_bad_updates + 1 if report.update_skipped else 0
        if bad >= MAX_BAD_UPDATES:
            raise DivergedError(
                f"{bad} updates in a row had a loss or gradient that is not finite; the last one "
                f"was step {state.step}; resume from the newest checkpoint with a smaller "
                "learner.learning_rate"
            )
        return state.model_copy(
            update={
                "step": state.step + 1,
                "next_group": self.source.next_group,
                "cursors": dict(self.source.cursors),
                "weights_checksum": weights.version.checksum,
                "consecutive_bad_updates": bad,
            }
        )

    async def _save_if_due(self, state: RunState) -> None:
        if state.step % self.config.checkpoint.every and state.step != self.config.steps:
            return
        await self.workers.learner.save(self.checkpoints.begin(state.step))
        await asyncio.to_thread(self._commit, state)

    def _commit(self, state: RunState) -> None:
        self.checkpoints.commit(state.step, state, fingerprint(self.config))
        self.checkpoints.retain(self.config.checkpoint.keep)

    async def _evaluate_if_due(self, step: int, weights: Published) -> None:
        every = self.config.eval.every
        if step in (0, self.config.steps) or (every and step % every == 0):
            await self.evaluator.evaluate(step, weights, self.workers)
