"""Everything that a run's report shows, read from the run's folder alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cluster.config import ConfigError, RunConfig
from cluster.held_out import EvalSample, load_evaluation
from cluster.kept import KeptGroup, load_groups
from cluster.rows import read_rows
from cluster.storage import RunFolder, scores_file, stored_config
from learner.config import ScheduleConfig
from learner.schedule import phase_of

Row = Mapping[str, Any]
MAX_POINTS = 1200
"""Steps that a curve shows; more are averaged in bins, so that a page of any run opens at once."""


@dataclass(frozen=True, slots=True)
class RunData:
    """A run as far as it got."""

    url: str
    config: RunConfig
    steps: tuple[Row, ...]
    """Step rows of `metrics.jsonl`, ascending."""
    evals: tuple[Row, ...]
    """Evaluation rows of the raw weights, ascending."""
    ema_evals: tuple[Row, ...]
    """Evaluation rows of the averaged weights, ascending."""
    evaluations: Mapping[int, Sequence[EvalSample]]
    """Held-out samples of the raw weights by step."""
    ema_evaluations: Mapping[int, Sequence[EvalSample]]
    """Held-out samples of the averaged weights by step."""
    alarms: tuple[Row, ...]
    """Rows of what each evaluation found wrong, ascending; mostly empty lists."""
    groups: tuple[KeptGroup, ...]
    """Kept groups by (step, serial number)."""

    @property
    def done(self) -> int:
        """Optimizer steps done."""
        return int(self.steps[-1]["step"]) + 1 if self.steps else 0

    @property
    def finished(self) -> bool:
        """Whether every configured step is done."""
        return self.done >= self.config.steps


def load_run(url: str) -> RunData:
    """Read a run. ConfigError in one sentence where there is none, or its files are torn."""
    folder = RunFolder(url)
    config = stored_config(folder)
    try:
        rows = read_rows(folder)
        groups = tuple(load_groups(folder))
    except ValidationError as error:
        raise ConfigError(
            f"RUN = {url!r} holds a kept group that cannot be read ({error.error_count()} errors)"
        ) from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"RUN = {url!r} cannot be read: {error}") from None
    of = {
        kind: tuple(r for r in rows if r["kind"] == kind)
        for kind in ("step", "eval", "ema", "alarm")
    }
    return RunData(
        url=folder.url,
        config=config,
        steps=of["step"],
        evals=of["eval"],
        ema_evals=of["ema"],
        alarms=of["alarm"],
        evaluations=_evaluations(folder, of["eval"], average=False),
        ema_evaluations=_evaluations(folder, of["ema"], average=True),
        groups=groups,
    )


def _evaluations(
    folder: RunFolder, rows: Sequence[Row], average: bool
) -> dict[int, list[EvalSample]]:
    steps = [int(row["step"]) for row in rows]
    return {
        step: load_evaluation(folder, step, average)
        for step in steps
        if folder.exists(scores_file(step, average))
    }


def series(rows: Sequence[Row], *path: str) -> tuple[list[float], list[float]]:
    """Steps done (x) and a figure (y) of every row that has it, e.g. ("parts", "recon", "mean").

    Binned by averaging to no more than `MAX_POINTS` points.
    """
    points = []
    for row in rows:
        value: Any = row
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int | float):
            points.append((row["step"] + (row["kind"] == "step"), float(value)))
    size = -(-len(points) // MAX_POINTS) or 1
    bins = [points[i : i + size] for i in range(0, len(points), size)]
    x = [sum(p[0] for p in part) / len(part) for part in bins]
    y = [sum(p[1] for p in part) / len(part) for part in bins]
    return x, y


def main_steps(rows: Sequence[Row]) -> list[Row]:
    """Rows of main steps: `series` averages neighbours, and a dynamic step is paid otherwise."""
    return [row for row in rows if row["phase"] == "main"]


def dynamic_spans(schedule: ScheduleConfig, done: int) -> list[tuple[float, float]]:
    """[first, last] steps done, half a step wider, of every dynamic phase up to `done`."""
    spans: list[tuple[float, float]] = []
    for step in range(done):
        if phase_of(step, schedule) == "dynamic":
            if spans and spans[-1][1] == step + 0.5:
                spans[-1] = (spans[-1][0], step + 1.5)
            else:
                spans.append((step + 0.5, step + 1.5))
    return spans
