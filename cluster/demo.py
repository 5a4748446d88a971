"""`make demo`: a Ray head of its own on loopback, the toy run as a Ray job, all stopped after.

The head gets free ports, a temporary directory and an authentication token of its own, so that it
meets no other Ray on the machine, and dies with this process, also on Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import psutil

from cluster.config import INTERRUPTED, LOG_ROTATION, LOOPBACK, REPOSITORY, ConfigError, load
from cluster.runs import check_before_start
from cluster.signals import sigterm_interrupts

HEAD_TIMEOUT_S = 120
OBJECT_STORE_BYTES = 512 * 1024**2


def run_demo(overrides: Sequence[str], run: str | None) -> int:
    """Start a head, submit `worldr1 train toy`, follow it, stop the head; the job's exit code."""
    name = f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    folder = Path(run) if run else REPOSITORY / "runs" / name
    arguments = ["toy", *overrides, f"run={folder.absolute()}"]
    check_before_start(load(arguments[0], arguments[1:]))
    command = [sys.executable, "-m", "cluster.cli", "train", *arguments]
    try:
        with ray_head() as (address, environment):
            print(f"Ray dashboard: {address} (token in {environment['RAY_AUTH_TOKEN_PATH']})")
            print(
                f"submitting: ray job submit -- worldr1 train {shlex.join(arguments)}", flush=True
            )
            return submit(address, environment, command)
    except KeyboardInterrupt:
        print(
            f"stopped; `worldr1 demo --run {folder}` goes on from its last checkpoint", flush=True
        )
        return INTERRUPTED


def submit(address: str, environment: dict[str, str], command: Sequence[str]) -> int:
    """`ray job submit` a command and follow its log; its exit code."""
    submission = [
        str(Path(sys.executable).parent / "ray"),
        "job",
        "submit",
        "--address",
        address,
        "--",
        *command,
    ]
    process = subprocess.Popen(submission, env=environment, cwd=REPOSITORY)
    try:
        return process.wait()
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def ray_head(cpus: int = 4) -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray head with dashboard on loopback; yields its address and the environment to reach it.

    Until it has stopped, SIGTERM is a KeyboardInterrupt. To be entered in the main thread.
    """
    with sigterm_interrupts(), _head(cpus) as found:
        yield found


@contextlib.contextmanager
def _head(cpus: int) -> Iterator[tuple[str, dict[str, str]]]:
    folder = Path(tempfile.mkdtemp(prefix="wr1-"))  # short: Unix socket paths end at 107 bytes
    port, dashboard, metrics, agent = _free_ports(4)
    environment = _head_environment(folder)
    address = f"http://{LOOPBACK}:{dashboard}"
    command = [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--head",
        "--block",
        "--node-ip-address",
        LOOPBACK,
        "--port",
        str(port),
        "--dashboard-host",
        LOOPBACK,
        "--dashboard-port",
        str(dashboard),
        "--dashboard-agent-listen-port",
        str(agent),  # its default may be another Ray's, and then no job finds an agent
        "--metrics-export-port",
        str(metrics),
        "--temp-dir",
        str(folder / "ray"),
        "--num-cpus",
        str(cpus),
        "--object-store-memory",
        str(OBJECT_STORE_BYTES),
        "--disable-usage-stats",
    ]
    log = folder / "head.log"
    with log.open("wb") as output:
        head = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    environment["RAY_ADDRESS"] = f"{LOOPBACK}:{port}"
    try:
        # Jobs are started by the node's agent, which may come up long after the Jobs API: Ray
        # refuses a job whose agent has not registered within ten seconds.
        agent_health = f"http://{LOOPBACK}:{agent}/api/local_raylet_healthz"
        _wait_for_head([f"{address}/api/jobs/", agent_health], environment, head, log)
        yield address, environment
    finally:
        _stop(head)
        shutil.rmtree(folder, ignore_errors=True)


def _head_environment(folder: Path) -> dict[str, str]:
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    # A Ray that the caller already talks to must not be mistaken for this one.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    search_path = f"{Path(sys.executable).parent}{os.pathsep}{inherited.get('PATH', '')}"
    return inherited | {
        "PATH": search_path,
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONUNBUFFERED": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        **LOG_ROTATION,
        # Ray's default of 15 lets its workers starve beside any other load of the machine.
        "RAY_worker_niceness": "5",
        # Calls that the dashboard remembers, and the ids of those it forgot: by default 100,000 and
        # a million, hundreds of megabytes once they are reached.
        "RAY_task_events_max_num_task_in_gcs": "2000",
        "RAY_task_events_max_dropped_task_attempts_tracked_per_job_in_gcs": "500",
        # glibc gives each of Ray's many threads a heap of its own, whose holes add up over hours.
        "MALLOC_ARENA_MAX": "2",
    }


def _wait_for_head(
    addresses: Sequence[str], environment: dict[str, str], head: subprocess.Popen[bytes], log: Path
) -> None:
    """Wait until each address answers; ConfigError with the head's own words when one does not."""
    token = Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    deadline = time.monotonic() + HEAD_TIMEOUT_S
    missing = list(addresses)
    while missing and time.monotonic() < deadline and head.poll() is None:
        request = urllib.request.Request(missing[0], headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=5):
                missing.pop(0)
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    if missing:
        tail = " | ".join(log.read_text(errors="replace").splitlines()[-5:])
        raise ConfigError(
            f"the local Ray head did not come up within {HEAD_TIMEOUT_S} s: "
            f"no answer from {missing[0]}: {tail}"
        )


def _stop(head: subprocess.Popen[bytes]) -> None:
    """End the head and everything it started, job drivers in sessions of their own included."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(head.pid).children(recursive=True)
        head.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(timeout=15)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(family, timeout=3)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    head.kill()
    head.wait()


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
