"""What noise transport alone gives the untrained policy: `python -m benchmarks.camera_following`.

The committed base of the toy world on its *training* prompts, so that a strength chosen here was
not chosen on the prompts that are reported: same prompts and noise seeds at every setting, each
figure against plain noise (strength 0), pair by pair, with 95 % bootstrap intervals over prompts.
Four minutes a setting on one core; an evaluation that lies in --out is not made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.results import Result, machine, write
from cluster.config import load
from cluster.evaluation.figures import figure_of
from cluster.evaluation.reproduction import against
from cluster.evaluation.request import Request
from cluster.evaluation.result import Side, from_json
from cluster.evaluation.run import evaluate
from cluster.evaluation.sources import BASE, Source
from cluster.storage import RunFolder, absolute_url

PLAIN = (0.0, 0.0)
SETTINGS = (PLAIN, (0.35, 0.35), (0.6, 0.35), (0.6, 0.0), (0.9, 0.0))
"""`camera.strength` and `camera.degradation`: plain noise, the release's, and towards none but
transported noise."""
FIGURES = (
    "psnr", "ssim", "s_recon", "mvcs", "s_traj", "rot_err", "cam_mc_rel", "second.consistency",
    "second.traj", "second.rot_err", "second.cam_mc_rel", "gold", "motion", "sharpness", "content",
)  # fmt: skip


def evaluated(out: RunFolder, strength: float, degradation: float, pairs: int) -> Side:
    """The base's clips at one setting, measured; from `out` where they were before."""
    folder = RunFolder(f"{out.url}/strength-{strength:g}-degradation-{degradation:g}-{pairs}")
    if not folder.exists("evaluation.json"):
        config = load("toy", [f"camera.strength={strength}", f"camera.degradation={degradation}"])
        request = Request(
            sources=[Source(BASE, None, None)],
            config=config,
            prompts=config.prompts.train,
            pairs=pairs,
            frames=None,
            vbench=None,
            device="cpu",
        )
        evaluate(request, folder, lambda line: print(line, flush=True))
    (side,) = from_json(folder.read_text("evaluation.json")).sides
    return side


def row(name: str, plain: Side, side: Side) -> dict[str, Any]:
    """Each figure of a setting: its mean, the difference from plain noise, the interval of it."""
    found: dict[str, Any] = {"run": name}
    for figure in FIGURES:
        moved = against([plain], [side], figure)
        if moved is not None:
            found["pairs"] = max(moved.pairs, found.get("pairs", 0))
            found[figure] = {
                "mean": round(moved.second, 4),
                "difference": round(moved.mean, 4),
                "interval": [round(moved.lower, 4), round(moved.upper, 4)],
                "verdict": moved.verdict(figure_of(figure).better),
            }
    return found


def main() -> None:
    """Evaluate, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--out", default="camera_following", metavar="DIR")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    out = RunFolder(absolute_url(options.out))
    plain = evaluated(out, *PLAIN, options.pairs)
    for strength, degradation in SETTINGS:
        side = evaluated(out, strength, degradation, options.pairs)
        found = row(f"strength {strength:g}, degradation {degradation:g}", plain, side)
        print(f"{found['run']}, {found['pairs']} pairs")
        for figure in FIGURES:
            if figure in found:
                shown = found[figure]
                low, high = shown["interval"]
                print(
                    f"  {figure:<20}{shown['mean']:>9.3f}{shown['difference']:>+9.4f}"
                    f"  [{low:+.4f}, {high:+.4f}]  {shown['verdict']}"
                )
        if options.json:
            write(options.json, Result("camera_following", machine(), [found]))


if __name__ == "__main__":
    main()
