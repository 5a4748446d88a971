"""The `worldr1` command."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence

from cluster.camera_cli import add_camera_command
from cluster.config import (
    INTERRUPTED,
    ConfigError,
    RunConfig,
    RunStopped,
    for_one_process,
    load,
    override_names,
    preset_names,
    thread_environment,
    to_json,
)
from cluster.doctor_cli import add_doctor_command
from cluster.envs_cli import add_envs_command
from cluster.evaluation_cli import add_evaluation_command
from cluster.export_cli import add_export_command
from cluster.generate_cli import add_generate_command
from cluster.plan_cli import add_plan_command
from cluster.prompts_cli import add_prompts_command
from cluster.report_cli import add_report_command
from cluster.reproduce_cli import add_reproduce_command
from cluster.rewards_cli import add_rewards_command
from cluster.run_cli import add_run_commands
from cluster.study_cli import add_study_command
from cluster.submit_cli import add_submit_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command: 0; or one sentence on standard error and 2 for bad input, 1 for a run that
    stopped itself, 130 after Ctrl-C."""
    # Matrices here are small; BLAS would spin on every core. To be set before numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(_overrides_first(given))
    try:
        return int(options.command(options))
    except ConfigError as error:
        print(f"worldr1: {error}", file=sys.stderr)
        return 2
    except RunStopped as error:
        lines = (str(error), *getattr(error, "__notes__", ()))
        print("worldr1: " + "\n".join(lines), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("worldr1: stopped", file=sys.stderr)
        return INTERRUPTED


def _overrides_first(arguments: Sequence[str]) -> list[str]:
    """Move every key=value behind COMMAND and PRESET: argparse wants positionals together."""
    overrides = [a for a in arguments if re.match(r"[A-Za-z_][\w.]*=", a)]
    others = [a for a in arguments if a not in overrides]
    places = [i for i, a in enumerate(others) if a.startswith("-")]
    cut = places[0] if places else len(others)
    return [*others[:cut], *overrides, *others[cut:]]


def _train(options: argparse.Namespace) -> int:
    config = _load(options)
    if options.print_config:
        print(to_json(config))
        return 0
    if options.local:
        config = _one_process(config)
        # As a worker on Ray gets it from its environment: the same bits, and no core but its own.
        os.environ.update(thread_environment(config.threads))
    from cluster.live import open_view
    from cluster.runs import in_this_process, on_ray, run_training

    with open_view() as view:
        run_training(config, in_this_process if options.local else on_ray, view.say, view)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from cluster.demo import run_demo

    return run_demo(options.overrides, options.run)


def _load(options: argparse.Namespace) -> RunConfig:
    return load(options.preset, options.overrides, options.config, options.run)


def _one_process(config: RunConfig) -> RunConfig:
    single = for_one_process(config)
    if single != config:
        _say("--local: one rollout worker and one learner rank, on the CPU of this process")
    return single


def _say(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="worldr1", description="World-R1 on Ray: video models learn to paint one place."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train a preset, or resume its run")
    train.add_argument("preset", help=f"one of {', '.join(preset_names())}, or a .toml file")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. rollout.frames=9")
    train.add_argument("--run", metavar="URL", help="directory or fsspec URL of the run")
    train.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help=f"TOML file over the preset: a path, or one of {', '.join(override_names())}",
    )
    train.add_argument("--local", action="store_true", help="one process, without Ray")
    train.add_argument("--print-config", action="store_true", help="show the resolved keys only")
    train.set_defaults(command=_train)
    demo = commands.add_parser(
        "demo", help="start a local Ray head, submit the toy run as a job, show before and after"
    )
    demo.add_argument("overrides", nargs="*", metavar="key=value")
    demo.add_argument("--run", metavar="DIR", help="directory of the run (default: a new one)")
    demo.set_defaults(command=_demo)
    add_camera_command(commands)
    add_envs_command(commands)
    add_run_commands(commands)
    add_prompts_command(commands)
    add_report_command(commands)
    add_evaluation_command(commands)
    add_reproduce_command(commands)
    add_plan_command(commands)
    add_doctor_command(commands)
    add_submit_command(commands)
    add_rewards_command(commands)
    add_export_command(commands)
    add_generate_command(commands)
    add_study_command(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
