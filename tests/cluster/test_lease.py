"""One process trains a run, on a disk and in an object store."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.faulty_store import BUCKET, Faults, faulty_s3
from cluster.config import ConfigError, RunStopped
from cluster.lease import LEASE, Holder, LeaseTimes, RunTaken, held
from cluster.storage import RunFolder

FAST = LeaseTimes(renew_s=0.05, dead_s=0.5, settle_s=0.02)
SLOW = LeaseTimes(renew_s=0.05, dead_s=60.0, settle_s=0.02)
"""Who finds a living owner does not wait for `dead_s`."""

HOLD = """
import sys
from cluster.lease import LeaseTimes, held
from cluster.storage import RunFolder
with held(RunFolder(sys.argv[1]), times=LeaseTimes(0.05, 0.5, 0.02)):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store() -> Iterator[RunFolder]:
    """An empty folder in a store without locks."""
    folder = RunFolder(f"memory://{uuid.uuid4().hex}")
    yield folder
    folder.remove(LEASE)


def holding(url: str) -> subprocess.Popen[str]:
    """Another process that holds a run."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    return other


def lost(require: Callable[[], None]) -> RunTaken:
    """What the check raises once the owner has noticed; fails where it never does."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            require()
        except RunTaken as taken:
            return taken
        time.sleep(0.01)
    raise AssertionError("the owner noticed nothing")


def test_a_run_is_held_by_one_process_until_that_ends(tmp_path: Path) -> None:
    """kill -9 of the holder frees it; the folder is left as it was."""
    folder = RunFolder(str(tmp_path))
    other = holding(folder.url)
    with pytest.raises(ConfigError, match="trained by another process"), held(folder):
        pass
    other.kill()
    other.wait()
    with held(folder) as mine:
        mine.require()
        assert not list(tmp_path.iterdir())


def test_a_run_in_s3_is_held_by_one_process_until_that_ends(s3_bucket: str) -> None:
    """kill -9 leaves a lease that does not change, and is taken after `dead_s`."""
    folder = RunFolder(f"{s3_bucket}/deep/run")
    other = holding(folder.url)
    living = pytest.raises(ConfigError, match=rf"trained by process {other.pid} on ")
    with living, held(folder, print, SLOW):
        pass
    other.kill()
    other.wait()
    lines: list[str] = []
    with held(folder, lines.append, FAST) as mine:
        mine.require()
        mine = Holder.model_validate_json(folder.read_bytes(LEASE))
        assert mine.pid == os.getpid()
    assert [line.partition(" on ")[0] for line in lines] == [f"process {other.pid}"]
    assert not folder.exists(LEASE)


def test_a_living_owner_renews_and_leaves_nothing(store: RunFolder) -> None:
    with held(store, print, FAST) as mine:
        first = Holder.model_validate_json(store.read_bytes(LEASE))
        with pytest.raises(ConfigError, match="is being trained by"), held(store, print, SLOW):
            pass
        now = Holder.model_validate_json(store.read_bytes(LEASE))
        mine.require()
    assert now.owner == first.owner
    assert now.renewals > first.renewals
    assert not store.exists(LEASE)


def test_an_owner_whose_run_was_taken_stops_and_leaves_the_other_alone(store: RunFolder) -> None:
    other = Holder(owner="other", host="elsewhere", pid=7)
    with held(store, print, FAST) as mine:
        store.write_text(LEASE, other.model_dump_json())
        assert "process 7 on elsewhere has it" in str(lost(mine.require))
    assert Holder.model_validate_json(store.read_bytes(LEASE)) == other


def test_an_owner_can_ask_the_store_before_its_next_renewal(store: RunFolder) -> None:
    other = Holder(owner="other", host="elsewhere", pid=7)
    with held(store, print, LeaseTimes(renew_s=60.0, dead_s=200.0, settle_s=0.02)) as mine:
        mine.confirm()
        store.write_text(LEASE, other.model_dump_json())
        mine.require()
        with pytest.raises(RunTaken, match="process 7 on elsewhere has it"):
            mine.confirm()
        with pytest.raises(RunTaken, match="process 7 on elsewhere has it"):
            mine.require()


def test_an_owner_whose_lease_is_gone_stops(store: RunFolder) -> None:
    """Another one may have taken the run and finished it meanwhile."""
    with held(store, print, FAST) as mine:
        store.remove(LEASE)
        assert "lease.json was removed" in str(lost(mine.require))
    assert not store.exists(LEASE)


def test_of_two_that_write_at_once_the_last_has_it(store: RunFolder) -> None:
    other = Holder(owner="other", host="elsewhere", pid=7)

    class Overtaken(RunFolder):
        def write_text(self, name: str, text: str) -> None:
            super().write_text(name, text)
            super().write_text(name, other.model_dump_json())

    overtaken = pytest.raises(ConfigError, match="process 7 on elsewhere")
    with overtaken, held(Overtaken(store.url), print, FAST):
        pass
    assert Holder.model_validate_json(store.read_bytes(LEASE)) == other


def test_a_store_that_fails_for_a_while_loses_no_run(store: RunFolder) -> None:
    """Failed renewals are tried again; one that is refused for good ends the run."""

    class Failing(RunFolder):
        error: Exception | None = None
        refused = 0

        def write_text(self, name: str, text: str) -> None:
            if self.error is not None:
                self.refused += 1
                raise self.error
            super().write_text(name, text)

    folder = Failing(store.url)
    with held(folder, print, FAST) as mine:
        folder.error = TimeoutError("slow down")
        while folder.refused < 3:
            time.sleep(0.01)
        mine.require()
        folder.error = PermissionError("access denied")
        assert "PermissionError: access denied" in str(lost(mine.require))


def test_a_lease_that_cannot_be_removed_hides_no_error_of_the_run(store: RunFolder) -> None:
    class Expired(RunFolder):
        expired = False

        def read_bytes(self, name: str) -> bytes:
            if self.expired:
                raise PermissionError("the token has expired")
            return super().read_bytes(name)

    said: list[str] = []
    folder = Expired(store.url)

    def end(error: Exception | None) -> None:
        with held(folder, said.append, SLOW):
            folder.expired = True
            if error is not None:
                raise error

    with pytest.raises(RunStopped, match="what ended the run"):
        end(RunStopped("what ended the run"))
    assert said == ["lease.json could not be removed: PermissionError: the token has expired"]
    store.remove(LEASE)
    folder.expired = False
    with pytest.raises(PermissionError):
        end(None)


def test_a_store_that_fails_every_fifth_request() -> None:
    """Each start finds the run free: the one before has left nothing to wait for."""
    lines: list[str] = []
    with faulty_s3(Faults(errors=0.2, delays=0.0)) as (proxy, _):
        folder = RunFolder(f"s3://{BUCKET}/runs/a")
        for _start in range(5):
            with held(folder, lines.append, FAST) as mine:
                time.sleep(0.1)
                mine.require()
        assert sum(proxy.counts.values()) - proxy.counts["none"] >= 3
    assert not lines


def test_a_lease_that_is_none_is_refused(store: RunFolder) -> None:
    store.write_text(LEASE, "{}")
    with pytest.raises(ConfigError, match=r"lease\.json that is none"), held(store, print, FAST):
        pass
