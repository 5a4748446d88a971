"""Curves of a run: rewards, policy, guarded measurements, clocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from cluster.report.data import Row, RunData, dynamic_spans, main_steps, series
from cluster.report.style import (
    EMA,
    MUTED,
    PARTS,
    STAGES,
    TOTAL,
    band,
    bridged,
    figure,
    joined,
    line,
    mark_phases,
    pieces,
    smoothed,
)

PART_TITLES = {
    "recon": "S_recon · one consistent place",
    "traj": "S_traj · the camera obeys",
    "reach": "S_reach · the camera goes as far as asked",
    "meta": "S_meta · unseen view holds up",
    "gen": "R_gen · frames look right",
}
GUARDED = {
    "sharpness": "sharpness (mean neighbour difference, grey levels)",
    "motion": "motion magnitude (px per frame)",
    "content": "content (share of the prompt's objects found)",
    "psnr": "PSNR of the re-rendering (dB)",
}
"""What a policy would sacrifice to please the proxy, by its name in `raw`."""
MANY_PHASES = 6
"""Dynamic phases beyond which a curve is drawn over their gaps."""
LEAST_SHARE = 0.1
"""Share of its mean that the axis of a guarded measurement reaches up and down at least."""

PIPELINE = ("rollout", "reconstruction", "judge", "aesthetic", "learner")
"""Stages in the order in which a sample passes them."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure and what to read in it."""

    name: str
    title: str
    caption: str
    figure: go.Figure
    wide: bool = False


def reward_plots(run: RunData) -> list[Plot]:
    """The total reward, then each part on its own."""
    total = Plot(
        "reward",
        "Total reward",
        "Line: smoothed mean of each step's samples, which differ in prompts and noise; band: one "
        "standard deviation over samples. Diamonds: the held-out pairs, the same at every point. "
        "A dynamic step is paid R_gen alone and is left out.",
        _reward(run, ("reward",), TOTAL, 340),
        wide=True,
    )
    parts = [
        Plot(f"part-{part}", PART_TITLES[part], "", _reward(run, ("parts", part), color, 230))
        for part, color in PARTS.items()
        if series(run.steps, "parts", part, "mean")[0]
    ]
    return [total, *parts]


def _reward(run: RunData, path: tuple[str, ...], color: str, height: int) -> go.Figure:
    plot = figure(height)
    tall = height > 300
    spans = dynamic_spans(run.config.schedule, run.done)
    rows = run.steps if path[-1] == "gen" else main_steps(run.steps)
    x, mean = series(rows, *path, "mean")
    _, spread = series(rows, *path, "std")
    if x:
        # R_gen is paid in both phases, the total and the other parts are whole in the main one.
        xs, means = pieces(x, mean, [] if path[-1] == "gen" else spans)
        _, spreads = pieces(x, spread, [] if path[-1] == "gen" else spans)
        soft, raw = smoothed(means), line(joined(xs), joined(means), "step", color, legend=tall)
        if len(spans) > MANY_PHASES:  # dashes of a few steps say nothing: one curve over them all
            xs, soft, spreads = (bridged(curve) for curve in (xs, soft, smoothed(spreads)))
            means = soft
            raw.update(opacity=0.3)
        plot.add_trace(band(xs, means, spreads, color))
        plot.add_trace(raw.update(line={"width": 0.8, "dash": "dot"}))
        plot.add_trace(line(joined(xs), joined(soft), "smoothed", color, width=2.4, legend=tall))
    for rows, name, shade in (
        (run.evals, "held out", color),
        (run.ema_evals, "held out, averaged weights", EMA),
    ):
        at, values = series(rows, *path, "mean")
        if at:
            plot.add_trace(
                go.Scatter(
                    x=at,
                    y=values,
                    name=name,
                    mode="lines+markers",
                    line={"color": shade, "width": 1, "dash": "dash"},
                    marker={"symbol": "diamond", "size": 9, "color": "white"}
                    | {"line": {"color": shade, "width": 2}},
                    showlegend=tall,
                    hovertemplate="%{y:.4g}",
                )
            )
    mark_phases(plot, spans)
    plot.update_layout(margin={"t": 34 if tall else 10})
    return plot


