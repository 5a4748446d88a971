"""`worldr1 doctor PRESET`: can this run start here, or on the cluster of RAY_ADDRESS?"""

from __future__ import annotations

import argparse
import os
from typing import Any

from cluster.config import RunConfig, load, preset_names


def add_doctor_command(commands: Any) -> None:
    """Register the command on `argparse`'s sub-parsers."""
    doctor = commands.add_parser(
        "doctor", help="check GPUs, versions, weights, disk, store, ports before a run"
    )
    doctor.add_argument("preset", help=f"one of {', '.join(preset_names())}, or a .toml file")
    doctor.add_argument("overrides", nargs="*", metavar="key=value")
    doctor.add_argument("--config", action="append", default=[], metavar="FILE")
    doctor.add_argument("--run", metavar="URL", help="folder of the run, for the store's check")
    doctor.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    """0 where every check is ok, else 1."""
    config = load(options.preset, options.overrides, options.config, options.run)
    findings = _through_ray(config) if os.environ.get("RAY_ADDRESS") else check_here(config)
    for finding in findings:
        print(finding.line())
    failed = sum(not finding.ok for finding in findings)
    print(f"{failed} of {len(findings)} checks failed" if failed else "ready to start")
    return 1 if failed else 0


def _through_ray(config: RunConfig) -> list[Any]:
    from cluster.handles import check_cluster, connect

    connect()
    return check_cluster(config)


def check_here(config: RunConfig) -> list[Any]:
    """Findings of this machine alone, as a cluster of one node with all of its resources."""
    import platform
    from importlib.metadata import version

    from cluster.doctor import ClusterFacts, diagnose, gpu_type_of, probe_request
    from cluster.layout import Node
    from cluster.probe import probe

    report = probe(probe_request(config))
    kind = gpu_type_of(report.gpus[0][0]) if report.gpus else None
    node = Node(
        report.node, float(os.cpu_count() or 1), len(report.gpus), kind.ray_name if kind else ""
    )
    # One clock: its skew against itself is none.
    now = (report.time, report.time)
    facts = ClusterFacts((node,), "", version("ray"), platform.python_version(), (now,))
    return diagnose(config, [report], facts)
