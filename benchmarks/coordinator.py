"""What the coordinator itself costs at the size of a cluster: real Ray calls, simulated workers.

    python -m benchmarks.coordinator [--quick] [--json FILE]

96 rollout, 32 reconstruction and 16 learner workers, and 2 and 4 times as many with as many times
the groups, live in a few async actors that only wait. The loop, pools, buffer, ledger, checkpoints
and every call through Ray are real. Waits are those of a step of Wan 1.3B at 832 x 480 x 81 on
H100s at 40 % of their bf16 rate, computed from its operation counts, and shortened by `SHORTENED`:
what the coordinator does depends on the number of events, so that its CPU seconds per step are
compared with the step's unshortened length.

Goals: the coordinator's process needs less than 2 % of a step, and its CPU seconds per group stay
within 25 % up to 4 times the size. Exits 1 when one is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray

from actors.wan_shape import WAN21_1_3B, latent_shape, learner_flops
from benchmarks.results import Result, machine, write
from benchmarks.simulated import (
    Durations,
    SimulatedRanks,
    reward_methods,
    rollout_methods,
    rows,
    simulated_trainer,
)
from cluster.config import LOOPBACK, RunConfig, load
from cluster.pools import Learner, Published, Rewards, Rollouts, Workers
from cluster.ray_pool import RayPool
from cluster.ray_ranks import RayRanks
from cluster.versions import Lineages
from learner.batch import BatchShape, RankPlan, ScoredGroup
from learner.rank import StepReport

ROLLOUTS, RECONSTRUCTIONS, RANKS = 96, 32, 16
GROUPS, MEMBERS = 96, 8
SIZES = (1, 2, 4)
SHORTENED = 20.0
RATE = 0.4 * 989e12
"""Operations per second of one GPU."""
RECONSTRUCTION_S, JUDGE_S, AESTHETIC_S = 6.0, 0.5, 1.0
"""Of one video: a feed-forward reconstruction with its renderings, a judgement, eight frames."""
HOSTS = 3
"""Processes that the workers of all kinds live in."""
SHARE_GOAL, FLAT_GOAL = 0.02, 1.25


def real_durations(config: RunConfig) -> Durations:
    """Seconds of each call for Wan 1.3B at its size."""
    tokens, text = WAN21_1_3B.tokens(latent_shape(81, 480, 832)[1], 480, 832), 512
    forward_s = 2 * sum(WAN21_1_3B.forward_flops(tokens, text)) / RATE
    rollout = config.rollout
    prefix = (rollout.window_low + rollout.window_stop) / 2
    passes = prefix + MEMBERS * (rollout.sampling_steps - prefix)
    samples = GROUPS * MEMBERS * rollout.window_size / RANKS
    return Durations(
        rollout_s=passes * forward_s,
        reconstruction_s=RECONSTRUCTION_S,
        judge_s=JUDGE_S,
        aesthetic_s=AESTHETIC_S,
        learner_s=samples * 2 * learner_flops(WAN21_1_3B, tokens, text) / RATE,
        publish_s=1.0,
    )


def shortened(durations: Durations) -> Durations:
    """The same, faster."""
    names = Durations.__dataclass_fields__
    return Durations(**{name: getattr(durations, name) / SHORTENED for name in names})


class RolloutHost:
    """Rollout workers."""

    def __init__(self, config: RunConfig, durations: Durations) -> None:
        self._methods = rollout_methods(config, durations)

    async def rollout(self, *args: Any) -> Any:
        """A group."""
        return await self._methods["rollout"](*args)

    async def describe(self) -> Any:
        """Who it is."""
        return await self._methods["describe"]()

    async def load_weights(self, *args: Any) -> Any:
        """What it holds."""
        return await self._methods["load_weights"](*args)


class RewardHost:
    """Reward workers of one kind."""

    def __init__(self, kind: str, parts: tuple[str, ...], seconds: float) -> None:
        self._methods = reward_methods(kind, parts, seconds)

    async def score(self, *args: Any) -> Any:
        """A video."""
        return await self._methods["score"](*args)

    async def known_answers(self) -> Any:
        """Whether it works."""
        return await self._methods["known_answers"]()


class RankHost(SimulatedRanks):
    """Learner ranks: the first call of a step is carried out, the others are given its answer."""

    async def step(
        self, step: int, groups: Sequence[ScoredGroup], plan: RankPlan, *trajectories: Any
    ) -> StepReport:
        """See `SimulatedRanks.step`."""
        steps: dict[int, asyncio.Task[StepReport]] = self.__dict__.setdefault("steps", {})
        if step not in steps:
            steps[step] = asyncio.ensure_future(super().step(step, groups, plan))
        return await steps[step]


def hosted_workers(config: RunConfig, durations: Durations) -> tuple[Workers, list[RayPool]]:
    """Every pool of a run over a few actors."""

    def hosts(worker: Any, count: int, *args: Any) -> list[Any]:
        remote: Any = ray.remote(worker)
        options = {"num_cpus": 0, "max_concurrency": 10_000}
        return [remote.options(**options).remote(*args) for _ in range(count)]

    def pool(name: str, workers: int, actors: list[Any]) -> RayPool:
        return RayPool(name, lambda index: actors[index % len(actors)], workers)

    rollouts = pool("rollout", config.rollout.workers, hosts(RolloutHost, HOSTS, config, durations))
    kinds: dict[str, tuple[tuple[str, ...], float]] = {
        "reconstruction": (("recon", "traj"), durations.reconstruction_s),
        "judge": (("meta",), durations.judge_s),
        "aesthetic": (("gen",), durations.aesthetic_s),
    }
    rewards = {
        kind: pool(
            kind,
            config.rewards.pools[kind].min_workers,
            hosts(RewardHost, 1, kind, parts, seconds),
        )
        for kind, (parts, seconds) in kinds.items()
    }
    ranks = hosts(RankHost, 1, config, durations)
    workers = Workers(
        rollouts=Rollouts(rollouts),
        rewards=Rewards(
            rewards["reconstruction"], rewards["judge"], rewards["aesthetic"], config.rewards
        ),
        learner=Learner(
            RayRanks("learner", lambda: ranks * config.learner.ranks, 60.0),  # type: ignore[arg-type]
            BatchShape.of(config.learner, config.rollout),
        ),
    )
    return workers, [rollouts, *rewards.values()]


def configuration(run: str, size: int, steps: int) -> RunConfig:
    """A synchronous run of that many times the cluster and the batch."""
    reward = RECONSTRUCTIONS * size
    return load(
        "toy",
        [
            f"run={run}",
            f"steps={steps}",
            "eval.prompts=0",
            "rewards.artifacts.keep=0",
            "checkpoint.every=2",
            "schedule.dynamic_steps=0",
            "rollout.sampling_steps=20",
            f"rollout.workers={ROLLOUTS * size}",
            f"rollout.groups_per_step={GROUPS * size}",
            f"rollout.group_size={MEMBERS}",
            f"learner.ranks={RANKS * size}",
            "learner.micro_batch=1",
            *(f"rewards.{kind}.min_workers={reward}" for kind in ("judge", "aesthetic")),
            *(f"rewards.{kind}.max_workers={reward}" for kind in ("judge", "aesthetic")),
            f"rewards.reconstruction.min_workers={reward}",
            f"rewards.reconstruction.max_workers={reward}",
        ],
    )


def measure(size: int, steps: int) -> dict[str, Any]:
    """CPU seconds of this process per step, and the longest that its loop was not free."""

    async def train(config: RunConfig, durations: Durations) -> tuple[list[float], float]:
        workers, _ = hosted_workers(config, durations)
        trainer, state = simulated_trainer(config, workers)
        spent = [time.process_time()]
        publish = trainer.collector.publish

        def published(weights: Published, lineages: Lineages) -> None:
            spent.append(time.process_time())
            publish(weights, lineages)

        trainer.collector.publish = published  # type: ignore[method-assign]
        longest = 0.0

        async def tick() -> None:
            nonlocal longest
            while True:
                began = time.perf_counter()
                await asyncio.sleep(0.02)
                longest = max(longest, time.perf_counter() - began - 0.02)

        ticking = asyncio.create_task(tick())
        await trainer.train(state)
        ticking.cancel()
        return [after - before for before, after in pairwise(spent[1:])], longest

    with tempfile.TemporaryDirectory() as folder:
        config = configuration(f"{folder}/run", size, steps)
        real = real_durations(config)
        cpu, longest = asyncio.run(train(config, shortened(real)))
        walls = [row["seconds"]["step"] for row in rows(config)][1:]
    step_s = real.rollout_s + real.learner_s + RECONSTRUCTION_S + JUDGE_S
    cpu_s = sum(cpu[1:]) / len(cpu[1:])
    return {
        "run": f"{size} x",
        "workers": {
            "rollout": ROLLOUTS * size,
            "reward": RECONSTRUCTIONS * size,
            "ranks": RANKS * size,
        },
        "groups": GROUPS * size,
        "samples": GROUPS * size * MEMBERS,
        "durations_s": {n: round(getattr(real, n), 2) for n in Durations.__dataclass_fields__},
        "real_step_s_at_least": round(step_s, 1),
        "shortened_step_s": round(sum(walls) / len(walls), 2),
        "coordinator_cpu_s": round(cpu_s, 3),
        "share_of_a_step": round(cpu_s / step_s, 4),
        "cpu_ms_per_group": round(1000 * cpu_s / (GROUPS * size), 2),
        "longest_busy_loop_s": round(longest, 3),
    }


def main() -> int:
    """Print the table; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps, the first size only")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address=LOOPBACK,
        object_store_memory=400 * 2**20,
    )
    try:
        sizes = SIZES[:1] if options.quick else SIZES
        found = []
        for size in sizes:
            found.append(measure(size, 3 if options.quick else 5))
            print(found[-1], flush=True)
            if options.json:
                write(options.json, Result("coordinator", machine(), found))
    finally:
        ray.shutdown()
    per_group = [row["cpu_ms_per_group"] for row in found]
    flat = max(per_group) <= FLAT_GOAL * per_group[0]
    missed = found[0]["share_of_a_step"] >= SHARE_GOAL or not flat
    print(
        "goal missed" if missed else f"goals met: below {SHARE_GOAL:.0%} of a step, flat per group"
    )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
