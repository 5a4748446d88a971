"""What a run says of itself: `metrics.jsonl`, one readable line a step, Prometheus gauges."""

from __future__ import annotations

import asyncio
import atexit
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from cluster.background import Background
from cluster.clocks import Meter, StageClock, bottleneck, format_seconds
from cluster.collect import Batch
from cluster.exports import BY_NAME, METRICS, RUN, Sample, samples
from cluster.patience import missing_is_fine
from cluster.pools import Workers
from cluster.report.refresh import Refresher
from cluster.rows import FILE_NAME, Row, RowsFile, rows_before
from cluster.storage import RunFolder
from learner.rank import StepReport
from rewards.scoring import PARTS

REWARD_STAGES = ("reconstruction", "judge", "aesthetic")
REFRESH_S = 5.0
"""Time between two settings of the same gauges."""
LOST = {"deaths": "calls lost their worker", "timeouts": "calls were not answered in time"}
WRITTEN = "worldr1_checkpoint_written_timestamp_seconds"


def mean_spread(values: Iterable[float]) -> dict[str, float]:
    """Mean, standard deviation and number of some values; an empty mapping for none."""
    known = list(values)
    if not known:
        return {}
    return {"mean": statistics.fmean(known), "std": statistics.pstdev(known), "n": len(known)}


def stage_meters(workers: Workers) -> dict[str, Meter]:
    """The meters of all pools, by the name of their stage."""
    meters = {"rollout": workers.rollouts.pool.meter}
    meters |= {kind: pool.meter for kind, pool in workers.rewards.pools.items()}
    meters["learner"] = workers.learner.ranks.meter
    return meters


def stage_clocks(workers: Workers) -> dict[str, StageClock]:
    """What every stage did since the last call."""
    return {name: meter.lap() for name, meter in stage_meters(workers).items()}


def pool_state(workers: Workers, durable_step: int) -> dict[str, Any]:
    """What a step's row says of the pools' sizes and of the newest durable checkpoint."""
    sizes = {str(kind): float(pool.size) for kind, pool in workers.rewards.pools.items()}
    sizes["rollout"] = float(workers.rollouts.pool.size)
    sizes["learner"] = float(workers.learner.ranks.size)
    return {"workers": sizes, "durable_step": durable_step}


def step_row(
    phase: str,
    batch: Batch,
    report: StepReport,
    clocks: Mapping[str, StageClock],
    seconds: float,
) -> dict[str, Any]:
    """Everything measured in one optimizer step, as one JSON object."""
    totals = [reward for group in batch.groups for reward in group.rewards]
    within = [statistics.pstdev(group.rewards) for group in batch.groups]
    parts: dict[str, list[float]] = {}
    raw: dict[str, list[float]] = {}
    for record in batch.records.values():
        for scores in record.scores:
            for name, value in scores.parts.items():
                parts.setdefault(name, []).append(value)
            for name, value in scores.raw.items():
                raw.setdefault(name, []).append(value)
    return {
        "kind": "step",
        "step": report.step,
        "phase": phase,
        "reward": mean_spread(totals) | {"within_group_std": statistics.fmean(within)},
        "parts": {name: mean_spread(values) for name, values in sorted(parts.items())},
        "raw": {name: mean_spread(values) for name, values in sorted(raw.items())},
        "spread_by_window_start": _spread_by_window(batch),
        "loss": report.loss,
        "grad_norm": report.grad_norm,
        "update_skipped": report.update_skipped,
        "learner": dict(report.metrics),
        "groups": {"trained": len(batch.groups), **batch.rejected},
        "failed_members": batch.failed_members,
        "failures": batch.failures,
        "age": mean_spread(batch.ages),
        "seconds": {
            "rollout": clocks["rollout"].busy_s,
            "rewards": max(clocks[kind].busy_s for kind in REWARD_STAGES),
            "learner": clocks["learner"].busy_s,
            "step": seconds,
        },
        "stages": {name: asdict(clock) for name, clock in clocks.items()},
        "bottleneck": bottleneck(clocks),
        "time": time.time(),
    }


def step_line(row: Mapping[str, Any], steps: int, eta_s: float) -> str:
    """One line a person reads."""
    parts = " ".join(
        f"{name} {row['parts'][name]['mean']:.3f}" for name in PARTS if name in row["parts"]
    )
    learner = {"kl": math.nan, "ratio_max_dev": math.nan} | row["learner"]
    seconds = row["seconds"]
    clock = " ".join(f"{name} {value:.1f}" for name, value in seconds.items() if name != "step")
    notes = [f"{n} groups {why}" for why, n in row["groups"].items() if why != "trained" and n]
    if row["failed_members"]:
        notes.append(f"{row['failed_members']} samples unscored")
    lost = {what: sum(clock[what] for clock in row["stages"].values()) for what in LOST}
    notes += [f"{n} {LOST[what]}" for what, n in lost.items() if n]
    if row["age"].get("mean"):
        notes.append(f"age {row['age']['mean']:.1f}")
    if row["update_skipped"]:
        notes.append("UPDATE SKIPPED: not finite")
    return (
        f"step {row['step'] + 1:>4}/{steps} {row['phase']:<7} "
        f"R {row['reward']['mean']:.3f}±{row['reward']['std']:.3f} | {parts} | "
        f"KL {learner['kl']:.2e} ratio-1 {learner['ratio_max_dev']:.1e} "
        f"grad {row['grad_norm']:.2e} | {seconds['step']:.1f} s ({clock}) | "
        f"ETA {format_seconds(eta_s)}" + ("" if not notes else " | " + ", ".join(notes))
    )


