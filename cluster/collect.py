"""From prompts to batches: request groups, roll them out, score them, complete them.

The collector works on its own from one `publish` to the next: it issues as many groups as the
buffer has room for, each rolled out with the newest weights at the moment a worker is free for it.
With max_staleness 0 that is one batch for every published version, and nothing while it trains;
groups in place of dropped ones are issued when all others of the batch are decided.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from actors.config import RolloutConfig
from actors.trajectory import RolloutRequest
from cluster.buffer import (
    GroupBuffer,
    MemberReward,
    NoProgressError,
    ReadyGroup,
    Rejection,
    decide_group,
)
from cluster.checkpoint import InFlight
from cluster.ledger import SampleRow, Status
from cluster.lost import MAX_LOSSES, ObjectGone, PoolLost, WorkerLost
from cluster.pool import Ref
from cluster.pools import GroupRollout, Published, Rewards, Rollouts, SampleScores
from cluster.versions import Lineages
from learner.batch import ScoredGroup
from learner.schedule import Phase, window_start
from prompts.dataset import prompt_at
from prompts.schema import Prompt
from rewards.config import RewardConfig
from rewards.scoring import combine

T = TypeVar("T")

SPLIT_OF_PHASE: dict[Phase, str] = {"main": "train", "dynamic": "dynamic"}
"""Prompt set that each phase draws from."""

SHOWN_FAILURES = 3
"""Commonest reasons that an error names."""


class RequestSource:
    """Issues rollout requests; its whole state is a few integers."""

    def __init__(
        self,
        seed: int,
        rollout: RolloutConfig,
        prompts: Mapping[str, Sequence[Prompt]],
        next_group: int = 0,
        cursors: Mapping[str, int] | None = None,
    ) -> None:
        self.seed = seed
        self.rollout = rollout
        self.prompts = prompts
        self.next_group = next_group
        self.cursors: dict[str, int] = {"train": 0, "dynamic": 0, **(cursors or {})}

    def draw(self, phase: Phase) -> RolloutRequest:
        """The next group of a phase, on the next prompt of its set."""
        split = SPLIT_OF_PHASE[phase]
        prompt = prompt_at(self.seed, self.cursors[split], self.prompts[split])
        self.cursors[split] += 1
        return self.issue(prompt)

    def issue(self, prompt: Prompt) -> RolloutRequest:
        """A group with a new serial number, hence new noise and a new window, on a given prompt."""
        serial = self.next_group
        self.next_group += 1
        return self.request(serial, prompt)

    def request(self, serial: int, prompt: Prompt) -> RolloutRequest:
        """The request that a serial number stands for: always the same."""
        start = window_start(self.seed, serial, self.rollout.window_low, self.rollout.window_stop)
        return RolloutRequest(
            group=serial,
            prompt=prompt,
            members=self.rollout.group_size,
            seed=self.seed,
            window_start=start,
        )

    def repeat(self, entry: InFlight) -> RolloutRequest:
        """A group that was in flight when the run stopped. ValueError where its prompt is gone."""
        prompt = self.prompt(entry)
        if prompt is None:
            raise ValueError(
                f"group {entry.group} was in flight on prompt {entry.prompt_id!r}, which is no "
                f"longer in the {SPLIT_OF_PHASE[entry.phase]} set"
            )
        return self.request(entry.group, prompt)

    def prompt(self, entry: InFlight) -> Prompt | None:
        """The prompt of a group that was issued; None where its set has it no more."""
        found = self.prompts[SPLIT_OF_PHASE[entry.phase]]
        return next((prompt for prompt in found if prompt.id == entry.prompt_id), None)


@dataclass(slots=True)
class GroupRecord:
    """One group on its way through a step; kept for the ledger, metrics and pictures."""

    request: RolloutRequest
    phase: Phase
    rollout: GroupRollout
    scores: list[SampleScores]
    rewards: list[MemberReward]
    rollout_s: float = 0.0
    kept: bool = False
    """Whether its reconstructions were asked for, to be kept for people."""

    @property
    def entry(self) -> InFlight:
        """The group without what was made of it."""
        return InFlight(
            group=self.request.group, phase=self.phase, prompt_id=self.request.prompt.id
        )

    def rows(self, status: Status, reason: str, step: int) -> list[SampleRow]:
        """Ledger rows of its samples under one fate; unscored ones say so in any case."""
        rows = []
        for member, (scores, reward) in enumerate(zip(self.scores, self.rewards, strict=True)):
            own, why = status, reason
            if reward.total is None:
                failure = _failure_text(scores, reward)
                if status == "dropped":
                    why = f"{reason}: {failure}"
                else:
                    own, why = "unscored", failure
            version = self.rollout.published.version
            rows.append(
                SampleRow(
                    group=self.request.group,
                    member=member,
                    prompt_id=self.request.prompt.id,
                    phase=self.phase,
                    seed=self.request.seed,
                    window_start=self.request.window_start,
                    status=own,
                    reason=why,
                    step=step,
                    version_step=version.step,
                    version_lineage=version.lineage,
                    version_checksum=version.checksum,
                    total=reward.total,
                    parts=scores.parts,
                    scorers={kind: score.scorer for kind, score in scores.scores.items()},
                    attempts=scores.attempts,
                    worker=self.rollout.report.worker,
                    rollout_s=self.rollout_s,
                    score_s=scores.seconds,
                )
            )
        return rows


def _failure_text(scores: SampleScores, reward: MemberReward) -> str:
    if scores.failures:
        return "; ".join(f"{f.kind}: {f.reason}" for f in scores.failures)
    return reward.reason


@dataclass(slots=True)
class Batch:
    """A step's input to the learner and what it took to make it."""

    groups: tuple[ScoredGroup, ...]
    trajectories: tuple[Ref, ...]
    """Refs in the order of (group, member) of `groups`."""
    records: dict[int, GroupRecord]
    """Of the batch's groups and of those rejected since the batch before."""
    rejected: dict[str, int]
    failed_members: int
    failures: dict[str, int]
    """Reason of every scorer failure -> how often."""
    ages: tuple[int, ...] = ()
    """Updates between each group's weights and the step that consumes it."""
    seconds: dict[str, float] = field(default_factory=dict)

    def refresh(self) -> None:
        """Take the refs that the records hold at present."""
        self.trajectories = _trajectories(self.groups, self.records)


