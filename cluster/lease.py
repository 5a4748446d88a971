"""One process trains a run: a lock where the run lies on a disk, a lease where it lies in a store.

A lock ends with its process, however that ends. Object stores have none: there the trainer keeps
RUN/lease.json and writes it again every `renew_s`. Who finds one that does not change for `dead_s`
takes it: its owner was killed, or cannot reach the store. An owner that comes back sees another
name in it and stops in its next step. No clocks of two machines are compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.config import ConfigError, RunStopped
from cluster.patience import again
from cluster.storage import RunFolder
from learner.storage_errors import is_transient

LEASE = "lease.json"


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Seconds. `dead_s` is several renewals, so that one or two failed writes lose no run."""

    renew_s: float = 10.0
    dead_s: float = 35.0
    settle_s: float = 1.0
    """Between writing a lease and reading it back: of two that write at once, the last has it."""


class RunTaken(RunStopped):
    """The run is no longer this process's: another one has it, or the lease could not be kept."""

    advice = "see that no other process trains the run, then start the same command again"


class Holder(BaseModel):
    """Content of `lease.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: str
    """Random name of the holding."""
    host: str
    pid: int
    renewals: int = 0
    """Grows while the owner lives."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True, slots=True)
class Holding:
    """Checks that raise RunTaken once the run is somebody else's."""

    require: Callable[[], None]
    """By what is known: asks nobody."""
    confirm: Callable[[], None]
    """By the store: OSError where it does not answer."""

    @staticmethod
    def locked() -> Holding:
        """Of a run that nobody can take."""
        return Holding(lambda: None, lambda: None)


@contextlib.contextmanager
def held(
    folder: RunFolder, say: Callable[[str], None] = print, times: LeaseTimes | None = None
) -> Iterator[Holding]:
    """Be the only process that trains a run; ConfigError where another one does."""
    if folder.is_local:
        with _locked(folder):
            yield Holding.locked()
        return
    with Lease(folder, times or LeaseTimes(), say) as lease:
        yield Holding(lease.require, lease.confirm)


@contextlib.contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    """Hold a lock on the folder itself."""
    descriptor = os.open(folder.root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(_in_use(folder, "another process")) from None
        yield
    finally:
        os.close(descriptor)


class Lease:
    """A run in an object store, held from `__enter__` to `__exit__`."""

    def __init__(self, folder: RunFolder, times: LeaseTimes, say: Callable[[str], None]) -> None:
        self._folder, self._times, self._say = folder, times, say
        self._mine = Holder(owner=uuid.uuid4().hex, host=socket.gethostname(), pid=os.getpid())
        self._lost = ""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        """ConfigError where a living process holds the run; waits for one that may be dead."""
        self._wait_for_another()
        again(f"writing {LEASE}", lambda: self._write(self._mine))
        time.sleep(self._times.settle_s)
        found = again(f"reading {LEASE}", self._read)
        if not self._is_mine(found):
            raise ConfigError(_in_use(self._folder, str(found or "another process")))
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        # A lease that stays, because the store does not answer, delays the next start by `dead_s`.
        with contextlib.suppress(FileNotFoundError):  # removed, and the answer was lost
            try:
                again(f"removing {LEASE}", self._remove_mine)
            except Exception as error:
                if kind is None and not is_transient(error):
                    raise  # in place of no other error
                self._say(f"{LEASE} could not be removed: {type(error).__name__}: {error}")

    def confirm(self) -> None:
        """Read the lease now: between two renewals a run may change hands. RunTaken, OSError."""
        found = again(f"reading {LEASE}", self._read)
        if not self._is_mine(found):
            self._lost = self._lost or _loss(found)
        self.require()

    def require(self) -> None:
        """RunTaken once the run is somebody else's."""
        if self._lost:
            raise RunTaken(f"run = {self._folder.url!r} is no longer this process's: {self._lost}")

    def _wait_for_another(self) -> None:
        first = again(f"reading {LEASE}", self._read)
        if first is None:
            return
        self._say(
            f"{first} has not left run {self._folder.url}; waiting {self._times.dead_s:g} s to "
            "see whether it is alive"
        )
        deadline = time.monotonic() + self._times.dead_s
        while time.monotonic() < deadline:
            time.sleep(min(self._times.renew_s / 4, 1.0))
            now = again(f"reading {LEASE}", self._read)
            if now is None:
                return
            if now != first:
                raise ConfigError(_in_use(self._folder, str(now)))

    def _keep(self) -> None:
        """Renew until closed or lost."""
        while not self._lost and not self._closed.wait(self._times.renew_s):
            try:
                found = self._read()
                if self._is_mine(found):
                    self._mine = self._mine.model_copy(update={"renewals": self._mine.renewals + 1})
                    self._write(self._mine)
                else:
                    self._lost = _loss(found)
            except Exception as error:
                if not is_transient(error):  # the next renewal tries again
                    self._lost = f"{LEASE} cannot be renewed: {type(error).__name__}: {error}"

    def _remove_mine(self) -> None:
        if self._is_mine(self._read()):
            self._folder.remove(LEASE)

    def _is_mine(self, found: Holder | None) -> bool:
        return found is not None and found.owner == self._mine.owner

    def _read(self) -> Holder | None:
        try:
            return Holder.model_validate_json(self._folder.read_bytes(LEASE))
        except FileNotFoundError:
            return None
        except ValidationError:
            raise ConfigError(
                f"run = {self._folder.url!r} has a {LEASE} that is none; remove it where no "
                "process trains this run"
            ) from None

    def _write(self, holder: Holder) -> None:
        self._folder.write_text(LEASE, holder.model_dump_json())


def _loss(found: Holder | None) -> str:
    return f"{found} has it" if found else f"its {LEASE} was removed"


def _in_use(folder: RunFolder, who: str) -> str:
    return (
        f"run = {folder.url!r} is being trained by {who}; stop that one, or choose another folder"
    )
