"""A plan as text: what fits, the split, seconds by stage, the layout; every number on request."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config import RunConfig
from cluster.costs import Cost
from cluster.layout import REWARD_POOLS, describe
from cluster.plan import GB, POOLS, Plan, Split, gpus_taken
from learner.memory import CUDA_CONTEXT

COUNT_KEYS = {
    "rollout": "rollout.workers",
    "learner": "learner.ranks",
    **{name: f"rewards.{name}.min_workers" for name in REWARD_POOLS},
}


def plan_lines(plan: Plan, price: float | None = None, explain: bool = False) -> Iterator[str]:
    """The answer, line by line."""
    split, config = plan.split, plan.config
    mode = "overlapped" if config.max_staleness else "synchronous"
    yield (
        f"{plan.gpus} x {plan.gpu.name}: fits. {config.rollout.groups_per_step} groups x "
        f"{config.rollout.group_size} clips a step, {mode} "
        f"(max_staleness = {config.max_staleness})"
    )
    yield from _memory(plan)
    yield ""
    yield from _stages(plan)
    yield ""
    yield from _summary(plan, price)
    yield ""
    yield "layout:"
    yield from (f"  {line}" for line in describe(plan.shares))
    yield ""
    yield "as overrides: " + " ".join(overrides(config, split))
    if explain:
        yield ""
        yield from explain_lines(plan)


def overrides(config: RunConfig, split: Split) -> list[str]:
    """`key=value` of the split's numbers of workers."""
    pairs = [f"{COUNT_KEYS[pool]}={split.workers[pool]}" for pool in POOLS]
    for name, family in config.rewards.pools.items():
        pairs.append(f"rewards.{name}.max_workers={family.max_workers}")
    return pairs


def _memory(plan: Plan) -> Iterator[str]:
    for fit in plan.fits:
        yield (
            f"  memory {fit.pool:<15}{fit.needed / GB:6.1f} of {fit.available / GB:6.1f} GB   "
            f"{fit.detail}"
        )


def _stages(plan: Plan) -> Iterator[str]:
    yield f"  {'stage':<16}{'workers':>8}{'main step':>12}{'dynamic':>10}   one call"
    for pool in POOLS:
        cost = plan.costs[pool]
        main, dynamic = (
            f"{step.stages[pool]:,.0f} s" if pool in step.stages else "-"
            for step in (plan.split.main, plan.split.dynamic)
        )
        call = "a group" if pool == "rollout" else "a clip"
        yield (
            f"  {pool:<16}{plan.split.workers[pool]:>8}{main:>12}{dynamic:>10}   "
            f"{cost.seconds:,.2f} s {call} ({cost.source})"
        )
    totals = (f"{step.total:,.0f} s" for step in (plan.split.main, plan.split.dynamic))
    yield f"  {'step':<16}{gpus_taken(plan.config, plan.split.workers):>4} GPUs" + "".join(
        f"{text:>{width}}" for text, width in zip(totals, (11, 10), strict=True)
    )


def _summary(plan: Plan, price: float | None) -> Iterator[str]:
    split = plan.split
    hours = 100 * split.mean_s * plan.gpus / 3600
    money = f", {hours * price:,.0f} at {price:g} a GPU hour" if price is not None else ""
    taken = gpus_taken(plan.config, split.workers)
    idle = f"; {plan.gpus - taken} GPUs are left over" if taken < plan.gpus else ""
    yield (
        f"{split.mean_s:,.0f} s a step over a round of {plan.config.schedule.main_steps} main and "
        f"{plan.config.schedule.dynamic_steps} dynamic steps; 100 steps: "
        f"{100 * split.mean_s / 3600:,.1f} h, {hours:,.0f} GPU hours{money}"
    )
    yield f"{split.utilisation:.0%} of all GPU time is spent on work{idle}"
    if plan.configured is not None and plan.configured.workers != split.workers:
        own = plan.configured
        yield f"the preset's own split takes {own.mean_s:,.0f} s a step: " + ", ".join(
            f"{pool} {own.workers[pool]}" for pool in POOLS
        )
    if all(cost.source == "arithmetic" for cost in plan.costs.values()):
        yield "all seconds are arithmetic: no GPU has been measured; `--explain` shows it"


def explain_lines(plan: Plan) -> Iterator[str]:
    """Every figure that the plan rests on, for who wants to check it by hand."""
    config, split = plan.config, plan.split
    gpu = plan.gpu
    yield (
        f"{gpu.name}: {gpu.memory / GB:.1f} GB, a tenth left to the allocator and "
        f"{CUDA_CONTEXT / GB:.1f} GB to CUDA; {gpu.bf16 / 1e12:g} TFLOP/s in bfloat16, "
        f"{gpu.tf32 / 1e12:g} in TF32 (data sheet)"
    )
    yield "one call:"
    for pool in POOLS:
        yield f"  {pool}: {_formula(plan.costs[pool])}"
    groups, size = config.rollout.groups_per_step, config.rollout.group_size
    clips = groups * size
    yield "a main step:"
    rounds = -(-groups // split.workers["rollout"])
    if config.max_staleness:
        yield (
            f"  rollout: {groups} groups x {plan.costs['rollout'].seconds:,.1f} s / "
            f"{split.workers['rollout']} workers = {split.main.stages['rollout']:,.0f} s"
        )
    else:
        yield (
            f"  rollout: {groups} groups on {split.workers['rollout']} workers = {rounds} rounds x "
            f"{plan.costs['rollout'].seconds:,.1f} s = {split.main.stages['rollout']:,.0f} s"
        )
    for pool in (*REWARD_POOLS, "learner"):
        yield (
            f"  {pool}: {clips} clips x {plan.costs[pool].seconds:,.2f} s / "
            f"{split.workers[pool]} = {split.main.stages[pool]:,.0f} s"
        )
    if config.max_staleness:
        yield "  overlapped: the slowest of them is the step"
    else:
        yield (
            "  synchronous: the longest of (rollout and the scores of the last group) and the "
            f"reward pools, then the learner = {split.main.total:,.0f} s"
        )


def _formula(cost: Cost) -> str:
    return f"{cost.seconds:,.2f} s ({cost.source}): {cost.formula}"