class Follower(Protocol):
    """Takes every row as it is written, e.g. a `cluster.trackers.Tracker`."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Take a row of `metrics.jsonl`."""
        ...


class MetricsLog:
    """Appends rows to `metrics.jsonl` and prints their lines.

    A resumed run drops the rows of steps that its checkpoint has not seen: they are computed again.
    """

    def __init__(
        self,
        folder: RunFolder,
        steps: int,
        resumed_at: int,
        say: Callable[[str], None],
        gauges: bool = False,
        followers: Sequence[Follower] = (),
        refresher: Refresher | None = None,
        require_held: Callable[[], None] = lambda: None,
    ) -> None:
        """`require_held` raises where the run is another process's: rows of that are not written
        over."""
        self.folder = folder
        self.steps = steps
        self.say = say
        self._rows = RowsFile(folder, rows_before(folder, resumed_at))
        self._recent_s: list[float] = []
        self._gauges = StepGauges(folder.url) if gauges else None
        self._followers, self._refresher = tuple(followers), refresher
        self._require_held = require_held
        self._sending = Background(self._send)
        self.flush()

    def write(self, row: dict[str, Any]) -> None:
        """Store a row; step rows are printed as a line too."""
        self._rows.add(row)
        with missing_is_fine(FILE_NAME, self.say):
            self._rows.append()
        if not self.folder.is_local:
            self._sending.ask()
        for follower in self._followers:
            with missing_is_fine("a row for the tracker", self.say):
                follower.log(row)
        if self._gauges:
            self._gauges.set(row)
        if row["kind"] != "step":
            return
        self._recent_s = [*self._recent_s[-9:], row["seconds"]["step"]]
        eta_s = statistics.fmean(self._recent_s) * (self.steps - row["step"] - 1)
        self.say(step_line(row, self.steps, eta_s))

    def rows(self, *kinds: str) -> Iterator[Row]:
        """All rows of some kinds that are valid so far, ascending, read one by one: a long run has
        more than memory should hold."""
        return (row for row in self._rows.rows() if row["kind"] in kinds)

    def refresh_report(self) -> None:
        """Write the run's page again if it is time."""
        if self._refresher:
            self._refresher.refresh_if_due()

    def flush(self) -> None:
        """Write the rows that are not written; those that the store refuses are in the next."""
        self._require_held()
        with missing_is_fine(FILE_NAME, self.say):
            self._rows.write()

    async def finish(self) -> None:
        """Return when all rows are written, or the store refuses them."""
        await self._sending.finish()
        await asyncio.to_thread(self.flush)

    def close(self) -> None:
        """Write what a run that ended early has not; whatever goes wrong is said, and does not take
        the place of the run's own error."""
        try:
            self.flush()
        except Exception as error:
            self.say(f"the last rows of {FILE_NAME} are not written: {error}")

    def _send(self) -> None:
        self._require_held()
        with missing_is_fine(FILE_NAME, self.say):
            self._rows.send()


class StepGauges:
    """The same figures for Prometheus, through Ray's metrics endpoint (`cluster/exports.py`)."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Gauge  # here, so that --local never imports ray

        self._gauges = {
            metric.name: Gauge(
                metric.name, metric.help, tag_keys=(RUN, metric.label) if metric.label else (RUN,)
            )
            for metric in METRICS
        }
        self._run = {RUN: run}
        self._current: dict[str, list[Sample]] = {}
        self._durable_step = -1
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="gauges", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # before Ray's own end, which was registered earlier

    def set(self, row: Mapping[str, Any]) -> None:
        """Publish a row of a step, examination or repetition in place of the one before."""
        found = list(samples(row))
        if found:
            self._current[str(row["kind"])] = found
        durable = row.get("durable_step", self._durable_step)
        if durable != self._durable_step:
            self._durable_step = durable
            self._current["durable"] = [(WRITTEN, time.time(), "")]
        self._publish()

    def _publish(self) -> None:
        for found in list(self._current.values()):
            for name, value, label in found:
                tags = {BY_NAME[name].label: label} if BY_NAME[name].label else {}
                self._gauges[name].set(value, tags=self._run | tags)

    def _keep_alive(self) -> None:
        # Ray's agent forgets a gauge that is not set for some 20 s; steps take minutes.
        while not self._closed.wait(REFRESH_S):
            self._publish()

    def close(self) -> None:
        """Set no gauge any more."""
        self._closed.set()
        self._thread.join()


def _spread_by_window(batch: Batch) -> dict[str, float]:
    """Mean standard deviation of rewards between members, per start of the window."""
    spreads: dict[str, list[float]] = {}
    for group in batch.groups:
        start = str(batch.records[group.group].request.window_start)
        spreads.setdefault(start, []).append(statistics.pstdev(group.rewards))
    return {start: statistics.fmean(values) for start, values in sorted(spreads.items())}
