"""One process trains a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.config import ConfigError
from cluster.storage import RunFolder, held

HOLD = """
import sys
from cluster.storage import RunFolder, held
with held(RunFolder(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_is_held_by_one_process_until_that_ends(tmp_path: Path) -> None:
    """kill -9 of the holder frees it."""
    folder = RunFolder(str(tmp_path))
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match="trained by another process"), held(folder):
        pass
    other.kill()
    other.wait()
    with held(folder):
        assert not list(tmp_path.iterdir())


def test_an_object_store_has_no_lock() -> None:
    folder = RunFolder("memory://run")
    with held(folder), held(folder):
        assert not folder.is_local
