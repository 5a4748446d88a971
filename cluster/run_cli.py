"""`worldr1 audit` and `worldr1 replay`: looking at what a run has left behind."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from cluster.config import ConfigError, RunConfig, for_one_process, from_tree, overridden
from cluster.storage import RunFolder, absolute_url


def add_run_commands(commands: Any) -> None:
    """Register the commands of this module on `argparse`'s sub-parsers."""
    audit = commands.add_parser(
        "audit", help="prove from a run's ledger that every group trained once or was dropped"
    )
    audit.add_argument("run", metavar="RUN", help="directory or fsspec URL of the run")
    audit.set_defaults(command=_audit)
    replay = commands.add_parser(
        "replay", help="run one stage of a recorded step again, as it was or under other keys"
    )
    replay.add_argument("run", metavar="RUN", help="directory or fsspec URL of the run")
    replay.add_argument("overrides", nargs="*", metavar="key=value", help="what to change")
    replay.add_argument("--stage", required=True, choices=("rollout", "rewards", "learner"))
    replay.add_argument("--step", type=int, metavar="N", help="default: every recorded step")
    replay.add_argument("--local", action="store_true", help="one process, without Ray")
    replay.add_argument("--json", type=Path, metavar="FILE", help="a row per step and sample")
    replay.set_defaults(command=_replay)


def _audit(options: argparse.Namespace) -> int:
    """0 where everything is in order, 1 where the report has a finding."""
    from cluster.audit import audit_run

    report = audit_run(absolute_url(options.run))
    for line in report.lines():
        print(line)
    return 1 if report.findings else 0


def _replay(options: argparse.Namespace) -> int:
    """0 where the stage could be run again, whatever came out."""
    config = _config_of(absolute_url(options.run), options)
    from cluster.replay import open_stage, replay, steps_to_replay, to_rows

    steps = steps_to_replay(RunFolder(config.run), options.step)
    if options.json:  # before hours of work, not after
        try:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.touch()
        except OSError as error:
            raise ConfigError(f"--json {str(options.json)!r}: {error.strerror}") from None
    with open_stage(config, options.stage, options.local) as calls:
        found = asyncio.run(replay(config, calls, options.stage, steps, print))
    if options.json:
        options.json.write_text(json.dumps(to_rows(found), indent=1) + "\n")
    return 0


def _config_of(run: str, options: argparse.Namespace) -> RunConfig:
    """The configuration that a run was trained with, under overrides."""
    folder = RunFolder(run)
    try:
        config = from_tree(json.loads(folder.read_text("config.json")))
    except (OSError, ValueError):
        raise ConfigError(f"RUN = {run!r} holds no config.json that can be read") from None
    config = overridden(config, [*options.overrides, f"run={json.dumps(run)}"])
    return for_one_process(config) if options.local else config
