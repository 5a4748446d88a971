"""How gsplat's kernels come to be: where, by which PATH, one process at a time, or why not at all.

The package is a stand-in; its rendering: test_rasterizer_parity.py (GPU).
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rewards import gaussians
from rewards.gaussians import RendererMissing, renderer_of

Install = Callable[[Callable[[], object]], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Make a package whose kernels are what a function returns, in an environment of this test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "")  # so that what the code sets is taken back
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    gaussians._gsplat_kernels.cache_clear()

    def make(compiled: Callable[[], object]) -> None:
        for name in ("gsplat", "gsplat.cuda", "gsplat.cuda._backend"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))

        def attribute(name: str) -> object:
            if name != "_C":  # the import system looks for others
                raise AttributeError(name)
            return compiled()

        vars(sys.modules["gsplat.cuda._backend"])["__getattr__"] = attribute

    yield make
    gaussians._gsplat_kernels.cache_clear()


def locked(folder: Path) -> bool:
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def folder_of(tmp_path: Path) -> Path:
    return tmp_path / f"worldr1-torch-extensions-{os.getuid()}-{torch.__version__}"


def test_they_are_compiled_once_in_a_folder_of_ones_own_behind_a_lock(
    install: Install, tmp_path: Path
) -> None:
    seen: list[tuple[str, list[str], bool]] = []
    folder = folder_of(tmp_path)

    def compiled() -> object:
        path = os.environ["PATH"].split(os.pathsep)
        seen.append((os.environ["TORCH_EXTENSIONS_DIR"], path, locked(folder)))
        return "kernels"

    install(compiled)
    assert renderer_of("auto", "cuda") == renderer_of("gsplat", "cuda") == "gsplat"
    # The environment's ninja is beside its Python, which may have been started by its full name.
    beside = str(Path(sys.executable).parent)
    assert seen == [(str(folder), [beside, "/usr/bin"], True)]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not locked(folder)
    gaussians._gsplat_kernels.cache_clear()
    assert renderer_of("auto", "cuda") == "gsplat"
    assert seen[1] == seen[0], "PATH does not grow"


def test_a_folder_that_is_set_is_kept(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(lambda: "kernels")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/scratch/extensions")
    assert renderer_of("auto", "cuda") == "gsplat"
    assert os.environ["TORCH_EXTENSIONS_DIR"] == "/scratch/extensions"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Error building extension\nninja: stopped"), r"\(Error building extension\)"),
        (ImportError("No module named 'gsplat.cuda'"), r"\(No module named 'gsplat.cuda'\)"),
        (OSError(28, "No space left on device"), r"\(\[Errno 28\] No space left on device\)"),
    ],
)
def test_a_failure_is_one_sentence_and_is_tried_again(
    install: Install, tmp_path: Path, error: Exception, said: str
) -> None:
    asked: list[int] = []

    def compiled() -> object:
        asked.append(1)
        raise error

    install(compiled)
    for _ in range(2):
        with pytest.raises(RendererMissing, match=f"imported or compiled {said}; make its"):
            renderer_of("auto", "cuda")
        assert not locked(folder_of(tmp_path))
    assert len(asked) == 2


def test_without_a_compiler_there_are_none(install: Install) -> None:
    install(lambda: None)
    with pytest.raises(RendererMissing, match="found no nvcc"):
        renderer_of("auto", "cuda")
