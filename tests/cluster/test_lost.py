"""What becomes of samples, groups and batches that something is lost of (docs/architecture.md).

The real loop over simulated stages, as in test_service.py. Not covered: real deaths
(test_ray_pool.py), the learner's ranks (test_recovery.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from actors.trajectory import RolloutReport, WeightsVersion
from benchmarks.simulated import (
    Durations,
    SimulatedPool,
    SimulatedRanks,
    rows,
    simulated_trainer,
    simulated_workers,
)
from cluster.audit import audit_run
from cluster.buffer import MemberReward, NoProgressError, ReadyGroup
from cluster.checkpoint import CheckpointStore, RunState
from cluster.collect import GroupRecord
from cluster.config import RunConfig
from cluster.ledger import SampleRow, read_chain
from cluster.loop import DivergedError
from cluster.lost import LearnerTooLarge, ObjectGone, PoolLost, WorkerLost
from cluster.pools import DeliveryError, GroupRollout, Published, SampleScores, Workers
from cluster.recovery import TrajectoriesGone
from cluster.startup import PROOF_GROUP
from cluster.storage import RunFolder
from learner.account import extend_account
from learner.batch import ScoredGroup
from learner.rank import StepReport
from rewards.score import ScoreFailure

Build = Callable[..., RunConfig]
Prepare = Callable[[Workers], None]
FAST = Durations(0.002, 0.002, learner_s=0.004)
LOOP = (
    "steps=3",
    "schedule.main_steps=3",
    "schedule.dynamic_steps=0",
    "rewards.artifacts.keep=0",
    "rewards.repeat_every=0",
    "rollout.group_size=3",
)
SAMPLE = (1, 1)
"""Group and member that it happens to."""
NO_CAMERA = ScoreFailure("reconstruction", "no camera found", retry=False)


def train(
    config: RunConfig, prepare: Prepare = lambda workers: None, ranks: SimulatedRanks | None = None
) -> tuple[RunState, list[str]]:
    said: list[str] = []

    async def whole() -> RunState:
        workers = simulated_workers(config, FAST, ranks)
        prepare(workers)
        trainer, state = simulated_trainer(config, workers, said.append)
        return await asyncio.wait_for(trainer.train(state), 60)

    return asyncio.run(whole()), said


def meets(
    pool: Any, method: str, whom: Callable[[Any], bool], *outcomes: Exception | Callable[[Any], Any]
) -> list[Any]:
    """Calls for whom `whom` holds end so, one each: with an error, or with the usual answer
    changed; later ones as usual. Returns a list that grows by each such call."""
    assert isinstance(pool, SimulatedPool)
    usual, left, asked = pool._methods[method], list(outcomes), list[Any]()

    async def call(first: Any, *args: Any) -> Any:
        if not whom(first):
            return await usual(first, *args)
        asked.append(first)
        if not left:
            return await usual(first, *args)
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome(await usual(first, *args))

    pool._methods[method] = call
    return asked


def ledger(config: RunConfig) -> dict[tuple[int, int], SampleRow]:
    """Rows of every sample that has a fate; the audit finds nothing."""
    assert audit_run(config.run).findings == ()
    found = CheckpointStore(config.run).newest_valid().checkpoint
    assert found is not None
    samples, _ = read_chain(RunFolder(config.run), found.state.ledger)
    return {(row.group, row.member): row for row in samples}


def failed(_: Any) -> Any:
    return NO_CAMERA, None, None


@pytest.mark.parametrize(
    ("outcomes", "reason", "asked"),
    [
        ([TimeoutError(), TimeoutError()], "", 3),
        ([TimeoutError()] * 3, "reconstruction: no answer within 300 s", 3),
        ([failed], "reconstruction: no camera found", 1),
        ([WorkerLost("3 workers died")], "reconstruction: quarantined: 3 workers died", 1),
    ],
)
def test_a_sample_that_cannot_be_scored_says_why_and_its_group_trains_without_it(
    smallest: Build, outcomes: list[Any], reason: str, asked: int
) -> None:
    config = smallest(*LOOP)
    calls: list[Any] = []

    def prepare(workers: Workers) -> None:
        pool = workers.rewards.pools["reconstruction"]
        calls.append(meets(pool, "score", lambda sample: sample == SAMPLE, *outcomes))

    train(config, prepare)
    found = ledger(config)
    assert len(calls[0]) == asked
    row = found[SAMPLE]
    assert (row.status, row.reason) == ("unscored" if reason else "trained", reason)
    assert row.attempts == asked
    assert found[1, 0].status == found[1, 2].status == "trained"
    assert sum(step["failed_members"] for step in rows(config)) == bool(reason)


def test_a_group_of_too_few_is_rolled_out_again_on_the_same_prompt(smallest: Build) -> None:
    config = smallest(*LOOP, "rewards.min_group_size=3")

    def prepare(workers: Workers) -> None:
        pool = workers.rewards.pools["reconstruction"]
        meets(pool, "score", lambda sample: sample == SAMPLE, failed)

    train(config, prepare)
    found = ledger(config)
    assert {found[1, member].status for member in range(3)} == {"dropped"}
    assert found[SAMPLE].reason == "too_few_scored: reconstruction: no camera found"
    assert found[1, 0].reason == "too_few_scored"
    again = {row.group for row in found.values() if row.prompt_id == found[SAMPLE].prompt_id} - {1}
    assert any(found[group, 0].status == "trained" for group in again)
    assert rows(config)[0]["groups"]["too_few_scored"] == 1
    assert rows(config)[0]["failures"] == {"reconstruction: no camera found": 1}


def test_a_run_whose_samples_all_fail_stops_and_names_the_reason(smallest: Build) -> None:
    """No step is ever done, so that no row of metrics could name it."""
    config = smallest(*LOOP)

    def prepare(workers: Workers) -> None:
        pool = workers.rewards.pools["reconstruction"]
        meets(pool, "score", lambda sample: True, *[failed] * 1000)

    with pytest.raises(
        NoProgressError, match=r"most often: reconstruction: no camera found \(75 x\)"
    ):
        train(config, prepare)


def test_groups_that_nobody_rolls_out_are_named_where_no_step_can_be_filled(
    smallest: Build,
) -> None:
    config = smallest(*LOOP)

    def prepare(workers: Workers) -> None:
        late = [TimeoutError()] * 1000
        real = lambda request: request.group < PROOF_GROUP  # noqa: E731
        meets(workers.rollouts.pool, "rollout", real, *late)

    reason = r"most often: rollout.rollout was given up: 3 workers did not finish .* \(75 x\)"
    with pytest.raises(NoProgressError, match=reason):
        train(config, prepare)


def test_samples_without_a_finite_density_are_named_too(smallest: Build) -> None:
    config = smallest(*LOOP)

    def prepare(workers: Workers) -> None:
        def blown_up(answer: Any) -> Any:
            return (replace(answer[0], non_finite=(0, 1, 2)), *answer[1:])

        meets(workers.rollouts.pool, "rollout", lambda request: True, *[blown_up] * 1000)

    with pytest.raises(NoProgressError, match=r"its log-probability is not finite \(75 x\)"):
        train(config, prepare)


def test_a_dead_reward_pool_stops_the_run_at_once(smallest: Build) -> None:
    """Not after the groups of several steps, each of which would be rolled out for nothing."""
    config = smallest(*LOOP)
    calls: list[Any] = []

    def prepare(workers: Workers) -> None:
        lost = [PoolLost("no judge worker is left; the last one: no GPU")] * 1000
        meets(workers.rewards.pools["judge"], "score", lambda sample: True, *lost)
        calls.append(meets(workers.rollouts.pool, "rollout", lambda request: True))

    with pytest.raises(PoolLost, match="no judge worker is left; the last one: no GPU"):
        train(config, prepare)
    assert len(calls[0]) <= 1 + config.rollout.groups_per_step  # one for the proofs at the start


def test_a_group_whose_videos_are_lost_is_rolled_out_again_bit_by_bit(smallest: Build) -> None:
    undisturbed, _ = train(smallest(*LOOP, name="undisturbed"))
    config = smallest(*LOOP)
    calls: list[Any] = []

    def prepare(workers: Workers) -> None:
        gone = [ObjectGone("its node is gone")] * 2
        pool = workers.rewards.pools["reconstruction"]
        meets(pool, "score", lambda sample: sample == SAMPLE, *gone)
        calls.append(meets(workers.rollouts.pool, "rollout", lambda request: request.group == 1))

    state, _ = train(config, prepare)
    assert len(calls[0]) == 3
    assert state.weights_checksum == undisturbed.weights_checksum
    assert {row.status for row in ledger(config).values()} == {"trained"}


def test_a_group_whose_videos_are_always_lost_is_dropped_and_replaced(smallest: Build) -> None:
    config = smallest(*LOOP)

    def prepare(workers: Workers) -> None:
        gone = [ObjectGone("its node is gone")] * 3
        pool = workers.rewards.pools["reconstruction"]
        meets(pool, "score", lambda sample: sample == SAMPLE, *gone)

    train(config, prepare)
    found = ledger(config)
    assert {found[1, member].reason for member in range(3)} == {"quarantined: its node is gone"}
    assert audit_run(config.run).dropped == {"quarantined": 1}
    assert audit_run(config.run).trained == 6


def test_a_rollout_that_no_worker_finishes_is_dropped_and_replaced(smallest: Build) -> None:
    config = smallest(*LOOP)

    def prepare(workers: Workers) -> None:
        late = [TimeoutError()] * 3
        meets(workers.rollouts.pool, "rollout", lambda request: request.group == 1, *late)

    train(config, prepare)
    reason = ledger(config)[SAMPLE].reason
    assert reason.startswith("quarantined: rollout.rollout was given up: 3 workers did not finish")
    assert audit_run(config.run).trained == 6


def test_a_sample_without_a_finite_density_does_not_train(smallest: Build) -> None:
    config = smallest(*LOOP)

    def prepare(workers: Workers) -> None:
        def blown_up(answer: Any) -> Any:
            return (replace(answer[0], non_finite=(1,)), *answer[1:])

        meets(workers.rollouts.pool, "rollout", lambda request: request.group == 1, blown_up)

    train(config, prepare)
    found = ledger(config)
    assert (found[SAMPLE].status, found[1, 0].status) == ("unscored", "trained")
    assert found[SAMPLE].reason == "its log-probability is not finite"


def test_a_worker_that_sampled_with_other_weights_stops_the_run(smallest: Build) -> None:
    config = smallest(*LOOP)

    def prepare(workers: Workers) -> None:
        def other(answer: Any) -> Any:
            report = answer[0]
            return (
                replace(report, weights=replace(report.weights, checksum="f" * 64)),
                *answer[1:],
            )

        meets(workers.rollouts.pool, "rollout", lambda request: request.group == 1, other)

    with pytest.raises(
        DeliveryError, match="group 1 on worker simulated was sampled with weights f"
    ):
        train(config, prepare)


class Forgetful(SimulatedRanks):
    """Ranks that are given trajectories of which one is lost, at the second step."""

    losses, at = 1, 1

    async def step(self, step: int, *args: Any) -> StepReport:
        if step == self.at and self.losses:
            self.losses -= 1
            raise ObjectGone("a trajectory of its node")
        return await super().step(step, *args)


def test_lost_trajectories_are_made_again_all_groups_at_once(smallest: Build) -> None:
    """Groups of a step take as long as one round of rollouts, and give the same step."""
    undisturbed, _ = train(smallest(*LOOP, "rollout.workers=2", name="undisturbed"))
    config = smallest(*LOOP, "rollout.workers=2")
    busy: list[int] = []

    def prepare(workers: Workers) -> None:
        pool = workers.rollouts.pool
        assert isinstance(pool, SimulatedPool)
        usual, seen = pool._methods["rollout"], set[int]()

        async def rollout(request: Any, *args: Any) -> Any:
            if request.group in seen:
                busy.append(pool.meter.busy)
            seen.add(request.group)
            return await usual(request, *args)

        pool._methods["rollout"] = rollout

    state, said = train(config, prepare, Forgetful(config, FAST))
    assert [line for line in said if "rolling out again" in line] == [
        "trajectories of step 1 were lost (a trajectory of its node); rolling out again"
    ]
    assert busy == [1, 2]
    assert state.weights_checksum == undisturbed.weights_checksum
    assert {row.status for row in ledger(config).values()} == {"trained"}


@pytest.mark.parametrize("losses", [1, 4])
def test_groups_that_a_checkpoint_brought_are_not_rolled_out_again(
    smallest: Build, losses: int
) -> None:
    """Their weights are gone; the other group of the batch is made again, three times at most."""
    config = smallest(*LOOP)
    ranks = Forgetful(config, FAST)
    ranks.losses, ranks.at = losses, 0

    async def whole() -> list[int]:
        workers = simulated_workers(config, FAST, ranks)
        trainer, state = simulated_trainer(config, workers)
        request = trainer.source.draw("main")
        version = WeightsVersion(0, state.lineages.current, "of an earlier start")
        report = RolloutReport(request.group, 3, request.window_start, version, "simulated", {})
        refs = tuple((request.group, member) for member in range(3))
        rollout = GroupRollout(report, Published(version, None), refs, ())
        totals = (1.0, 2.0, 3.0)
        rewards = [MemberReward(member, total) for member, total in enumerate(totals)]
        scores = [SampleScores({}, (), 1) for _ in totals]
        group = ScoredGroup(request.group, request.prompt.id, (0, 1, 2), totals)
        trainer.collector.restore(
            GroupRecord(request, "main", rollout, scores, rewards),
            ReadyGroup(group, "main", version),
        )
        calls = meets(workers.rollouts.pool, "rollout", lambda request: True)
        if losses > 1:
            with pytest.raises(TrajectoriesGone, match="of step 0 are lost: a trajectory of its"):
                await trainer.train(state)
        else:
            await trainer.train(state)
        return [request.group for request in calls if request.group < PROOF_GROUP]

    rolled_out = asyncio.run(whole())
    assert 0 not in rolled_out
    assert rolled_out.count(1) == 1 + min(losses, 3)


@pytest.mark.parametrize("slow", [0, 1])
def test_replacements_do_not_depend_on_which_of_two_dropped_groups_came_first(
    smallest: Build, slow: int
) -> None:
    config = smallest(*LOOP, "rewards.min_group_size=3", "rollout.workers=2")
    prompts: dict[int, str] = {}

    def prepare(workers: Workers) -> None:
        scorers, rollouts = workers.rewards.pools["reconstruction"], workers.rollouts.pool
        meets(scorers, "score", lambda sample: sample in ((0, 1), (1, 1)), failed, failed)
        assert isinstance(rollouts, SimulatedPool)
        usual = rollouts._methods["rollout"]

        async def rollout(request: Any, *args: Any) -> Any:
            prompts[request.group] = request.prompt.id
            await asyncio.sleep(0.1 * (request.group == slow))
            return await usual(request, *args)

        rollouts._methods["rollout"] = rollout

    train(config, prepare)
    assert (prompts[2], prompts[3]) == (prompts[0], prompts[1])


class Full(SimulatedRanks):
    """Ranks that run out of GPU memory at the second step, so many times."""

    times = 1

    async def step(self, step: int, *args: Any) -> StepReport:
        if step == 1 and self.times:
            self.times -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return await super().step(step, *args)


def test_a_rank_out_of_memory_is_replaced_and_one_that_stays_so_stops_the_run(
    smallest: Build,
) -> None:
    undisturbed, _ = train(smallest(*LOOP, name="undisturbed"))
    config = smallest(*LOOP)
    state, _ = train(config, ranks=Full(config, FAST))
    assert state.weights_checksum == undisturbed.weights_checksum
    assert [row["stages"]["learner"]["deaths"] for row in rows(config)] == [0, 1, 0]
    small = smallest(*LOOP, name="small")
    ranks = Full(small, FAST)
    ranks.times = 100
    with pytest.raises(
        LearnerTooLarge, match="ran out of GPU memory in step: CUDA out of"
    ) as found:
        train(small, ranks=ranks)
    assert ranks.restarts == 3
    assert "learner.micro_batch=1" in found.value.advice


class Diverging(SimulatedRanks):
    """Ranks whose updates of some steps are not finite, and are not applied."""

    bad: tuple[int, ...] = ()

    async def step(self, step: int, *args: Any) -> StepReport:
        before = self._account
        report = await super().step(step, *args)
        if step not in self.bad:
            return report
        self._account = extend_account(before, step, ())
        reason = "the gradient is not finite"
        return replace(
            report, update_skipped=True, skip_reason=reason, applied=(), account=self._account
        )


def diverging(config: RunConfig, *bad: int) -> Diverging:
    ranks = Diverging(config, FAST)
    ranks.bad = bad
    return ranks


def test_updates_that_are_not_finite_are_skipped_and_three_in_a_row_stop_the_run(
    smallest: Build,
) -> None:
    config = smallest(*LOOP, "steps=6")
    state, _ = train(config, ranks=diverging(config, 0, 1, 3, 4))
    assert (state.step, state.consecutive_bad_updates) == (6, 0)
    fates = {row.step: row.status for row in ledger(config).values()}
    assert [step for step, status in sorted(fates.items()) if status == "skipped"] == [0, 1, 3, 4]
    stopped = smallest(*LOOP, "steps=6", name="stopped")
    with pytest.raises(DivergedError, match=r"3 updates in a row .* the last one was step 4"):
        train(stopped, ranks=diverging(stopped, 2, 3, 4))


def test_updates_that_are_not_finite_are_counted_across_a_resume(smallest: Build) -> None:
    first = smallest(*LOOP, "steps=2")
    state, _ = train(first, ranks=diverging(first, 0, 1))
    assert state.consecutive_bad_updates == 2
    longer = smallest(*LOOP, "steps=6")
    with pytest.raises(DivergedError, match="the last one was step 2"):
        train(longer, ranks=diverging(longer, 2))
