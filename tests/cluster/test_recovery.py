"""Recoveries of the learner that meet something else: a store that fails, a stop, other bits.

The real loop over simulated stages, as in test_service.py, which covers recoveries that end well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated import Durations, SimulatedRanks, simulated_trainer, simulated_workers
from cluster.audit import audit_run
from cluster.checkpoint import CheckpointStore, RunState
from cluster.config import RunConfig
from cluster.lost import ObjectGone
from learner.account import EMPTY_ACCOUNT
from learner.storage_errors import StoreRefused

Build = Callable[..., RunConfig]
FAST = Durations(0.002, 0.002, learner_s=0.004)
LOOP = (
    "steps=6",
    "schedule.main_steps=6",
    "schedule.dynamic_steps=0",
    "rewards.artifacts.keep=0",
    "checkpoint.every=2",
    "checkpoint.max_unsaved_steps=2",
)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.patience.FIRST_PAUSE_S", 0.01)


def run(config: RunConfig, ranks: SimulatedRanks) -> RunState:
    async def train() -> RunState:
        trainer, state = simulated_trainer(config, simulated_workers(config, FAST, ranks))
        return await asyncio.wait_for(trainer.train(state), 60)

    return asyncio.run(train())


def undisturbed(smallest: Build) -> RunState:
    config = smallest(*LOOP, name="undisturbed")
    return run(config, SimulatedRanks(config, FAST))


class Unloadable(SimulatedRanks):
    """The first loads meet an error."""

    errors: list[BaseException]

    async def load(self, url: str) -> None:
        if self.errors:
            raise self.errors.pop(0)
        await super().load(url)


def test_a_store_that_fails_while_ranks_load_is_waited_for(smallest: Build) -> None:
    config = smallest(*LOOP)
    ranks = Unloadable(config, FAST, fail_at=[("step", 4)])
    ranks.errors = [OSError("503 slow down"), OSError("503 slow down")]
    state = run(config, ranks)
    assert ranks.restarts == 1
    assert state.weights_checksum == undisturbed(smallest).weights_checksum


@pytest.mark.parametrize("ended_by", [StoreRefused("no such bucket"), asyncio.CancelledError()])
def test_ranks_of_a_recovery_that_did_not_end_are_replaced_before_they_are_used(
    smallest: Build, ended_by: BaseException
) -> None:
    """Fresh ranks hold untrained weights: nobody may take them for those of the run."""
    config = smallest(*LOOP)
    ranks = Unloadable(config, FAST)
    ranks.errors = []

    async def whole() -> tuple[str, str]:
        trainer, state = simulated_trainer(config, simulated_workers(config, FAST, ranks))
        await trainer.train(state)
        before = await trainer.learner.publish(6)
        ranks.fail_at, ranks.errors = [("weights", 6)], [ended_by]
        with pytest.raises(type(ended_by)):
            await trainer.learner.publish(6)
        return before.version.checksum, (await trainer.learner.publish(6)).version.checksum

    before, after = asyncio.run(whole())
    assert before == after
    assert ranks.restarts == 2


def test_loaded_weights_of_other_samples_are_refused_in_a_recovery_too(smallest: Build) -> None:
    config = smallest(*LOOP)

    class Forgetful(SimulatedRanks):
        async def load(self, url: str) -> None:
            """Read nothing."""

    with pytest.raises(RuntimeError, match="weights of step 2 were trained on other samples"):
        run(config, Forgetful(config, FAST, fail_at=[("step", 2)]))


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("every", [2, 6])
def test_other_bits_after_a_loss_between_steps_are_published_and_saved(
    smallest: Build, staleness: int, every: int
) -> None:
    """The ranks are lost as they copy their shards for the first save, which may be the last too,
    when the loop holds published weights."""
    config = smallest(
        *LOOP,
        f"max_staleness={staleness}",
        f"checkpoint.every={every}",
        f"checkpoint.max_unsaved_steps={every}",
    )
    ranks = SimulatedRanks(config, FAST, fail_at=[("begin_save", -1)])
    restart = ranks.restart

    async def other_bits() -> None:
        await restart()
        ranks.publish_bits = "an unlike sum"

    ranks.restart = other_bits  # type: ignore[method-assign]
    state = run(config, ranks)
    assert (state.step, ranks.restarts) == (6, 1)
    assert [step for _, step in state.lineages.starts] == [0, 0]
    report = audit_run(config.run)
    assert (report.findings, report.lost, report.double) == ((), (), ())
    for step in CheckpointStore(config.run).steps():
        url = f"{CheckpointStore(config.run).url(step)}/state.json"
        saved = RunState.model_validate_json(Path(url).read_text())
        assert saved.lineages == state.lineages
        ranks._account = saved.account
        version, _ = asyncio.run(ranks.weights(step, "asked again"))
        assert saved.weights_checksum == version.checksum
    assert saved.weights_checksum == state.weights_checksum


def test_ranks_that_can_no_longer_save_together_are_replaced(smallest: Build) -> None:
    """Their process group for saving is broken; everything else works."""
    config = smallest(*LOOP, "learner.ranks=2", "learner.micro_batch=1")

    class Broken(SimulatedRanks):
        async def saved(self, wait_s: float) -> bool:
            if not self.restarts:
                raise RuntimeError("Application timeout caused pair closure")
            return await super().saved(wait_s)

    ranks = Broken(config, FAST)
    state = run(config, ranks)
    assert ranks.restarts == 1
    assert state.weights_checksum == undisturbed(smallest).weights_checksum
    assert CheckpointStore(config.run).steps() == (2, 4, 6)


def test_weights_lost_with_the_node_of_rank_0_are_published_again(smallest: Build) -> None:
    config = smallest(*LOOP)

    class Lossy(SimulatedRanks):
        async def fetch(self, ref: Any) -> Any:
            """Gone, after the first step."""
            if not self.restarts and self._account != EMPTY_ACCOUNT:
                raise ObjectGone("the node of rank 0 was lost")
            return await super().fetch(ref)

    ranks = Lossy(config, FAST)
    state = run(config, ranks)
    assert ranks.restarts == 1
    assert state.weights_checksum == undisturbed(smallest).weights_checksum
