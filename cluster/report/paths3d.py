"""Requested against recovered camera paths in 3D."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from cluster.kept import KeptGroup
from cluster.report.style import INK, MUTED, figure

F64 = NDArray[np.float64]

MARKED = 3
"""Cameras of the requested path that are drawn as frusta."""
ASPECT = 96 / 64
FOCAL = 1.0
GAINED, LOST = (0, 114, 178), (213, 94, 0)
"""Colours of members with positive and negative advantage."""


def camera_figure(group: KeptGroup) -> go.Figure | None:
    """The group's paths, from outside; None where nothing was requested or reconstructed.

    World axes are turned for the eye: right, forward and up instead of right, down, forward.
    Translations of a recovered path carry the one scale that S_traj fitted.
    """
    recovered = [m for m in group.members if m.recovered_c2w is not None]
    recovered.sort(key=lambda member: -(member.advantage or 0.0))
    if group.requested_c2w is None or not recovered:
        return None
    requested = np.array(group.requested_c2w)
    every = [requested, *(np.array(m.recovered_c2w) for m in recovered)]
    size = 0.17 * max(
        float(np.ptp(np.concatenate([p[:, :3, 3] for p in every]), axis=0).max()), 0.5
    )
    plot = figure(400)
    best = max(abs(m.advantage or 0.0) for m in recovered) or 1.0
    for member, c2w in zip(recovered, every[1:], strict=True):
        advantage = member.advantage or 0.0
        color = _shade(advantage / best)
        name = f"{member.member + 1}: A {advantage:+.2f}".replace("-", "−")
        _add_path(plot, c2w, name, color, 3.0)
        _add_frusta(plot, c2w[-1:], size * 0.6, color, 1.5)
    _add_path(plot, requested, "requested", INK, 6.0)
    marked = np.unique(np.linspace(0, len(requested) - 1, MARKED).round().astype(int))
    _add_frusta(plot, requested[marked], size, INK, 3.0)
    axis = {
        "showbackground": True,
        "backgroundcolor": "#f6f7f9",
        "gridcolor": "#dde1e7",
        "zerolinecolor": "#dde1e7",
        "tickfont": {"size": 10, "color": MUTED},
        "nticks": 5,
        "showspikes": False,
    }
    small = {"font": {"size": 11, "color": MUTED}}
    plot.update_layout(
        hovermode="closest",
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        legend={
            "orientation": "v",
            "x": 0,
            "y": 1,
            "yanchor": "top",
            "font": {"size": 11},
            "bgcolor": "rgba(255, 255, 255, 0)",
        },
        scene={
            "xaxis": axis | {"title": {"text": "right", **small}},
            "yaxis": axis | {"title": {"text": "forward", **small}},
            "zaxis": axis | {"title": {"text": "up", **small}},
            "aspectmode": "data",
            "camera": {"eye": {"x": 1.42, "y": -2.33, "z": 1.27}, "center": {"z": -0.06}},
            "domain": {"x": [0.2, 1]},
        },
    )
    return plot


def _shade(strength: float) -> str:
    """Blue for gained, orange for lost, paler for less."""
    base = GAINED if strength >= 0 else LOST
    share = 0.35 + 0.65 * min(abs(strength), 1.0)
    red, green, blue = (round(255 - (255 - c) * share) for c in base)
    return f"rgb({red}, {green}, {blue})"


def _upright(points: F64) -> F64:
    """[..., 3] from (right, down, forward) to (right, forward, up)."""
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], axis=-1)


def _add_path(plot: go.Figure, c2w: F64, name: str, color: str, width: float) -> None:
    x, y, z = _upright(c2w[:, :3, 3]).T.round(5)
    plot.add_trace(
        go.Scatter3d(
            x=x,
            y=y,
            z=z,
            name=name,
            legendgroup=name,
            mode="lines+markers",
            line={"color": color, "width": width},
            marker={"size": 1.8, "color": color},
            hovertemplate="%{fullData.name}<extra></extra>",
        )
    )


def _add_frusta(plot: go.Figure, c2w: F64, size: float, color: str, width: float) -> None:
    """Wire pyramids of some cameras as one trace, hidden with the path added last."""
    group = plot.data[-1].legendgroup
    corners = np.array(
        [[x * ASPECT / 2, y / 2, FOCAL] for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    )
    gap = np.full((1, 3), np.nan)
    strokes: list[F64] = []
    for pose in c2w:
        apex, base = pose[None, :3, 3], pose[:3, 3] + size * corners @ pose[:3, :3].T
        edges = (np.concatenate([apex, corner[None], gap]) for corner in base)
        strokes += [base, base[:1], gap, *edges]
    x, y, z = _upright(np.concatenate(strokes)).T.round(5)
    plot.add_trace(
        go.Scatter3d(
            x=x,
            y=y,
            z=z,
            legendgroup=group,
            mode="lines",
            line={"color": color, "width": width},
            hoverinfo="skip",
            showlegend=False,
        )
    )
