"""A demo that is ended, by Ctrl-C or by `kill`, leaves nothing behind: no process, no folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.config import INTERRUPTED, REPOSITORY
from tests.cluster.conftest import SMALLEST

pytestmark = pytest.mark.cluster
PATIENCE_S = 20.0


def processes_with(token: str) -> list[str]:
    """Command lines of the living processes whose environment names the token's file."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            if f"RAY_AUTH_TOKEN_PATH={token}\0".encode() in environment:
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended while we looked, or is another user's
    return [line for line in found if line]  # a zombie has no command line


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_ended_demo_leaves_no_process_and_no_folder(end: signal.Signals, tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", "demo", *SMALLEST, "--run", str(tmp_path / "run")],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C reaches the whole foreground group
        # Background jobs of a shell ignore Ctrl-C, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert demo.stdout is not None
    token, said = "", ""
    for line in demo.stdout:
        said += line
        if "(token in " in line:
            token = line.split("(token in ")[1].rstrip(")\n")
        if "workers are up" in line:
            break
    else:
        pytest.fail(f"the demo ended with {demo.wait()} before its workers were up:\n{said}")
    assert Path(token).exists()
    assert len(processes_with(token)) >= 5  # the head's services, the job's driver, its actors
    if end is signal.SIGINT:
        os.killpg(demo.pid, end)
    else:
        demo.send_signal(end)
    rest = demo.stdout.read()
    assert demo.wait(timeout=60) == INTERRUPTED
    assert "goes on from its last checkpoint" in rest
    assert "Traceback" not in rest
    deadline = time.monotonic() + PATIENCE_S
    while processes_with(token) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_with(token) == []
    assert not Path(token).parent.exists()
