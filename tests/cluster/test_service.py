"""The real loop over simulated stages: overlap, staleness, what survives, what the audit says.

Not covered: Ray (test_ray_run.py, test_ray_pool.py), tensors (test_local_run.py).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
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
from cluster.audit import AuditReport, audit_run
from cluster.checkpoint import CheckpointStore, RunState
from cluster.clocks import StageClock, bottleneck
from cluster.config import RunConfig
from cluster.recovery import AccountError
from cluster.rows import RowsFile
from cluster.saving import Saver
from learner.rank import StepReport

Build = Callable[..., RunConfig]
FAST = Durations(0.002, 0.002, learner_s=0.004)
DURABLE_IN_TIME = "checkpoint.max_unsaved_steps=2"
"""With a checkpoint every other step: step n waits for that of step n - 2."""
LOOP = ("steps=6", "schedule.main_steps=3", "schedule.dynamic_steps=2", "rewards.artifacts.keep=0")


def run(
    config: RunConfig, ranks: SimulatedRanks | None = None, durations: Durations = FAST
) -> tuple[RunState, list[str]]:
    """Train a simulated run from where it is; its state and what it said."""
    said: list[str] = []

    async def train() -> RunState:
        workers = simulated_workers(config, durations, ranks)
        trainer, state = simulated_trainer(config, workers, said.append)
        return await trainer.train(state)

    return asyncio.run(train()), said


def in_order(config: RunConfig) -> AuditReport:
    report = audit_run(config.run)
    assert report.findings == ()
    assert (report.lost, report.double) == ((), ())
    assert report.trained == config.steps * config.rollout.groups_per_step
    return report


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_every_group_trains_once_and_none_is_too_old(smallest: Build, staleness: int) -> None:
    config = smallest(*LOOP, f"max_staleness={staleness}", "rollout.workers=3")
    state, _ = run(config)
    assert state.step == 6
    in_order(config)
    ages = [row["age"] for row in rows(config)]
    assert max(age["mean"] for age in ages) <= staleness
    assert [row["phase"] for row in rows(config)] == ["main"] * 3 + ["dynamic"] * 2 + ["main"]
    if staleness:
        assert sum(age["mean"] for age in ages) > 0, "nothing overlapped"


class Watched(SimulatedRanks):
    """Ranks that know when they step, and rollouts that look whether they do."""

    stepping = False

    async def step(self, *args: Any) -> StepReport:
        self.stepping = True
        try:
            return await super().step(*args)
        finally:
            self.stepping = False

    def watch(self, pool: Any) -> list[bool]:
        """For every rollout, in order of their beginnings: whether the learner was in a step."""
        assert isinstance(pool, SimulatedPool)
        usual, seen = pool._methods["rollout"], list[bool]()

        async def rollout(*args: Any) -> Any:
            seen.append(self.stepping)
            return await usual(*args)

        pool._methods["rollout"] = rollout
        return seen


@pytest.mark.parametrize("staleness", [0, 1])
def test_stages_overlap_with_staleness_and_without_it_follow_each_other(
    smallest: Build, staleness: int
) -> None:
    config = smallest(*LOOP, f"max_staleness={staleness}", "rollout.workers=1")
    durations = Durations(0.02, 0.001, learner_s=0.05)
    ranks = Watched(config, durations)

    async def train() -> list[bool]:
        workers = simulated_workers(config, durations, ranks)
        seen = ranks.watch(workers.rollouts.pool)
        trainer, state = simulated_trainer(config, workers)
        await trainer.train(state)
        return seen

    seen = asyncio.run(train())
    assert any(seen) is (staleness == 1)
    for row in rows(config)[1:]:
        assert row["stages"]["rollout"]["blocked_s"] > 0
        clocks = {name: StageClock(**clock) for name, clock in row["stages"].items()}
        assert row["bottleneck"] == bottleneck(clocks)


def test_synchronous_draws_do_not_depend_on_who_is_faster(smallest: Build) -> None:
    accounts = set()
    for workers, durations in ((1, FAST), (3, Durations(0.001, 0.004))):
        config = smallest(*LOOP, f"rollout.workers={workers}", name=f"w{workers}")
        accounts.add(run(config, durations=durations)[0].account)
    assert len(accounts) == 1


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize(
    "fail_at",
    [
        [("step", 0)],
        [("step", 3)],
        [("weights", 4)],
        [("begin_save", -1)],
        [("saved", -1)],
        [("step", 2), ("weights", 1), ("step", 4), ("load", -1)],
    ],
    ids=lambda fail_at: "+".join(f"{method}{step}" for method, step in fail_at),
)
def test_lost_ranks_are_replaced_and_repeat_what_no_checkpoint_covers(
    smallest: Build, fail_at: list[tuple[str, int]], staleness: int
) -> None:
    """With max_staleness 0 the run ends with the weights of an undisturbed one."""
    options = (*LOOP, "checkpoint.every=2", f"max_staleness={staleness}")
    bounded = (DURABLE_IN_TIME,) if ("load", -1) in fail_at else ()
    config = smallest(*options, *bounded, name="disturbed")
    ranks = SimulatedRanks(config, FAST, fail_at=list(fail_at))
    state, said = run(config, ranks)
    assert ranks.fail_at == []
    # A save that fails is repeated; a dead rank shows in the next call on it, and this one lives.
    assert (ranks.restarts == 0) == (fail_at == [("saved", -1)])
    in_order(config)
    if staleness == 0:
        undisturbed, _ = run(smallest(*options, name="undisturbed"))
        assert state.weights_checksum == undisturbed.weights_checksum
        assert state.account == undisturbed.account
    if ("step", 3) in fail_at:
        assert any("replacing all ranks" in line for line in said)


def test_ranks_lost_while_they_write_leave_no_checkpoint_of_halves(smallest: Build) -> None:
    """The save of step 2 does not end before step 2 itself, in which the ranks that write it
    die."""

    class Slow(SimulatedRanks):
        async def saved(self, wait_s: float) -> bool:
            return bool(self.restarts) and await super().saved(wait_s)

    config = smallest(*LOOP, "checkpoint.every=2")
    ranks = Slow(config, FAST, fail_at=[("step", 2)])
    _, said = run(config, ranks)
    assert ranks.restarts == 1
    assert any("checkpoint of step 2 failed (the ranks were replaced" in line for line in said)
    in_order(config)


def test_ranks_that_repeat_with_other_bits_open_a_lineage(smallest: Build) -> None:
    config = smallest(*LOOP, "checkpoint.every=100", "max_staleness=1")
    ranks = SimulatedRanks(config, FAST, fail_at=[("step", 3)])
    restart = ranks.restart

    async def other_bits() -> None:
        await restart()
        ranks.publish_bits = "an unlike sum"

    ranks.restart = other_bits  # type: ignore[method-assign]
    state, said = run(config, ranks)
    assert len(state.lineages.starts) == 2
    assert state.lineages.starts[1][1] == 0
    assert any("gave other bits" in line for line in said)
    report = audit_run(config.run)
    assert (report.lost, report.double) == ((), ())
    assert report.dropped.get("orphaned", 0) + report.trained >= 12


def test_three_losses_in_a_row_stop_the_run(smallest: Build) -> None:
    from cluster.lost import LearnerLost

    config = smallest(*LOOP)
    ranks = SimulatedRanks(config, FAST, fail_at=[("step", 1)] * 9)
    with pytest.raises(LearnerLost, match="step"):
        run(config, ranks)


def run_in_a_process(config: RunConfig) -> int | None:
    """Train in a forked process; its exit code, which is -9 where it killed itself."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(config,))
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("phase", ["batch", "step", "weights", "begin_save", "write", "commit"])
def test_a_coordinator_killed_in_any_phase_is_resumed_to_the_same_weights(
    smallest: Build, monkeypatch: pytest.MonkeyPatch, phase: str, staleness: int
) -> None:
    """kill -9. `write` is after the shards and before the ledger, `commit` after the ledger and
    before the manifest."""
    options = (*LOOP, f"max_staleness={staleness}", "checkpoint.every=2", DURABLE_IN_TIME)
    config = smallest(*options, name="killed")
    this_process = os.getpid()

    def killed_here() -> None:
        durable = CheckpointStore(config.run).newest_valid().checkpoint is not None
        if os.getpid() != this_process and durable:
            os.kill(os.getpid(), signal.SIGKILL)

    from cluster.collect import Collector
    from cluster.ledger import Ledger

    target, name = {
        "batch": (Collector, "batch"),
        "step": (SimulatedRanks, "step"),
        "weights": (SimulatedRanks, "weights"),
        "begin_save": (SimulatedRanks, "begin_save"),
        "write": (Ledger, "write"),
        "commit": (CheckpointStore, "commit"),
    }[phase]
    original: Any = getattr(target, name)

    if asyncio.iscoroutinefunction(original):

        async def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
            killed_here()
            return await original(self, *args, **kwargs)

        monkeypatch.setattr(target, name, slow)
    else:

        def quick(self: Any, *args: Any, **kwargs: Any) -> Any:
            killed_here()
            return original(self, *args, **kwargs)

        monkeypatch.setattr(target, name, quick)
    assert run_in_a_process(config) == -signal.SIGKILL
    state, said = run(config)
    assert any("resuming" in line for line in said)
    in_order(config)
    assert [row["step"] for row in rows(config)] == list(range(6))
    if staleness == 0:
        whole, _ = run(smallest(*options, name="whole"))
        assert state.weights_checksum == whole.weights_checksum


