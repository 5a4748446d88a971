"""Files of a run on any fsspec URL: whole files in and out, and a check that it is writable."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from cluster.config import ConfigError, RunConfig, from_tree

Row = dict[str, Any]
"""One line of a run's `metrics.jsonl`."""
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}
"""Protocols of stores without folders."""


def absolute_url(url: str) -> str:
    """A run's URL that means the same in every process: local paths are made absolute."""
    return url if "://" in url else os.path.abspath(url)


def make_folder(fs: AbstractFileSystem, path: str) -> None:
    """Make a folder where there are any. In an object store a file's name is all it needs: asked
    for a folder, s3fs looks for the bucket, which takes rights beyond a prefix, and makes it where
    it is mistyped."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    if not OBJECT_STORES.intersection(protocols):
        fs.makedirs(path, exist_ok=True)


def replace_local(fs: AbstractFileSystem, path: str, data: bytes, partial: str) -> None:
    """Replace a whole file of a local disk by way of `partial`: after a kill or a power cut there
    are the old bytes or the new ones."""
    fs.pipe_file(partial, data)
    _flush(partial)
    fs.mv(partial, path)
    _flush(os.path.dirname(path))


def _flush(path: str) -> None:
    """Bring a local file, or a folder's names, from memory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RunFolder:
    """A run's directory, local or remote, addressed by paths relative to it."""

    def __init__(self, url: str) -> None:
        """`url` is a path or an fsspec URL; ConfigError when its scheme is unknown."""
        self.url = url.rstrip("/") or "/"
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"run = {url!r} cannot be used: {error}; allowed are paths and fsspec URLs "
                "such as s3://bucket/run"
            ) from None

    @property
    def is_local(self) -> bool:
        """Whether the folder lies on this machine's file system."""
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """Path of a file as the file system knows it."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        return bool(self.fs.exists(self.path(name)))

    def find(self, below: str, pattern: str) -> list[str]:
        """Names of all files below a folder whose own name matches a glob pattern, sorted."""
        return sorted(n for n in self.sizes(below) if fnmatch(n.rpartition("/")[2], pattern))

    def sizes(self, below: str) -> dict[str, int]:
        """Bytes of every file below a folder, by name."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.find(self.path(below), detail=True)
        except FileNotFoundError:
            return {}
        start = len(self.root.rstrip("/")) + 1
        return {name[start:]: int(info["size"]) for name, info in found.items()}

    def read_text(self, name: str) -> str:
        """Whole file as UTF-8."""
        return str(self.fs.cat_file(self.path(name)).decode("utf-8"))

    def read_bytes(self, name: str) -> bytes:
        """Whole file."""
        return bytes(self.fs.cat_file(self.path(name)))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Replace a whole file; on a local disk by rename, so that no reader sees half of it."""
        path = self.path(name)
        make_folder(self.fs, path.rpartition("/")[0])
        if self.is_local:
            replace_local(self.fs, path, data, f"{path}.{uuid.uuid4().hex[:8]}.partial")
        else:
            self.fs.pipe_file(path, data)

    def write_text(self, name: str, text: str) -> None:
        """Replace a whole file by UTF-8 text."""
        self.write_bytes(name, text.encode("utf-8"))

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all that is in it, where it exists."""
        self.fs.invalidate_cache()
        if self.exists(name):
            self.fs.rm(self.path(name), recursive=True)

    def require_writable(self) -> None:
        """Write and remove a probe. ConfigError in one sentence when that fails."""
        probe = f".probe-{uuid.uuid4().hex[:8]}"
        try:
            self.write_bytes(probe, b"probe")
            self.fs.rm(self.path(probe))
        except Exception as error:  # every store has its own exception types
            raise ConfigError(
                f"run = {self.url!r} is not writable: {type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else 'no reason given'}"
            ) from None


def stored_config(folder: RunFolder) -> RunConfig:
    """The configuration of a run, as its folder holds it; ConfigError where it cannot be read."""
    try:
        return from_tree(json.loads(folder.read_text("config.json")))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"RUN = {folder.url!r} is not a run: it has no config.json") from None
    except ConfigError as error:
        raise ConfigError(f"RUN = {folder.url!r} was made by another version: {error}") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"RUN = {folder.url!r} cannot be read: {error}") from None


SAMPLES = "samples"
"""Folder of all evaluations, relative to the run."""


def samples_folder(step: int) -> str:
    """Folder of a step's evaluation, relative to the run."""
    return f"{SAMPLES}/step_{step:06d}"


def scores_file(step: int, average: bool = False) -> str:
    """Scores of a step's evaluation, of the weights or of their running average."""
    return f"{samples_folder(step)}/{'ema_' if average else ''}scores.json"


def evaluated_kinds(config: RunConfig, step: int) -> tuple[bool, ...]:
    """Evaluations that a step gets where one is due: False for the weights, True for their running
    average, where it is asked for, there is one, and it can differ."""
    if not config.eval.prompts:
        return ()
    averaged = step and config.eval.ema and config.learner.ema_decay > 0
    return (False, True) if averaged else (False,)


def evaluation_kind(average: bool) -> str:
    """Kind of the row that a finished evaluation writes last."""
    return "ema" if average else "eval"


def missing_evaluations(
    config: RunConfig, folder: RunFolder, step: int, rows: Iterable[Row]
) -> tuple[bool, ...]:
    """Those of `evaluated_kinds` that the run does not have. Scores without a row among the run's
    valid `rows` are of an earlier start, which may have had another configuration."""
    valid = {row["kind"] for row in rows if row["step"] == step}
    return tuple(
        average
        for average in evaluated_kinds(config, step)
        if evaluation_kind(average) not in valid or not folder.exists(scores_file(step, average))
    )


def has_evaluation(folder: RunFolder, step: int) -> bool:
    """Whether a step was evaluated to its end: its scores are written after its videos."""
    return folder.exists(scores_file(step))
