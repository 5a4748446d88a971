"""`worldr1 plan`: does a run fit so many GPUs, how to split them, how long does a step take."""

from __future__ import annotations

import argparse
from typing import Any

from cluster.config import ConfigError, RunConfig, load, preset_names
from cluster.gpus import GPU_TYPES


def add_plan_command(commands: Any) -> None:
    """Register the command on `argparse`'s sub-parsers."""
    plan = commands.add_parser(
        "plan", help="does a preset fit so many GPUs, how to split them, seconds per step"
    )
    plan.add_argument(
        "preset", nargs="?", help=f"one of {', '.join(preset_names())}, or a .toml file"
    )
    plan.add_argument("overrides", nargs="*", metavar="key=value")
    plan.add_argument("--config", action="append", default=[], metavar="FILE")
    plan.add_argument("--gpus", type=int, metavar="N", help="GPUs of the cluster")
    plan.add_argument("--gpu-type", choices=GPU_TYPES, default="h200")
    plan.add_argument("--gpus-per-node", type=int, default=8, metavar="N")
    plan.add_argument("--price", type=float, metavar="X", help="of one GPU hour, in any currency")
    plan.add_argument("--explain", action="store_true", help="print the arithmetic")
    plan.add_argument(
        "--from", dest="run", metavar="RUN", help="use the clocks of a run instead of arithmetic"
    )
    plan.set_defaults(command=_plan)


def _plan(options: argparse.Namespace) -> int:
    """0 with a plan, 1 with the sentence why there is none."""
    _check(options)
    if options.run is not None:
        return _plan_from(options)
    config = load(options.preset, options.overrides, options.config)
    return _print(options, config)


def _check(options: argparse.Namespace) -> None:
    if (options.preset is None) == (options.run is None):
        raise ConfigError("plan needs either a preset or --from RUN")
    if options.run is None and options.gpus is None:
        raise ConfigError("plan needs --gpus N")
    for name, most in (("gpus", 4096), ("gpus_per_node", 64)):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= most:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} = {value} is not allowed: it must be 1 to {most}")


def _plan_from(options: argparse.Namespace) -> int:
    from cluster.plan_run import measured_costs, measures, read_run, run_lines

    config, rows = read_run(options.run)
    for line in run_lines(config, rows):
        print(line)
    if options.gpus is None:
        return 0
    if not config.rollout.gpus_per_worker or not config.learner.gpus_per_rank:
        raise ConfigError("--gpus has no meaning for a run on CPUs; leave it out")
    costs = measured_costs(config, measures(config, rows))
    print()
    return _print(options, config, costs)


def _print(options: argparse.Namespace, config: RunConfig, costs: Any = None) -> int:
    from cluster.plan import NoSplit, make_plan
    from cluster.plan_text import plan_lines

    if not config.rollout.gpus_per_worker or not config.learner.gpus_per_rank:
        raise ConfigError(
            "this run's rollout workers or learner ranks take no GPU; plan has nothing to split "
            "(allowed: a preset such as small)"
        )
    price = None if costs is None else (lambda _: costs)
    try:
        plan = make_plan(
            config, GPU_TYPES[options.gpu_type], options.gpus, options.gpus_per_node, price
        )
    except NoSplit as reason:
        print(f"{options.gpus} x {options.gpu_type}: does not fit. {reason}")
        return 1
    for line in plan_lines(plan, options.price, options.explain):
        print(line)
    return 0
