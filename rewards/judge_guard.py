"""Runs a command as long as its own standard input stays open, and leaves nothing of it behind.

`python judge_guard.py COMMAND…` is how a judge worker starts its server. A worker that is killed
without warning cannot stop its server, but its end of the pipe closes, and the guard ends the whole
session of the server's processes. A server that dies alone leaves no child with the GPU's memory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE_S = 5.0
"""Between SIGTERM and SIGKILL."""


def main(command: list[str]) -> int:
    """Run the command, whose output goes to standard error; its exit status. Prints its process id
    and nothing else."""
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
    )
    sys.stdout.write(f"{server.pid}\n")
    sys.stdout.flush()
    threading.Thread(target=_end_with_input, args=(server,), daemon=True).start()
    status = server.wait()
    _signal(server.pid, signal.SIGKILL)
    return status if status >= 0 else 128 - status


def _end_with_input(server: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1024):
        pass
    _signal(server.pid, signal.SIGTERM)
    try:
        server.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        _signal(server.pid, signal.SIGKILL)


def _signal(session: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(session, number)


if __name__ == "__main__":
    # Ctrl-C at a terminal is the worker's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(main(sys.argv[1:]))
