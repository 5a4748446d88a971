"""What overlap is worth: the real loop over stages that wait, synchronous against max_staleness 1.

    python -m benchmarks.overlap [--quick] [--json FILE]

With max_staleness 1 a batch is rolled out and scored while the one before trains, so that groups
have to stream: what is left to score when the last one is rolled out adds to the step.

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

from benchmarks.results import Result, machine, write
from benchmarks.simulated import Durations, rows, simulated_trainer, simulated_workers
from cluster.config import RunConfig, load

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


def main() -> int:
    """Print the table; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(8 if options.quick else 20)
    print(f"{'case':<16}{'sync s':>8}{'s=1':>8}{'ratio':>8}{'of bound':>10}  bottleneck")
    for row in found:
        print(
            f"{row['run']:<16}{row['synchronous_step_s']:>8}{row['overlapped_step_s']:>8}"
            f"{row['speedup']:>8}{row['of_slowest_stage_bound']:>10}  {row['bottleneck']}"
        )
    if options.json:
        write(options.json, Result("overlap", machine(), found))
    balanced = found[0]
    missed = balanced["speedup"] < SPEEDUP_GOAL or balanced["of_slowest_stage_bound"] < BOUND_GOAL
    print("goal missed" if missed else f"goals met: {SPEEDUP_GOAL} x, {BOUND_GOAL} of the bound")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
