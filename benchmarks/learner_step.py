"""What the learner costs beyond its mathematics: `python -m benchmarks.learner_step`.

One `LearnerRank.step` (FSDP2, checkpointing as configured) against the same forward passes, loss
and backward in one plain process without any wrapper, on the toy world's transformer, in turn; CPU
seconds per trajectory and window step. `--ranks 2` takes the step on two ranks over gloo in
processes of their own, and the plain maths in the same two processes, and reports wall seconds as
well. Also: the gap between the rollout's and the learner's log-densities per window step, in
float32 and bfloat16.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import multiprocessing

from actors.config import PolicyConfig, RolloutConfig
from actors.lora import lora_parameters
from actors.policy import Policy
from actors.sde import gaussian_kl, log_prob, step_moments
from actors.trajectory import RolloutRequest, Trajectory, WeightsVersion, weights_checksum
from actors.worker import RolloutWorker
from benchmarks.results import Result, machine, write
from cluster.config import load, resolve_model
from learner.batch import BatchShape, RankPlan, ScoredGroup, plan_batch
from learner.config import LearnerConfig
from learner.fsdp import checkpoint_blocks
from learner.grpo import surrogate
from learner.rank import LearnerRank
from prompts.config import CameraConfig
from prompts.schema import Prompt

LEAST_THROUGHPUT = 0.95
SIZES = {
    "toy, 72 tokens, micro-batch 16": (64, 96, 9, 16),
    "480 tokens, micro-batch 4": (128, 192, 17, 4),
}
REPEATS = dict(zip(SIZES, (16, 8), strict=True))
"""About as many seconds of each; single steps scatter by 5 %."""
LAUNCHES = 5


def toy_policy(dtype: str = "float32") -> PolicyConfig:
    """The toy preset's policy."""
    base = load("toy").policy
    return base.model_copy(update={"model": resolve_model(base.model), "dtype": dtype})


def draw(policy: PolicyConfig, rollout: RolloutConfig) -> tuple[Trajectory, ...]:
    """One group by the real worker, with the adapter as it is initialised."""
    worker = RolloutWorker(policy, rollout, CameraConfig(), "cpu", 1)
    weights = worker._policy.lora_weights()
    version = WeightsVersion(0, "benchmark", weights_checksum(weights))
    prompt = Prompt.from_text("p", "Camera push in. A red box on a green floor.")
    request = RolloutRequest(0, prompt, rollout.group_size, 0, 1)
    values = worker.rollout(request, version, weights)
    return tuple(v for v in values if isinstance(v, Trajectory))


def scored(count: int) -> tuple[ScoredGroup, ...]:
    """Distinct made-up rewards."""
    rewards = tuple(float(i * i % 11) for i in range(count))
    return (ScoredGroup(0, "p", tuple(range(count)), rewards),)


class Plain:
    """The same maths without FSDP, plans, checks or metrics: what the hardware has to do."""

    def __init__(
        self, policy: PolicyConfig, rollout: RolloutConfig, learner: LearnerConfig
    ) -> None:
        self.policy = Policy.load(policy, "cpu", with_decoder=False)
        self.rollout, self.learner = rollout, learner
        self.lora = list(lora_parameters(self.policy.transformer).values())
        self.optimizer = torch.optim.AdamW(self.lora, lr=learner.learning_rate)

    def step(self, trajectories: tuple[Trajectory, ...]) -> None:
        """One update on all trajectories at made-up advantages."""
        size = self.learner.micro_batch
        for start in range(0, len(trajectories), size):
            batch = trajectories[start : start + size]
            for w in range(self.rollout.window_size):
                self._loss(batch, w).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.lora, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _loss(self, batch: tuple[Trajectory, ...], w: int) -> torch.Tensor:
        i = batch[0].meta.window_start + w
        sigmas = batch[0].sigmas
        x = torch.stack([t.states[w] for t in batch])
        sample = torch.stack([t.states[w + 1] for t in batch])
        cond = self.policy.encode([t.meta.prompt_text for t in batch])
        uncond = self.policy.encode_negative()

        def moments() -> Any:
            v = self.policy.velocity(x, sigmas[i], cond, uncond)
            return step_moments("sde", x, v, sigmas[i], sigmas[i + 1], sigmas[1], 0.7)

        with torch.no_grad(), self.policy.adapter_disabled():
            reference = moments().mean
        mean, std = moments()
        output = surrogate(
            log_prob(sample, mean, std),
            torch.stack([t.log_probs[w] for t in batch]),
            torch.linspace(-1, 1, len(batch)),
            self.learner.clip_range,
            kl=gaussian_kl(mean, reference, std),
            beta_kl=self.learner.beta_kl,
        )
        return output.loss.mean()


