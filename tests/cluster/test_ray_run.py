"""Whole runs on a real Ray head of this test's own: parity with --local, kill -9, two ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.driver import Driver, command, driving, wait_for
from cluster.config import RunConfig
from cluster.demo import ray_head, submit
from cluster.runs import in_this_process, run_training

pytestmark = pytest.mark.cluster
Build = Callable[..., RunConfig]
Head = tuple[str, dict[str, str]]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as found:
        yield found


def durable_steps(config: RunConfig) -> int:
    return len(list(Path(config.run).glob("checkpoints/*/manifest.json")))


def kill_after(driver: Driver, durable: int) -> None:
    """Start a run as a driver of its own and kill -9 it when so many checkpoints are durable."""
    with driving(driver):
        wait_for("checkpoints", lambda: durable_steps(driver.config) >= durable, 300)
        assert driver.exit_code() is None
        driver.kill()


def test_killed_and_resumed_on_ray_equals_an_undisturbed_run_in_one_process(
    head: Head, smallest: Build
) -> None:
    """Parity of Ray and --local, and of killed and undisturbed, in one comparison of bits."""
    killed = smallest("steps=4", "checkpoint.keep=9", name="killed")
    driver = Driver(killed, head[1])
    kill_after(driver, 2)
    assert durable_steps(killed) < 4
    assert submit(*head, command(killed)) == 0
    local = run_training(smallest("steps=4", name="local"), in_this_process, lambda line: None)
    assert driver.checksum() == local.weights_checksum
    assert [row["step"] for row in driver.rows()] == [0, 1, 2, 3]


@pytest.mark.hand
def test_two_ranks_killed_and_undisturbed_end_with_the_same_weights(
    head: Head, smallest: Build
) -> None:
    overrides = ("learner.ranks=2", "steps=4", "checkpoint.keep=9")
    undisturbed, killed = (smallest(*overrides, name=name) for name in ("undisturbed", "killed"))
    assert submit(*head, command(undisturbed)) == 0
    driver = Driver(killed, head[1])
    kill_after(driver, 2)
    assert durable_steps(killed) < 4
    assert submit(*head, command(killed)) == 0
    assert driver.checksum() == Driver(undisturbed, head[1]).checksum()
    assert [row["step"] for row in driver.rows()] == [0, 1, 2, 3]
