"""What a judge's server leaves behind, and a server that cannot start; plain programs serve here.

Not covered here: a real vLLM server (tests/cluster/test_judge_served.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from prompts.schema import Prompt
from rewards.config import JudgeConfig, RewardConfig
from rewards.guarded_process import LOST, GuardedProcess
from rewards.judge_server import JudgeServer, ServerLost
from rewards.judge_worker import JudgeWorker
from rewards.score import ScoreFailure
from tests.rewards import silent_server

ROOT = Path(silent_server.__file__).resolve().parents[2]
FAMILY = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[1] == "deaf" else signal.SIG_DFL)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, file=sys.stderr, flush=True)
if sys.argv[1] == "dies":
    sys.exit(7)
time.sleep(60)
"""


def guarded(tmp_path: Path, manner: str) -> tuple[GuardedProcess, list[int]]:
    """A program under a guard that has a child: the ids of both processes."""
    log = tmp_path / manner
    process = GuardedProcess([sys.executable, "-c", FAMILY, manner], log, os.environ)
    assert until(lambda: log.read_text().endswith("\n"))
    return process, [process.pid, int(log.read_text())]


def guard_of(process: GuardedProcess) -> int:
    """The parent of a guarded program."""
    return int(Path(f"/proc/{process.pid}/stat").read_text().split()[3])


def until(true: Callable[[], bool], limit_s: float = 20.0) -> bool:
    deadline = time.monotonic() + limit_s
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def test_the_server_and_its_children_end_with_the_worker(tmp_path: Path) -> None:
    """Closing the pipe is what the kernel does for a worker that is killed."""
    process, pids = guarded(tmp_path, "hears")
    assert not any(gone(pid) for pid in pids)
    assert process.status() is None
    process.end(20)
    assert process.status() == 128 + 15
    assert until(lambda: all(gone(pid) for pid in pids))


def test_the_children_of_a_server_that_died_end_too(tmp_path: Path) -> None:
    process, pids = guarded(tmp_path, "dies")
    assert process.status(20) == 7
    assert until(lambda: all(gone(pid) for pid in pids))


def test_the_guard_is_no_child_of_the_worker_and_its_death_ends_the_server(tmp_path: Path) -> None:
    process, pids = guarded(tmp_path, "hears")
    guard = guard_of(process)
    assert guard != os.getpid()
    assert int(Path(f"/proc/{guard}/stat").read_text().split()[3]) != os.getpid()
    assert os.getsid(guard) != os.getsid(0)
    os.kill(guard, signal.SIGKILL)
    assert process.status(20) == LOST
    assert until(lambda: gone(pids[0]))
    os.kill(pids[1], signal.SIGKILL)


def test_nothing_stays_of_a_worker_that_is_ended_as_ray_ends_one(tmp_path: Path) -> None:
    """Ray kills the children of the process, then the process, all without warning."""
    log = tmp_path / "log"
    command = [sys.executable, "-c", FAMILY, "hears"]
    program = (
        "import os, pathlib, time; from rewards.guarded_process import GuardedProcess; "
        f"started = GuardedProcess({command!r}, pathlib.Path({str(log)!r}), os.environ); "
        "print(started.pid, flush=True); time.sleep(60)"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert worker.stdout is not None
    server = int(worker.stdout.readline())
    assert until(lambda: log.read_text().endswith("\n"))
    child = int(log.read_text())
    for process in psutil.Process(worker.pid).children():
        process.kill()
    worker.kill()
    worker.wait(10)
    assert until(lambda: gone(server) and gone(child))


@pytest.mark.slow
def test_a_server_deaf_to_sigterm_is_killed(tmp_path: Path) -> None:
    process, pids = guarded(tmp_path, "deaf")
    process.end(30)
    assert process.status() == 128 + 9
    assert until(lambda: all(gone(pid) for pid in pids))


@pytest.mark.slow
def test_a_server_that_never_starts_is_given_up_with_its_last_error() -> None:
    """Core has no vllm; three starts are tried, and nothing stays."""
    config = JudgeConfig(backend="vllm", model="m")
    server = JudgeServer(config, "cpu")
    with pytest.raises(ServerLost, match=r"does not start: it ended with status 1: .*vllm"):
        server.wait(60)
    assert server.starts == 3
    assert gone(server.pid)
    server.close()
    assert not server.log.exists()
    with pytest.raises(ServerLost, match="does not start"):
        JudgeWorker(RewardConfig(judge=config))


def test_a_server_that_is_not_up_in_time_is_an_error_in_time(tmp_path: Path) -> None:
    """The environment's interpreter is a program that listens to nothing."""
    python = tmp_path / "env/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    config = JudgeConfig(backend="vllm", model="m", env=f"{tmp_path}/env")
    server = JudgeServer(config, "cpu")
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="not healthy within 0 s"):
        server.wait(0.3)
    assert until(lambda: server.pid != 0)
    server.close()
    assert until(lambda: gone(server.pid))
    assert time.monotonic() - started < 10
    assert os.getpgid(0) != server.pid


@pytest.mark.slow
def test_a_server_that_cannot_be_kept_up_is_lost_and_says_so(tmp_path: Path) -> None:
    """Somebody tidies its folder away: the next start has nowhere to write its log."""
    python = tmp_path / "env/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    config = JudgeConfig(backend="vllm", model="m", env=f"{tmp_path}/env", start_timeout_s=1)
    server = JudgeServer(config, "cpu")
    assert until(server.log.exists)
    shutil.rmtree(server.log.parent)
    with pytest.raises(ServerLost, match="is not kept up: FileNotFoundError"):
        server.wait(60)
    assert until(lambda: gone(server.pid))
    server.close()


@pytest.mark.slow
def test_a_server_that_claims_to_be_well_and_answers_nothing_is_replaced(tmp_path: Path) -> None:
    """Two requests time out, each a failure worth a retry; then another server is up."""
    python = tmp_path / "env/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {silent_server.__file__} "$@"\n')
    python.chmod(0o755)
    judge = JudgeConfig(
        backend="vllm", model="m", env=f"{tmp_path}/env", concurrency=1, request_timeout_s=1.0
    )
    worker = JudgeWorker(RewardConfig(judge=judge, timeout_s=30))
    try:
        assert worker.describe()["server_starts"] == "1"
        prompt = Prompt.from_text("p", "A red box.")
        for _ in range(2):
            outcome = worker.score(np.zeros((32, 32, 3), np.uint8), prompt)
            assert isinstance(outcome, ScoreFailure)
            assert "gave no answer within 1 s" in outcome.reason
            assert outcome.retry
        assert until(lambda: worker.describe()["server_starts"] == "2")
    finally:
        worker.close()
