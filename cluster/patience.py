"""Writing to a store that fails at times: what may wait, waits; what may be missing, is missed.

Checkpoints have a way of their own (`cluster/saving.py`), which lets training go on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from learner.storage_errors import is_transient

log = logging.getLogger(__name__)
T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


@contextlib.contextmanager
def missing_is_fine(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Go on without `what` where the store fails in a way that waiting may mend, and say so."""
    try:
        yield
    except Exception as error:
        if not is_transient(error):
            raise
        say(f"{what} could not be written: {_reason(error)}")


async def patiently(what: str, work: Callable[[], Awaitable[T]], say: Callable[[str], None]) -> T:
    """Do something again and again, with growing pauses, until the store lets it pass."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return await work()
        except Exception as error:
            if not is_transient(error):
                raise
            say(f"{what} failed: {_reason(error)}; trying again in {pause_s:g} s")
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def again(what: str, call: Callable[[], T], attempts: int = 5, backoff_s: float = 0.5) -> T:
    """Do something up to `attempts` times, with pauses that double, before its error is raised."""
    for attempt in range(1, attempts):
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
            log.warning("%s failed (%s); attempt %d", what, error, attempt)
            time.sleep(backoff_s * 2 ** (attempt - 1))
    return call()


def _reason(error: Exception) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no reason given'}"
