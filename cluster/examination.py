"""The standing examiner of a run: known clips scored every so often, and what is wrong with it.

Every `rewards.examine_every` steps one reconstruction worker scores every known-answer clip
(`rewards/examiner.py`); the scores and the alarms become a row of kind "examiner" in
`metrics.jsonl`. Three alarms: the order of the known clips is broken; a known clip is scored
otherwise than at the first examination of the run; the reward rises while what it should not touch
falls. Alarms stop nothing: a person decides. Steps go on meanwhile; the run's end waits for it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from cluster.lost import WorkerLost
from cluster.metrics import MetricsLog
from cluster.pool import Pool
from rewards.examiner import Rows, drift, faults, number_of_clips

Row = Mapping[str, Any]

WATCHED = {"sharpness": 0.8, "motion": 0.6, "content": 0.85}
"""Measurements of the samples that reconstruction must not eat up, and the share of their first
value under which they are an alarm while S_recon has risen."""
WINDOW = 5
"""Main-phase steps that are averaged at both ends."""


class Examination:
    """Examines a run's reconstruction workers."""

    def __init__(self, every: int, pool: Pool, metrics: MetricsLog, clip_timeout_s: float) -> None:
        """`every` steps; 0: never. A worker that needs longer for all clips together than
        `clip_timeout_s` for each counts as dead."""
        self.every, self.pool, self.metrics = every, pool, metrics
        self.clip_timeout_s = clip_timeout_s
        self._task: asyncio.Task[None] | None = None

    def begin(self, step: int) -> None:
        """Begin to examine after `step` optimizer steps, if it is time. Raises what the one before
        did not expect."""
        running = self._task is not None and not self._task.done()
        if self._task is not None and not running:
            self._task.result()
            self._task = None
        if not self.every or step % self.every or not step:
            return
        if running:
            self.metrics.say(f"examiner: none after step {step}, the one before is under way")
            return
        self._task = asyncio.get_running_loop().create_task(self._examine(step))

    async def finish(self) -> None:
        """Wait for the examination in progress."""
        if self._task is not None:
            await self._task

    async def close(self) -> None:
        """Give up an examination in progress."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _examine(self, step: int) -> None:
        """Write a row and say every alarm, or why there is none."""
        try:
            rows: Rows = await self.pool.call(
                "examine", timeout_s=self.clip_timeout_s * number_of_clips()
            )
        except (WorkerLost, TimeoutError) as error:  # the pool mends itself; the next will be held
            reason = f"{type(error).__name__} {error}".strip()
            self.metrics.say(f"examiner: no examination after step {step}: {reason}")
            return
        first = next(self.metrics.rows("examiner"), None)
        found = [*faults(rows), *(drift(first["scores"], rows) if first else [])]
        found += hacking(self.metrics.rows("step"))
        self.metrics.write({"kind": "examiner", "step": step, "scores": rows, "alarms": found})
        for alarm in found:
            self.metrics.say(f"examiner: {alarm}")


def hacking(steps: Iterable[Row]) -> list[str]:
    """Alarms from a run's step rows, ascending: S_recon above its start while a watched measurement
    fell. Of a long run only both ends are held."""
    main = (row for row in steps if "recon" in row["parts"])
    first = list(itertools.islice(main, WINDOW))
    last = deque(main, maxlen=WINDOW)
    if len(last) < WINDOW or not _mean(last, "parts", "recon") > _mean(first, "parts", "recon"):
        return []
    found = []
    for name, share in WATCHED.items():
        if all(name in row["raw"] for row in (*first, *last)):
            before, now = _mean(first, "raw", name), _mean(last, "raw", name)
            if now < share * before:
                found.append(
                    f"S_recon has risen while {name} fell from {before:.3g} to {now:.3g}: the "
                    "policy may have learned to paint what is easy to reconstruct"
                )
    return found


def _mean(rows: Collection[Row], table: str, name: str) -> float:
    return sum(float(row[table][name]["mean"]) for row in rows) / len(rows)
