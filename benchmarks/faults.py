"""What does not die at once: frozen processes, and a machine that goes with all that it holds.

    python -m benchmarks.faults [--only RUN...] [--json FILE]

Runs on a Ray head of their own with a second node. SIGSTOP hits a learner rank, a rollout worker
and a reconstruction worker of one run, which stay silent for ever; of another run the second node
is killed with its workers, its objects and, if it has one, its learner rank. The time is from the
blow to the next step that is recorded, or from that to the one after.

Goals: a frozen rank costs at most its process group's timeout + 30 s; each run completes, its audit
finds nothing, and its weights are those of an undisturbed run. Exits 1 when one is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.driver import SMALL_RUN, WORKERS, Driver, driving, freeze, further_node, wait_for
from benchmarks.results import Result, machine, write
from cluster.audit import audit_run
from cluster.config import load
from cluster.demo import ray_head

STEPS, BEFORE, BETWEEN = 14, 3, 3
"""Steps of a run, before its first blow, and between two."""
RANKS_TIMEOUT_S = 15.0
WORKER_TIMEOUT_S = 20.0
GRACE_S = 30.0
PATIENCE_S = 300.0
FROZEN = ("learner", "rollout", "reconstruction")
NODE = "second node"
RUNS = ("undisturbed", "frozen", NODE)
OPTIONS = (
    *SMALL_RUN,
    f"steps={STEPS}",
    "checkpoint.every=4",
    f"learner.timeout_s={RANKS_TIMEOUT_S}",
    f"supervision.rollout_timeout_s={WORKER_TIMEOUT_S}",
    f"rewards.timeout_s={WORKER_TIMEOUT_S}",
)


def longest_wait(driver: Driver, blow: Callable[[], Any]) -> float:
    """The longest that no step came: from the blow to the next step, or to the one after it, since
    the step under way may end without whatever was hit."""
    done = driver.steps_done()
    came = [time.monotonic()]
    blow()
    for following in (1, 2):

        def goes_on(following: int = following) -> bool:
            if driver.exit_code() is not None:
                raise RuntimeError(f"the run ended:\n{driver.tail()}")
            return driver.steps_done() >= done + following

        wait_for("a step after the blow", goes_on, PATIENCE_S)
        came.append(time.monotonic())
    return max(after - before for before, after in pairwise(came))


def run(
    folder: Path, name: str, environment: Mapping[str, str], blows: Mapping[str, Callable[..., Any]]
) -> dict[str, Any]:
    """One run under some blows."""
    driver = Driver(load("toy", [*OPTIONS, f"run={folder / name}"]), environment)
    seconds: dict[str, float] = {}
    with driving(driver):
        for number, (kind, blow) in enumerate(blows.items()):
            driver.wait_for_step(BEFORE + number * BETWEEN, PATIENCE_S)
            seconds[kind] = round(longest_wait(driver, partial(blow, driver)), 1)
        if driver.wait(PATIENCE_S) != 0:
            raise RuntimeError(f"{name} failed:\n{driver.tail()}")
    report = audit_run(driver.config.run)
    said = driver.log.read_text(errors="replace")
    return {
        "run": name,
        "longest_wait_for_a_step_s": seconds,
        "recoveries_of_the_learner": said.count("replacing all ranks"),
        "batches_rolled_out_again": said.count("rolling out again"),
        "findings": list(report.findings),
        "weights": driver.checksum()[:16],
    }


def measure(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """An undisturbed run, one with frozen processes, one that loses a node."""
    frozen = {kind: lambda driver, kind=kind: freeze(driver.workers(kind)[0]) for kind in FROZEN}
    with ray_head() as (_, environment):
        if "undisturbed" in names:
            yield run(folder, "undisturbed", environment, {})
        if "frozen" in names:
            yield run(folder, "frozen", environment, frozen)
        if NODE in names:
            yield _lose_a_node(folder, environment)


def _lose_a_node(folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    lost: dict[str, int] = {}
    with further_node(environment) as lose:
        time.sleep(5)  # until the node has joined

        def blow(driver: Driver) -> None:
            alive = {kind: {p.pid for p in driver.workers(kind)} for kind in WORKERS}
            killed = lose()
            lost.update({kind: len(pids & killed) for kind, pids in alive.items()})

        row = run(folder, NODE, environment, {NODE: blow})
    return {**row, "lost_with_the_node": lost}


def met(found: list[dict[str, Any]]) -> bool:
    """Whether all goals are met."""
    rows = {row["run"]: row for row in found}
    slowest = rows["frozen"]["longest_wait_for_a_step_s"]["learner"]
    hurt = sum(rows[NODE]["lost_with_the_node"].values())
    wanted = rows["undisturbed"]["weights"]
    return (
        all(row["weights"] == wanted and not row["findings"] for row in found)
        and slowest <= RANKS_TIMEOUT_S + GRACE_S
        and hurt > 0
    )


def main() -> int:
    """Print what was found; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the runs and their logs")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=RUNS, metavar="RUN")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(options.keep or Path(folder), options.only):
            print(row, flush=True)
            rows.append(row)
            if options.json:
                write(options.json, Result("faults", machine(), rows))
    if {row["run"] for row in rows} != set(RUNS):
        return 0  # the goals compare all of them
    print("goals met" if met(rows) else "goal missed")
    return int(not met(rows))


if __name__ == "__main__":
    sys.exit(main())