def measure(name: str, repeats: int, recompute: bool) -> dict[str, Any]:
    """Median CPU seconds of a step of one rank and of the plain process, in turn."""
    rollout, config = settings(name, 1, recompute)
    policy = toy_policy()
    trajectories, groups = draw(policy, rollout), scored(rollout.group_size)
    rank = LearnerRank(0, policy, config, rollout, 0, None, "cpu", 1)
    (plan,) = plan_batch(groups, 1, BatchShape.of(config, rollout))
    plain = Plain(policy, rollout, config)
    if recompute:
        checkpoint_blocks(plain.policy.transformer)
    before = _step(rank, groups, plan, trajectories).metrics
    spent = in_turn(
        {
            "rank": lambda: _step(rank, groups, plan, trajectories),
            "plain": lambda: plain.step(trajectories),
        },
        repeats,
    )
    rank.close()
    units = rollout.group_size * rollout.window_size
    cpu = {kind: [seconds.cpu / units for seconds in spent[kind]] for kind in spent}
    rank_s, plain_s = statistics.median(cpu["rank"]), statistics.median(cpu["plain"])
    ratios = sorted(p / r for p, r in zip(cpu["plain"], cpu["rank"], strict=True))
    return {
        "run": f"{name}, one rank" + (", checkpointing" if recompute else ""),
        "rank_cpu_s": round(rank_s, 5),
        "plain_cpu_s": round(plain_s, 5),
        "throughput_ratio": round(plain_s / rank_s, 4),
        "ratio_of_each_repeat": [round(ratio, 3) for ratio in ratios],
        "log_ratio_max_by_window_step": [before[f"window_{w}/log_ratio_max"] for w in range(2)],
    }


def settings(
    name: str, ranks: int, recompute: bool = False, replicate_frozen: bool = True
) -> tuple[RolloutConfig, LearnerConfig]:
    """One group, of one micro-batch for each rank; every member is computed alone, as the plain
    maths do it."""
    height, width, frames, group = SIZES[name]
    rollout = RolloutConfig(
        height=height, width=width, frames=frames, sampling_steps=10, window_high=4,
        group_size=ranks * group, shared_prefix=False,
    )  # fmt: skip
    learner = LearnerConfig(
        ranks=ranks,
        micro_batch=group,
        activation_checkpointing=recompute,
        replicate_frozen=replicate_frozen,
    )
    return rollout, learner


def shared_first_step(repeats: int) -> dict[str, Any]:
    """CPU seconds of a step whose group of 8 has its first window state in common, against the same
    trajectories computed one by one."""
    name = list(SIZES)[-1]
    height, width, frames, _ = SIZES[name]
    rollout = RolloutConfig(
        height=height, width=width, frames=frames, sampling_steps=10, window_high=4, group_size=8
    )
    config = LearnerConfig(micro_batch=1, activation_checkpointing=False)
    policy = toy_policy()
    trajectories, groups = draw(policy, rollout), scored(rollout.group_size)
    rank = LearnerRank(0, policy, config, rollout, 0, None, "cpu", 1)
    shape = BatchShape.of(config, rollout)
    plans = {
        "shared": plan_batch(groups, 1, shape)[0],
        "alone": plan_batch(groups, 1, replace(shape, shared_prefix=False))[0],
    }
    spent = in_turn(
        {kind: partial(_step, rank, groups, plan, trajectories) for kind, plan in plans.items()},
        repeats,
    )
    rank.close()
    seconds = {kind: statistics.median(s.cpu for s in rows) for kind, rows in spent.items()}
    return {
        "run": "480 tokens, micro-batch 1, first window step shared by a group of 8",
        "shared_cpu_s": round(seconds["shared"], 3),
        "alone_cpu_s": round(seconds["alone"], 3),
        "speedup": round(seconds["alone"] / seconds["shared"], 3),
    }


class Seconds(NamedTuple):
    """What one step took in this process."""

    wall: float
    cpu: float


def in_turn(
    steps: Mapping[str, Callable[[], object]],
    repeats: int,
    meet: Callable[[], object] = lambda: None,
) -> dict[str, list[Seconds]]:
    """Time several kinds of step in turn, in alternating order, after one run of each; `meet`
    lets processes that are measured together begin each step together."""
    spent: dict[str, list[Seconds]] = {kind: [] for kind in steps}
    for repeat in range(repeats + 1):
        for kind in sorted(steps, reverse=repeat % 2 == 1):
            meet()
            wall, cpu = time.perf_counter(), time.process_time()
            steps[kind]()
            if repeat:
                spent[kind].append(Seconds(time.perf_counter() - wall, time.process_time() - cpu))
    return spent


def _step(
    rank: LearnerRank, groups: tuple[ScoredGroup, ...], plan: RankPlan,
    trajectories: tuple[Trajectory, ...],
) -> Any:  # fmt: skip
    return rank.step(0, groups, plan, *(trajectories[i] for i in plan.samples))


def gap(dtype: str) -> dict[str, Any]:
    """Largest |log p - log p_old| per window step before any update, micro-batches 1 and 16."""
    rollout = RolloutConfig(
        height=64, width=96, frames=9, sampling_steps=10, group_size=16, window_high=4
    )
    policy, groups = toy_policy(dtype), scored(16)
    trajectories = draw(policy, rollout)
    row: dict[str, Any] = {"run": f"log-density gap, {dtype}"}
    for micro_batch in (1, 16):
        config = LearnerConfig(micro_batch=micro_batch, activation_checkpointing=False)
        rank = LearnerRank(0, policy, config, rollout, 0, None, "cpu", 1)
        (plan,) = plan_batch(groups, 1, BatchShape.of(config, rollout))
        metrics = _step(rank, groups, plan, trajectories).metrics
        rank.close()
        row[f"micro_batch_{micro_batch}"] = [
            metrics[f"window_{w}/log_ratio_max"] for w in range(rollout.window_size)
        ]
    return row


