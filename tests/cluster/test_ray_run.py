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


def test_ray_and_local_compute_the_same_bits(head: Head, smallest: Build) -> None:
    config = smallest(name="on-ray")
    assert submit(*head, command(config)) == 0
    local = run_training(smallest(name="local"), in_this_process, say=lambda line: None)
    assert final_checksum(config) == local.weights_checksum


def test_killed_run_ends_with_the_weights_of_an_undisturbed_one(
    head: Head, smallest: Build
) -> None:
    overrides = ("learner.ranks=2", "steps=4", "checkpoint.keep=9")
    undisturbed = smallest(*overrides, name="undisturbed")
    assert submit(*head, command(undisturbed)) == 0
    killed = smallest(*overrides, name="killed")
    process = subprocess.Popen(
        command(killed),
        cwd=REPOSITORY,
        env=head[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while durable_steps(killed) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert durable_steps(killed) < 4
    assert submit(*head, command(killed)) == 0
    assert final_checksum(killed) == final_checksum(undisturbed)
    steps = [
        row["step"]
        for row in map(json.loads, (Path(killed.run) / "metrics.jsonl").read_text().splitlines())
    ]
    assert steps == [0, 1, 2, 3]
