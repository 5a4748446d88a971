"""What a checkpoint holds when it is begun between two steps, and saves that stops and losses meet.

The real loop over simulated stages, as in test_service.py.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated import (
    Durations,
    SimulatedPool,
    SimulatedRanks,
    rows,
    simulated_trainer,
    simulated_workers,
)
from cluster.audit import audit_run
from cluster.checkpoint import CheckpointStore, InFlight, RunState
from cluster.config import RunConfig
from cluster.lease import Holding, RunTaken
from cluster.ledger import read_chain
from cluster.loop import Trainer
from cluster.lost import LearnerLost
from cluster.pools import Workers
from cluster.saving import Saver
from cluster.storage import RunFolder
from rewards.score import ScoreFailure

Build = Callable[..., RunConfig]
FAST = Durations(0.002, 0.002, learner_s=0.004)
LOOP = ("steps=6", "schedule.main_steps=6", "schedule.dynamic_steps=0", "rewards.artifacts.keep=0")
DROPPED, HELD = 4, 5
"""Groups of step 2: the one that meets its fate before the stop, and the one that never ends."""


def alike(workers: Workers) -> None:
    """All members of the group `DROPPED` get the scores of its first."""
    for pool in workers.rewards.pools.values():
        assert isinstance(pool, SimulatedPool)
        score = pool._methods["score"]

        async def equal(sample: tuple[int, int], *args: Any, score: Any = score) -> Any:
            return await score((DROPPED, 0) if sample[0] == DROPPED else sample, *args)

        pool._methods["score"] = equal


def stopped_within(workers: Workers, trainer: Trainer, decided: Callable[[], bool]) -> None:
    """SIGTERM's effect while the group `HELD` is being rolled out, as soon as `decided`."""
    pool = workers.rollouts.pool
    assert isinstance(pool, SimulatedPool)
    rollout = pool._methods["rollout"]

    async def held(request: Any, *args: Any) -> Any:
        if request.group == HELD:
            while not decided():
                await asyncio.sleep(0.005)
            trainer.stop()
            await asyncio.sleep(60)
        return await rollout(request, *args)

    pool._methods["rollout"] = held


def train(config: RunConfig, prepare: Callable[[Workers, Trainer], None] | None) -> RunState:
    async def whole() -> RunState:
        workers = simulated_workers(config, FAST)
        trainer, state = simulated_trainer(config, workers)
        if prepare is not None:
            prepare(workers, trainer)
        return await trainer.train(state)

    return asyncio.run(whole())


def resumed_in_order(config: RunConfig) -> None:
    assert audit_run(config.run).findings == ()
    assert train(config, None).step == 6
    report = audit_run(config.run)
    assert report.findings == ()
    assert (report.lost, report.double) == ((), ())
    assert report.trained == 12


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_group_dropped_since_the_last_step_is_in_the_state_that_its_row_is_saved_with(
    smallest: Build, staleness: int
) -> None:
    config = smallest(*LOOP, "checkpoint.every=100", f"max_staleness={staleness}")

    def prepare(workers: Workers, trainer: Trainer) -> None:
        alike(workers)
        serials = lambda: [entry.group for entry in trainer.collector.in_flight()]  # noqa: E731
        stopped_within(workers, trainer, lambda: DROPPED not in serials())

    state = train(config, prepare)
    assert state.step < 6
    saved = CheckpointStore(config.run).newest_valid().checkpoint
    assert saved is not None
    assert saved.state.next_group > HELD
    assert HELD in [entry.group for entry in saved.state.in_flight]
    assert DROPPED not in [entry.group for entry in saved.state.in_flight]
    resumed_in_order(config)


