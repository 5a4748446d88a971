"""`worldr1 envs`: build and check the environments of the reward families."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from cluster.config import ConfigError
from rewards.environments import (
    FAMILIES,
    EnvironmentProblem,
    build,
    check,
    check_imports,
    environments_root,
)


def add_envs_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command group."""
    group = commands.add_parser(
        "envs", help="build and check the Python environments of judge, reconstruction, aesthetic"
    )
    actions = group.add_subparsers(required=True, metavar="ACTION")
    build_it = actions.add_parser("build", help="install an environment from pinned requirements")
    build_it.add_argument("--cpu", action="store_true", help="the build for machines without a GPU")
    build_it.set_defaults(command=_build)
    check_it = actions.add_parser("check", help="versions, and whether everything can be imported")
    check_it.set_defaults(command=_check)
    for action in (build_it, check_it):
        action.add_argument("family", choices=FAMILIES)
        action.add_argument(
            "--path",
            type=Path,
            metavar="DIR",
            help="folder of the environment (default: its name below WORLDR1_ENVS or the cache)",
        )


def _folder(options: argparse.Namespace) -> Path:
    given: Path | None = options.path
    return environments_root() / options.family if given is None else given.absolute()


def _build(options: argparse.Namespace) -> int:
    started = time.perf_counter()
    try:
        build(options.family, options.cpu, _folder(options), lambda line: print(line, flush=True))
    except (EnvironmentProblem, OSError) as problem:
        raise ConfigError(str(problem)) from None
    print(f"{time.perf_counter() - started:.0f} s")
    return 0


def _check(options: argparse.Namespace) -> int:
    folder = _folder(options)
    try:
        versions = check(options.family, folder)
        check_imports(options.family, folder)
    except EnvironmentProblem as problem:
        raise ConfigError(str(problem)) from None
    for name, version in versions.items():
        print(f"{name:24} {version}")
    print(f"{folder}: ok")
    return 0
