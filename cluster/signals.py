"""What ends a command from outside."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM to this process is a KeyboardInterrupt within: a command that is ended by `kill` or
    `timeout` leaves as little behind as after Ctrl-C. To be entered in the main thread."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
