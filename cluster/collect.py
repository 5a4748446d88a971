"""From a step's prompts to its batch: request groups, roll them out, score them, complete them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from actors.config import RolloutConfig
from actors.trajectory import RolloutRequest
from cluster.buffer import GroupBuffer, MemberReward, decide_group
from cluster.pools import GroupRollout, Published, Ref, Rewards, Rollouts, SampleScores
from learner.batch import ScoredGroup
from learner.schedule import Phase, window_start
from prompts.dataset import prompt_at
from prompts.schema import Prompt
from rewards.config import RewardConfig
from rewards.scoring import combine

SPLIT_OF_PHASE: dict[Phase, str] = {"main": "train", "dynamic": "dynamic"}
"""Prompt set that each phase draws from."""


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
        start = window_start(self.seed, serial, self.rollout.window_low, self.rollout.window_stop)
        return RolloutRequest(
            group=serial,
            prompt=prompt,
            members=self.rollout.group_size,
            seed=self.seed,
            window_start=start,
        )


@dataclass(slots=True)
class GroupRecord:
    """One group on its way through a step; kept for metrics and pictures."""

    request: RolloutRequest
    rollout: GroupRollout
    scores: list[SampleScores]
    kept: bool = False
    """Whether its reconstructions were asked for, to be kept for people."""


@dataclass(slots=True)
class Batch:
    """A step's input to the learner and what it took to make it."""

    groups: tuple[ScoredGroup, ...]
    trajectories: tuple[Ref, ...]
    """Refs in the order of (group, member) of `groups`."""
    records: dict[int, GroupRecord]
    rejected: dict[str, int]
    failed_members: int
    failures: dict[str, int]
    """Reason of every scorer failure -> how often."""
    seconds: dict[str, float] = field(default_factory=dict)


class Collector:
    """Fills batches from the rollout and reward pools."""

    def __init__(
        self, source: RequestSource, rollouts: Rollouts, rewards: Rewards, config: RewardConfig
    ) -> None:
        self.source = source
        self.rollouts = rollouts
        self.rewards = rewards
        self.config = config

    async def collect(self, phase: Phase, weights: Published, keep: int = 0) -> Batch:
        """Roll out and score `groups_per_step` groups that can train; the first `keep` of them
        with what people want to see.

        Groups run at once, as far as the pools have workers; a rejected group is replaced by a new
        serial number. Raises NoProgressError, DeliveryError, WorkerLost.
        """
        wanted = self.source.rollout.groups_per_step
        buffer = GroupBuffer(wanted)
        records: dict[int, GroupRecord] = {}
        started = time.perf_counter()
        clock = {"first_video": 0.0, "last_video": 0.0, "last_score": 0.0}

        async def produce(request: RolloutRequest, kept: bool) -> None:
            while True:
                rollout = await self.rollouts.rollout(request, weights)
                clock["last_video"] = time.perf_counter() - started
                clock["first_video"] = clock["first_video"] or clock["last_video"]
                scores = await asyncio.gather(
                    *(self.rewards.score(v, request.prompt, phase, kept) for v in rollout.videos)
                )
                clock["last_score"] = time.perf_counter() - started
                records[request.group] = GroupRecord(request, rollout, list(scores), kept)
                decision = decide_group(
                    request.group,
                    request.prompt.id,
                    [self.member_reward(i, s, phase) for i, s in enumerate(scores)],
                    self.config.weights.model_dump(),
                    self.config.min_group_size,
                )
                if not buffer.add(decision):
                    return
                again = decision.verdict == "too_few_scored"
                request = self.source.issue(request.prompt) if again else self.source.draw(phase)

        await gather_or_cancel(
            [produce(self.source.draw(phase), index < keep) for index in range(wanted)]
        )
        groups = buffer.take()
        return Batch(
            groups=groups,
            trajectories=tuple(
                records[g.group].rollout.trajectories[member]
                for g in groups
                for member in g.members
            ),
            records=records,
            rejected=dict(buffer.rejected),
            failed_members=buffer.failed_members,
            failures=count_failures(records.values()),
            seconds={
                "rollout": clock["last_video"],
                "rewards": clock["last_score"] - clock["first_video"],
            },
        )

    def member_reward(self, member: int, scores: SampleScores, phase: Phase) -> MemberReward:
        """Total of one sample, or None where any scorer of the phase failed."""
        if scores.failures:
            return MemberReward(member, None)
        total, parts = combine(scores.parts, self.config.weights, phase)
        return MemberReward(member, total, parts)


async def gather_or_cancel(tasks: Sequence[Coroutine[None, None, None]]) -> None:
    """Run coroutines together; the first error cancels the rest and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(task)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def count_failures(records: Iterable[GroupRecord]) -> dict[str, int]:
    """How often each scorer failed for which reason."""
    counts: dict[str, int] = {}
    for record in records:
        for scores in record.scores:
            for failure in scores.failures:
                key = f"{failure.kind}: {failure.reason}"
                counts[key] = counts.get(key, 0) + 1
    return counts