def policy_plots(run: RunData) -> list[Plot]:
    """KL, ratio per window step, muted shares, gradient norm."""
    windows = sorted(
        {name.split("/")[0] for row in run.steps for name in row["learner"] if "/" in name},
        key=lambda name: int(name.removeprefix("window_")),
    )
    kl = figure()
    for number, window in enumerate(windows):
        x, y = series(run.steps, "learner", f"{window}/kl")
        kl.add_trace(line(x, y, f"window step {number}", STAGES[number % len(STAGES)], width=1.3))
    x, y = series(run.steps, "learner", "kl")
    kl.add_trace(line(x, y, "mean", TOTAL))
    kl.update_yaxes(title_text="KL", rangemode="tozero")
    ratio = figure()
    for number, window in enumerate(windows):
        x, y = series(run.steps, "learner", f"{window}/ratio_max_dev")
        color = STAGES[number % len(STAGES)]
        ratio.add_trace(line(x, y, f"window step {number}", color, width=1.6))
    ratio.add_hline(y=run.config.learner.clip_range, line={"dash": "dot", "color": MUTED})
    ratio.add_annotation(
        x=1, xref="paper", y=run.config.learner.clip_range, text="clip range", xanchor="right",
        yanchor="bottom", showarrow=False, font={"size": 10, "color": MUTED},
    )  # fmt: skip
    ratio.update_yaxes(title_text="largest |r - 1|", rangemode="tozero")
    muted = figure()
    for name, title, color, dash in (
        ("muted_positive", "of A > 0", PARTS["meta"], "solid"),
        ("muted_negative", "of A < 0", PARTS["traj"], "dash"),  # both are 0 in most runs
    ):
        x, y = series(run.steps, "learner", name)
        muted.add_trace(line(x, y, title, color, dash=dash))
    muted.update_yaxes(title_text="share without gradient", range=[-0.03, 1.03])
    norm = figure()
    x, y = series(run.steps, "grad_norm")
    norm.add_trace(line(x, y, "gradient norm", PARTS["recon"]))
    norm.update_yaxes(title_text="before clipping", rangemode="tozero")
    plots = [
        Plot("kl", "KL", "How far the policy has gone from where it started.", kl),
        Plot(
            "ratio",
            "Ratio per window step",
            "0 while every batch is used for one update: rollout and learner then compute the "
            "same density to the last bit.",
            ratio,
        ),
        Plot("muted", "Muted shares", "Samples whose gradient the clip removed.", muted),
        Plot("gradient", "Gradient", "Norm of the LoRA's gradient.", norm),
    ]
    for plot in plots:
        mark_phases(plot.figure, dynamic_spans(run.config.schedule, run.done))
    return plots


def guard_plots(run: RunData) -> list[Plot]:
    """The proxy beside each measurement that a reward hacker would give up."""
    plots = []
    spans = dynamic_spans(run.config.schedule, run.done)
    main = main_steps(run.steps)
    proxy_x, proxy = pieces(*series(main, "reward", "mean"), spans)
    for name, title in GUARDED.items():
        xs, ys = pieces(*series(main, "raw", name, "mean"), spans)
        at, held = series(run.evals, "raw", name, "mean")
        if not xs and not at:
            continue
        plot = figure(260)
        curves = {"y2": smoothed(proxy), "y": smoothed(ys)}
        for axis, points, label, color, width in (
            ("y2", proxy_x, "reward", "#9aa3b2", 1.6),
            ("y", xs, name, PARTS["recon"], 2.4),
        ):
            values = curves[axis]
            if len(spans) > MANY_PHASES:
                points, values = bridged(points), bridged(values)
            soft = line(joined(points), joined(values), label, color, width=width)
            plot.add_trace(soft.update(yaxis=axis))
        if at:
            plot.add_trace(
                line(at, held, f"{name}, held out", PARTS["recon"], width=1, dash="dash").update(
                    mode="lines+markers", marker={"symbol": "diamond", "size": 8}
                )
            )
        mark_phases(plot, spans)
        ranges = _equal_shares(
            [v for piece in curves["y2"] for v in piece],
            [*held, *(v for piece in curves["y"] for v in piece)],
        )
        plot.update_layout(
            yaxis={"range": ranges[1]},
            yaxis2={
                "overlaying": "y",
                "side": "right",
                "showgrid": False,
                "title": {"text": "reward", "standoff": 6, "font": {"size": 12, "color": MUTED}},
                "tickfont": {"color": MUTED},
                "nticks": 5,
                "tickmode": "auto",  # an overlaid axis would take the other's places
                "range": ranges[0],
            },
            margin={"r": 66},
        )
        plots.append(Plot(f"guard-{name}", title[:1].upper() + title[1:], "", plot))
    return plots


def _equal_shares(*curves: Sequence[float]) -> list[list[float] | None]:
    """Axis ranges that span the same share of each curve's mean, at least `LEAST_SHARE` up and
    down, so that a small drift looks small and a rise of one compares with a fall of the other;
    None, left to the library, where a curve has no mean to speak of."""
    middles = [sum(curve) / len(curve) if curve else 0.0 for curve in curves]
    shares = [
        max(abs(value - middle) for value in curve) / abs(middle)
        for curve, middle in zip(curves, middles, strict=True)
        if abs(middle) > 1e-9
    ]
    share = max([LEAST_SHARE, *(1.15 * share for share in shares)])
    return [
        [middle - share * abs(middle), middle + share * abs(middle)] if abs(middle) > 1e-9 else None
        for middle in middles
    ]


