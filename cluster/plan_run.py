"""A plan from a run's own clocks: what each pool really took, and which one to grow."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.config import ConfigError, RunConfig, from_tree
from cluster.costs import Cost
from cluster.layout import REWARD_POOLS
from cluster.plan import POOLS
from cluster.rows import read_rows
from cluster.storage import RunFolder, absolute_url

RECENT = 50
"""Newest main steps that count: earlier ones hold start-up and other numbers of workers."""


@dataclass(frozen=True, slots=True)
class StageMeasure:
    """Means over the newest main steps of a run, seconds per step."""

    workers: float
    busy_s: float
    starved_s: float
    blocked_s: float
    work_s: float
    """Worker-seconds spent on calls."""

    @property
    def busy_share(self) -> float:
        """Share of the workers' time."""
        return self.busy_s / max(self.busy_s + self.starved_s + self.blocked_s, 1e-9)


def read_run(run: str) -> tuple[RunConfig, list[dict[str, Any]]]:
    """A run's configuration and its newest rows of main steps; ConfigError where it has none."""
    folder = RunFolder(absolute_url(run))
    try:
        config = from_tree(json.loads(folder.read_text("config.json")))
        rows = read_rows(folder)
    except FileNotFoundError as error:
        raise ConfigError(f"--from {run!r} is no folder of a run: {error}") from None
    except ValueError as error:
        raise ConfigError(f"--from {run!r} cannot be read: {error}") from None
    main = [row for row in rows if row["kind"] == "step" and row["phase"] == "main"]
    if not main:
        raise ConfigError(f"--from {run!r} has no finished main step yet")
    return config, main[-RECENT:]


def measures(config: RunConfig, rows: list[dict[str, Any]]) -> dict[str, StageMeasure]:
    """Mean stage clocks by pool; a learner's ranks work as one, a judge's requests share one."""
    found = {}
    for pool in POOLS:
        clocks = [row["stages"][pool] for row in rows]
        busy, starved, blocked = (
            statistics.fmean(clock[key] for clock in clocks)
            for key in ("busy_s", "starved_s", "blocked_s")
        )
        work = statistics.fmean(clock["calls"] * clock["service_s"] for clock in clocks)
        if pool == "judge":  # clocks count the requests that a worker has in flight
            work /= config.rewards.judge.calls_at_once
        workers = work / busy if busy > 0 and work > 0 else float(_configured(config, pool))
        if pool == "learner":
            workers, work = float(config.learner.ranks), busy * config.learner.ranks
        found[pool] = StageMeasure(workers, busy, starved, blocked, work)
    return found


def _configured(config: RunConfig, pool: str) -> int:
    if pool == "rollout":
        return config.rollout.workers
    return config.rewards.pools[pool].min_workers


def measured_costs(config: RunConfig, found: Mapping[str, StageMeasure]) -> dict[str, Cost]:
    """Seconds of a call in each pool, from the run's own clocks."""
    groups = config.rollout.groups_per_step
    clips = groups * config.rollout.group_size
    costs = {}
    for pool in POOLS:
        calls = groups if pool == "rollout" else clips
        costs[pool] = Cost(
            found[pool].work_s / calls,
            "measured",
            f"{found[pool].work_s:,.1f} worker-seconds a step / {calls} calls, by the run's clocks",
        )
    return costs


def pool_to_grow(config: RunConfig, found: Mapping[str, StageMeasure]) -> tuple[str, str]:
    """The pool where one more worker shortens a step most, and why."""
    overlapped = config.max_staleness > 0
    seconds = {pool: m.work_s / max(m.workers, 1.0) for pool, m in found.items()}
    front = max(("rollout", *REWARD_POOLS), key=lambda pool: seconds[pool])
    if overlapped:
        slowest = max(seconds, key=lambda pool: seconds[pool])
        return slowest, f"it is busy for {seconds[slowest]:,.1f} s of every step, the others less"
    # Front and learner follow each other: what counts is how much a worker takes off the sum.
    gains = {
        pool: seconds[pool] - found[pool].work_s / (found[pool].workers + 1)
        for pool in (front, "learner")
    }
    best = max(gains, key=lambda pool: gains[pool])
    return best, f"one more worker takes {gains[best]:,.1f} s off a synchronous step"


def run_lines(config: RunConfig, rows: list[dict[str, Any]]) -> Iterator[str]:
    """What the run's clocks say."""
    found = measures(config, rows)
    step = statistics.fmean(row["seconds"]["step"] for row in rows)
    yield f"{len(rows)} main steps of {config.run}: {step:,.1f} s a step"
    yield f"  {'stage':<16}{'workers':>8}{'busy':>10}{'starved':>10}{'blocked':>10}{'work':>12}"
    for pool in POOLS:
        m = found[pool]
        yield (
            f"  {pool:<16}{m.workers:>8.1f}{m.busy_s:>8.1f} s{m.starved_s:>8.1f} s"
            f"{m.blocked_s:>8.1f} s{m.work_s:>10.1f} s"
        )
    pool, reason = pool_to_grow(config, found)
    yield f"grow {pool}: {reason}"
