"""Experiment trackers beside `metrics.jsonl`: TensorBoard by default, Weights & Biases by option.

    RUN/tensorboard/events.out.tfevents.*   one file per start; `tensorboard --logdir RUN`

A resumed run goes on in the same curves: TensorBoard hides what an earlier start logged past the
checkpoint, Weights & Biases is given the id that the run's state carries.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import secrets
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from cluster.background import Background
from cluster.config import ConfigError
from cluster.storage import RunFolder

log = logging.getLogger(__name__)
TrackerKind = Literal["tensorboard", "wandb", "none"]
MIRROR_S = 60.0
"""Seconds between copies of the event file to a store that is not this machine's disk."""
_NOT_SCALARS = {"kind", "step", "time", "phase", "failures", "spread_by_window_start"}


class Tracker(Protocol):
    """Takes every row of a run's metrics."""

    run_id: str | None
    """What a resumed run needs to continue the same curves; kept in the run's state."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Log a row's numbers at its step."""
        ...

    def close(self) -> None:
        """Make everything durable; logs nothing after it."""
        ...


def require_tracker(kind: TrackerKind) -> None:
    """ConfigError where the tracker's package is not installed."""
    if kind == "wandb" and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "metrics.tracker = 'wandb' needs the package wandb, which is not installed; install "
            "the extra `wandb`, or use 'tensorboard' or 'none'"
        )


def open_tracker(
    kind: TrackerKind, folder: RunFolder, step: int, run_id: str | None, config: Mapping[str, Any]
) -> Tracker:
    """The tracker of a run that starts or goes on at `step`. ConfigError where it cannot start."""
    if kind == "tensorboard":
        return TensorBoard(folder, step)
    if kind == "wandb":
        return WeightsAndBiases(folder, run_id, config)
    return NoTracker()


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Every finite number of a row by its path, e.g. "step/parts/recon/mean"."""
    found: dict[str, float] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                walk(f"{prefix}/{name}", inner)
        elif isinstance(value, int | float) and math.isfinite(value):
            found[prefix] = float(value)

    for name, value in row.items():
        if name not in _NOT_SCALARS:
            walk(f"{row['kind']}/{name}", value)
    return found


def steps_done(row: Mapping[str, Any]) -> int:
    """Optimizer steps behind a row: a step's own row is written after it."""
    return int(row["step"]) + (row["kind"] == "step")


class NoTracker:
    """Tracks nothing."""

    run_id: str | None = None

    def log(self, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class TensorBoard:
    """Event files, written in place on a local disk and copied elsewhere."""

    run_id: str | None = None

    def __init__(self, folder: RunFolder, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._scratch = None if folder.is_local else tempfile.TemporaryDirectory(prefix="wr1-tb-")
        self._path = Path(self._scratch.name if self._scratch else folder.path("tensorboard"))
        # Events of later steps than this come from a start whose work was lost.
        purge = step + 1 if step else None
        self._writer = SummaryWriter(str(self._path), purge_step=purge)
        self._mirrored_s = time.monotonic()
        self._mirroring = Background(self._mirror)

    def log(self, row: Mapping[str, Any]) -> None:
        """See `Tracker.log`."""
        for name, value in scalars(row).items():
            self._writer.add_scalar(name, value, steps_done(row))
        self._writer.flush()
        if self._scratch and time.monotonic() - self._mirrored_s > MIRROR_S:
            self._mirrored_s = time.monotonic()
            self._mirroring.ask()

    def close(self) -> None:
        """See `Tracker.close`."""
        self._writer.close()
        if self._scratch:
            self._mirror()
            self._scratch.cleanup()

    def _mirror(self) -> None:
        try:
            for file in self._path.iterdir():
                self._folder.write_bytes(f"tensorboard/{file.name}", file.read_bytes())
        except Exception as error:  # the next one has all; metrics.jsonl has every figure anyway
            log.warning(
                "events for TensorBoard were not written: %s: %s", type(error).__name__, error
            )


class WeightsAndBiases:
    """A run of the service, or an offline one below the run's folder (WANDB_MODE=offline)."""

    def __init__(self, folder: RunFolder, run_id: str | None, config: Mapping[str, Any]) -> None:
        import wandb

        self.run_id: str | None = run_id or secrets.token_hex(6)
        local = Path(folder.path("")) if folder.is_local else Path(tempfile.gettempdir())
        try:
            self._run = wandb.init(
                project="world-r1",
                id=self.run_id,
                resume="allow",
                config=dict(config),
                dir=str(local),
            )
        except wandb.errors.Error as error:
            raise ConfigError(
                f"metrics.tracker = 'wandb' cannot start: {str(error).splitlines()[0]}"
            ) from None

    def log(self, row: Mapping[str, Any]) -> None:
        """See `Tracker.log`."""
        self._run.log({**scalars(row), "optimizer_step": steps_done(row)})

    def close(self) -> None:
        """See `Tracker.close`."""
        self._run.finish()
