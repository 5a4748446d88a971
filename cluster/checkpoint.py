"""Atomic checkpoints on any fsspec URL: a checkpoint exists when its manifest does.

    RUN/checkpoints/step_000120/learner/       written by the learner ranks (sharded)
    RUN/checkpoints/step_000120/state.json     RunState
    RUN/checkpoints/step_000120/manifest.json  sizes and SHA-256 of every file; written last

An interrupted save leaves no manifest and is skipped; a deletion removes the manifest first, so
that half of a directory is never taken for a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fsspec.core import url_to_fs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.config import RunConfig, decides_results, fingerprint, flatten_tree
from cluster.ledger import LedgerHead
from cluster.patience import again
from cluster.storage import make_folder, replace_local
from cluster.versions import Lineages
from learner.account import EMPTY_ACCOUNT

log = logging.getLogger(__name__)
T = TypeVar("T")

MANIFEST, STATE, LEARNER = "manifest.json", "state.json", "learner"
_STEP = re.compile(r"step_(\d{6,})$")
_CHUNK = 8 << 20


class IncompatibleCheckpoint(ValueError):
    """The checkpoint was written under another configuration; the message names the fields."""


class InFlight(BaseModel):
    """A group that was issued and has no fate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: int = Field(ge=0)
    """Serial number."""
    phase: Literal["main", "dynamic"]
    """`learner.schedule.Phase` that it was issued for: its prompt set and its rewards."""
    prompt_id: str
    """Its prompt, within the phase's set."""


class RunState(BaseModel):
    """What a run needs to continue, besides the learner's tensors. The phase is derived from the
    step and therefore not here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = Field(ge=0)
    """Optimizer steps done: the next step's index."""
    cursors: dict[str, int] = Field(default_factory=dict)
    """Position of the prompt cursor in each split."""
    next_group: int = Field(default=0, ge=0)
    """Serial number of the next group to be issued."""
    in_flight: tuple[InFlight, ...] = ()
    """Groups issued but not consumed, ascending; they are issued again on resume."""
    again: tuple[InFlight, ...] = ()
    """Groups dropped since, ascending, whose prompts are to be issued again as new groups."""
    seed: int = 0
    """The run's seed."""
    lineages: Lineages = Lineages()
    """The branches that led here; each resume opens one (`WeightsVersion.lineage`)."""
    account: str = EMPTY_ACCOUNT
    """The learner's account of what entered the weights (`learner.account`)."""
    ledger: LedgerHead | None = None
    """The newest file of the ledger that covers all steps so far."""
    weights_checksum: str = ""
    """`actors.trajectory.weights_checksum` of the weights saved beside it."""
    consecutive_bad_updates: int = Field(default=0, ge=0)
    """Skipped updates in a row up to this step."""
    tracker_run_id: str | None = None
    """The experiment tracker's id, so that a resumed run continues its curves."""


