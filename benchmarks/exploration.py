"""What a group explores: `python -m benchmarks.exploration`, on the toy world, in one process.

`spread`: standard deviation of rewards between the members of a group, per start of the stochastic
window, for a shared prefix and for noise of one's own, against the reward's own repeat noise (the
same video scored twice). `learn`: the same number of training steps with either setting; held-out
gain, CPU seconds of training, and gain per CPU second. CPU seconds, not wall seconds: they do not
depend on what else the machine does. An hour on one core; `--quick` shows the mechanics.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors.trajectory import RolloutRequest
from benchmarks.results import Result, machine, write
from cluster.config import RunConfig, for_one_process, load
from cluster.evaluate import Evaluator
from cluster.held_out import load_evaluation, paired_gains
from cluster.local import local_workers
from cluster.metrics import MetricsLog
from cluster.pools import GroupRollout, SampleScores, Workers
from cluster.runs import in_this_process, run_training
from cluster.storage import RunFolder
from prompts.dataset import load_prompts
from prompts.schema import Prompt
from rewards.scoring import PARTS, combine

SETTINGS = {"shared prefix": True, "own noise": False}


def _config(shared: bool, *overrides: str) -> RunConfig:
    chosen = [f"rollout.shared_prefix={str(shared).lower()}", *overrides]
    return for_one_process(load("toy", chosen))


async def scored_group(
    workers: Workers, config: RunConfig, prompt: Prompt, group: int, start: int
) -> tuple[GroupRollout, list[SampleScores]]:
    """One group of the untrained policy whose window starts at `start`, and its members' scores."""
    weights = await workers.learner.publish(0, "base")
    request = RolloutRequest(group, prompt, config.rollout.group_size, config.seed, start)
    rollout = await workers.rollouts.rollout(request, weights)
    scores = [await workers.rewards.score(video, prompt, "main") for video in rollout.videos]
    return rollout, scores


def _totals(scores: list[SampleScores], config: RunConfig) -> list[float]:
    return [combine(s.parts, config.rewards.weights, "main")[0] for s in scores if not s.failures]


async def _spread(
    config: RunConfig, name: str, starts: list[int], groups: int
) -> list[dict[str, Any]]:
    prompts = load_prompts(config.prompts.train)
    rows, repeat = [], []
    with local_workers(config) as workers:
        for start in starts:
            spreads: dict[str, list[float]] = {}
            began = time.process_time()
            for group in range(groups):
                prompt = prompts[group * 7 % len(prompts)]
                rollout, scores = await scored_group(workers, config, prompt, group, start)
                spreads.setdefault("total", []).append(statistics.pstdev(_totals(scores, config)))
                for part in PARTS:
                    values = [s.parts[part] for s in scores if part in s.parts]
                    if len(values) > 1:
                        spreads.setdefault(part, []).append(statistics.pstdev(values))
                if start == starts[0] and group < 2:
                    again = [await workers.rewards.score(v, prompt, "main") for v in rollout.videos]
                    pairs = zip(_totals(scores, config), _totals(again, config), strict=True)
                    repeat += [abs(a - b) for a, b in pairs]
            rows.append(
                {
                    "run": f"spread, {name}, start {start}",
                    "groups": groups,
                    "std": {k: round(statistics.fmean(v), 4) for k, v in spreads.items()},
                    "std_error": round(
                        statistics.stdev(spreads["total"]) / groups**0.5 if groups > 1 else 0.0, 4
                    ),
                    "repeat_noise": max(repeat),
                    "cpu_s_per_group": round((time.process_time() - began) / groups, 2),
                }
            )
            print(rows[-1], flush=True)
    return rows


def _learn(
    name: str, shared: bool, steps: int, pairs: int, seed: int, rate: float, work: Path
) -> dict[str, Any]:
    """Train, then evaluate the first and the last weights on the same held-out pairs."""
    folder_name = f"run={work / name.replace(' ', '_')}_{seed}"
    sizes = [f"steps={steps}", f"eval.prompts={pairs}", f"seed={seed}", "eval.every=0"]
    fixed = ["schedule.dynamic_steps=0", f"learner.learning_rate={rate}"]
    config = _config(shared, *sizes, folder_name, *fixed)
    bare = config.model_copy(update={"eval": config.eval.model_copy(update={"prompts": 0})})
    say = lambda line: print(line, flush=True)  # noqa: E731
    spent: list[float] = []

    @contextlib.contextmanager
    def timed(run: RunConfig) -> Iterator[Workers]:
        with in_this_process(run) as workers:
            began = time.process_time()
            yield workers
            spent.append(time.process_time() - began)

    state = run_training(bare, timed, say)
    folder = RunFolder(config.run)
    metrics = MetricsLog(folder, steps, state.step, say)
    evaluator = Evaluator(config, load_prompts(config.prompts.test), folder, metrics)

    async def both(workers: Workers) -> None:
        await evaluator.evaluate(0, await workers.learner.publish(0, "base"), workers)
        await workers.learner.load(f"{config.run}/checkpoints/step_{steps:06d}/learner")
        await evaluator.evaluate(steps, await workers.learner.publish(steps, "trained"), workers)

    with in_this_process(config) as workers:
        asyncio.run(both(workers))
    gains = paired_gains(load_evaluation(folder, 0), load_evaluation(folder, steps))
    total = next(gain for gain in gains if gain.name.strip() == "total reward")
    return {
        "run": f"learn, {name}, seed {seed}",
        "steps": steps,
        "learning_rate": rate,
        "pairs": total.pairs,
        "gain": round(total.gain, 4),
        "lower_95": round(total.lower, 4),
        "training_cpu_s": round(spent[0], 1),
        "gain_per_1000_cpu_s": round(1000 * total.gain / spent[0], 4),
    }


def main() -> int:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=["spread", "learn"])
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    options = parser.parse_args()
    groups, steps, pairs, rate = (
        options.groups, options.steps, options.pairs, options.learning_rate
    )  # fmt: skip
    starts = [0, 1, 2, 3, 5, 7]
    if options.quick:
        groups, steps, pairs, starts = 2, 1, 2, [1]
    rows: list[dict[str, Any]] = []

    def keep(new: list[dict[str, Any]]) -> None:
        rows.extend(new)
        if options.json:
            write(options.json, Result("exploration", machine(), rows))

    if options.only != "learn":
        for name, shared in SETTINGS.items():
            keep(asyncio.run(_spread(_config(shared), name, starts, groups)))
    if options.only != "spread":
        with tempfile.TemporaryDirectory(prefix="wr1-exploration-") as work:
            for seed in options.seeds:
                for name, shared in SETTINGS.items():
                    keep([_learn(name, shared, steps, pairs, seed, rate, Path(work))])
                    print(rows[-1], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
