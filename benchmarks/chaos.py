"""Kill -9 of every kind of process at random points of a run, the coordinator's included.

    python -m benchmarks.chaos --kills 60 [--seed 0] [--ranks 2] [--json FILE]

A run is undisturbed, with one rank under --local; the same run on a Ray head of its own is then
disturbed. What is killed and when is drawn from the seed: the kinds in equal shares, each at a step
and a moment after it. A killed coordinator is started again by the same command; all else the run
has to mend.

Goals: the disturbed run completes, its audit finds 0 lost and 0 double groups, and its final
weights are those of the undisturbed run, bit for bit. Exits 1 when one is missed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.driver import SMALL_RUN, WORKERS, Driver, driving, wait_for
from benchmarks.results import Result, machine, write
from cluster.audit import audit_run
from cluster.config import load
from cluster.demo import ray_head

COORDINATOR = "coordinator"
KINDS = (*WORKERS, COORDINATOR)
STEPS_PER_KILL = 1
UNHURT_AT_THE_END = 4
"""Steps after the last kill, so that the run does not end before it."""
LONGEST_DELAY_S = 1.5
PATIENCE_S = 300.0
"""A run that does not reach the next step within this has hung."""


@dataclass(frozen=True)
class Kill:
    """One kill -9."""

    kind: str
    step: int
    """Steps that are done before it."""
    delay_s: float
    """Time after the step was noticed."""
    pick: float
    """Which of the kind's processes, as a fraction of them."""


def plan(seed: int, kills: int) -> tuple[Kill, ...]:
    """What is killed when (pure)."""
    draw = random.Random(seed)
    kinds = [KINDS[i % len(KINDS)] for i in range(kills)]
    draw.shuffle(kinds)
    steps = sorted(draw.randrange(kills * STEPS_PER_KILL) for _ in range(kills))
    return tuple(
        Kill(kind, step, draw.uniform(0, LONGEST_DELAY_S), draw.random())
        for kind, step in zip(kinds, steps, strict=True)
    )


def disturb(driver: Driver, kills: Sequence[Kill]) -> None:
    """Deal out all kills. RuntimeError where the run ends by itself before or hangs."""
    for kill in kills:

        def due(kill: Kill = kill) -> bool:
            if driver.exit_code() is not None:
                raise RuntimeError(f"the run ended by itself before {kill}:\n{driver.tail()}")
            return driver.steps_done() >= kill.step

        # After a kill of the coordinator the rows of unsaved steps are gone until it is as far.
        wait_for(f"step {kill.step}", due, PATIENCE_S)
        time.sleep(kill.delay_s)
        if kill.kind == COORDINATOR:
            driver.kill()
            driver.start()
            continue
        # Where the last one of a kind has just been killed, its successor is the next victim.
        victims = wait_for(f"a {kill.kind}", partial(driver.workers, kill.kind), PATIENCE_S)
        victims[int(kill.pick * len(victims))].kill()


def measure(folder: Path, kills: int, seed: int, ranks: int) -> dict[str, Any]:
    """Run undisturbed, run disturbed, compare."""
    steps = kills * STEPS_PER_KILL + UNHURT_AT_THE_END
    options = [*SMALL_RUN, f"steps={steps}", f"learner.ranks={ranks}", "checkpoint.every=3"]
    options += [f"rewards.reconstruction.{limit}_workers=1" for limit in ("min", "max")]
    seconds = {}
    drivers = {}
    with ray_head() as (_, environment):
        for name in ("undisturbed", "disturbed"):
            config = load("toy", [*options, f"run={folder / name}"])
            # One process computes what one rank on Ray does, and starts sooner.
            alone = name == "undisturbed" and ranks == 1
            drivers[name] = driver = Driver(config, environment, ("--local",) if alone else ())
            started = time.monotonic()
            with driving(driver):
                if name == "disturbed":
                    disturb(driver, plan(seed, kills))
                if driver.wait(60 + 30 * steps) != 0:
                    raise RuntimeError(f"the {name} run failed:\n{driver.tail()}")
            seconds[name] = round(time.monotonic() - started, 1)
    report = audit_run(drivers["disturbed"].config.run)
    said = drivers["disturbed"].log.read_text(errors="replace")
    return {
        "run": f"{kills} kills, seed {seed}, {ranks} ranks",
        "steps": steps,
        "kills": dict(Counter(kill.kind for kill in plan(seed, kills))),
        "starts": drivers["disturbed"].starts,
        "recoveries_of_the_learner": said.count("replacing all ranks"),
        "groups_issued": report.issued,
        "groups_trained": report.trained,
        "dropped": report.dropped,
        "lost": len(report.lost),
        "double": len(report.double),
        "findings": list(report.findings),
        "steps_recorded_once": [row["step"] for row in drivers["disturbed"].rows()]
        == list(range(steps)),
        "weights": drivers["disturbed"].checksum()[:16],
        "weights_equal": drivers["disturbed"].checksum() == drivers["undisturbed"].checksum(),
        "seconds": seconds,
    }


def met(row: dict[str, Any]) -> bool:
    """Whether a disturbed run is as good as an undisturbed one."""
    return bool(row["weights_equal"] and row["steps_recorded_once"] and not row["findings"])


def main() -> int:
    """Print what was found; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the two runs and their logs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = measure(options.keep or Path(folder), options.kills, options.seed, options.ranks)
    for name, value in row.items():
        print(f"{name:<28}{value}")
    if options.json:
        write(options.json, Result("chaos", machine(), [row]))
    print("goals met: no group lost or double, same weights" if met(row) else "goal missed")
    return int(not met(row))


if __name__ == "__main__":
    sys.exit(main())