def on_two_ranks(name: str, repeats: int, replicate_frozen: bool = True) -> dict[str, Any]:
    """Seconds of a step of two ranks over gloo, each in its own process, against the plain maths in
    the same two processes, each doing its rank's share; and what one process alone takes for both
    shares. Medians of repeats in one launch, of which the launches' median is told: where tensors
    come to lie in memory is drawn anew at each, and moves either side by some percent.

    With the frozen weights sharded, ranks also exchange all of the model in every pass: what that
    costs over this machine's gloo is told and not held to the goal.
    """
    launches = 1 if repeats == 1 or not replicate_frozen else LAUNCHES
    together = [_launch(2, name, repeats, replicate_frozen) for _ in range(launches)]
    (alone,) = _launch(1, name, repeats, replicate_frozen)
    ranks = [Seconds(*(max(m["rank"][i] for m in pair) for i in (0, 1))) for pair in together]
    plains = [
        Seconds(*(statistics.mean(m["plain"][i] for m in pair) for i in (0, 1)))
        for pair in together
    ]
    ratios = [plain.wall / rank.wall for plain, rank in zip(plains, ranks, strict=True)]
    rank, plain = (
        Seconds(*(statistics.median(column) for column in zip(*kind, strict=True)))
        for kind in (ranks, plains)
    )
    return {
        "run": f"{name}, two ranks" + ("" if replicate_frozen else ", frozen weights sharded"),
        "rank_wall_s": round(rank.wall, 4),
        "plain_wall_s": round(plain.wall, 4),
        "rank_cpu_s": round(rank.cpu, 4),
        "plain_cpu_s": round(plain.cpu, 4),
        "throughput_ratio" if replicate_frozen else "throughput_ratio_with_the_exchange": round(
            statistics.median(ratios), 4
        ),
        "ratio_of_each_launch": sorted(round(ratio, 3) for ratio in ratios),
        "cpu_throughput_ratio": round(plain.cpu / rank.cpu, 4),
        "plain_alone_wall_s_for_both_shares": round(alone["plain"].wall, 4),
    }


def _launch(world: int, name: str, repeats: int, replicate: bool) -> list[dict[str, Seconds]]:
    """Medians of every process, by kind of step."""
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, (world, folder, name, repeats, replicate, answers), world)
    return [answers.get() for _ in range(world)]


def _rank(
    rank: int, world: int, folder: str, name: str, repeats: int, replicate: bool, answers: Any
) -> None:
    # The same micro-batches whether one process has both shares or each has its own.
    rollout, config = settings(name, 2, replicate_frozen=replicate)
    config = config.model_copy(update={"ranks": world})
    policy = toy_policy()
    trajectories, groups = draw(policy, rollout), scored(rollout.group_size)
    learner = LearnerRank(rank, policy, config, rollout, 0, f"file://{folder}/meet", "cpu", 1)
    plan = plan_batch(groups, world, BatchShape.of(config, rollout))[rank]
    plain = Plain(policy, rollout, config)
    share = tuple(trajectories[i] for i in plan.samples)
    spent = in_turn(
        {
            "rank": lambda: _step(learner, groups, plan, trajectories),
            "plain": lambda: plain.step(share),
        },
        repeats,
        meet=dist.barrier,
    )
    learner.close()
    answers.put(
        {
            kind: Seconds(*(statistics.median(column) for column in zip(*rows, strict=True)))
            for kind, rows in spent.items()
        }
    )


def main() -> int:
    """Measure, print, write the JSON; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--ranks", type=int, choices=[1, 2], default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    repeats = dict.fromkeys(SIZES, 1) if options.quick else REPEATS
    longest = list(SIZES)[-1]
    calls: list[Callable[[], dict[str, Any]]]
    if options.ranks == 2:
        calls = [partial(on_two_ranks, name, -(-repeats[name] // 2)) for name in SIZES]
        calls += [partial(on_two_ranks, longest, -(-repeats[longest] // 2), False)]
    else:
        calls = [partial(gap, dtype) for dtype in ("float32", "bfloat16")]
        calls += [partial(measure, name, repeats[name], False) for name in SIZES]
        calls += [partial(shared_first_step, repeats[longest])]
        if not options.quick:
            calls += [partial(measure, longest, repeats[longest], True)]
    rows: list[dict[str, Any]] = []
    missed = 0
    for call in calls:
        row = call()
        rows.append(row)
        print(row, flush=True)
        ratio = row.get("throughput_ratio", 1.0)
        if ratio < LEAST_THROUGHPUT:
            missed += 1
            print(f"MISSED {row['run']}: {ratio} >= {LEAST_THROUGHPUT}", flush=True)
        if options.json:
            write(options.json, Result("learner_step", machine(), rows))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
