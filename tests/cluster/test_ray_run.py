"""Whole runs on a real Ray head of this test's own: parity with --local, kill -9, two ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.config import REPOSITORY, RunConfig, flatten
from cluster.demo import ray_head, submit
from cluster.runs import in_this_process, run_training

pytestmark = pytest.mark.cluster
Build = Callable[..., RunConfig]
Head = tuple[str, dict[str, str]]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as found:
        yield found


def command(config: RunConfig) -> list[str]:
    """`worldr1 train toy` with every leaf of a configuration spelled out."""
    pairs = [f"{key}={json.dumps(value)}" for key, value in flatten(config).items()]
    pairs = [pair for pair in pairs if not pair.endswith("=null")]
    return [sys.executable, "-m", "cluster.cli", "train", "toy", *pairs]


def final_checksum(config: RunConfig) -> str:
    newest = sorted((Path(config.run) / "checkpoints").iterdir())[-1]
    state = json.loads((newest / "state.json").read_text())
    assert state["step"] == config.steps
    return str(state["weights_checksum"])


def durable_steps(config: RunConfig) -> int:
    return len(list(Path(config.run).glob("checkpoints/*/manifest.json")))


def kill_after(config: RunConfig, durable: int, environment: dict[str, str]) -> None:
    """Start a run as a driver of its own and kill -9 it when so many checkpoints are durable."""
    process = subprocess.Popen(
        command(config),
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while durable_steps(config) < durable:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def recorded_steps(config: RunConfig) -> list[int]:
    text = (Path(config.run) / "metrics.jsonl").read_text()
    return [json.loads(line)["step"] for line in text.splitlines()]


def test_killed_and_resumed_on_ray_equals_an_undisturbed_run_in_one_process(
    head: Head, smallest: Build
) -> None:
    """Parity of Ray and --local, and of killed and undisturbed, in one comparison of bits."""
    killed = smallest("steps=4", "checkpoint.keep=9", name="killed")
    kill_after(killed, 2, head[1])
    assert durable_steps(killed) < 4
    assert submit(*head, command(killed)) == 0
    local = run_training(smallest("steps=4", name="local"), in_this_process, lambda line: None)
    assert final_checksum(killed) == local.weights_checksum
    assert recorded_steps(killed) == [0, 1, 2, 3]


@pytest.mark.hand
def test_two_ranks_killed_and_undisturbed_end_with_the_same_weights(
    head: Head, smallest: Build
) -> None:
    overrides = ("learner.ranks=2", "steps=4", "checkpoint.keep=9")
    undisturbed, killed = (smallest(*overrides, name=name) for name in ("undisturbed", "killed"))
    assert submit(*head, command(undisturbed)) == 0
    kill_after(killed, 2, head[1])
    assert durable_steps(killed) < 4
    assert submit(*head, command(killed)) == 0
    assert final_checksum(killed) == final_checksum(undisturbed)
    assert recorded_steps(killed) == [0, 1, 2, 3]