def test_the_prompt_of_a_dropped_group_is_issued_again_after_a_stop_as_without_one(
    smallest: Build,
) -> None:
    keys = (*LOOP, "checkpoint.every=100", "rewards.min_group_size=2")

    def unscored(workers: Workers) -> None:
        """Every member of the group `DROPPED` but one has no score."""
        pool = workers.rewards.pools["reconstruction"]
        assert isinstance(pool, SimulatedPool)
        score = pool._methods["score"]

        async def few(sample: tuple[int, int], *args: Any) -> Any:
            if sample[0] == DROPPED and sample[1]:
                return ScoreFailure("reconstruction", "no camera found", retry=False), None, None
            return await score(sample, *args)

        pool._methods["score"] = few

    def prepare(workers: Workers, trainer: Trainer) -> None:
        unscored(workers)
        stopped_within(workers, trainer, lambda: bool(trainer.collector.dropped()))

    def prompts(config: RunConfig) -> dict[int, str]:
        found = CheckpointStore(config.run).newest_valid().checkpoint
        assert found is not None
        samples, _ = read_chain(RunFolder(config.run), found.state.ledger)
        return {row.group: row.prompt_id for row in samples}

    whole = smallest(*keys, name="whole")
    assert train(whole, lambda workers, _: unscored(workers)).step == 6
    config = smallest(*keys, name="stopped")
    assert train(config, prepare).step == 2
    saved = CheckpointStore(config.run).newest_valid().checkpoint
    assert saved is not None
    assert [entry.group for entry in saved.state.again] == [DROPPED]
    assert train(config, lambda workers, _: unscored(workers)).step == 6
    assert prompts(config) == prompts(whole)
    assert audit_run(config.run).findings == ()


def test_a_dropped_group_whose_prompt_has_left_the_set_is_owed_nothing(smallest: Build) -> None:
    config = smallest(*LOOP)

    def prepare(workers: Workers, trainer: Trainer) -> None:
        gone = InFlight(group=0, phase="main", prompt_id="no such prompt")
        trainer.collector.resume((), (gone,))
        assert trainer.collector.dropped() == (gone,)

    assert train(config, prepare).step == 6
    saved = CheckpointStore(config.run).newest_valid().checkpoint
    assert saved is not None
    assert saved.state.again == ()
    assert saved.state.cursors["train"] == 12


