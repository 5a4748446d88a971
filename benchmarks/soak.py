"""Whether a long run grows: memory of every process, the object store, files.

    python -m benchmarks.soak [--steps 300] [--json FILE]

The toy preset at 2 groups of 2 samples on a Ray head of its own. Private memory (what a process
does not share) of the coordinator, of each worker and of Ray's own processes is read every few
seconds and regressed on the number of steps done, over the second half of the run: what an
allocator takes to settle is no leak.

The head remembers 2,000 calls for its dashboard (`cluster/demo.py`; Ray's default of 100,000 would
not be reached here), so that its own memory has settled when the second half begins.

Goal: nothing grows by more than noise: over the half, by less than twice the spread around its line
or 2 % of its level. Ray's logs grow until they are rotated. Exits 1 when anything else does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.driver import SMALL_RUN, WORKERS, Driver, driving
from benchmarks.results import Result, machine, write
from cluster.config import load
from cluster.demo import ray_head

PERIOD_S = 3.0
NOISE, SHARE = 2.0, 0.02
MIB = 2**20
Point = tuple[int, float]
"""Steps done, and MiB or a number of files."""


def private_mib(process: psutil.Process) -> float:
    """What it holds for itself; the object store is shared."""
    memory = process.memory_info()
    return float(memory.rss - memory.shared) / MIB


def name_of(process: psutil.Process, driver: int) -> str:
    """Whose memory it is: `learner 1234`, `raylet 99`."""
    if process.pid == driver:
        return "coordinator"
    title = (process.cmdline() or [""])[0]
    for kind, worker in WORKERS.items():
        if title.startswith(f"ray::{worker}"):
            return f"{kind} {process.pid}"
    return f"{Path(title).name.split(' ')[0] or process.name()} {process.pid}"


def files_below(folder: Path) -> tuple[int, float]:
    """How many, and their MiB."""
    sizes = []
    for parent, _, names in os.walk(folder):  # whole folders vanish meanwhile: old checkpoints
        for path in (Path(parent, name) for name in names):
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    sizes.append(path.stat().st_size)
    return len(sizes), sum(sizes) / MIB


def object_store() -> tuple[float, float]:
    """MiB and number of objects that the node's store holds."""
    from ray._private.internal_api import memory_summary

    text = memory_summary(stats_only=True)
    found = re.search(r"Plasma memory usage ([\d.]+) MiB, (\d+) objects", text)
    if found is None:
        raise RuntimeError(f"Ray says nothing of its store: {text}")
    return float(found.group(1)), float(found.group(2))


def watch(driver: Driver, logs: Path) -> dict[str, list[Point]]:
    """Points of everything, from the first step to the end of the run."""
    points: dict[str, list[Point]] = defaultdict(list)
    run = Path(driver.config.run)
    while driver.exit_code() is None:
        time.sleep(PERIOD_S)
        step = driver.steps_done()
        if not step:
            continue
        pid = driver.process.pid if driver.exit_code() is None else 0
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE:
                    points[name_of(process, pid)].append((step, private_mib(process)))
        mib, objects = object_store()
        points["object store"].append((step, mib))
        points["objects in the store"].append((step, objects))
        points["checkpoint files"].append((step, files_below(run / "checkpoints")[0]))
        points["MiB of Ray's logs"].append((step, files_below(logs)[1]))
        points["Ray's log files"].append((step, files_below(logs)[0]))
    return points


def slope(points: list[Point]) -> dict[str, float]:
    """Level, growth over the second half, and spread around the line."""
    last = points[-1][0]
    half = np.array([p for p in points if p[0] >= last / 2], dtype=np.float64)
    x, y = half.T
    gradient, offset = np.polyfit(x, y, 1)
    spread = float(np.std(y - (gradient * x + offset)))
    return {
        "level": round(float(y.mean()), 2),
        "growth": round(float(gradient * (x[-1] - x[0])), 3),
        "spread": round(spread, 3),
        "per_100_steps": round(float(100 * gradient), 3),
    }


def is_flat(line: Mapping[str, float]) -> bool:
    """Whether growth is within noise."""
    return line["growth"] <= max(NOISE * line["spread"], SHARE * line["level"], 0.5)


def measure(folder: Path, steps: int) -> dict[str, Any]:
    """One run, watched."""
    config = load("toy", [*SMALL_RUN, f"steps={steps}", f"run={folder / 'run'}"])
    with ray_head() as (_, environment):
        os.environ.update({k: v for k, v in environment.items() if k.startswith("RAY_")})
        import ray  # here: it reads the head's token from the environment as it is imported

        ray.init(address=environment["RAY_ADDRESS"], log_to_driver=False)
        started = time.monotonic()
        try:
            node: Any = ray._private.worker._global_node
            logs = Path(node.get_logs_dir_path())
            with driving(Driver(config, environment)) as driver:
                points = watch(driver, logs)
                if driver.wait(60) != 0:
                    raise RuntimeError(f"the run failed:\n{driver.tail()}")
                steps = driver.steps_done()  # fewer than asked for where it was told to leave
        finally:
            ray.shutdown()
    run, seconds = Path(config.run), time.monotonic() - started
    lines = {name: slope(p) for name, p in points.items() if p[-1][0] - p[0][0] > steps / 2}
    # What is appended to for good: a row a step, a file a checkpoint.
    growing = {"MiB of Ray's logs"}
    return {
        "run": f"{steps} steps",
        "seconds": round(seconds, 1),
        "lines": lines,
        "grow": sorted(n for n, line in lines.items() if n not in growing and not is_flat(line)),
        "files_of_the_run": files_below(run)[0],
        "mib_of_the_run": round(files_below(run)[1], 2),
        "ledger_files": files_below(run / "ledger")[0],
        "kib_of_metrics_per_step": round((run / "metrics.jsonl").stat().st_size / 1024 / steps, 2),
    }


def main() -> int:
    """Print what was found; 1 where something grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = measure(Path(folder), options.steps)
    print(f"{'':<28}{'level':>10}{'growth':>10}{'spread':>10}")
    for name, line in sorted(row["lines"].items()):
        print(f"{name:<28}{line['level']:>10}{line['growth']:>10}{line['spread']:>10}")
    print({name: value for name, value in row.items() if name != "lines"})
    if options.json:
        write(options.json, Result("soak", machine(), [row]))
    print("goal missed" if row["grow"] else "goal met: nothing grows")
    return int(bool(row["grow"]))


if __name__ == "__main__":
    sys.exit(main())
