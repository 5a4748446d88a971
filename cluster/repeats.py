"""How well the reward repeats itself: one sample scored twice, every so often.

A step learns from how members of a group differ. Where that is little more than what one video's
reward differs by when it is scored again, advantages are noise (method section 2). Every
`rewards.repeat_every` steps a sample is scored once more while the learner steps; difference, noise
and spread per start of the window become a row of kind "repeat" in `metrics.jsonl`. Nobody waits
for it, and nothing that trains is computed from it.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.collect import Batch
from cluster.lost import ObjectGone, WorkerLost
from cluster.metrics import MetricsLog
from cluster.pool import Ref
from cluster.pools import Rewards
from cluster.rows import Row
from learner.schedule import Phase
from prompts.schema import Prompt
from rewards.scoring import combine

REMEMBERED = 50
"""Repetitions that the noise is taken from, and steps that the spread is taken from: the newest."""
MIN_REPETITIONS, MIN_STEPS = 3, 5
"""Before so many nothing is said: repetitions, and steps that had a group of the start."""
ENOUGH = 2.0
"""Spread within groups, in repeat noises, below which a start is an alarm."""

Answer = tuple[float | None, list[str]]
"""Reward of a sample by a second scoring minus that by the first, or why there is none."""


def repeat_noise(differences: Sequence[float]) -> float:
    """Standard deviation of a single scoring, from differences of two of the same video: the root
    of half their mean square. ValueError for none."""
    if not differences:
        raise ValueError("differences holds nothing; at least one repetition is needed")
    return (statistics.fmean(d * d for d in differences) / 2) ** 0.5


def weak_starts(spreads: Mapping[str, Sequence[float]], noise: float) -> list[str]:
    """An alarm for each start of the window whose spreads, one a step, have a mean below
    `ENOUGH` x `noise`."""
    means = {s: statistics.fmean(v) for s, v in spreads.items() if len(v) >= MIN_STEPS}
    return [
        f"members of groups whose window starts at {start} differ by {mean:.3g} in the reward; the "
        f"same video scored twice differs by {noise:.3g}: less than {ENOUGH:g} times that teaches "
        "little; start windows earlier (rollout.window_high) or steady the reward"
        for start, mean in sorted(means.items())
        if mean < ENOUGH * noise
    ]


class Repetition:
    """Scores samples of a run again, one at a time, beside the learner."""

    def __init__(self, every: int, rewards: Rewards, metrics: MetricsLog) -> None:
        """At least `every` steps lie between two; 0: never. A run that goes on remembers."""
        self.every, self.rewards, self.metrics = every, rewards, metrics
        before = list(metrics.rows("repeat"))
        known = (row["difference"] for row in before)
        self._differences = deque((d for d in known if d is not None), maxlen=REMEMBERED)
        self._last = before[-1]["step"] if before else None
        """Step (from 1) whose sample was repeated last."""
        self._spreads: dict[str, deque[float]] = {}
        for row in metrics.rows("step"):
            self._note(row)
        self._task: asyncio.Task[Answer] | None = None

    def begin(self, step: int, phase: Phase, batch: Batch) -> None:
        """Start to score a sample of the batch that step number `step` (from 0) consumes, if it is
        time, the last repetition has ended and the batch has a video: groups that a checkpoint held
        have none."""
        due = self.every and (self._last is None or step + 1 - self._last >= self.every)
        if not due or phase != "main" or self._task is not None:
            return
        for group in batch.groups:
            record = batch.records[group.group]
            if record.rollout.videos:
                # Taken here: the step lets go of its videos, maybe before the task runs.
                video, prompt = record.rollout.videos[group.members[0]], record.request.prompt
                again = self._again(video, prompt, phase, group.rewards[0])
                self._last, self._task = step + 1, asyncio.get_running_loop().create_task(again)
                return

    def finish(self, step_row: Row) -> None:
        """Take a step's row; where a repetition has ended, write what came of it and say every
        alarm."""
        self._note(step_row)
        if self._task is None or not self._task.done():
            return
        (difference, failures), self._task = self._task.result(), None
        if difference is not None:
            self._differences.append(difference)
        self._write(difference, failures)

    async def close(self) -> None:
        """Give up a repetition in progress."""
        if self._task is not None:
            self._task.cancel()
            # Whatever came of it, the run's end and its last checkpoint are not held up.
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _again(self, video: Ref, prompt: Prompt, phase: Phase, reward: float) -> Answer:
        try:
            scores = await self.rewards.score(video, prompt, phase)
        except ObjectGone as gone:
            return None, [f"its video is lost: {gone}"]
        except WorkerLost as lost:  # the pool's, which the next batch will meet
            return None, [f"{type(lost).__name__}: {lost}"]
        if scores.failures:
            return None, [f"{failure.kind}: {failure.reason}" for failure in scores.failures]
        total, _ = combine(scores.parts, self.rewards.config.weights, phase)
        return total - reward, []

    def _note(self, row: Row) -> None:
        if row["phase"] == "main":
            for start, spread in row["spread_by_window_start"].items():
                self._spreads.setdefault(start, deque(maxlen=REMEMBERED)).append(spread)

    def _write(self, difference: float | None, failures: list[str]) -> None:
        found = list(self._differences)
        noise = repeat_noise(found) if found else None
        alarms = []
        if noise is not None and len(found) >= MIN_REPETITIONS:
            alarms = weak_starts(self._spreads, noise)
        row: dict[str, Any] = {
            "kind": "repeat",
            "step": self._last,
            "difference": difference,
            "failures": failures,
            "noise": noise,
            "repetitions": len(found),
            "spread_by_window_start": {
                start: statistics.fmean(values) for start, values in sorted(self._spreads.items())
            },
            "alarms": alarms,
        }
        self.metrics.write(row)
        for alarm in alarms:
            self.metrics.say(f"repeat noise: {alarm}")
