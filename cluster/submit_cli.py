"""`worldr1 submit FILE --address URL`: the same RayJob manifest on a plain Ray cluster."""

from __future__ import annotations

import argparse
import os
from typing import Any

from cluster.config import ConfigError


def add_submit_command(commands: Any) -> None:
    """Register the command on `argparse`'s sub-parsers."""
    submit = commands.add_parser(
        "submit", help="submit a RayJob manifest to any Ray cluster and follow it"
    )
    submit.add_argument("file", metavar="FILE", help="e.g. ray_job.yaml")
    submit.add_argument(
        "overrides", nargs="*", metavar="key=value", help="added to the manifest's command"
    )
    submit.add_argument(
        "--address",
        metavar="URL",
        help="of the dashboard, e.g. http://head:8265 (else RAY_API_SERVER_ADDRESS)",
    )
    submit.add_argument("--working-dir", metavar="DIR", help="folder to upload for the job")
    submit.add_argument("--no-wait", action="store_true", help="do not follow the job")
    submit.add_argument(
        "--first-wait",
        type=float,
        default=10.0,
        metavar="S",
        help="before a failed job is started again; doubled each time",
    )
    submit.set_defaults(command=_submit)


def _submit(options: argparse.Namespace) -> int:
    """The job's own exit code."""
    from cluster.job_file import read_job_file

    address = options.address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address:
        raise ConfigError("submit needs --address URL, that of the cluster's dashboard")
    if not 0 <= options.first_wait <= 86400:
        raise ConfigError(f"--first-wait = {options.first_wait} is not allowed: 0 to 86400")
    job = read_job_file(options.file).extended(options.overrides, options.working_dir)
    from cluster.submit import submit_job

    return submit_job(
        job,
        address,
        not options.no_wait,
        lambda line: print(line, flush=True),
        options.first_wait,
    )
