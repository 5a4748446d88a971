"""Keeps the report of a running run fresh, at most once in a while and beside the training."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Refresher:
    """Rewrites the page in a thread; what goes wrong there is said and stops nothing."""

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
        self._task = asyncio.create_task(asyncio.to_thread(self.write))

    async def settle(self) -> None:
        """Wait for a refresh that is under way."""
        if self._task is not None:
            await self._task

    def write(self) -> str | None:
        """Write the page; its place, or None after saying why not."""
        try:
            from cluster.report.page import write_report

            return write_report(self.url)
        except Exception as error:  # a picture of the training must never end the training
            reason = str(error).splitlines()[0] if str(error) else "no reason given"
            self.say(f"the report was not written ({type(error).__name__}: {reason})")
            return None
