"""VBench's sub-metrics, by the vbench package in a process and an environment of its own."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path, PurePath
from typing import Any

from cluster.config import ConfigError
from cluster.evaluation.figures import VBENCH
from cluster.evaluation.measure import ClipFigures
from cluster.evaluation.result import Side
from cluster.evaluation.vbench_driver import DIMENSIONS, NAME
from cluster.signals import sigterm_interrupts
from cluster.storage import RunFolder

TIMEOUT_S = 24 * 3600


def add_vbench(python: str, out: RunFolder, side: Side) -> Side:
    """A side with VBench's figures of its clips; ConfigError where the package cannot judge them.

    `python` is the interpreter of the environment.
    """
    with tempfile.TemporaryDirectory(prefix="wr1-vbench-") as temporary:
        videos, results = Path(temporary, "videos"), Path(temporary, "results")
        videos.mkdir()
        for clip, file in zip(side.clips, side.videos, strict=True):
            if "file" not in clip.failures:  # one that cannot be decoded would cost all the others
                (videos / PurePath(file).name).write_bytes(out.read_bytes(file))
        driver = Path(__file__).with_name("vbench_driver.py")
        try:
            with sigterm_interrupts():
                run = subprocess.run(
                    [python, str(driver), str(videos), str(results)],
                    capture_output=True,
                    text=True,
                    timeout=TIMEOUT_S,
                    check=False,
                )
        except subprocess.TimeoutExpired:
            raise ConfigError(f"--vbench {python!r} took longer than {TIMEOUT_S} s") from None
        stored = results / f"{NAME}_eval_results.json"
        if run.returncode or not stored.exists():
            last = (run.stderr.strip() or "no word").splitlines()[-1]
            raise ConfigError(f"--vbench {python!r} failed: {last}")
        try:
            figures = by_video(json.loads(stored.read_text()))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"--vbench {python!r} wrote what this version cannot read: "
                f"{type(error).__name__} {error}"
            ) from None
    judged = zip(side.clips, side.videos, strict=True)
    clips = [with_vbench(clip, figures.get(PurePath(file).name, {})) for clip, file in judged]
    return replace(side, clips=clips)


def with_vbench(clip: ClipFigures, found: Mapping[str, float]) -> ClipFigures:
    """A clip with VBench's figures; what it left out is a failure of "vbench"."""
    lacking = [name for name in DIMENSIONS if f"{VBENCH}{name}" not in found]
    failed = {"vbench": f"no {', '.join(lacking)}"} if lacking else {}
    return replace(clip, figures={**clip.figures, **found}, failures={**clip.failures, **failed})


def by_video(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Figures in percent by file name, out of what vbench writes: {dimension: [mean, [{video_path,
    video_results}, ...]]}. Imaging quality is in percent there already."""
    figures: dict[str, dict[str, float]] = {}
    for dimension in DIMENSIONS:
        _, rows = results[dimension]
        for row in rows:
            value = float(row["video_results"])
            if not isfinite(value):  # JSON as Python reads it has NaN; `with_vbench` counts it
                continue
            percent = value if dimension == "imaging_quality" else 100 * value
            name = PurePath(row["video_path"]).name
            figures.setdefault(name, {})[f"{VBENCH}{dimension}"] = percent
    return figures
