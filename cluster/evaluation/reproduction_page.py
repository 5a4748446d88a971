"""The reproduction as one page: the paper's tables next to ours, verdicts, curves, clips."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.offline

from cluster.evaluation.figures import figure_of
from cluster.evaluation.page import page
from cluster.evaluation.paper import ABLATION_COLUMNS, ABLATIONS, MAIN, MAIN_COLUMNS
from cluster.evaluation.reproduce import Plan
from cluster.evaluation.reproduction import (
    VARIANTS,
    Goal,
    against,
    goals,
    of_the_same_seeds,
    seed_mean,
)
from cluster.evaluation.result import ARROWS, Side, change
from cluster.evaluation.statistics import estimate
from cluster.report.style import PARTS, STAGES, figure, line
from cluster.rows import read_rows
from cluster.storage import RunFolder

COLUMNS = (
    "psnr", "ssim", "perceptual", "mvcs", "second.consistency", "s_traj", "second.traj", "rot_err",
    "trans_err_rel", "cam_mc_rel", "second.rot_err", "second.cam_mc_rel", "warp_error", "motion",
    "sharpness", "content", "aesthetic",
)  # fmt: skip
TITLES = {
    "base": "base, the preset's noise",
    "base-plain-noise": "base, plain noise",
    "base-untrained": "base, noise transport of the runs",
    "ceiling": "ceiling: ground truth through the VAE",
}
SHOWN = ("base", "full", "no_noise_transport", "no_general_reward", "ceiling")
SHOWN_CLIPS = 12
CURVES = {"reward": ("reward", "mean"), "PSNR": ("raw", "psnr", "mean"), "gold": ("gold", "mean")}

DIFFERENCES = (
    "Means over pairs, each averaged over a variant's runs first; behind them the paired "
    "difference with its 95 % interval over prompts: of references and the full method from the "
    "base, of an ablation from the full method's runs of the same seeds. Failures count clips that "
    "a scorer found nothing in."
)

Sides = Mapping[str, Sequence[Side]]


def write_reproduction(out: RunFolder, plan: Plan, sides: Sides) -> None:
    """Write `reproduction.json`, `reproduction.md`, the page and what it needs."""
    verdicts = goals(sides)
    out.write_text("reproduction.json", _as_json(plan, sides, verdicts))
    out.write_text("reproduction.md", as_markdown(plan, sides, verdicts))
    if not out.exists("plotly.min.js"):
        out.write_text("plotly.min.js", plotly.offline.get_plotlyjs())
    curves = {name: _curve(out, path) for name, path in CURVES.items()}
    html = page(
        "reproduction.html.j2",
        plan=plan,
        goals=verdicts,
        columns=[_head(name) for name in COLUMNS],
        rows=table(sides),
        differences=DIFFERENCES,
        missing=[v.title for v in VARIANTS if not sides.get(v.name)],
        paper_main=(MAIN_COLUMNS, MAIN),
        paper_columns=ABLATION_COLUMNS,
        paper=ABLATIONS,
        curves={name: plot.to_json() for name, plot in curves.items()},
        clips=_clips(sides),
        titles=[_title(name) for name in SHOWN if sides.get(name)],
    )
    out.write_text("index.html", html)


TRAINED = "full-against-untrained"
"""The full method's row again, compared with the untrained policy that samples with its noise: what
training adds to noise transport."""


def table(sides: Sides) -> list[dict[str, Any]]:
    """A row for every reference and variant that is there: means with intervals, and the paired
    difference from the base (references and the full method) or from the full method
    (ablations)."""
    rows = []
    for name, own_name, reference in _rows():
        own = sides.get(own_name)
        if not own or (name == TRAINED and not sides.get(reference)):
            continue
        others = sides.get(reference, ())
        if reference == "full":
            others = of_the_same_seeds(others, own)
        rows.append(
            {
                "name": name,
                "own": own_name,
                "title": _title(name),
                "runs": len(own),
                "reference": reference,
                "failures": _failures(own),
                "cells": [_cell(own, others, name, column) for column in COLUMNS],
            }
        )
    return rows


def _rows() -> Iterator[tuple[str, str, str]]:
    """Name, whose figures, and what they are compared with."""
    yield from ((name, name, "base") for name in (*TITLES, "full"))
    yield TRAINED, "full", "base-untrained"
    yield from ((v.name, v.name, "full") for v in VARIANTS if v.name != "full")


def _failures(own: Sequence[Side]) -> str:
    """ "second 1" for the clips of all runs that a scorer failed on, or "none"."""
    counts: Counter[str] = Counter()
    for side in own:
        counts.update(side.failures())
    return ", ".join(f"{who} {count}" for who, count in sorted(counts.items())) or "none"


def _cell(own: Sequence[Side], reference: Sequence[Side], name: str, column: str) -> dict[str, str]:
    values = seed_mean(own, column)
    if not values:
        return {"value": "–", "change": "", "verdict": ""}
    shown = figure_of(column)
    found = estimate(list(values.values()), [prompt for prompt, _ in values])
    ends = ""
    if math.isfinite(found.lower):
        ends = f"[{found.lower:.{shown.digits}f}, {found.upper:.{shown.digits}f}]"
    cell = {"value": f"{found.mean:.{shown.digits}f}", "ends": ends, "change": "", "verdict": ""}
    moved = None if own is reference else against(reference, own, column)
    if moved is not None and name != "base":
        cell |= {"change": change(moved, shown.digits), "verdict": moved.verdict(shown.better)}
    return cell


def as_markdown(plan: Plan, sides: Sides, verdicts: Sequence[Goal]) -> str:
    """The verdicts and the table, for a terminal or a repository."""
    marks = {True: "met", False: "MISSED", None: "not run"}
    lines = [f"# Reproduction of the toy preset: {plan.steps} steps, {plan.pairs} pairs", ""]
    lines += [f"- {marks[goal.met]}: {goal.text}" for goal in verdicts]
    heads = " | ".join(_head(c)["title"] for c in COLUMNS)
    lines += ["", f"| | runs | failures | {heads} |", "|---|" + "---|" * (len(COLUMNS) + 2)]
    for row in table(sides):
        cells = " | ".join(
            " ".join(part for part in (cell["value"], cell["change"]) if part)
            for cell in row["cells"]
        )
        lines.append(f"| {row['title']} | {row['runs']} | {row['failures']} | {cells} |")
    lines += ["", DIFFERENCES]
    return "\n".join([*lines, ""])


def _as_json(plan: Plan, sides: Sides, verdicts: Sequence[Goal]) -> str:
    tree = {
        "plan": {"steps": plan.steps, "pairs": plan.pairs, "overrides": list(plan.overrides)},
        "goals": [{"goal": goal.text, "met": goal.met} for goal in verdicts],
        "rows": {
            row["name"]: {
                "runs": row["runs"],
                **dict(zip(COLUMNS, row["cells"], strict=True)),
                "failures": row["failures"],
                "means": {c: _mean(sides[row["own"]], c) for c in COLUMNS},
            }
            for row in table(sides)
        },
    }
    return json.dumps(tree, indent=1)


def _mean(own: Sequence[Side], column: str) -> float | None:
    values = list(seed_mean(own, column).values())
    return float(np.mean(values)) if values else None


def _title(name: str) -> str:
    if name == TRAINED:
        return "full method, against the base with its noise"
    return TITLES.get(name) or next(v.title for v in VARIANTS if v.name == name)


def _head(name: str) -> dict[str, str]:
    shown = figure_of(name)
    second = " (independent)" if name.startswith("second.") else ""
    unit = f" {shown.unit}" if shown.unit else ""
    return {"title": f"{shown.title}{second}", "note": f"{unit} {ARROWS[shown.better]}".strip()}


def _curve(out: RunFolder, path: tuple[str, ...]) -> go.Figure:
    """Held-out figures of every run over its steps, averaged weights where there are some."""
    plot = figure(300)
    colors = [*PARTS.values(), *STAGES]
    for number, variant in enumerate(VARIANTS):
        for seed in variant.seeds:
            x, y = [], []
            for row in read_rows(RunFolder(f"{out.url}/runs/{variant.name}-seed{seed}")):
                value: Any = row if row["kind"] == ("ema" if row["step"] else "eval") else None
                for key in path:
                    value = value.get(key) if isinstance(value, Mapping) else None
                if isinstance(value, int | float):
                    x.append(float(row["step"]))
                    y.append(float(value))
            if x:
                color = colors[number % len(colors)]
                curve = line(x, y, variant.title, color, legend=seed == variant.seeds[0])
                plot.add_trace(curve.update(mode="lines+markers"))
    return plot


def _clips(sides: Sides) -> list[dict[str, Any]]:
    """The first prompts, by the first run of each shown variant."""
    shown = [(name, sides[name][0]) for name in SHOWN if sides.get(name)]
    if not shown:
        return []
    tables = [
        {(c.prompt_id, c.seed): v for c, v in zip(s.clips, s.videos, strict=bool(s.videos))}
        for _, s in shown
    ]
    return [
        {
            "prompt": clip.prompt,
            "cells": [
                {"title": _title(name), "video": videos.get((clip.prompt_id, clip.seed), "")}
                for (name, _), videos in zip(shown, tables, strict=True)
            ],
        }
        for clip in shown[0][1].clips[:SHOWN_CLIPS]
    ]
