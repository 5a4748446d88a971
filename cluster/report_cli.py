"""`worldr1 report RUN`: write or refresh the page of a run, during it or after it."""

from __future__ import annotations

import argparse
from typing import Any

from cluster.storage import absolute_url


def add_report_command(commands: Any) -> None:
    """Register the command with the subparsers of `worldr1`."""
    parser = commands.add_parser("report", help="write RUN/report/index.html, the page of a run")
    parser.add_argument("run", metavar="RUN", help="directory or fsspec URL of the run")
    parser.set_defaults(command=show_report)


def show_report(options: argparse.Namespace) -> int:
    """Write the report and print where it is; ConfigError where there is no run."""
    from cluster.report.page import write_report

    print(write_report(absolute_url(options.run)))
    return 0
