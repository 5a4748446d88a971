"""`worldr1 reproduce toy`: the experiments of the paper in the toy world, resumable, one page."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from cluster.config import REPOSITORY, ConfigError
from cluster.signals import sigterm_interrupts
from cluster.storage import RunFolder, absolute_url

STEPS, PAIRS, SEEDS = 180, 528, 3


def add_reproduce_command(commands: Any) -> None:
    """Register the command with the subparsers of `worldr1`."""
    parser = commands.add_parser(
        "reproduce", help="base, full method and ablations of a preset, on one page; resumable"
    )
    parser.add_argument("preset", choices=("toy",), help="toy")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")
    parser.add_argument("--out", default="reproduction", metavar="DIR")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each run (default {STEPS})")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"held-out (default {PAIRS})")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"at most (default {SEEDS})")
    parser.add_argument("--only", nargs="+", default=[], metavar="VARIANT", help="some variants")
    parser.add_argument("--local", action="store_true", help="runs in a process each, without Ray")
    parser.set_defaults(command=_reproduce)


def _reproduce(options: argparse.Namespace) -> int:
    if min(options.steps, options.pairs, options.seeds) < 1:
        raise ConfigError("--steps, --pairs and --seeds are 1 or more")
    from cluster.evaluation.reproduce import Plan, Reproduction, jobs
    from cluster.evaluation.reproduction import goals
    from cluster.evaluation.reproduction_page import as_markdown, write_reproduction

    todo = jobs(options.only, options.seeds)
    out = RunFolder(absolute_url(options.out))
    if not out.is_local:
        raise ConfigError(f"--out {options.out!r} is no local folder")
    out.require_writable()
    plan = Plan(options.steps, options.pairs, tuple(options.overrides))
    work = Reproduction(plan, out, _say)
    work.references()
    write_reproduction(out, plan, work.sides())
    failed = 0
    for number, job in enumerate(todo):
        _say(f"== {number + 1}/{len(todo)}: {job.name} ({job.variant.shown})")
        try:
            failed += not work.run(job, _local if options.local else _as_ray_job)
        except KeyboardInterrupt:
            _say(f"stopped in {job.name}; the same command goes on from its last checkpoint")
            raise
        write_reproduction(out, plan, work.sides())
    sides = work.sides()
    print(as_markdown(plan, sides, goals(sides)))
    print(f"{out.url}/index.html")
    return 1 if failed else 0


def _local(arguments: Sequence[str]) -> int:
    """Train in a process of its own, which ends with this one."""
    child = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", *arguments, "--local"], cwd=REPOSITORY
    )
    with sigterm_interrupts():
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.terminate()  # it leaves with a checkpoint
            child.wait()
            raise


def _as_ray_job(arguments: Sequence[str]) -> int:
    """Train as a job on a Ray head of its own, as `worldr1 demo` does."""
    from cluster.demo import ray_head, submit

    with ray_head() as (address, environment):
        return submit(address, environment, [sys.executable, "-m", "cluster.cli", *arguments])


def _say(line: str) -> None:
    print(line, flush=True)
