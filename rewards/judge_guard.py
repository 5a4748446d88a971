"""Runs a command as long as its own standard input stays open, and leaves nothing of it behind.

`python judge_guard.py COMMAND…` is how a judge worker starts its server. A worker that is killed
without warning cannot stop its server, but its end of the pipe closes, and the guard ends the whole
session of the server's processes. A server that dies alone leaves no child with the GPU's memory.

The guard is no child of the worker: Ray kills the children of a worker that it ends. So it reports
on its standard output: the server's process id, and its exit status when it has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

GRACE_S = 5.0
"""Between SIGTERM and SIGKILL."""
PR_SET_PDEATHSIG = 1


def main(command: list[str]) -> None:
    """Run the command, whose output goes to standard error, in the background."""
    if os.fork():
        os._exit(0)
    os.setsid()
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        preexec_fn=_end_with_the_guard,  # no thread is there yet
    )
    _report(server.pid)
    threading.Thread(target=_end_with_input, args=(server,), daemon=True).start()
    status = server.wait()
    _signal(server.pid, signal.SIGKILL)
    _report(status if status >= 0 else 128 - status)


def _report(number: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, f"{number}\n".encode())


def _end_with_the_guard() -> None:
    """Linux: SIGTERM for a server whose guard was killed."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


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
    main(sys.argv[1:])
