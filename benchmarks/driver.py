"""A run as a process of its own, `worldr1 train`, and its workers' processes: to be disturbed.

Processes are found among the descendants of this one, so that another Ray on the machine is never
touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cluster.config import REPOSITORY, RunConfig, flatten
from cluster.rows import read_rows
from cluster.storage import RunFolder

WORKERS = {
    "rollout": "RolloutWorker",
    "reconstruction": "ReconstructionWorker",
    "judge": "JudgeWorker",
    "aesthetic": "AestheticWorker",
    "learner": "LearnerRank",
}
"""Kind of worker -> class, which Ray puts into the title of its process."""

SECOND_NODE = "127.0.0.3"

SMALL_RUN = (
    "eval.prompts=0",
    "rollout.groups_per_step=2",
    "rollout.group_size=2",
    "rollout.sampling_steps=4",
    "rollout.window_size=2",
    "rollout.window_high=2",
    "rewards.artifacts.keep=0",
    "metrics.tracker=none",
    "metrics.report_every_s=0",
    "placement.timeout_s=120",
)
"""The toy preset at 2 groups of 2 samples and 4 denoising steps: about a second a step."""


def command(config: RunConfig, *flags: str) -> list[str]:
    """`worldr1 train toy` with every leaf of a configuration spelled out."""
    pairs = [f"{key}={json.dumps(value)}" for key, value in flatten(config).items()]
    pairs = [pair for pair in pairs if not pair.endswith("=null")]
    return [sys.executable, "-m", "cluster.cli", "train", "toy", *pairs, *flags]


def workers(kind: str, since: float = 0.0) -> list[psutil.Process]:
    """Live processes of one kind of worker below this process that were born `since` a time, the
    oldest first."""
    title = f"ray::{WORKERS[kind]}"
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, IndexError):
            alive = process.status() != psutil.STATUS_ZOMBIE and process.create_time() >= since
            if alive and process.cmdline()[0].startswith(title):
                found.append(process)
    return sorted(found, key=lambda process: (process.create_time(), process.pid))


def wait_for(what: str, condition: Callable[[], Any], timeout_s: float) -> Any:
    """The first true answer of `condition`. TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.05)
    raise TimeoutError(f"{what}: not within {timeout_s:g} s")


@dataclass
class Driver:
    """The coordinator of a run, as a process that can be killed and started again."""

    config: RunConfig
    environment: Mapping[str, str]
    """Of the head's (`cluster.demo.ray_head`)."""
    flags: tuple[str, ...] = ()
    starts: int = field(default=0, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def log(self) -> Path:
        """What all starts of the run have printed."""
        return Path(f"{self.config.run}.log")

    def start(self) -> None:
        """Start, or go on from the newest checkpoint."""
        self.starts += 1
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command(self.config, *self.flags),
                cwd=REPOSITORY,
                env=dict(self.environment),
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def process(self) -> psutil.Process:
        """The newest start."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def workers(self, kind: str) -> list[psutil.Process]:
        """Live workers of one kind that the newest start has, the oldest first."""
        return workers(kind, self.process.create_time())

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def wait(self, timeout_s: float) -> int:
        """Its exit code. subprocess.TimeoutExpired."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def exit_code(self) -> int | None:
        """None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def rows(self) -> list[dict[str, Any]]:
        """Step rows of its `metrics.jsonl`."""
        return [row for row in read_rows(RunFolder(self.config.run)) if row["kind"] == "step"]

    def steps_done(self) -> int:
        """Steps in its `metrics.jsonl`: those after its checkpoint are dropped at a resume."""
        return len(self.rows())

    def wait_for_step(self, steps: int, timeout_s: float) -> None:
        """Return when so many steps are done. TimeoutError."""
        wait_for(f"step {steps}", lambda: self.steps_done() >= steps, timeout_s)

    def durable(self) -> int:
        """Step of the newest checkpoint; 0 for none."""
        found = Path(self.config.run).glob("checkpoints/step_*/manifest.json")
        return max((int(path.parent.name.removeprefix("step_")) for path in found), default=0)

    def checksum(self) -> str:
        """Of the final weights. AssertionError where the run is not at its end."""
        path = Path(self.config.run) / f"checkpoints/step_{self.config.steps:06d}/state.json"
        state = json.loads(path.read_text())
        assert state["step"] == self.config.steps
        return str(state["weights_checksum"])

    def tail(self, lines: int = 15) -> str:
        """The last words of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """End it, whatever state it is in."""
        if self._process is not None and self._process.poll() is None:
            self.kill()


@contextlib.contextmanager
def driving(driver: Driver) -> Iterator[Driver]:
    """Start a driver; it is gone when the block ends."""
    driver.start()
    try:
        yield driver
    finally:
        driver.stop()


def freeze(process: psutil.Process) -> None:
    """SIGSTOP: alive for the system, silent for everybody else."""
    os.kill(process.pid, signal.SIGSTOP)


@contextlib.contextmanager
def further_node(environment: Mapping[str, str], cpus: int = 2) -> Iterator[Callable[[], set[int]]]:
    """A second raylet beside the head's, on another loopback address: yields what kills it and all
    of its workers at once, as the loss of a machine does, and tells their process ids."""
    ray = str(Path(sys.executable).parent / "ray")
    address = ["--address", environment["RAY_ADDRESS"], "--node-ip-address", SECOND_NODE]
    size = ["--num-cpus", str(cpus), "--object-store-memory", str(256 * 2**20)]
    node = subprocess.Popen(
        [ray, "start", *address, *size, "--block", "--disable-usage-stats"],
        env=dict(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def lose() -> set[int]:
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()
        return {process.pid for process in family}

    try:
        yield lose
    finally:
        lose()
