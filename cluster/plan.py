"""Whether a run fits so many GPUs, how to split them, and what a step then takes: pure arithmetic.

The memory of each pool comes from `learner.memory`, the cost of each call from `cluster.costs`; a
split is judged by the time of a main step, which is the mean over one round of main and dynamic
steps only in the summary. `worldr1 plan PRESET --explain` prints every number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from actors.wan_shape import WanShape
from cluster.config import RunConfig
from cluster.costs import (
    AESTHETIC_PARAMETERS,
    DA3_PARAMETERS,
    JUDGE_PARAMETERS,
    Cost,
    model_shape,
    unit_costs,
)
from cluster.gpus import GpuType
from cluster.layout import REWARD_POOLS, Node, PlacementError, Share, assign, layout
from learner.memory import CUDA_CONTEXT, learner_memory, rollout_memory
from rewards.config import JUDGE_CACHE_GB

POOLS = ("rollout", *REWARD_POOLS, "learner")
GB = 1e9


@dataclass(frozen=True, slots=True)
class PoolFit:
    """Peak bytes of one worker against what its GPU, or its share of one, holds."""

    pool: str
    needed: int
    available: int
    detail: str
    remedy: str = ""

    @property
    def fits(self) -> bool:
        """Whether the worker fits."""
        return self.needed <= self.available


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one optimizer step by stage."""

    stages: Mapping[str, float]
    """Time that each pool needs for its part of a step."""
    total: float
    gpu_seconds: float
    """GPU time that is spent on work."""


@dataclass(frozen=True, slots=True)
class Split:
    """Workers of each pool."""

    workers: Mapping[str, int]
    main: StepTime
    dynamic: StepTime
    mean_s: float
    """Seconds per step over a round of the schedule."""
    utilisation: float
    """Share of all GPUs' time that is spent on work, over a round."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer to `worldr1 plan`."""

    config: RunConfig
    """With the split's numbers of workers."""
    gpu: GpuType
    gpus: int
    fits: tuple[PoolFit, ...]
    split: Split
    costs: Mapping[str, Cost]
    shares: tuple[Share, ...]
    configured: Split | None
    """The preset's own split, where it takes no more than `gpus`."""


class NoSplit(ValueError):
    """No split of so many GPUs; its text is one sentence with what to change."""


def make_plan(
    config: RunConfig,
    gpu: GpuType,
    gpus: int,
    per_node: int = 8,
    price: Callable[[RunConfig], Mapping[str, Cost]] | None = None,
) -> Plan:
    """The best split of `gpus` GPUs. NoSplit where a pool's worker does not fit or GPUs lack.

    `price` gives the cost of a call in each pool; without it, `unit_costs` of that type of GPU.
    """
    shape = model_shape(config)
    costs_of = price or (lambda given: unit_costs(given, gpu))
    unfit = [fit for fit in pool_fits(config, gpu, shape) if not fit.fits]
    fixed = [fit for fit in unfit if fit.pool != "learner"]
    if fixed:
        raise NoSplit(_unfit(fixed[0], gpu))
    splits = sorted(
        _splits(config, gpu, shape, gpus, costs_of), key=lambda s: (s.main.total, s.mean_s)
    )
    if not splits:
        raise NoSplit(_too_few(config, gpu, shape, gpus))
    for split in splits[:200]:
        chosen = with_workers(config, split.workers)
        try:
            shares = assign(layout(chosen), cluster_of(gpu, gpus, per_node))
        except PlacementError:
            continue
        own = configured_workers(config)
        return Plan(
            chosen,
            gpu,
            gpus,
            pool_fits(chosen, gpu, shape),
            split_time(chosen, split.workers, costs_of(chosen), gpus),
            costs_of(chosen),
            shares,
            split_time(config, own, costs_of(config), gpus)
            if gpus_taken(config, own) <= gpus
            else None,
        )
    raise NoSplit(
        f"no split of {gpus} GPUs can be laid over nodes of {per_node}; give --gpus-per-node, or "
        "whole nodes"
    )


