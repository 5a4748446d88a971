"""How long calls are waited for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors.trajectory import RolloutReport, RolloutRequest, WeightsVersion
from benchmarks.simulated import SimulatedPool
from cluster.calls import LearnedLimit
from cluster.pools import Published, Rollouts
from prompts.schema import Prompt

VERSION = WeightsVersion(0, "lineage", "checksum")


def test_a_limit_is_learned_from_the_slowest_of_enough_answers() -> None:
    limit = LearnedLimit(7200.0)
    for _ in range(LearnedLimit.ENOUGH - 1):
        limit.answered(100.0)
    assert limit.seconds == 7200.0
    limit.answered(240.0)
    assert limit.seconds == 1200.0
    limit.answered(90.0)
    assert limit.seconds == 1200.0


@pytest.mark.parametrize(
    ("at_most_s", "answer_s", "expected"),
    [
        (7200.0, 2.0, LearnedLimit.AT_LEAST_S),  # a machine that pauses for a minute is not dead
        (7200.0, 3000.0, 7200.0),
        (15.0, 2.0, 15.0),  # what was asked for holds
        (None, 2.0, None),
    ],
)
def test_a_learned_limit_stays_in_its_bounds(
    at_most_s: float | None, answer_s: float, expected: float | None
) -> None:
    limit = LearnedLimit(at_most_s)
    for _ in range(LearnedLimit.ENOUGH):
        limit.answered(answer_s)
    assert limit.seconds == expected


class RecordingPool(SimulatedPool):
    """Remembers what time each call was given."""

    def __init__(self, stages_s: dict[str, float]) -> None:
        report = RolloutReport(0, 1, 0, VERSION, "worker", stages_s)

        async def rollout(*_: Any) -> tuple[RolloutReport, str, str]:
            return report, "trajectory", "video"

        async def sample(prompts: list[Any], *_: Any) -> tuple[Any, ...]:
            return VERSION, *("video" for _ in prompts)

        super().__init__("rollout", 2, {"rollout": rollout, "sample": sample})
        self.limits_s: list[float | None] = []
        self.late = 0
        """Calls that will not be answered in time."""

    async def call(
        self, method: str, *args: Any, returns: int = 1, timeout_s: float | None = None
    ) -> Any:
        self.limits_s.append(timeout_s)
        if self.late:
            self.late -= 1
            raise TimeoutError
        return await super().call(method, *args, returns=returns, timeout_s=timeout_s)


def test_a_rollout_is_given_five_times_the_slowest_and_samples_the_limit_each() -> None:
    """The last of three attempts has the whole limit."""

    async def work() -> list[float | None]:
        pool = RecordingPool({"prefix": 60.0, "branches": 40.0})
        rollouts = Rollouts(pool, 3600.0)
        published = Published(VERSION, "weights")
        prompts = [Prompt.from_text(str(i), "Camera orbit left. A red box.") for i in range(3)]
        request = RolloutRequest(0, prompts[0], members=1, seed=0, window_start=0)
        for _ in range(LearnedLimit.ENOUGH + 1):
            await rollouts.rollout(request, published)
        pool.late = 2
        await rollouts.rollout(request, published)
        await rollouts.sample(prompts, [0, 1, 2], published)
        return pool.limits_s

    limits_s = asyncio.run(work())
    assert limits_s == [3600.0] * LearnedLimit.ENOUGH + [500.0] * 3 + [3600.0] + [7200.0] * 2
