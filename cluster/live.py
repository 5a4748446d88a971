"""A run in the terminal: a live panel below the lines, where the output is a terminal.

Elsewhere, as in the log of a Ray job, a run prints its lines alone.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from cluster.clocks import Meter, format_seconds
from rewards.scoring import PARTS

BARS = "▁▂▃▄▅▆▇█"
HISTORY = 32
"""Steps whose figures are drawn beside the last one."""
SHOWN_FAILURES = 3
DOTS = 12
"""Workers of a pool that are drawn one by one."""


class View(Protocol):
    """Where a person follows a run."""

    def say(self, line: str) -> None:
        """Show a line that stays."""
        ...

    def watch(self, run: str, steps: int, done: int, meters: Mapping[str, Meter]) -> None:
        """A run begins, or goes on after `done` steps; `meters` of its pools by name."""
        ...

    def log(self, row: Mapping[str, Any]) -> None:
        """Take a row of `metrics.jsonl`."""
        ...


class Lines:
    """Plain lines: what a file, a pipe or a job's log gets."""

    def say(self, line: str) -> None:
        """Print it at once."""
        print(line, flush=True)

    def watch(self, run: str, steps: int, done: int, meters: Mapping[str, Meter]) -> None:
        """Nothing: the lines say it."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Nothing: the lines say it."""


class Panel:
    """Progress, parts, pools and last failures, drawn again a few times a second."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.run, self.steps, self.done = "", 0, 0
        self.meters: Mapping[str, Meter] = {}
        self.rows: deque[Mapping[str, Any]] = deque(maxlen=HISTORY)
        self.failures: deque[str] = deque(maxlen=SHOWN_FAILURES)
        self._step_began_s = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line above the panel."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def watch(self, run: str, steps: int, done: int, meters: Mapping[str, Meter]) -> None:
        """See `View.watch`."""
        self.run, self.steps, self.done, self.meters = run, steps, done, meters
        self._step_began_s = time.monotonic()

    def log(self, row: Mapping[str, Any]) -> None:
        """See `View.log`; steps and their failures are shown."""
        if row["kind"] != "step":
            return
        self.rows.append(row)
        self.done = int(row["step"]) + 1
        self._step_began_s = time.monotonic()
        for reason, count in row["failures"].items():
            self.failures.append(f"step {self.done}: {reason} ({count} x)")
        if row["update_skipped"]:
            self.failures.append(f"step {self.done}: update skipped, not finite")

    def __rich__(self) -> Group:
        """The panel as it stands."""
        tables = Table.grid(padding=(0, 5))
        tables.add_row(self._parts(), self._pools())
        pieces: list[Any] = [Rule(style="dim"), self._progress(), Padding(tables, (1, 0, 0, 1))]
        if self.failures:
            last = Text("\n".join(self.failures), style="yellow")
            pieces.append(Padding(last, (1, 0, 0, 1)))
        return Group(*pieces)

    def _progress(self) -> Table:
        seconds = [row["seconds"]["step"] for row in list(self.rows)[-10:]]
        mean_s = sum(seconds) / len(seconds) if seconds else 0.0
        now_s = time.monotonic() - self._step_began_s
        left_s = max(mean_s * (self.steps - self.done) - min(now_s, mean_s), 0.0)
        phase = self.rows[-1]["phase"] if self.rows else "starting"
        eta = f"ETA {format_seconds(left_s)}" if seconds else "ETA –"
        table = Table.grid(padding=(0, 2), expand=True)
        for _ in range(3):
            table.add_column(no_wrap=True)
        table.add_column(ratio=1)
        table.add_column(no_wrap=True, justify="right")
        table.add_row(
            Text(f" {self.run.rstrip('/').rpartition('/')[2]}", style="bold"),
            Text(phase, style="magenta" if phase == "dynamic" else "cyan"),
            f"step {self.done}/{self.steps}",
            ProgressBar(total=max(self.steps, 1), completed=self.done),
            f"{mean_s:.1f} s a step, now {now_s:.0f} s  {eta}",
        )
        return table

    def _parts(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column(justify="right")
        table.add_column()
        # A phase pays other parts than its neighbour: only rows of the same phase compare.
        last = self.rows[-1] if self.rows else None
        same = [row for row in self.rows if last and row["phase"] == last["phase"]]
        if last is None:
            table.add_row("reward", "–", "")
            return table
        reward = last["reward"]
        line = sparkline([row["reward"]["mean"] for row in same])
        table.add_row("reward", f"{reward['mean']:.3f} ±{reward['std']:.3f}", line)
        for name in PARTS:
            if name in last["parts"]:
                history = [row["parts"][name]["mean"] for row in same if name in row["parts"]]
                table.add_row(name, f"{last['parts'][name]['mean']:.3f}", sparkline(history))
        kl = [row["learner"].get("kl", 0.0) for row in self.rows]
        table.add_row("KL", f"{kl[-1]:.2e}", sparkline(kl))
        return table

    def _pools(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column()
        table.add_column()
        table.add_column(justify="right")
        seconds = self.rows[-1].get("stages", {}) if self.rows else {}
        for name, meter in self.meters.items():
            clock = seconds.get(name)
            table.add_row(
                name,
                _dots(meter),
                f"{meter.busy}/{meter.workers} busy"
                + (f", {meter.waiting} waiting" if meter.waiting else "")
                + (", held back" if meter.blocked and not meter.busy else ""),
                f"{clock['busy_s']:.1f} s" if clock else "",
            )
        return table


def sparkline(values: list[float]) -> str:
    """Values as one character each, from their least to their greatest; those that are no number,
    as a skipped update leaves them, are left out."""
    known = [value for value in values[-HISTORY:] if math.isfinite(value)]
    if len(known) < 2:
        return ""
    low, high = min(known), max(known)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in known)


def _dots(meter: Meter) -> Text:
    """One mark per worker: full where it is busy."""
    workers, busy = min(meter.workers, DOTS), min(meter.busy, DOTS)
    more = "…" if meter.workers > DOTS else ""
    return Text("●" * busy, style="green") + Text("○" * max(workers - busy, 0) + more, style="dim")


@contextlib.contextmanager
def open_view(console: Console | None = None) -> Iterator[View]:
    """The live panel on a terminal, plain lines anywhere else."""
    screen = console or Console(file=sys.stdout)
    if not screen.is_terminal or screen.is_dumb_terminal:
        yield Lines()
        return
    panel = Panel(screen)
    with Live(panel, console=screen, refresh_per_second=4, transient=True):
        yield panel
