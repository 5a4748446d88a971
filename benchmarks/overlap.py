"""What overlap is worth: the real loop over stages that wait, synchronous against max_staleness 1.

    python -m benchmarks.overlap [--quick] [--real] [--json FILE]

With max_staleness 1 a batch is rolled out and scored while the one before trains, so that groups
have to stream: what is left to score when the last one is rolled out adds to the step.

With --real, the toy preset on Ray too: its stages share the cores of one machine, so that overlap
can only fill what they leave idle; its row is reported and sets no goal.

Goals: at least 1.5 times the synchronous loop, and at least 0.9 of the bound that the slowest stage
sets, with balanced stages. Exits 1 when one is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.driver import Driver, driving
from benchmarks.results import Result, machine, write
from benchmarks.simulated import Durations, rows, simulated_trainer, simulated_workers
from cluster.config import RunConfig, load
from cluster.demo import ray_head

GROUPS, MEMBERS = 32, 2
SPEEDUP_GOAL, BOUND_GOAL = 1.5, 0.9

# Seconds of each stage per step, were it alone: rollouts by 2 workers, rewards by 4.
CASES = {
    "balanced": (1.2, 1.2, 1.2),
    "rollouts slow": (1.8, 0.9, 0.9),
    "rewards slow": (0.9, 1.8, 0.9),
    "learner slow": (0.9, 0.9, 1.8),
}


def configuration(run: str, steps: int, staleness: int) -> RunConfig:
    """A run of simulated stages."""
    return load(
        "toy",
        [
            f"run={run}",
            f"steps={steps}",
            f"max_staleness={staleness}",
            "eval.prompts=0",
            "rewards.artifacts.keep=0",
            "checkpoint.every=5",
            "learner.ranks=1",
            "rollout.workers=2",
            f"rollout.groups_per_step={GROUPS}",
            f"rollout.group_size={MEMBERS}",
            "rewards.reconstruction.min_workers=4",
            "rewards.reconstruction.max_workers=4",
            "schedule.dynamic_steps=0",
        ],
    )


def step_seconds(case: str, staleness: int, steps: int) -> tuple[float, str]:
    """Median seconds of a steady step, and the bottleneck that was named most often."""
    rollout_s, rewards_s, learner_s = CASES[case]
    durations = Durations(
        rollout_s=rollout_s * 2 / GROUPS,
        reconstruction_s=rewards_s * 4 / (GROUPS * MEMBERS),
        learner_s=learner_s,
    )

    async def train(config: RunConfig) -> None:
        trainer, state = simulated_trainer(config, simulated_workers(config, durations))
        await trainer.train(state)

    with tempfile.TemporaryDirectory() as folder:
        config = configuration(f"{folder}/run", steps, staleness)
        asyncio.run(train(config))
        steady = rows(config)[2:-1]
    named = statistics.mode(row["bottleneck"] for row in steady)
    # The mean, not the median: a step may take in what the one before waited for.
    return statistics.fmean(row["seconds"]["step"] for row in steady), named


def measure(steps: int) -> list[dict[str, Any]]:
    """One row per case."""
    found = []
    for case, stages in CASES.items():
        synchronous, _ = step_seconds(case, 0, steps)
        overlapped, named = step_seconds(case, 1, steps)
        found.append(
            {
                "run": case,
                "stage_s": dict(zip(("rollout", "rewards", "learner"), stages, strict=True)),
                "synchronous_step_s": round(synchronous, 3),
                "overlapped_step_s": round(overlapped, 3),
                "speedup": round(synchronous / overlapped, 2),
                "of_slowest_stage_bound": round(max(stages) / overlapped, 3),
                "bottleneck": named,
            }
        )
    return found


def measure_real(steps: int) -> dict[str, Any]:
    """The toy preset on a Ray head of its own, synchronous and overlapped."""
    found: dict[int, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder, ray_head() as (_, environment):
        for staleness in (0, 1):
            options = [f"run={folder}/s{staleness}", f"steps={steps}", "eval.prompts=0"]
            quiet = ["rewards.artifacts.keep=0", "metrics.report_every_s=0", "checkpoint.every=100"]
            phases = ["schedule.dynamic_steps=0", f"max_staleness={staleness}"]
            driver = Driver(load("toy", [*options, *quiet, *phases]), environment)
            with driving(driver):
                if driver.wait(600) != 0:
                    raise RuntimeError(f"the run failed:\n{driver.tail()}")
            found[staleness] = driver.rows()[2:-1]
    means = {s: statistics.fmean(r["seconds"]["step"] for r in f) for s, f in found.items()}
    last = found[1][-1]
    return {
        "run": "real toy stages on Ray",
        "synchronous_step_s": round(means[0], 3),
        "overlapped_step_s": round(means[1], 3),
        "speedup": round(means[0] / means[1], 2),
        "bottleneck": statistics.mode(row["bottleneck"] for row in found[1]),
        "busy_s": {name: round(clock["busy_s"], 2) for name, clock in last["stages"].items()},
    }


def main() -> int:
    """Print the table; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--real", action="store_true", help="the toy preset on Ray as well")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(8 if options.quick else 20)
    print(f"{'case':<16}{'sync s':>8}{'s=1':>8}{'ratio':>8}{'of bound':>10}  bottleneck")
    for row in found:
        print(
            f"{row['run']:<16}{row['synchronous_step_s']:>8}{row['overlapped_step_s']:>8}"
            f"{row['speedup']:>8}{row['of_slowest_stage_bound']:>10}  {row['bottleneck']}"
        )
    if options.real:
        found.append(measure_real(6 if options.quick else 12))
        print(found[-1])
    if options.json:
        write(options.json, Result("overlap", machine(), found))
    balanced = found[0]
    missed = balanced["speedup"] < SPEEDUP_GOAL or balanced["of_slowest_stage_bound"] < BOUND_GOAL
    print("goal missed" if missed else f"goals met: {SPEEDUP_GOAL} x, {BOUND_GOAL} of the bound")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
