"""Runs that are asked to leave, and runs that go on with another number of learner ranks.

    python -m benchmarks.restarts [--json FILE]

SIGTERM hits the toy preset at three moments of a step; each time the same command goes on. Another
run trains its first third on two ranks, the second on one, the last on two again, beside one that
has two throughout. It is trained on the general reward alone: one rank adds in another order than
two, and where weights differ in their last bits, a reconstruction that chooses between two
solutions may differ visibly, and with it who of a group of two is the better.

Goals: exit code 0 and a durable checkpoint of the last whole step within 20 s of SIGTERM; losses of
the run that changed its ranks within 1e-6 of those of the other, and, since losses on policy are
almost 0 by construction, gradient norms within 1 %. Exits 1 when one is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.driver import SMALL_RUN, Driver, driving
from benchmarks.results import Result, machine, write
from cluster.audit import audit_run
from cluster.config import PRESETS, load
from cluster.demo import ray_head

MOMENTS_S = (0.5, 3.0, 6.0)
"""After a step was recorded."""
SIGTERM_GOAL_S, LOSS_GOAL, NORM_GOAL = 20.0, 1e-6, 0.01
THIRD = 3
PATIENCE_S = 300.0


def terminate(folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Seconds from each SIGTERM to the end of the process."""
    config = load(
        "toy", [f"run={folder / 'terminated'}", "steps=8", "eval.prompts=0", "checkpoint.every=100"]
    )
    driver = Driver(config, environment)
    seconds, codes, durable = [], [], []
    for moment in MOMENTS_S:
        done = driver.steps_done()
        with driving(driver):
            driver.wait_for_step(done + 1, PATIENCE_S)
            time.sleep(moment)
            started = time.monotonic()
            driver.process.terminate()
            codes.append(driver.wait(PATIENCE_S))
            seconds.append(round(time.monotonic() - started, 1))
        durable.append(driver.durable() == driver.steps_done())
    return {
        "run": "SIGTERM, toy preset",
        "seconds": seconds,
        "exit_codes": codes,
        "last_step_durable": durable,
        "steps_done": driver.steps_done(),
        "findings": list(audit_run(config.run).findings),
    }


def change_ranks(folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Losses of a run on 2, 1 and 2 ranks beside one on 2."""
    runs: dict[str, list[dict[str, Any]]] = {}
    plans = {"two": ((2, 3 * THIRD),), "changed": ((2, THIRD), (1, 2 * THIRD), (2, 3 * THIRD))}
    overrides = PRESETS / "overrides/no_3d_reward.toml"
    for name, starts in plans.items():
        for ranks, steps in starts:
            options = [f"run={folder / name}", f"steps={steps}", f"learner.ranks={ranks}"]
            driver = Driver(load("toy", [*SMALL_RUN, *options], [str(overrides)]), environment)
            with driving(driver):
                if driver.wait(PATIENCE_S) != 0:
                    raise RuntimeError(f"{name} failed:\n{driver.tail()}")
        runs[name] = driver.rows()
    pairs = list(zip(runs["two"], runs["changed"], strict=True))
    return {
        "run": "ranks 2 -> 1 -> 2",
        "losses": [row["loss"] for row in runs["two"]],
        "losses_of_the_changed": [row["loss"] for row in runs["changed"]],
        "largest_difference": max(abs(a["loss"] - b["loss"]) for a, b in pairs),
        "largest_relative_difference_of_gradient_norms": max(
            abs(a["grad_norm"] - b["grad_norm"]) / a["grad_norm"] for a, b in pairs
        ),
        "largest_difference_of_rewards": max(
            abs(a["reward"]["mean"] - b["reward"]["mean"]) for a, b in pairs
        ),
    }


def main() -> int:
    """Print what was found; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the runs and their logs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, ray_head() as (_, environment):
        folder = options.keep or Path(temporary)
        found = [terminate(folder, environment), change_ranks(folder, environment)]
    for row in found:
        print(row)
    if options.json:
        write(options.json, Result("restarts", machine(), found))
    left = found[0]
    met = (
        max(left["seconds"]) <= SIGTERM_GOAL_S
        and set(left["exit_codes"]) == {0}
        and all(left["last_step_durable"])
        and not left["findings"]
        and found[1]["largest_difference"] <= LOSS_GOAL
        and found[1]["largest_relative_difference_of_gradient_norms"] <= NORM_GOAL
    )
    print("goals met" if met else "goal missed")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
