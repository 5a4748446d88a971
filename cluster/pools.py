"""Pools of workers as the loop sees them, and the typed calls it makes on them.

A `Pool` is the only thing that differs between Ray (`handles.py`) and one process (`local.py`).
Small answers come back as values; everything large stays a `Ref` that is handed on unread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from actors.trajectory import LoraWeights, RolloutReport, RolloutRequest, WeightsVersion
from cluster.config import RunStopped
from learner.batch import ScoredGroup, plan_batch
from learner.rank import RankInfo, RatioProof, StepReport
from learner.schedule import Phase
from prompts.schema import Prompt
from rewards.config import RewardConfig
from rewards.score import RewardKind, Score, ScoreFailure
from rewards.worker import Artifacts

Ref = Any
"""A large object where it was made: a Ray ObjectRef, or the object itself under --local."""

JUDGED_PHASES: dict[Phase, tuple[RewardKind, ...]] = {
    "main": ("reconstruction", "judge", "aesthetic"),
    "dynamic": ("aesthetic",),
}
"""Reward workers that each phase calls: the dynamic phase switches R_3D off (method section 4)."""


class WorkerLost(RunStopped):
    """A worker died more often than a call is retried."""


class Pool(Protocol):
    """Workers of one class."""

    name: str

    @property
    def size(self) -> int:
        """Workers in the pool."""
        ...

    async def call(
        self, method: str, *args: Any, returns: int = 1, timeout_s: float | None = None
    ) -> Any:
        """Run a method on a free worker; waiting for one does not count towards `timeout_s`.

        With `returns` > 1 the method returns a tuple of that length; the first element comes back
        as a value, the others as refs. Raises WorkerLost, TimeoutError, or what the method raised.
        """
        ...

    async def call_all(
        self, method: str, arguments: Sequence[tuple[Any, ...]], returns: int = 1
    ) -> list[Any]:
        """Run a method on every worker at once, each with its own arguments; answers in order."""
        ...

    async def fetch(self, ref: Ref) -> Any:
        """The object behind a ref."""
        ...


@dataclass(frozen=True, slots=True)
class Published:
    """Weights ready to be loaded by any worker."""

    version: WeightsVersion
    weights: Ref


@dataclass(frozen=True, slots=True)
class GroupRollout:
    """What a rollout left behind; member i is `trajectories[i]` and `videos[i]`."""

    report: RolloutReport
    trajectories: tuple[Ref, ...]
    videos: tuple[Ref, ...]


class DeliveryError(RunStopped):
    """A worker holds other weights than those it was sent."""


def _require_published(held: WeightsVersion, published: WeightsVersion, what: str) -> None:
    if held.checksum != published.checksum:
        raise DeliveryError(
            f"{what} was sampled with weights {held.checksum[:12]}, not with the published "
            f"{published.checksum[:12]} of step {published.step}"
        )


class Rollouts:
    """Calls on the rollout pool."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    async def rollout(self, request: RolloutRequest, published: Published) -> GroupRollout:
        """Sample a group. DeliveryError when the worker's weights are not the published ones."""
        members = request.members
        report, *refs = await self.pool.call(
            "rollout", request, published.version, published.weights, returns=1 + 2 * members
        )
        what = f"group {request.group} on worker {report.worker}"
        _require_published(report.weights, published.version, what)
        return GroupRollout(report, tuple(refs[:members]), tuple(refs[members:]))

    async def sample(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], published: Published
    ) -> list[Ref]:
        """Refs of ODE samples of prompts with fixed noises, spread over the pool.

        DeliveryError when a worker sampled with other weights.
        """
        share = -(-len(prompts) // self.pool.size)
        chunks = [slice(i, i + share) for i in range(0, len(prompts), share)]
        version, weights = published.version, published.weights
        answers = await asyncio.gather(
            *(
                self.pool.call(
                    "sample",
                    list(prompts[c]),
                    list(seeds[c]),
                    version,
                    weights,
                    returns=1 + len(prompts[c]),
                )
                for c in chunks
            )
        )
        for held, *_ in answers:
            _require_published(held, version, "an evaluation")
        return [video for _, *videos in answers for video in videos]

    async def deliver(self, published: Published) -> int:
        """Load weights on every worker; the number of workers, or DeliveryError."""
        arguments = [(published.version, published.weights)] * self.pool.size
        held = await self.pool.call_all("load_weights", arguments)
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
        """Score one video by the workers that the phase calls."""
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
        )

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
        outcome: Score | ScoreFailure = ScoreFailure(kind, "never attempted")
        for attempt in range(1, self.config.max_attempts + 1):
            try:
                outcome = await call()
            except TimeoutError:
                outcome = ScoreFailure(
                    kind, f"no answer within {self.config.timeout_s:g} s", "TimeoutError"
                )
            if isinstance(outcome, Score):
                return outcome, attempt
        return outcome, self.config.max_attempts


class Learner:
    """Calls on the learner's ranks, always on all of them at once: their steps are collective."""

    def __init__(self, ranks: Pool, micro_batch: int, updates_per_batch: int) -> None:
        self.ranks = ranks
        self.micro_batch = micro_batch
        self.updates_per_batch = updates_per_batch

    async def describe(self) -> list[RankInfo]:
        """What every rank says of itself."""
        return await self._all("describe")

    async def prove(self, trajectories: Sequence[Ref]) -> RatioProof:
        """The two ratio proofs on stored trajectories; every rank proves the same ones."""
        return (await self._all("prove", *trajectories))[0]

    async def step(
        self, step: int, groups: Sequence[ScoredGroup], trajectories: Sequence[Ref]
    ) -> StepReport:
        """One batch; each rank is sent only the trajectories that its micro-batches name."""
        plans = plan_batch(groups, self.ranks.size, self.micro_batch, self.updates_per_batch)
        arguments = [
            (step, tuple(groups), plan, *(trajectories[i] for i in plan.samples)) for plan in plans
        ]
        return (await self.ranks.call_all("step", arguments))[0]

    async def publish(self, step: int, lineage: str) -> Published:
        """Current weights, gathered on rank 0."""
        answers = await self.ranks.call_all(
            "weights", [(step, lineage)] * self.ranks.size, returns=2
        )
        version, weights = answers[0]
        return Published(version, weights)

    async def save(self, url: str) -> None:
        """Write every rank's shard below a directory URL."""
        await self._all("save", url)

    async def load(self, url: str) -> None:
        """Read what `save` wrote, on any number of ranks."""
        await self._all("load", url)

    async def ema_weights(self) -> LoraWeights:
        """Running average of the weights, as rank 0 holds it."""
        return (await self._all("ema_weights"))[0]

    async def _all(self, method: str, *args: Any) -> list[Any]:
        return await self.ranks.call_all(method, [args] * self.ranks.size)


@dataclass(frozen=True, slots=True)
class Workers:
    """Everything that computes, on Ray or in this process."""

    rollouts: Rollouts
    rewards: Rewards
    learner: Learner