def clock_plots(run: RunData) -> list[Plot]:
    """Seconds of each stage, and what became of groups and samples."""
    clocks = figure()
    names = sorted({name for row in run.steps for name in row["seconds"]} - {"step"})
    for number, name in enumerate(names):
        x, y = series(run.steps, "seconds", name)
        clocks.add_trace(line(x, y, name, STAGES[number % len(STAGES)], width=1.8))
    x, y = series(run.steps, "seconds", "step")
    clocks.add_trace(line(x, y, "whole step", TOTAL, width=1.2, dash="dot"))
    clocks.update_yaxes(title_text="seconds", rangemode="tozero")
    mark_phases(clocks, dynamic_spans(run.config.schedule, run.done))
    lost = figure()
    for number, (name, rows) in enumerate(_losses(run.steps).items()):
        x, y = series(rows, "count")
        lost.add_trace(
            go.Bar(x=x, y=y, name=name, marker={"color": STAGES[number]}, hovertemplate="%{y}")
        )
    lost.update_layout(barmode="stack", showlegend=True)
    most = max(
        (sum(row["groups"].values()) + row["failed_members"] for row in run.steps), default=0
    )
    step = {"dtick": 1} if most <= 8 else {}  # no "1, 1, 2, 2" on the axis of whole numbers
    lost.update_yaxes(title_text="count", rangemode="tozero", tickformat="d", **step)
    return [
        *_shares(run),
        *_pools(run),
        Plot("clocks", "Stage clocks", "Stages overlap: their sum may exceed the step.", clocks),
        Plot(
            "losses",
            "Groups and samples",
            "Groups that trained, groups dropped because their rewards were equal or too few "
            "members could be scored, and samples without a score.",
            lost,
        ),
    ]


def _pools(run: RunData) -> list[Plot]:
    """Workers of each pool, where pools came and went."""
    plot, sizes = figure(), []
    for number, name in enumerate(PIPELINE):
        x, y = series(run.steps, "stages", name, "workers")
        if y and max(y) - min(y) > 0.01:
            sizes.append(max(y))
            plot.add_trace(line(x, y, name, STAGES[number % len(STAGES)], width=1.8))
    if not sizes:
        return []
    plot.update_yaxes(title_text="workers", rangemode="tozero")
    caption = (
        "Mean number of workers that took calls, of the pools whose number changed: elastic ones "
        "grow and shrink, and a worker that died is missing until it is back."
    )
    return [Plot("pools", "Workers", caption, plot)]


def _shares(run: RunData) -> list[Plot]:
    """What the workers of each stage did, as shares of their time over the whole run."""
    known = {name for row in run.steps for name in row.get("stages", {})}
    names = [*(name for name in PIPELINE if name in known), *sorted(known - set(PIPELINE))]
    if not names:
        return []
    # The first interval began before the first step: it holds start-up and first evaluation.
    rows = [row for row in run.steps[1:] or run.steps if "stages" in row]
    shares = figure(240)
    for what, color in (("busy", "#4477aa"), ("starved", "#e3e6eb"), ("blocked", "#ee8866")):
        values = []
        for name in names:
            seconds = {
                key: sum(row["stages"].get(name, {}).get(f"{key}_s", 0.0) for row in rows)
                for key in ("busy", "starved", "blocked")
            }
            values.append(seconds[what] / (sum(seconds.values()) or 1.0))
        shares.add_trace(
            go.Bar(
                x=values,
                y=names,
                orientation="h",
                name=what,
                marker={"color": color},
                hovertemplate="%{x:.0%}",
            )
        )
    shares.update_layout(
        barmode="stack",
        hovermode="y unified",
        margin={"l": 104, "r": 24},
        legend={"traceorder": "normal"},
    )
    shares.update_xaxes(title_text="share of the workers' time", tickformat=".0%", range=[0, 1])
    shares.update_yaxes(autorange="reversed")
    counts = Counter(row["bottleneck"] for row in run.steps if row.get("bottleneck"))
    caption = "Starved: nothing to do yet. Blocked: the stages behind must catch up first."
    if counts:
        name, count = counts.most_common(1)[0]
        caption += f" The bottleneck was {name} in {count} of {len(run.steps)} steps."
    return [Plot("shares", "Who waits for whom", caption, shares, wide=True)]


def _losses(steps: tuple[Row, ...]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows with a `count` for every outcome that happened at all."""
    counts: dict[str, list[Mapping[str, Any]]] = {}
    for row in steps:
        outcomes = dict(row["groups"]) | {"samples unscored": row["failed_members"]}
        for name, count in outcomes.items():
            counts.setdefault(name.replace("_", " "), []).append(
                {"kind": "step", "step": row["step"], "count": count}
            )
    return {name: rows for name, rows in counts.items() if any(row["count"] for row in rows)}
