"""Writes the table of docs/cluster.md from the planner: `python docs/plan_table.py`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/cluster.md"
sys.path.insert(0, str(ROOT))

from cluster.config import load  # noqa: E402  after the path
from cluster.gpus import GPU_TYPES  # noqa: E402
from cluster.plan import make_plan  # noqa: E402

RUNS = (
    ("small", 48, "h200", ()),
    ("small", 48, "h200", ("overlap",)),
    ("large", 96, "h200", ()),
    ("large", 96, "h200", ("overlap",)),
    ("small-8gpu", 8, "h100", ()),
    ("small", 8, "h200", ()),
    ("small", 48, "a100-80g", ()),
)
HEAD = (
    "| preset | GPUs | rollout, reconstruction, judge, aesthetic, learner | main step | "
    "100 steps | GPU hours | GPU time at work |"
)


def table() -> str:
    """The table, a row for every run."""
    rows = [HEAD, "|---|---|---|---|---|---|---|"]
    for preset, gpus, kind, files in RUNS:
        split = make_plan(load(preset, files=files), GPU_TYPES[kind], gpus).split
        name = " ".join([preset, *(f"--config {file}" for file in files)])
        pools = ("rollout", "reconstruction", "judge", "aesthetic", "learner")
        workers = ", ".join(str(split.workers[pool]) for pool in pools)
        hours = 100 * split.mean_s / 3600
        rows.append(
            f"| `{name}` | {gpus} x {kind} | {workers} | {split.main.total:,.0f} s | "
            f"{hours:,.0f} h | {hours * gpus:,.0f} | {split.utilisation:.0%} |"
        )
    return "\n".join(rows) + "\n"


def page(text: str) -> str:
    """The page with its table renewed."""
    old = re.compile(re.escape(HEAD) + r"\n(\|.*\n)+")
    return old.sub(lambda _: table(), text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    print(PAGE)
