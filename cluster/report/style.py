"""Colours and axes that all figures of a report share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

INK, MUTED, GRID, PAPER = "#1d2430", "#6b7280", "#e6e8ec", "#ffffff"
PARTS = {
    "recon": "#0072b2",
    "traj": "#d55e00",
    "reach": "#e69f00",
    "meta": "#009e73",
    "gen": "#aa4499",
}
"""One colour per reward part, distinct for colour-blind readers (Okabe and Ito; Tol's purple)."""
TOTAL, EMA = "#1d2430", "#b8860b"
DYNAMIC = "rgba(170, 68, 153, 0.10)"
STAGES = ("#4477aa", "#ee8866", "#44aa99", "#bbcc33", "#aaaaaa", "#99ddff", "#ddaa33")
FONT = "Inter, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


def figure(height: int = 280) -> go.Figure:
    """An empty figure in the report's style."""
    small = {"font": {"size": 12, "color": MUTED}}
    axis: dict[str, Any] = {
        "gridcolor": GRID,
        "zerolinecolor": GRID,
        "linecolor": "#b6bcc6",
        "ticks": "outside",
        "tickcolor": "#b6bcc6",
        "ticklen": 4,
        "exponentformat": "power",
        "title": {"standoff": 10, **small},
        "automargin": True,
    }
    steps = axis | {"title": {"text": "optimizer steps", "standoff": 8, **small}, "tickformat": "d"}
    layout: dict[str, Any] = {
        "template": {"layout": {"xaxis": steps, "yaxis": axis}},
        "height": height,
        "margin": {"l": 66, "r": 14, "t": 30, "b": 44},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "font": {"family": FONT, "size": 12, "color": INK},
        "hovermode": "x unified",
        "hoverlabel": {"font": {"family": FONT, "size": 12}},
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.0,
            "yanchor": "bottom",
            "font": {"size": 12},
        },
    }
    return go.Figure(layout=layout)


def line(
    x: Sequence[float | None],
    y: Sequence[float | None],
    name: str,
    color: str,
    *,
    width: float = 2.0,
    dash: str = "solid",
    legend: bool = True,
) -> go.Scatter:
    """A curve; single points are drawn as such."""
    return go.Scatter(
        x=list(x),
        y=list(y),
        name=name,
        mode="lines" if len(x) > 1 else "markers",
        line={"color": color, "width": width, "dash": dash},
        showlegend=legend,
        hovertemplate="%{y:.4g}",
    )


def faint(color: str, alpha: float) -> str:
    """#rrggbb as a transparent colour."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha})"


def joined(pieces: Sequence[Sequence[float]]) -> list[float | None]:
    """Pieces of a curve as one list with a gap between them."""
    return [value for piece in pieces for value in (*piece, None)][:-1]


def bridged(curve: Sequence[Sequence[float]]) -> list[list[float]]:
    """Pieces of a curve as a single one, without the gaps."""
    return [[value for piece in curve for value in piece]]


def band(
    x: Sequence[Sequence[float]],
    middle: Sequence[Sequence[float]],
    spread: Sequence[Sequence[float]],
    color: str,
) -> go.Scatter:
    """A filled band of plus and minus `spread` about the pieces of a curve."""
    outlines = [
        [
            *(m + s for m, s in zip(piece, spreads, strict=True)),
            *(m - s for m, s in zip(reversed(piece), reversed(spreads), strict=True)),
        ]
        for piece, spreads in zip(middle, spread, strict=True)
    ]
    return go.Scatter(
        x=joined([[*piece, *reversed(piece)] for piece in x]),
        y=joined(outlines),
        mode="lines",
        fill="toself",
        fillcolor=faint(color, 0.14),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def mark_phases(plot: go.Figure, spans: Sequence[tuple[float, float]]) -> None:
    """Shade the dynamic phases of every panel; the first is labelled where the word fits."""
    # One shade for each x axis: a second y axis lies over the first.
    axes = {trace.xaxis or "x": trace.yaxis or "y" for trace in reversed(plot.data)}
    shade = {"type": "rect", "y0": 0, "y1": 1, "fillcolor": DYNAMIC, "line_width": 0}
    # All at once: plotly copies what a figure has for each shape that is added to it.
    plot.layout.shapes += tuple(
        go.layout.Shape(x0=first, x1=last, xref=x, yref=f"{y} domain", layer="below", **shade)
        for first, last in spans
        for x, y in axes.items()
    )
    if spans and spans[0][1] - spans[0][0] > 0.06 * spans[-1][1]:
        plot.add_annotation(
            x=sum(spans[0]) / 2,
            y=1,
            yref="paper",
            yanchor="top",
            text="dynamic",
            showarrow=False,
            font={"size": 10, "color": PARTS["gen"]},
        )


def pieces(
    x: Sequence[float], y: Sequence[float], spans: Sequence[tuple[float, float]]
) -> tuple[list[list[float]], list[list[float]]]:
    """The parts of a curve outside some spans, one list each: phases are not averaged together."""
    xs: list[list[float]] = []
    ys: list[list[float]] = []
    before: int | None = None
    for point, value in zip(x, y, strict=True):
        if any(first < point < last for first, last in spans):
            continue
        after = sum(last <= point for _, last in spans)
        if after != before:
            xs.append([])
            ys.append([])
        before = after
        xs[-1].append(point)
        ys[-1].append(value)
    return xs, ys


def smoothed(curve: Sequence[Sequence[float]]) -> list[list[float]]:
    """Pieces of a curve under a centred mean over an eighth of it (3 to 51 points); what lies
    between the pieces is skipped, not averaged in."""
    values = [value for piece in curve for value in piece]
    half = max(1, min(25, len(values) // 16))
    soft = iter(
        sum(part) / len(part)
        for part in (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    )
    return [list(itertools.islice(soft, len(piece))) for piece in curve]
