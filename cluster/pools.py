"""The typed calls that the loop makes on its pools: rollouts, rewards, the learner's ranks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from actors.trajectory import RolloutReport, RolloutRequest, WeightsVersion
from actors.worker import WorkerInfo
from cluster.calls import LearnedLimit, first_line
from cluster.config import RunStopped
from cluster.lost import LearnerLost, LearnerTooLarge, ObjectGone, PoolLost, WorkerLost
from cluster.pool import Late, Pool, RankPool, Ref
from learner.batch import BatchShape, ScoredGroup, plan_batch
from learner.proof import RatioProof, StartupProofError
from learner.rank import RankInfo, StepReport
from learner.schedule import Phase
from prompts.schema import Prompt
from rewards.config import RewardConfig
from rewards.score import RewardKind, Score, ScoreFailure
from rewards.worker import Artifacts

MAX_TIMEOUTS = 3
"""A rollout that is too slow on this many workers in a row is given up."""

JUDGED_PHASES: dict[Phase, tuple[RewardKind, ...]] = {
    "main": ("reconstruction", "judge", "aesthetic"),
    "dynamic": ("aesthetic",),
}
"""Reward workers that each phase calls: the dynamic phase switches R_3D off (method section 4)."""


@dataclass(frozen=True, slots=True)
class Published:
    """Weights ready to be loaded by any worker."""

    version: WeightsVersion
    weights: Ref


@dataclass(frozen=True, slots=True)
class GroupRollout:
    """What a rollout left behind; member i is `trajectories[i]` and `videos[i]`."""

    report: RolloutReport
    published: Published
    """The weights that it was asked to use."""
    trajectories: tuple[Ref, ...]
    videos: tuple[Ref, ...]


class DeliveryError(RunStopped):
    """A worker holds other weights than those it was sent."""

    advice = (
        "make sure that every node runs the same version of this code and of torch, then start the "
        "same command again"
    )


def _require_published(held: WeightsVersion, published: WeightsVersion, what: str) -> None:
    if held.checksum != published.checksum:
        raise DeliveryError(
            f"{what} was sampled with weights {held.checksum[:12]}, not with the published "
            f"{published.checksum[:12]} of step {published.step}"
        )


class Rollouts:
    """Calls on the rollout pool."""

    def __init__(self, pool: Pool, timeout_s: float | None = None) -> None:
        """A rollout that takes longer than `timeout_s`, or far longer than those before it, counts
        as a death of its worker; so do samples that take longer than `timeout_s` each."""
        self.pool = pool
        self.timeout_s = timeout_s
        self._rollout_limit = LearnedLimit(timeout_s)

    async def rollout(
        self, request: RolloutRequest, newest: Published | Callable[[], Published]
    ) -> GroupRollout:
        """Sample a group with given weights, or with the newest at the moment a worker is free.

        DeliveryError when the worker's weights are not those, WorkerLost when the group was in
        flight at too many deaths.
        """
        members = request.members
        chosen: list[Published] = []

        def choose() -> WeightsVersion:
            chosen.append(newest if isinstance(newest, Published) else newest())
            return chosen[-1].version

        weights = Late(lambda: chosen[-1].weights)
        report, *refs = await self._call_or_lose(
            "rollout",
            *(request, Late(choose), weights),
            returns=1 + 2 * members,
            # The last attempt has all of the time: what takes long now may take long for ever.
            limits_s=[self._rollout_limit.seconds] * (MAX_TIMEOUTS - 1) + [self.timeout_s],
        )
        self._rollout_limit.answered(sum(report.seconds.values()))
        published = chosen[-1]
        what = f"group {request.group} on worker {report.worker}"
        _require_published(report.weights, published.version, what)
        return GroupRollout(report, published, tuple(refs[:members]), tuple(refs[members:]))

    async def _call_or_lose(
        self, method: str, *args: Any, returns: int, limits_s: Sequence[float | None]
    ) -> Any:
        for limit_s in limits_s:
            with contextlib.suppress(TimeoutError):
                return await self.pool.call(method, *args, returns=returns, timeout_s=limit_s)
        raise WorkerLost(
            f"{self.pool.name}.{method} was given up: {len(limits_s)} workers did not finish it "
            f"within {limits_s[-1]} s"
        )

    async def sample(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], published: Published
    ) -> list[Ref]:
        """Refs of ODE samples of prompts with fixed noises, spread over the pool.

        DeliveryError when a worker sampled with other weights.
        """
        share = -(-len(prompts) // max(self.pool.size, 1))
        chunks = [slice(i, i + share) for i in range(0, len(prompts), share)]
        version, weights = published.version, published.weights
        limit_s = None if self.timeout_s is None else self.timeout_s * share
        answers = await asyncio.gather(
            *(
                self._call_or_lose(
                    "sample",
                    list(prompts[c]),
                    list(seeds[c]),
                    version,
                    weights,
                    returns=1 + len(prompts[c]),
                    limits_s=[limit_s] * MAX_TIMEOUTS,
                )
                for c in chunks
            )
        )
        for held, *_ in answers:
            _require_published(held, version, "an evaluation")
        return [video for _, *videos in answers for video in videos]

    async def describe(self) -> list[WorkerInfo]:
        """What every worker says of itself."""
        nothing: list[tuple[Any, ...]] = [()] * self.pool.size
        return await self.pool.call_all("describe", nothing, limit_s=self.timeout_s)

    async def deliver(self, published: Published) -> int:
        """Load weights on every worker; the number of workers, or DeliveryError."""
        arguments = [(published.version, published.weights)] * self.pool.size
        held = await self.pool.call_all("load_weights", arguments, limit_s=self.timeout_s)
        for index, checksum in enumerate(held):
            if checksum != published.version.checksum:
                raise DeliveryError(
                    f"rollout worker {index} of {self.pool.size} holds weights {checksum[:12]} "
                    f"after it was sent {published.version.checksum[:12]}"
                )
        return len(held)


@dataclass(frozen=True, slots=True)
class SampleScores:
    """All that the reward workers said of one video."""

    scores: dict[RewardKind, Score]
    failures: tuple[ScoreFailure, ...]
    """Failures of the last attempt; empty when every kind answered."""
    attempts: int
    """Scorer calls beyond the first of each kind, plus one."""
    artifacts: Artifacts | None = None
    seconds: float = 0.0
    """Latency, waiting for workers included."""

    @property
    def parts(self) -> dict[str, float]:
        """Reward parts of all kinds."""
        return {
            name: value for score in self.scores.values() for name, value in score.parts.items()
        }

    @property
    def raw(self) -> dict[str, float]:
        """Measurements of all kinds."""
        return {name: value for score in self.scores.values() for name, value in score.raw.items()}


class Rewards:
    """Calls on the three reward pools, with attempts and time limits."""

    def __init__(
        self, reconstruction: Pool, judge: Pool, aesthetic: Pool, config: RewardConfig
    ) -> None:
        self.pools: dict[RewardKind, Pool] = {
            "reconstruction": reconstruction,
            "judge": judge,
            "aesthetic": aesthetic,
        }
        self.config = config

    async def score(
        self, video: Ref, prompt: Prompt, phase: Phase, keep_artifacts: bool = False
    ) -> SampleScores:
        """Score one video by the workers that the phase calls. ObjectGone where it is lost,
        PoolLost where nobody is left to score it."""
        started = time.perf_counter()
        answers = await asyncio.gather(
            *(
                self._geometry(video, prompt, keep_artifacts)
                if kind == "reconstruction"
                else self._single("aesthetic", video, prompt)
                for kind in JUDGED_PHASES[phase]
                if kind != "judge"
            )
        )
        outcomes = [outcome for answer in answers for outcome in answer[0]]
        artifacts = next((answer[2] for answer in answers if answer[2] is not None), None)
        return SampleScores(
            scores={o.kind: o for o in outcomes if isinstance(o, Score)},
            failures=tuple(o for o in outcomes if isinstance(o, ScoreFailure)),
            attempts=max(answer[1] for answer in answers),
            artifacts=artifacts,
            seconds=time.perf_counter() - started,
        )

    async def second_opinion(self, video: Ref, prompt: Prompt) -> dict[str, float] | str:
        """Figures of the independent estimator, or why there are none: it never stops a run."""
        pool = self.pools["reconstruction"]
        try:
            found = await pool.call(
                "second_opinion", video, prompt, timeout_s=self.config.timeout_s
            )
        except (TimeoutError, WorkerLost) as error:
            return f"no second opinion: {type(error).__name__} {error}"
        return found if isinstance(found, str) else dict(found)

    async def artifacts(self, video: Ref, prompt: Prompt) -> Artifacts | None:
        """What people want to see of a video's reconstruction; None where it fails."""
        pool = self.pools["reconstruction"]
        with contextlib.suppress(TimeoutError, WorkerLost):
            outcome, _, artifacts = await pool.call(
                "score", video, prompt, True, returns=3, timeout_s=self.config.timeout_s
            )
            if isinstance(outcome, Score):
                shown: Artifacts | None = await pool.fetch(artifacts)
                return shown
        return None

    async def _single(
        self, kind: RewardKind, subject: Ref, prompt: Prompt
    ) -> tuple[list[Score | ScoreFailure], int, None]:
        pool, limit = self.pools[kind], self.config.timeout_s
        outcome, attempts = await self._attempt(
            kind, lambda: pool.call("score", subject, prompt, timeout_s=limit)
        )
        return [outcome], attempts, None

    async def _geometry(
        self, video: Ref, prompt: Prompt, keep_artifacts: bool
    ) -> tuple[list[Score | ScoreFailure], int, Artifacts | None]:
        """Reconstruct, then judge the meta-view that the reconstruction rendered."""
        pool = self.pools["reconstruction"]
        kept: list[Ref] = []

        async def reconstruct() -> Score | ScoreFailure:
            outcome, *refs = await pool.call(
                "score", video, prompt, keep_artifacts, returns=3, timeout_s=self.config.timeout_s
            )
            kept[:] = refs
            return outcome

        outcome, attempts = await self._attempt("reconstruction", reconstruct)
        if isinstance(outcome, ScoreFailure):
            return [outcome], attempts, None
        meta_view, artifacts = kept
        judged, judge_attempts, _ = await self._single("judge", meta_view, prompt)
        shown = await pool.fetch(artifacts) if keep_artifacts else None
        return [outcome, *judged], max(attempts, judge_attempts), shown

    async def _attempt(
        self, kind: RewardKind, call: Callable[[], Awaitable[Score | ScoreFailure]]
    ) -> tuple[Score | ScoreFailure, int]:
        failure = ScoreFailure(kind, "never attempted")
        for attempt in range(1, self.config.max_attempts + 1):
            try:
                outcome = await call()
            except TimeoutError:
                reason = f"no answer within {self.config.timeout_s:g} s"
                outcome = ScoreFailure(kind, reason, "TimeoutError")
            except PoolLost:
                raise  # of no sample's doing: no other one would be scored either
            except WorkerLost as lost:
                # Deaths are no attempts, but a sample that kills its workers is set aside.
                return ScoreFailure(kind, f"quarantined: {lost}", "WorkerLost"), attempt
            if isinstance(outcome, Score):
                return outcome, attempt
            failure = replace(outcome, attempt=attempt)
            if not failure.retry:
                break
        return failure, failure.attempt


