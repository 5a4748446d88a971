"""Keeps the report of a running run fresh, at most once in a while and beside the training."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable

from cluster.config import REPOSITORY


class Refresher:
    """Rewrites the page in a process of its own, so that its memory is not the run's; what goes
    wrong there is said and stops nothing."""

    def __init__(self, url: str, every_s: float, say: Callable[[str], None]) -> None:
        """`every_s` is the least time between two refreshes; 0 writes the page at the end only."""
        self.url, self.every_s, self.say = url, every_s, say
        self._last_s = time.monotonic()
        self._task: asyncio.Task[str | None] | None = None

    def refresh_if_due(self) -> None:
        """Start a refresh unless one is under way or the last one is fresh enough."""
        busy = self._task is not None and not self._task.done()
        if not self.every_s or busy or time.monotonic() - self._last_s < self.every_s:
            return
        self._last_s = time.monotonic()
        self._task = asyncio.create_task(self.write())

    async def write(self) -> str | None:
        """Write the page by `worldr1 report`; its place, or None after saying why not. Cancelled,
        it ends the process."""
        try:
            # Not by asyncio, which may wait for ever where it is cancelled while a process starts.
            process = subprocess.Popen(
                [sys.executable, "-m", "cluster.cli", "report", self.url],
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the run
            )
        except OSError as error:  # a picture of the training must never end the training
            self.say(f"the report was not written ({error})")
            return None
        try:
            place, words = await asyncio.to_thread(process.communicate)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            last = words.decode(errors="replace").strip().splitlines()[-1:]
            reason = last[0] if last else f"exit code {process.returncode}"
            self.say(f"the report was not written ({reason.removeprefix('worldr1: ')})")
            return None
        return place.decode(errors="replace").strip()
