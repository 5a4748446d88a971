"""Writing a checkpoint beside training: a copy, a thread, a process group of its own."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from learner import fsdp


def side_group(timeout_s: float) -> dist.ProcessGroup:
    """A gloo group of all ranks for collectives that run beside training. Collective."""
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))


def snapshot(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of a nested state of (sharded) tensors, which training may then change."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else snapshot(value)
        for name, value in state.items()
    }


class BackgroundSave:
    """One sharded save under way; every rank of the group has its own."""

    def __init__(self, url: str, state: dict[str, Any], group: dist.ProcessGroup) -> None:
        """Copy `state` and start writing the copy below a directory URL."""
        self._error: Exception | None = None
        self._arguments = (url, snapshot(state), group)
        self._thread = threading.Thread(target=self._write, name="save", daemon=True)
        self._thread.start()

    def finished(self) -> bool:
        """Whether it is written; raises OSError, or whatever ended it, where it failed."""
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True

    def join(self, timeout_s: float) -> bool:
        """Wait for the end, whichever it is; whether it has come."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _write(self) -> None:
        try:
            fsdp.save_sharded(*self._arguments)
        except Exception as error:  # handed to whoever asks
            self._error = error