def test_a_group_scored_since_the_last_step_is_kept_and_not_issued_again(
    smallest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A simulated trajectory is the pair (group, member).
    monkeypatch.setattr(
        "cluster.group_files.save_trajectory",
        lambda trajectory, path: Path(path).write_text(json.dumps(trajectory)),
    )
    monkeypatch.setattr(
        "cluster.group_files.load_trajectory",
        lambda path: tuple(json.loads(Path(path).read_text())),
    )
    config = smallest(*LOOP, "checkpoint.every=100", "checkpoint.keep_inflight=true")

    def prepare(workers: Workers, trainer: Trainer) -> None:
        scored = lambda: [ready.group.group for ready, _ in trainer.collector.waiting()]  # noqa: E731
        stopped_within(workers, trainer, lambda: DROPPED in scored())

    assert train(config, prepare).step == 2
    assert list(Path(config.run).glob("checkpoints/step_000002/inflight/*"))
    resumed_in_order(config)


def test_a_stop_while_training_waits_for_a_slow_store_leaves_a_checkpoint(
    smallest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = smallest(*LOOP, "checkpoint.every=2", "checkpoint.max_unsaved_steps=2")
    commit, stop = Saver._commit, list[Callable[[], None]]()

    def slow(self: Saver, state: RunState) -> None:
        stop[0]()
        time.sleep(0.3)
        commit(self, state)

    monkeypatch.setattr(Saver, "_commit", slow)

    def prepare(workers: Workers, trainer: Trainer) -> None:
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(trainer.stop) and None)

    state = train(config, prepare)
    assert state.step == 2
    saved = CheckpointStore(config.run).newest_valid().checkpoint
    assert saved is not None
    assert saved.step == 2


def test_a_store_that_is_slow_to_make_room_stops_no_step(
    smallest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.saving.ROOM_S", 0.01)
    monkeypatch.setattr("cluster.saving.FIRST_PAUSE_S", 0.01)
    make_room, rooms, steps_meanwhile = Saver._make_room, list[int](), list[int]()
    config = smallest(*LOOP, "checkpoint.every=1", "checkpoint.max_unsaved_steps=4")

    def slow(self: Saver, step: int) -> str:
        rooms.append(step)
        before = len(rows(config))
        time.sleep(2.0 if step == 1 else 0.05)
        steps_meanwhile.append(len(rows(config)) - before)
        assert rooms[-1] == step, "another one began meanwhile"
        return make_room(self, step)

    monkeypatch.setattr(Saver, "_make_room", slow)
    assert train(config, None).step == 6
    assert rooms[0] == 1
    assert len(set(rooms)) == len(rooms)
    assert steps_meanwhile[0] == 4, "as many as may be unsaved"
    assert len(rooms) <= 6, "a store that is steadily slow is waited for longer each time"
    saved = CheckpointStore(config.run).newest_valid().checkpoint
    assert saved is not None
    assert saved.step == 6
    assert audit_run(config.run).findings == ()


def test_ranks_that_cannot_begin_the_last_save_end_the_run(smallest: Build) -> None:
    config = smallest(*LOOP, "steps=2", "checkpoint.every=100")
    ranks = SimulatedRanks(config, FAST, fail_at=[("begin_save", -1)] * 20)

    async def whole() -> None:
        trainer, state = simulated_trainer(config, simulated_workers(config, FAST, ranks))
        await asyncio.wait_for(trainer.train(state), 30)

    with pytest.raises(LearnerLost, match="begin_save"):
        asyncio.run(whole())
    assert ranks.restarts == 3


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_was_taken_writes_nothing_more(smallest: Build, stopped: bool) -> None:
    """In its third step, or at a SIGTERM there, whose checkpoint is not written either."""
    config = smallest(*LOOP, "checkpoint.every=100")
    seen: list[int] = []
    """Rows that are written, each time the loop asks."""

    def take_in_third_step(_: Workers, trainer: Trainer) -> None:
        def require_held() -> None:
            seen.append(len(rows(config)))
            if len(seen) == 2 and stopped:
                trainer.stop()
            if len(seen) == 3:
                raise RunTaken("run = 'run' is no longer this process's: process 7 has it")

        trainer.holding = replace(trainer.holding, require=require_held)

    with pytest.raises(RunTaken, match="process 7 has it"):
        train(config, take_in_third_step)
    assert seen == [0, 1, 2]
    assert len(rows(config)) == 2
    assert CheckpointStore(config.run).steps() == ()


@pytest.mark.parametrize("taken_at", ["begin", "commit"])
def test_a_run_that_was_taken_while_training_paused_overwrites_no_checkpoint(
    smallest: Build, taken_at: str
) -> None:
    """Another process has written the checkpoint of the step whose save is repeated."""
    config = smallest(*LOOP, "checkpoint.every=2", "checkpoint.max_unsaved_steps=2")
    theirs = Path(config.run) / "checkpoints/step_000002/manifest.json"
    asked: list[str] = []

    def confirm() -> None:
        asked.append(("begin", "commit", "retain")[len(asked) % 3])
        if asked[-1] == taken_at:
            assert not theirs.exists()
            theirs.parent.mkdir(parents=True, exist_ok=True)
            theirs.write_text("theirs")
            raise RunTaken("run = 'run' is no longer this process's: process 7 has it")

    async def whole() -> None:
        workers = simulated_workers(config, FAST)
        holding = Holding(lambda: None, confirm)
        trainer, state = simulated_trainer(config, workers, holding=holding)
        await trainer.train(state)

    with pytest.raises(RunTaken, match="process 7 has it"):
        asyncio.run(whole())
    assert asked[-1] == taken_at
    assert theirs.read_text() == "theirs"


def test_a_checkpoint_counts_although_older_ones_cannot_be_deleted(
    smallest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = smallest(*LOOP, "checkpoint.every=2", "checkpoint.max_unsaved_steps=2")
    retain, begin = CheckpointStore.retain, CheckpointStore.begin
    begun: list[int] = []
    refused = iter([OSError("503 slow down")])

    def failing(self: CheckpointStore, keep: int, needed: Collection[int] = ()) -> tuple[int, ...]:
        if error := next(refused, None):
            raise error
        return retain(self, keep, needed)

    def noted(self: CheckpointStore, step: int) -> str:
        begun.append(step)
        return begin(self, step)

    monkeypatch.setattr(CheckpointStore, "retain", failing)
    monkeypatch.setattr(CheckpointStore, "begin", noted)
    assert train(config, None).step == 6
    assert begun == [2, 4, 6]
    assert CheckpointStore(config.run).steps() == (2, 4, 6)