class Learner:
    """Calls on the learner's ranks, always on all of them at once: their steps are collective.

    Every method raises LearnerLost where a rank is dead, frozen or out of touch.
    """

    def __init__(
        self,
        ranks: RankPool,
        shape: BatchShape,
        limit_s: float | None = None,
    ) -> None:
        """A call that no rank answers within `limit_s` counts as frozen ranks."""
        self.ranks = ranks
        self.shape = shape
        self.limit_s = limit_s

    async def describe(self) -> list[RankInfo]:
        """What every rank says of itself."""
        return await self._all("describe")

    async def hold(self, weights: Ref) -> str:
        """Take other weights for a proof; the checksum of what the ranks hold then."""
        return str((await self._all("hold", weights))[0])

    async def prove(self, trajectories: Sequence[Ref]) -> RatioProof:
        """The two ratio proofs on stored trajectories; every rank proves the same ones."""
        return (await self._all("prove", *trajectories))[0]

    async def step(
        self, step: int, groups: Sequence[ScoredGroup], trajectories: Sequence[Ref]
    ) -> StepReport:
        """One batch; each rank is sent only the trajectories that its micro-batches name.

        ObjectGone, before any rank has begun, where a trajectory is lost.
        """
        plans = plan_batch(groups, self.ranks.size, self.shape)
        shares = [tuple(trajectories[i] for i in plan.samples) for plan in plans]
        if self.ranks.size > 1:
            await self._each("receive", shares)
        arguments = [
            (step, tuple(groups), plan, *share) for plan, share in zip(plans, shares, strict=True)
        ]
        return (await self._each("step", arguments))[0]

    async def publish(self, step: int, lineage: str, average: bool = False) -> Published:
        """Current weights, or their running average, gathered on rank 0 and kept by the
        coordinator: they outlive the rank and its node."""
        arguments = [(step, lineage, average)] * self.ranks.size
        answers = await self._each("weights", arguments, returns=2)
        version, weights = answers[0]
        try:
            return Published(version, await self.ranks.store(await self.ranks.fetch(weights)))
        except ObjectGone as gone:
            raise LearnerLost(f"rank 0 is lost with the weights of step {step}: {gone}") from gone

    async def save(self, url: str) -> None:
        """Write every rank's shard below a directory URL."""
        await self._all("save", url)

    async def begin_save(self, url: str) -> None:
        """Start to write what `save` writes; returns when every rank holds a copy of its shard."""
        await self._all("begin_save", url)

    async def saved(self, wait_s: float) -> bool:
        """Whether every rank has written its shard, waiting so long at most. OSError where one
        could not."""
        return all(await self._all("saved", wait_s))

    async def load(self, url: str) -> None:
        """Read what `save` wrote, on any number of ranks."""
        await self._all("load", url)

    async def account(self) -> str:
        """`learner.account` of the weights."""
        return str((await self._all("account"))[0])

    async def restart(self) -> None:
        """Replace every rank by one in its initial state."""
        await self.ranks.restart()

    async def _all(self, method: str, *args: Any) -> list[Any]:
        return await self._each(method, [args] * self.ranks.size)

    async def _each(
        self, method: str, arguments: Sequence[tuple[Any, ...]], returns: int = 1
    ) -> list[Any]:
        try:
            return await self.ranks.call_all(method, arguments, returns, self.limit_s)
        except (WorkerLost, TimeoutError) as error:
            raise LearnerLost(f"the learner's ranks are lost in {method}: {error}") from error
        except (RunStopped, ObjectGone, StartupProofError):
            raise  # a finding of whole ranks, which others would repeat
        except torch.OutOfMemoryError as error:
            # Fresh ranks heal a fragmented GPU; where it is the size, they run out again.
            raise LearnerTooLarge(
                f"a learner rank ran out of GPU memory in {method}: {first_line(error)}"
            ) from error
        except RuntimeError as error:
            if self.ranks.size == 1:
                raise
            # A collective that a peer left or did not reach in time: which of torch's errors it is
            # depends on backend and place, and the group is of no use after any of them.
            raise LearnerLost(
                f"the learner's ranks lost touch in {method}: {first_line(error)}"
            ) from error


@dataclass(frozen=True, slots=True)
class Workers:
    """Everything that computes, on Ray or in this process."""

    rollouts: Rollouts
    rewards: Rewards
    learner: Learner
