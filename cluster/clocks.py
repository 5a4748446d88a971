"""Where a run's time goes: busy, starved and blocked seconds of every stage, and the bottleneck.

A stage is a pool of workers. A worker is busy while a call runs, blocked while it could start one
but the stages behind it must catch up first, and starved while there is nothing to start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class StageClock:
    """Seconds of one stage over an interval, averaged over its workers: they sum to it."""

    busy_s: float
    starved_s: float
    blocked_s: float
    queued_s: float
    """Mean number of waiting calls, times the interval."""
    calls: int
    """Calls that ended."""
    service_s: float
    """Mean duration of those calls; 0 where none ended."""
    workers: float = 0.0
    """Mean number of workers that took calls."""
    deaths: int = 0
    """Calls whose worker died under them; of the learner: times that all ranks were replaced."""
    timeouts: int = 0
    """Calls that were not answered in time, whose worker was restarted."""

    @property
    def interval_s(self) -> float:
        """Length of the interval."""
        return self.busy_s + self.starved_s + self.blocked_s

    @property
    def busy_share(self) -> float:
        """Share of the workers' time spent on calls."""
        return self.busy_s / self.interval_s if self.interval_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class _Totals:
    """What a meter has integrated since it was made."""

    busy_s: float = 0.0
    starved_s: float = 0.0
    blocked_s: float = 0.0
    queued_s: float = 0.0
    calls: int = 0
    service_s: float = 0.0
    worker_s: float = 0.0
    deaths: int = 0
    timeouts: int = 0

    @property
    def interval_s(self) -> float:
        """Time since it was made."""
        return self.busy_s + self.starved_s + self.blocked_s


class Meter:
    """Integrates what the workers of one stage do; read in intervals by `lap`."""

    def __init__(self, workers: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.workers = workers
        self.busy = 0
        """Calls that run."""
        self.waiting = 0
        """Calls that wait for a worker."""
        self.blocked = False
        """Whether an idle worker is held back rather than without input."""
        self._then = clock()
        self._totals = _Totals()
        self._seen: dict[str, _Totals] = {}

    def change(
        self, busy: int = 0, waiting: int = 0, workers: int = 0, blocked: bool | None = None
    ) -> None:
        """Note that calls began or ended, workers came or went, or the gate opened or closed."""
        self._integrate()
        self.busy += busy
        self.waiting += waiting
        self.workers += workers
        if blocked is not None:
            self.blocked = blocked

    def ended(self, seconds: float) -> None:
        """Note the duration of a call that ended."""
        self._totals = replace(
            self._totals,
            calls=self._totals.calls + 1,
            service_s=self._totals.service_s + seconds,
        )

    def lost(self, deaths: int = 0, timeouts: int = 0) -> None:
        """Note calls that lost their worker."""
        self._totals = replace(
            self._totals,
            deaths=self._totals.deaths + deaths,
            timeouts=self._totals.timeouts + timeouts,
        )

    def lap(self, reader: str = "") -> StageClock:
        """Clock since the last lap of the same reader."""
        self._integrate()
        now, then = self._totals, self._seen.get(reader, _Totals())
        self._seen[reader] = now
        calls = now.calls - then.calls
        spent_s = now.interval_s - then.interval_s
        return StageClock(
            busy_s=now.busy_s - then.busy_s,
            starved_s=now.starved_s - then.starved_s,
            blocked_s=now.blocked_s - then.blocked_s,
            queued_s=now.queued_s - then.queued_s,
            calls=calls,
            service_s=(now.service_s - then.service_s) / calls if calls else 0.0,
            workers=(now.worker_s - then.worker_s) / spent_s if spent_s else float(self.workers),
            deaths=now.deaths - then.deaths,
            timeouts=now.timeouts - then.timeouts,
        )

    def _integrate(self) -> None:
        now = self._clock()
        span, self._then = now - self._then, now
        # A worker that is being restarted or drained still runs its call.
        workers = max(self.workers, self.busy, 1)
        busy_s = span * self.busy / workers
        idle_s, totals = span - busy_s, self._totals
        self._totals = replace(
            totals,
            busy_s=totals.busy_s + busy_s,
            starved_s=totals.starved_s + (0.0 if self.blocked else idle_s),
            blocked_s=totals.blocked_s + (idle_s if self.blocked else 0.0),
            queued_s=totals.queued_s + span * self.waiting,
            worker_s=totals.worker_s + span * self.workers,
        )


def bottleneck(clocks: Mapping[str, StageClock]) -> str:
    """The stage whose workers are busy for the largest share of the time; the first at a tie."""
    return max(clocks, key=lambda name: clocks[name].busy_share, default="")


def format_seconds(seconds: float) -> str:
    """1:02:03 or 2:03."""
    whole = int(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
