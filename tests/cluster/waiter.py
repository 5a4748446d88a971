"""The worker of test_ray_pool.py, in a module that imports nothing heavy: it is restarted often."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


class Waiter:
    """A worker whose calls take as long as they are told to."""

    def pid(self) -> int:
        return os.getpid()

    def wait(self, seconds: float, value: int) -> tuple[int, int]:
        time.sleep(seconds)
        return value, os.getpid()

    def die(self, marker: str, times: int) -> int:
        """kill -9 itself until `marker` counts so many deaths."""
        path = Path(marker)
        deaths = len(path.read_text()) if path.exists() else 0
        if deaths < times:
            path.write_text("x" * (deaths + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return deaths

    def pair(self) -> tuple[str, bytes]:
        return "small", b"x" * 1_000_000

    def lend(self) -> list[Any]:
        """A reference to an object that is gone with this process."""
        import ray

        return [ray.put(b"x" * 1_000_000)]

    def size(self, data: bytes) -> int:
        return len(data)

    def talk(self, lines: int) -> int:
        for number in range(lines):
            print(f"{number:08d} {'x' * 91}", flush=True)
        return os.getpid()

    def lose_gpu(self, process: int) -> int:
        """Fail in every call of one process, as after an error of its GPU."""
        if os.getpid() == process:
            import torch

            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return os.getpid()

    def fail(self) -> None:
        raise LookupError("as it is")
