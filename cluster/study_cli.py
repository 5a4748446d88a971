"""`worldr1 study DIR_A DIR_B` and `worldr1 study --tally KEY ANSWERS...`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cluster.config import ConfigError
from cluster.storage import absolute_url


def add_study_command(commands: Any) -> None:
    """Register the command with the subparsers of `worldr1`."""
    parser = commands.add_parser(
        "study", help="make a blind comparison of two folders of videos, or count its answers"
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="two folders of videos; with --tally the key and the files of answers",
    )
    parser.add_argument("--tally", action="store_true", help="count answers: KEY ANSWERS...")
    parser.add_argument("--to", type=Path, default=Path("study"), metavar="DIR")
    parser.add_argument("--pairs", type=int, default=30, metavar="N", help="default: 30")
    parser.add_argument("--seed", type=int, help="of the choice of pairs (default: a random one)")
    parser.set_defaults(command=_study)


def _study(options: argparse.Namespace) -> int:
    return _count(options) if options.tally else _make(options)


def _make(options: argparse.Namespace) -> int:
    from cluster.study import KEY, PAGE, summary, write_study

    if ":/" in str(options.to):  # what Path leaves of "s3://", which would be a folder of that name
        raise ConfigError(f"--to {options.to} is a URL; allowed: a directory here")
    if len(options.paths) != 2:
        raise ConfigError(f"study compares two folders; {len(options.paths)} were given")
    if options.pairs < 1 or (options.seed is not None and options.seed < 0):
        raise ConfigError(f"--pairs {options.pairs} --seed {options.seed}; allowed: from 1, from 0")
    a, b = (absolute_url(path) for path in options.paths)
    for line in summary(write_study(a, b, options.to, options.pairs, options.seed)):
        print(line)
    print(f"for the participants: {options.to / PAGE}")
    print(f"for yourself alone:   {options.to / KEY}")
    return 0


def _count(options: argparse.Namespace) -> int:
    from cluster.tally import tally, tally_table

    key_file, *files = map(Path, options.paths)
    if not files:
        raise ConfigError("--tally needs the key and at least one file of answers")
    key, rates = tally(key_file, files)
    print(tally_table(key, rates, len(files)))
    return 0