def test_weights_of_another_history_than_the_state_are_refused(smallest: Build) -> None:
    config = smallest(*LOOP, "steps=2")
    run(config)
    store = CheckpointStore(config.run)
    found = store.newest_valid().checkpoint
    assert found is not None
    forged = found.state.model_copy(update={"account": "f" * 64})
    store.commit(2, forged, found.config)
    with pytest.raises(AccountError, match="trained on other samples"):
        run(smallest(*LOOP, "steps=4"))


def test_training_pauses_at_max_unsaved_steps_while_the_store_fails(
    smallest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = smallest(*LOOP, "checkpoint.every=1", "checkpoint.max_unsaved_steps=2")
    monkeypatch.setattr("cluster.saving.FIRST_PAUSE_S", 0.02)
    commit = Saver._commit
    unsaved: list[int] = []
    failures = 3

    def failing(self: Saver, state: RunState) -> None:
        nonlocal failures
        unsaved.append(state.step - self.durable)
        if failures:
            failures -= 1
            raise OSError("503 slow down")
        commit(self, state)

    monkeypatch.setattr(Saver, "_commit", failing)
    state, said = run(config)
    assert state.step == 6
    assert max(unsaved) == 2
    assert sum("503 slow down" in line for line in said) == 3
    assert any("waits for a durable checkpoint" in line for line in said)
    in_order(config)


def test_rows_that_the_store_refuses_are_in_a_later_write(
    smallest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, refused = RowsFile.append, iter([False, False, True, True, False, False, True])

    def failing(self: RowsFile) -> None:
        if next(refused, False):
            raise OSError("503 slow down")
        append(self)

    monkeypatch.setattr(RowsFile, "append", failing)
    config = smallest(*LOOP)
    _, said = run(config)
    assert sum("metrics.jsonl could not be written" in line for line in said) == 3
    assert [row["step"] for row in rows(config)] == list(range(6))


def test_sigterm_while_the_ranks_load_ends_the_run_with_the_checkpoint_that_is_there(
    smallest: Build,
) -> None:
    config = smallest(*LOOP, "steps=2")
    before, _ = run(config)

    class Loading(SimulatedRanks):
        async def load(self, url: str) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)

    config = config.model_copy(update={"steps": 4})
    after, said = run(config, Loading(config, FAST))
    assert said[-1] == "stopped: leaving after step 2"
    assert (after.step, after.weights_checksum) == (2, before.weights_checksum)


@pytest.fixture
def answered() -> Iterator[None]:
    """Ctrl-C as in a terminal: a shell's background jobs, and CI's, may have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_the_run_goes_on(
    smallest: Build, kind: signal.Signals, answered: None
) -> None:
    config = smallest(*LOOP, "checkpoint.every=100", "max_staleness=1", "steps=8")
    slow = Durations(0.02, 0.01, learner_s=0.03)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("step    1/8"):
            os.kill(os.getpid(), kind)

    async def train() -> RunState:
        workers = simulated_workers(config, slow)
        trainer, state = simulated_trainer(config, workers, say)
        return await trainer.train(state)

    state = asyncio.run(train())
    assert 0 < state.step < 8
    assert f"stopped: leaving after step {state.step}" in said
    assert any("Ctrl-C again" in line for line in said) == (kind == signal.SIGINT)
    newest = CheckpointStore(config.run).newest_valid().checkpoint
    assert newest is not None
    assert newest.step == state.step
    assert audit_run(config.run).findings == ()
    final, _ = run(config)
    assert final.step == 8
    in_order(config)
    assert not list(Path(config.run).glob("**/*.partial"))


def test_a_second_interrupt_ends_the_run_at_once(smallest: Build, answered: None) -> None:
    """Also while something holds the event loop, as a worker's call does under --local."""
    config = smallest(*LOOP, "checkpoint.every=100", "steps=8")
    handler = signal.getsignal(signal.SIGINT)

    def say(line: str) -> None:
        if line.startswith("step    2/8"):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second was not answered at once")

    async def train() -> RunState:
        trainer, state = simulated_trainer(config, simulated_workers(config, FAST), say)
        return await trainer.train(state)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(train())
    assert CheckpointStore(config.run).newest_valid().checkpoint is None
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_run_in_the_background_of_a_script_leaves_its_interrupts_alone(smallest: Build) -> None:
    """A shell has its background jobs ignore Ctrl-C, which is meant for another command."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = smallest(*LOOP, "steps=2")

    def say(line: str) -> None:
        if line.startswith("step    1/2"):
            os.kill(os.getpid(), signal.SIGINT)

    async def train() -> RunState:
        trainer, state = simulated_trainer(config, simulated_workers(config, FAST), say)
        return await trainer.train(state)

    try:
        assert asyncio.run(train()).step == 2
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
