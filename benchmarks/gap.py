"""How far trained runs came from the base towards the ceiling, from evaluations that are there.

    python -m benchmarks.ceiling --out CEILING --pairs 66
    worldr1 evaluate CEILING --pairs 66 --out E/ceiling
    worldr1 evaluate base --pairs 66 --out E/base
    worldr1 evaluate RUN --pairs 66 --weights raw --out E/seed0        # and the other seeds
    python -m benchmarks.gap --base E/base --ceiling E/ceiling --runs E/seed0 E/seed1 E/seed2

A figure is averaged over the runs' seeds, pair by pair, before it is compared with the base's; 95 %
bootstrap intervals over prompts. The gap closed is given for figures that the ceiling leads in. The
goal is that of `worldr1 reproduce toy`; nothing is decided here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Result, machine, write
from cluster.evaluation.figures import figure_of
from cluster.evaluation.reproduction import against, gap_closed
from cluster.evaluation.result import Side, from_json

FIGURES = (
    "psnr", "ssim", "perceptual", "s_recon", "s_traj", "rot_err", "trans_err_rel", "trans_err_abs",
    "cam_mc_rel", "cam_mc_abs", "second.consistency", "mvcs", "second.traj", "second.rot_err",
    "second.cam_mc_rel", "second.cam_mc_abs", "gold", "motion", "sharpness", "content",
)  # fmt: skip


def read(folder: Path) -> Side:
    """The last side of an evaluation: the run's, where it was made `--against RUN`."""
    return from_json((folder / "evaluation.json").read_text()).sides[-1]


def rows(base: Side, runs: Sequence[Side], ceiling: Side, title: str) -> list[dict[str, Any]]:
    """A row for each figure that both sides have."""
    found = []
    for name in FIGURES:
        moved = against([base], runs, name)
        if moved is None:
            continue
        top = ceiling.estimate(name)
        higher = figure_of(name).better == "higher"
        closed = gap_closed([base], runs, [ceiling], name) if higher else None
        found.append(
            {
                "run": f"{name}, {title}",
                "runs": [run.title for run in runs],
                "pairs": moved.pairs,
                "base": round(moved.first, 4),
                "trained": round(moved.second, 4),
                "ceiling": None if top is None else round(top.mean, 4),
                "difference": round(moved.mean, 4),
                "interval": [round(moved.lower, 4), round(moved.upper, 4)],
                "verdict": moved.verdict(figure_of(name).better),
                "gap_closed": None if closed is None else [round(value, 4) for value in closed],
            }
        )
    return found


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--ceiling", type=Path, required=True)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--title", default="")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs = [read(folder) for folder in options.runs]
    title = options.title or f"{len(runs)} runs"
    found = rows(read(options.base), runs, read(options.ceiling), title)
    for row in found:
        low, high = row["interval"]
        closed = row["gap_closed"]
        print(
            f"{row['run'].partition(',')[0]:<20}{row['base']:>9.3f}{row['trained']:>9.3f}"
            f"{row['ceiling'] or float('nan'):>9.3f}{row['difference']:>+9.4f}"
            f"  [{low:+.4f}, {high:+.4f}]  {row['verdict']:<7}"
            + ("" if closed is None else f"{closed[0]:>+6.1%} [{closed[1]:+.1%}, {closed[2]:+.1%}]")
        )
    if options.json:
        write(options.json, Result("gap", machine(), found))


if __name__ == "__main__":
    main()
