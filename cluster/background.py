"""Slow jobs beside the loop: copies to a store, which may take minutes where it is in trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Background:
    """A job that a thread repeats when it is asked for: one run at a time, and one more for all who
    asked meanwhile. What it raises, whoever asks next or waits for its end gets."""

    def __init__(self, job: Callable[[], None]) -> None:
        self._job = job
        self._asked = False
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Have the job run; at once where no event loop could wait for it."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._job()
            return
        self._asked = True
        if self._task is not None and self._task.done():
            self._task.result()
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run())

    async def finish(self) -> None:
        """Return when no run is under way and none is asked for."""
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while self._asked:
            self._asked = False
            await asyncio.to_thread(self._job)