def _trajectories(
    groups: Sequence[ScoredGroup], records: Mapping[int, GroupRecord]
) -> tuple[Ref, ...]:
    return tuple(
        records[g.group].rollout.trajectories[member] for g in groups for member in g.members
    )


class Collector:
    """Keeps the rollout and reward pools at work and hands out batches."""

    def __init__(
        self,
        source: RequestSource,
        rollouts: Rollouts,
        rewards: Rewards,
        config: RewardConfig,
        phases: Callable[[int], Sequence[Phase]],
        max_staleness: int = 0,
        note: Callable[[list[SampleRow]], None] = lambda rows: None,
        keep: Callable[[int], int] = lambda step: 0,
    ) -> None:
        """`phases(step)`: phases of that step and of those after it that groups may be issued for;
        `note` takes the ledger rows of groups that are dropped; `keep(step)`: how many of the
        groups issued for a step are scored with what people want to see."""
        self.source = source
        self.rollouts = rollouts
        self.rewards = rewards
        self.config = config
        self.phases = phases
        self.note = note
        self.keep = keep
        self.buffer = GroupBuffer(source.rollout.groups_per_step, max_staleness)
        self.lineages = Lineages()
        self._weights: Published | None = None
        self._open: dict[int, InFlight] = {}
        self._records: dict[int, GroupRecord] = {}
        self._again: list[InFlight] = []
        """Dropped groups whose prompts are issued again."""
        self._repeats: deque[InFlight] = deque()
        self._kept: Counter[int] = Counter()
        self._unrolled: Counter[str] = Counter()
        """Why samples of the next batch could not be rolled out."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._error: BaseException | None = None

    @property
    def step(self) -> int:
        """Step of the published weights."""
        return self._weights.version.step if self._weights else 0

    def resume(self, in_flight: Iterable[InFlight], dropped: Iterable[InFlight] = ()) -> None:
        """Issue these groups before any other, under the serial numbers that they had, and then
        the prompts of those that were dropped."""
        self._repeats.extend(sorted(in_flight, key=lambda entry: entry.group))
        self._again.extend(dropped)

    def restore(self, record: GroupRecord, ready: ReadyGroup) -> None:
        """Take a group that an earlier start of the run rolled out and scored."""
        serial = record.request.group
        self._open[serial] = record.entry
        self._records[serial] = record
        self.buffer.restore(ready)

    def in_flight(self) -> tuple[InFlight, ...]:
        """Groups issued that have no fate, ascending; those of a batch in training have one."""
        waiting = [*self._open.values(), *self._repeats]
        return tuple(sorted(waiting, key=lambda entry: entry.group))

    def dropped(self) -> tuple[InFlight, ...]:
        """Groups whose prompts wait to be issued again, ascending."""
        return tuple(sorted(self._again, key=lambda entry: entry.group))

    def waiting(self) -> list[tuple[ReadyGroup, GroupRecord]]:
        """Scored groups that no batch has taken."""
        return [(ready, self._records[ready.group.group]) for ready in self.buffer.waiting()]

    def publish(self, weights: Published, lineages: Lineages) -> None:
        """New weights: close the batch that made them and issue groups as far as there is room."""
        self._weights, self.lineages = weights, lineages
        self.buffer.published()
        self._expire()
        self._issue()

    async def batch(self, phase: Phase) -> Batch:
        """The next batch, when it is complete. NoProgressError, DeliveryError, WorkerLost."""
        while not self.buffer.ready(phase):
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        rejected = {str(reason): count for reason, count in self.buffer.rejected.items()}
        failed = self.buffer.failed_members
        taken = self.buffer.take(phase)
        self._unrolled.clear()
        groups = tuple(ready.group for ready in taken)
        serials = {group.group for group in groups}
        own = {s: r for s, r in self._records.items() if s in serials or s not in self._open}
        for serial in own:
            del self._records[serial]
        for serial in serials:
            del self._open[serial]
        return Batch(
            groups=groups,
            trajectories=_trajectories(groups, own),
            records=own,
            rejected=rejected,
            failed_members=failed,
            failures=count_failures(own.values()),
            ages=tuple(self.step - ready.version.step for ready in taken),
        )

    async def close(self) -> None:
        """Stop all work in progress."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _issue(self) -> None:
        """Start groups while there is room and a step that wants them."""
        while self._repeats:
            entry = self._repeats.popleft()
            self._begin(self.source.repeat(entry), entry.phase)
        self._again.sort(key=lambda entry: entry.group)
        while self.buffer.room and (phase := self.buffer.wanted(self.phases(self.step))):
            again = next((entry for entry in self._again if entry.phase == phase), None)
            prompt = None
            if again is not None:
                self._again.remove(again)
                prompt = self.source.prompt(again)  # gone from its set: it has its fate already
            self._begin(
                self.source.draw(phase) if prompt is None else self.source.issue(prompt), phase
            )
        self.rollouts.pool.meter.change(blocked=self.buffer.room == 0)

    def _begin(self, request: RolloutRequest, phase: Phase) -> None:
        serial = request.group
        self.buffer.issue(serial, phase)
        self._open[serial] = InFlight(group=serial, phase=phase, prompt_id=request.prompt.id)
        step = self.step + (self.buffer.open - 1) // self.buffer.per_step
        kept = self._kept[step] < self.keep(step)
        self._kept[step] += kept
        work = self._guarded(self._produce(request, phase, kept))
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            # Raised to whoever waits for the batch; the first one counts.
            self._error = self._error or self._explained(error)
        finally:
            self._changed.set()

    def _explained(self, error: BaseException) -> BaseException:
        """Why samples failed, where a step cannot be filled: no row of metrics will say it."""
        if not isinstance(error, NoProgressError):
            return error
        counts = Counter(self._unrolled)
        for record in self._records.values():
            for scores, reward in zip(record.scores, record.rewards, strict=True):
                counts[_failure_text(scores, reward)] += reward.total is None
        most = [item for item in counts.most_common(SHOWN_FAILURES) if item[1]]
        shown = "; ".join(f"{reason} ({count} x)" for reason, count in most)
        return NoProgressError(f"{error}; most often: {shown}") if shown else error

    async def _produce(self, request: RolloutRequest, phase: Phase, kept: bool) -> None:
        """One group from its request to its decision."""
        try:
            record = await self._roll_out_and_score(request, phase, kept)
        except (WorkerLost, ObjectGone) as lost:
            if isinstance(lost, PoolLost):
                raise
            self._drop_unscored(request, phase, str(lost))
        else:
            self._decide(record)
        # Serials key the noise: where a run is deterministic, those of replacements must not depend
        # on which of several dropped groups came first.
        if self.buffer.max_staleness or len(self._open) == len(self.buffer.waiting()):
            self._issue()

    async def _roll_out_and_score(
        self, request: RolloutRequest, phase: Phase, kept: bool
    ) -> GroupRecord:
        for loss in range(1, MAX_LOSSES + 1):
            started = time.perf_counter()
            rollout = await self.rollouts.rollout(request, self._newest)
            rollout_s = time.perf_counter() - started
            try:
                scores = await gather_or_cancel(
                    [
                        self.rewards.score(video, request.prompt, phase, kept)
                        for video in rollout.videos
                    ]
                )
            except ObjectGone:
                if loss == MAX_LOSSES:
                    raise
                continue
            bad = set(rollout.report.non_finite)
            rewards = [self.member_reward(i, s, phase, i in bad) for i, s in enumerate(scores)]
            return GroupRecord(request, phase, rollout, scores, rewards, rollout_s, kept)
        raise AssertionError("unreachable")

    def _newest(self) -> Published:
        """Weights are chosen when a worker is free, not when the group is issued."""
        assert self._weights is not None
        return self._weights

    def _decide(self, record: GroupRecord) -> None:
        request = record.request
        decision = decide_group(
            request.group,
            request.prompt.id,
            record.rewards,
            self.config.weights.model_dump(),
            self.config.min_group_size,
        )
        self._records[request.group] = record
        if self.buffer.add(decision, record.rollout.published.version):
            del self._open[request.group]
            self.note(record.rows("dropped", str(decision.verdict), self.step))
            if decision.verdict == "too_few_scored":
                self._again.append(record.entry)
        else:
            self._expire()

    def _expire(self) -> None:
        """Drop scored groups that have become too old; their prompts are issued again."""
        for expired in self.buffer.expire(self.step, self.lineages):
            serial = expired.ready.group.group
            del self._open[serial]
            record = self._records[serial]
            self.note(record.rows("dropped", expired.reason, self.step))
            self._again.append(record.entry)

    def _drop_unscored(self, request: RolloutRequest, phase: Phase, why: str) -> None:
        """A group that could not be rolled out, for want of workers that survive it."""
        reason: Rejection = "quarantined"
        self._unrolled[why] += request.members
        self.buffer.reject(request.group, reason)
        del self._open[request.group]
        self.note(
            [
                SampleRow(
                    group=request.group,
                    member=member,
                    prompt_id=request.prompt.id,
                    phase=phase,
                    seed=request.seed,
                    window_start=request.window_start,
                    status="dropped",
                    reason=f"{reason}: {why}",
                    step=self.step,
                )
                for member in range(request.members)
            ]
        )

    def member_reward(
        self, member: int, scores: SampleScores, phase: Phase, non_finite: bool = False
    ) -> MemberReward:
        """Total of one sample, or None where any scorer of the phase failed or it was sampled with
        a log-probability that is no number."""
        if non_finite:
            return MemberReward(member, None, reason="its log-probability is not finite")
        if scores.failures:
            return MemberReward(member, None)
        total, parts = combine(scores.parts, self.config.weights, phase)
        return MemberReward(member, total, parts)


async def gather_or_cancel(tasks: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines together; the first error cancels the rest and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(task) for task in tasks]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in running]


def count_failures(records: Iterable[GroupRecord]) -> dict[str, int]:
    """How often each scorer failed for which reason."""
    counts: dict[str, int] = {}
    for record in records:
        for scores in record.scores:
            for failure in scores.failures:
                key = f"{failure.kind}: {failure.reason}"
                counts[key] = counts.get(key, 0) + 1
    return counts
