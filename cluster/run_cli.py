"""`worldr1 audit` and `worldr1 replay`: looking at what a run has left behind."""

from __future__ import annotations

import argparse
from typing import Any

from cluster.storage import absolute_url


def add_run_commands(commands: Any) -> None:
    """Register the commands of this module on `argparse`'s sub-parsers."""
    audit = commands.add_parser(
        "audit", help="prove from a run's ledger that every group trained once or was dropped"
    )
    audit.add_argument("run", metavar="RUN", help="directory or fsspec URL of the run")
    audit.set_defaults(command=_audit)


def _audit(options: argparse.Namespace) -> int:
    """0 where everything is in order, 1 where the report has a finding."""
    from cluster.audit import audit_run

    report = audit_run(absolute_url(options.run))
    for line in report.lines():
        print(line)
    return 1 if report.findings else 0