def cluster_of(gpu: GpuType, gpus: int, per_node: int, cpus_per_gpu: int = 12) -> list[Node]:
    """Equal nodes, the last one smaller where `gpus` is no multiple of `per_node`."""
    sizes = [per_node] * (gpus // per_node) + ([gpus % per_node] if gpus % per_node else [])
    return [
        Node(f"node-{index}", size * cpus_per_gpu, size, gpu.ray_name)
        for index, size in enumerate(sizes)
    ]


def configured_workers(config: RunConfig) -> dict[str, int]:
    """Workers as the configuration has them."""
    return {shape.name: shape.workers for shape in layout(config)}


def with_workers(config: RunConfig, workers: Mapping[str, int]) -> RunConfig:
    """The configuration with other numbers of workers."""
    rewards: dict[str, Any] = {}
    for name, family in config.rewards.pools.items():
        most = max(family.max_workers, workers[name])
        rewards[name] = family.model_copy(
            update={"min_workers": workers[name], "max_workers": most}
        )
    return config.model_copy(
        update={
            "rollout": config.rollout.model_copy(update={"workers": workers["rollout"]}),
            "learner": config.learner.model_copy(update={"ranks": workers["learner"]}),
            "rewards": config.rewards.model_copy(update=rewards),
        }
    )


def gpus_taken(config: RunConfig, workers: Mapping[str, int]) -> int:
    """Whole GPUs that so many workers take; fractions share GPUs."""
    size = {shape.name: shape.gpus for shape in layout(config)}
    whole = sum(math.ceil(size[n]) * w for n, w in workers.items() if size[n] >= 1)
    return whole + math.ceil(sum(size[n] * w for n, w in workers.items() if size[n] < 1) - 1e-9)


def pool_fits(config: RunConfig, gpu: GpuType, shape: WanShape) -> tuple[PoolFit, ...]:
    """Peak memory of one worker of each pool that uses a GPU."""
    found = []
    usable = gpu.usable() - CUDA_CONTEXT
    if config.rollout.gpus_per_worker:
        memory = rollout_memory(config.policy, config.rollout, shape)
        found.append(
            PoolFit(
                "rollout",
                memory.peak,
                usable,
                f"worst stage: {memory.worst_stage}",
                _rollout_remedy(config, usable, shape),
            )
        )
    if config.learner.gpus_per_rank:
        memory = learner_memory(config.policy, config.rollout, config.learner, shape)
        found.append(
            PoolFit(
                "learner",
                memory.peak,
                usable,
                f"{config.learner.ranks} ranks, worst stage: {memory.worst_stage}",
                "more learner.ranks, learner.micro_batch=1, learner.activation_checkpointing=true",
            )
        )
    for name, (needed, detail) in _reward_memory(config).items():
        gpus = config.rewards.pools[name].gpus
        if gpus:
            share = int(gpus * gpu.usable()) - CUDA_CONTEXT
            found.append(PoolFit(name, needed, share, detail, f"a larger rewards.{name}.gpus"))
    return tuple(found)


def _rollout_remedy(config: RunConfig, usable: int, shape: WanShape) -> str:
    for clips in range(config.rollout.max_batch - 1, 0, -1):
        smaller = config.rollout.model_copy(update={"max_batch": clips})
        if rollout_memory(config.policy, smaller, shape).peak <= usable:
            return f"rollout.max_batch={clips}"
    return "a GPU with more memory"


def _reward_memory(config: RunConfig) -> dict[str, tuple[int, str]]:
    """Bytes of a reward worker on a GPU: weights and what a call adds; rough, no figure exists."""
    rewards, rollout = config.rewards, config.rollout
    frames = min(rewards.reconstruction.max_frames, rollout.frames)
    long, short = max(rollout.width, rollout.height), min(rollout.width, rollout.height)
    side = rewards.reconstruction.resolution
    gaussians = frames * side * round(side * short / long)
    # 38 float32 values a Gaussian, twice while they are filtered; frames before and after; a map of
    # 256 channels in the heads, eight frames at a time.
    work = gaussians * 38 * 4 * 2 + 8 * 256 * side * side * 4
    cache = rewards.judge.cache_bytes or round(JUDGE_CACHE_GB * 1e9)
    return {
        "reconstruction": (
            4 * DA3_PARAMETERS + work,
            f"weights {4 * DA3_PARAMETERS / GB:.1f} GB, {gaussians / 1e6:.1f} M Gaussians (rough)",
        ),
        "judge": (
            2 * JUDGE_PARAMETERS + cache,
            f"weights in bfloat16 and {cache / GB:.0f} GB of cache (rough)",
        ),
        "aesthetic": (
            2 * AESTHETIC_PARAMETERS + 3_000_000_000,
            "weights in bfloat16 and 3 GB for a batch (rough)",
        ),
    }


def split_time(
    config: RunConfig, workers: Mapping[str, int], costs: Mapping[str, Cost], gpus: int
) -> Split:
    """Step times of a split of `gpus` GPUs, those that it leaves idle among them."""
    main = _step(config, workers, costs, "main")
    dynamic = _step(config, workers, costs, "dynamic")
    schedule = config.schedule
    steps = schedule.main_steps + schedule.dynamic_steps
    mean = (schedule.main_steps * main.total + schedule.dynamic_steps * dynamic.total) / steps
    spent = schedule.main_steps * main.gpu_seconds + schedule.dynamic_steps * dynamic.gpu_seconds
    return Split(dict(workers), main, dynamic, mean, spent / steps / (gpus * mean))


def _step(
    config: RunConfig, workers: Mapping[str, int], costs: Mapping[str, Cost], phase: str
) -> StepTime:
    """Synchronous: rollouts in whole rounds, rewards beside them, the last group's scores, then the
    learner. With max_staleness >= 1 the slowest stage alone decides."""
    groups, size = config.rollout.groups_per_step, config.rollout.group_size
    called = REWARD_POOLS if phase == "main" else ("aesthetic",)
    work = {"rollout": groups * costs["rollout"].seconds}
    work |= {name: groups * size * costs[name].seconds for name in called}
    work["learner"] = groups * size * costs["learner"].seconds
    gpu = {shape.name: min(shape.gpus, 1.0) for shape in layout(config)}
    gpu_seconds = sum(seconds * gpu[name] for name, seconds in work.items())
    stages = {name: seconds / workers[name] for name, seconds in work.items()}
    if config.max_staleness:
        return StepTime(stages, max(stages.values()), gpu_seconds)
    stages["rollout"] = math.ceil(groups / workers["rollout"]) * costs["rollout"].seconds
    tail = sum(math.ceil(size / workers[name]) * costs[name].seconds for name in called)
    front = max(stages["rollout"] + tail, *(stages[name] for name in called))
    return StepTime(stages, front + stages["learner"], gpu_seconds)


def _splits(
    config: RunConfig,
    gpu: GpuType,
    shape: WanShape,
    gpus: int,
    costs_of: Callable[[RunConfig], Mapping[str, Cost]],
) -> Iterator[Split]:
    """The best reward pools for every number of ranks and rollout workers that is possible."""
    batch = config.rollout.groups_per_step * config.rollout.group_size
    most = min(gpus, config.rollout.groups_per_step * (config.max_staleness + 1))
    for ranks in range(1, gpus + 1):
        if batch % (ranks * config.learner.updates_per_batch):
            continue
        learner = config.learner.model_copy(update={"ranks": ranks})
        if learner_memory(config.policy, config.rollout, learner, shape).peak > (
            gpu.usable() - CUDA_CONTEXT
        ):
            continue
        ranked = config.model_copy(update={"learner": learner})
        costs = costs_of(ranked)
        for rollouts in range(1, most + 1):
            workers = {"rollout": rollouts, "learner": ranks, **dict.fromkeys(REWARD_POOLS, 1)}
            if gpus_taken(ranked, workers) > gpus:
                break
            yield _with_rewards(ranked, workers, costs, gpus)


def _with_rewards(
    config: RunConfig, workers: dict[str, int], costs: Mapping[str, Cost], gpus: int
) -> Split:
    """Grow the slowest reward pool while GPUs are left and the step gets shorter by a thousandth
    or more."""
    best = split_time(config, workers, costs, gpus)
    while True:
        slowest = max(REWARD_POOLS, key=lambda name: best.main.stages.get(name, 0.0))
        grown = {**best.workers, slowest: best.workers[slowest] + 1}
        if gpus_taken(config, grown) > gpus:
            return best
        better = split_time(config, grown, costs, gpus)
        if better.main.total > 0.999 * best.main.total:
            return best
        best = better


def _unfit(fit: PoolFit, gpu: GpuType) -> str:
    return (
        f"a worker of pool {fit.pool!r} needs {fit.needed / GB:.1f} GB ({fit.detail}), of one "
        f"{gpu.name} it may take {fit.available / GB:.1f} GB; change: {fit.remedy}"
    )


def _too_few(config: RunConfig, gpu: GpuType, shape: WanShape, gpus: int) -> str:
    workers = {"rollout": 1, "learner": 1, **dict.fromkeys(REWARD_POOLS, 1)}
    least = gpus_taken(config, workers)
    batch = config.rollout.groups_per_step * config.rollout.group_size
    ranks = [r for r in range(1, 1025) if batch % (r * config.learner.updates_per_batch) == 0]
    for count in ranks:
        learner = config.learner.model_copy(update={"ranks": count})
        memory = learner_memory(config.policy, config.rollout, learner, shape)
        if memory.peak <= gpu.usable() - CUDA_CONTEXT:
            return (
                f"{gpus} GPUs are too few: {least - 1 + count} are needed at least (1 for rollout, "
                f"{count} for learner ranks of {memory.peak / GB:.1f} GB, {least - 2} for rewards)"
            )
    single = replace_ranks(config, ranks[-1])
    memory = learner_memory(config.policy, config.rollout, single.learner, shape)
    return (
        f"no number of learner ranks fits {gpu.name}: {ranks[-1]} ranks still take "
        f"{memory.peak / GB:.1f} GB each ({memory.worst_stage}); change: learner.micro_batch=1, "
        "learner.activation_checkpointing=true, fewer rollout.frames"
    )


def replace_ranks(config: RunConfig, ranks: int) -> RunConfig:
    """The configuration on another number of learner ranks."""
    learner = config.learner.model_copy(update={"ranks": ranks})
    return config.model_copy(update={"learner": learner})
