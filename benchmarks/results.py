"""What every benchmark writes: its rows with machine, versions and date."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import diffusers
import torch


@dataclass(frozen=True, slots=True)
class Result:
    """One committed result."""

    benchmark: str
    machine: dict[str, Any]
    rows: list[dict[str, Any]]


def machine() -> dict[str, Any]:
    """Where and with what a benchmark ran."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def write(path: Path, result: Result) -> list[dict[str, Any]]:
    """Write a result as JSON; rows of other runs in an existing file stay, by their "run".

    Returns all rows of the file.
    """
    rows = {str(row.get("run", index)): row for index, row in enumerate(result.rows)}
    if path.exists():
        old = json.loads(path.read_text())["rows"]
        rows = {str(row.get("run", index)): row for index, row in enumerate(old)} | rows
    merged = Result(result.benchmark, result.machine, list(rows.values()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(merged), indent=1) + "\n")
    return merged.rows


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
