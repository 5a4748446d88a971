"""The worker's side of `judge_guard.py`: a command that does not outlive this process."""

from __future__ import annotations

import select
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

GUARD = Path(__file__).with_name("judge_guard.py")
LOST = 255
"""Status of a command whose guard was killed."""


class GuardedProcess:
    """A running command. Its methods may be called from many threads."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        """Start it; its output goes to `log`."""
        with log.open("wb") as file:
            starter = subprocess.Popen(
                [sys.executable, "-I", str(GUARD), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=dict(environment),
                text=True,
            )
        assert starter.stdin is not None
        assert starter.stdout is not None
        self._leash, self._report = starter.stdin, starter.stdout
        starter.wait()
        self._lock = threading.Lock()
        self._status: int | None = None
        self.pid = int(self._report.readline() or 0)
        """Of the command; it leads a session of its own."""

    def status(self, wait_s: float = 0.0) -> int | None:
        """Exit status of a command that has ended, waited for; None while it runs."""
        with self._lock:
            if self._status is None and select.select([self._report], [], [], wait_s)[0]:
                self._status = int(self._report.readline() or LOST)
            return self._status

    def end(self, wait_s: float) -> None:
        """End it and all of its session."""
        self._leash.close()
        self.status(wait_s)