class FileRecord(BaseModel):
    """Size and checksum of one file of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    """Bytes."""
    sha256: str
    """Hex digest of the content."""


class Manifest(BaseModel):
    """`manifest.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    """Step of the checkpoint; must agree with its directory's name."""
    config: dict[str, Any]
    """Fields that a run must share to load it, by dotted name (`flatten`)."""
    files: dict[str, FileRecord]
    """Every file but the manifest, by its path inside the checkpoint."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose every file was read and found intact."""

    step: int
    url: str
    learner_url: str
    """What `LearnerRank.load` reads."""
    state: RunState
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A directory that is no valid checkpoint, and why, in one sentence."""

    step: int
    reason: str
    damaged: bool
    """Whether it was once whole: it has a manifest, so no interrupted save explains it."""


@dataclass(frozen=True, slots=True)
class Found:
    """Answer of `newest_valid`."""

    checkpoint: Checkpoint | None
    skipped: tuple[Skipped, ...]
    """Newer directories that were passed over, newest first."""


class CheckpointStore:
    """The checkpoints of one run. One writer (the coordinator); the ranks write `learner/`."""

    def __init__(self, run_url: str, attempts: int = 5, backoff_s: float = 0.5) -> None:
        """`run_url`: a path or any fsspec URL. Every storage operation is tried `attempts` times
        with `backoff_s` doubling in between before its OSError is raised."""
        if attempts < 1:
            raise ValueError(f"attempts = {attempts}; it must be at least 1")
        self.root = f"{run_url.rstrip('/')}/checkpoints"
        self._attempts, self._backoff_s = attempts, backoff_s
        self._fs, self._path = url_to_fs(self.root)

    def url(self, step: int) -> str:
        """URL of a step's directory, whether or not it exists."""
        return f"{self.root}/step_{step:06d}"

    def learner_url(self, step: int) -> str:
        """URL of the part that the learner ranks write and read."""
        return f"{self.url(step)}/{LEARNER}"

    def begin(self, step: int) -> str:
        """Make room for a step's checkpoint and return the URL that the learner ranks write to.

        Whatever an earlier, interrupted or superseded save left there is removed.
        """
        self._remove(step)
        self._retry(f"creating {self.url(step)}", lambda: self._makedirs(step))
        return self.learner_url(step)

    def commit(self, step: int, state: RunState, config: Mapping[str, Any]) -> Checkpoint:
        """Write `state.json`, then the manifest over everything that is there, last.

        `config`: the fields that a resuming run must share (nested or flat, JSON values).
        Raises ValueError where the ranks wrote nothing or `state.step` is not `step`.
        """
        if state.step != step:
            raise ValueError(f"state.step = {state.step} in the checkpoint of step {step}")
        files = self._files(step)
        if not any(name.startswith(f"{LEARNER}/") for name in files):
            raise ValueError(f"{self.learner_url(step)} is empty; the ranks must save first")
        self._write(step, STATE, state.model_dump_json(indent=1).encode())
        names = sorted((files | {STATE: 0}).keys() - {MANIFEST})
        manifest = Manifest(
            step=step,
            config=json.loads(json.dumps(flatten_tree(config))),
            files={name: self._record(step, name) for name in names},
        )
        self._write(step, MANIFEST, manifest.model_dump_json(indent=1).encode())
        return self._checkpoint(step, state, manifest)

    def steps(self) -> tuple[int, ...]:
        """Steps that have a directory, valid or not, ascending."""
        self._fs.invalidate_cache()
        try:
            names = self._retry(f"listing {self.root}", lambda: self._fs.ls(self._path, False))
        except FileNotFoundError:
            return ()
        found = (_STEP.search(name.rstrip("/")) for name in names)
        return tuple(sorted({int(match.group(1)) for match in found if match}))

    def newest_valid(self, config: Mapping[str, Any] | None = None) -> Found:
        """The newest checkpoint whose files all match their checksums, and why newer ones do not.

        Raises IncompatibleCheckpoint where it was written under a `config` that differs: falling
        back to an older one would hide the mistake.
        """
        skipped: list[Skipped] = []
        for step in reversed(self.steps()):
            checkpoint = self._validate(step)
            if isinstance(checkpoint, Checkpoint):
                if config is not None:
                    _require_same(checkpoint, flatten_tree(config))
                return Found(checkpoint, tuple(skipped))
            log.warning("checkpoint of step %d skipped: %s", step, checkpoint)
            skipped.append(Skipped(step, checkpoint, MANIFEST in self._files(step)))
        return Found(None, tuple(skipped))

    def retain(self, keep: int, needed: Collection[int] = ()) -> tuple[int, ...]:
        """Delete all but the newest `keep` checkpoints that have a manifest, and every older
        directory without one; returns the deleted steps. A newer directory without a manifest may
        be a save in progress and stays, as do those of the steps that are `needed`."""
        if keep < 1:
            raise ValueError(f"keep = {keep}; it must be at least 1")
        steps = self.steps()
        kept = [step for step in steps if MANIFEST in self._files(step)][-keep:]
        spared = {*kept, *needed}
        doomed = tuple(step for step in steps if kept and step < kept[-1] and step not in spared)
        for step in doomed:
            self._remove(step)
        return doomed

    def _validate(self, step: int) -> Checkpoint | str:
        """The checkpoint, or one sentence saying why it is none."""
        present = self._files(step)
        if MANIFEST not in present:
            return "it has no manifest (an interrupted save or deletion)"
        try:
            manifest = Manifest.model_validate_json(self._read(step, MANIFEST))
        except ValidationError as error:
            return f"its manifest is torn or malformed ({error.error_count()} errors)"
        if manifest.step != step:
            return f"its manifest is of step {manifest.step}"
        for name, record in manifest.files.items():
            if name not in present:
                return f"{name} is missing"
            if present[name] != record.size:
                return f"{name} has {present[name]} bytes; the manifest says {record.size}"
            if self._record(step, name) != record:
                return f"the content of {name} does not match its SHA-256"
        if STATE not in manifest.files:
            return f"{STATE} is not in its manifest"
        try:
            state = RunState.model_validate_json(self._read(step, STATE))
        except ValidationError as error:
            return f"{STATE} is not a RunState ({error.error_count()} errors)"
        return self._checkpoint(step, state, manifest)

    def _checkpoint(self, step: int, state: RunState, manifest: Manifest) -> Checkpoint:
        return Checkpoint(step, self.url(step), self.learner_url(step), state, manifest.config)

    def _directory(self, step: int) -> str:
        return f"{self._path}/step_{step:06d}"

    def _makedirs(self, step: int) -> None:
        make_folder(self._fs, f"{self._directory(step)}/{LEARNER}")

    def _files(self, step: int) -> dict[str, int]:
        """Size of every file of a step by its path inside the directory."""
        base = self._directory(step)
        self._fs.invalidate_cache()
        found = self._retry(f"listing {base}", lambda: self._fs.find(base, detail=True))
        return {
            name[len(base) :].lstrip("/"): int(info["size"])
            for name, info in found.items()
            if info["type"] == "file"
        }

    def _read(self, step: int, name: str) -> bytes:
        path = f"{self._directory(step)}/{name}"
        return self._retry(f"reading {path}", lambda: bytes(self._fs.cat_file(path)))

    def _write(self, step: int, name: str, content: bytes) -> None:
        """Whole or not at all: an object store's put is atomic, elsewhere a rename is."""
        path = f"{self._directory(step)}/{name}"
        protocols = self._fs.protocol
        rename = "file" in ((protocols,) if isinstance(protocols, str) else protocols)

        def write() -> None:
            if rename:
                replace_local(self._fs, path, content, f"{path}.tmp")
            else:
                self._fs.pipe_file(path, content)

        self._retry(f"writing {path}", write)

    def _record(self, step: int, name: str) -> FileRecord:
        path = f"{self._directory(step)}/{name}"

        def digest() -> FileRecord:
            sha, size = hashlib.sha256(), 0
            with self._fs.open(path, "rb") as file:
                while chunk := file.read(_CHUNK):
                    sha.update(chunk)
                    size += len(chunk)
            return FileRecord(size=size, sha256=sha.hexdigest())

        return self._retry(f"reading {path}", digest)

    def _remove(self, step: int) -> None:
        """Delete a step's directory, the manifest first."""
        base = self._directory(step)

        def remove() -> None:
            self._fs.invalidate_cache()
            if self._fs.exists(f"{base}/{MANIFEST}"):
                self._fs.rm_file(f"{base}/{MANIFEST}")
            if self._fs.exists(base):
                self._fs.rm(base, recursive=True)

        self._retry(f"deleting {base}", remove)

    def _retry(self, what: str, call: Callable[[], T]) -> T:
        return again(what, call, self._attempts, self._backoff_s)


def _require_same(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(config))
    # One that was written when more was fixed tells of keys that are free now, and one that was
    # written before a key came had its default.
    written = {name: value for name, value in checkpoint.config.items() if decides_results(name)}
    stored = {k: v for k, v in fingerprint(RunConfig()).items() if k in wanted} | written
    differing = [
        f"{name} ({stored.get(name, 'unset')!r} in the checkpoint, "
        f"{wanted.get(name, 'unset')!r} now)"
        for name in sorted(set(wanted) | set(stored))
        if wanted.get(name, "unset") != stored.get(name, "unset")
    ]
    if differing:
        raise IncompatibleCheckpoint(
            f"checkpoint {checkpoint.url} was written under another configuration: "
            + "; ".join(differing)
        )
