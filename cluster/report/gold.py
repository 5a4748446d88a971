"""Proxy against gold in the report: two judges of the same held-out clips, and alarms."""

from __future__ import annotations

from cluster.report.data import RunData, series
from cluster.report.figures import Plot
from cluster.report.style import EMA, MUTED, PARTS, figure, line

BY = {
    "proxy": ("the reward's reconstructor", PARTS["recon"]),
    "gold": ("independent", PARTS["traj"]),
}
"""Rows' names of the two judges, with what they are and their colours."""


def gold_plot(run: RunData) -> list[Plot]:
    """Both judges over training; none where the independent one was not asked."""
    plot = figure(320)
    for name, (title, color) in BY.items():
        for rows, suffix, dash in ((run.evals, "", "dash"), (run.ema_evals, ", averaged", "solid")):
            x, y = series(rows, name, "mean")
            if x:
                curve = line(x, y, f"{title}{suffix}", color, width=1.8, dash=dash)
                plot.add_trace(curve.update(mode="lines+markers", marker={"size": 7}))
    if not series((*run.evals, *run.ema_evals), "gold", "mean")[0]:
        return []
    plot.update_yaxes(title_text="S_recon + S_traj")
    x, y = series((*run.evals, *run.ema_evals), "gold_failures")
    if any(y):
        plot.add_trace(
            line(x, y, "no camera found (clips)", MUTED, width=1, dash="dot").update(
                yaxis="y2", mode="markers", marker={"symbol": "x", "size": 7, "color": EMA}
            )
        )
        plot.update_layout(yaxis2={"overlaying": "y", "side": "right", "showgrid": False})
    caption = (
        "The same held-out clips, judged by the reward's own reconstructor and by an estimator "
        "with other data and another scene. Levels differ; directions must not."
    )
    return [Plot("gold", "Proxy against gold", caption, plot, wide=True)]


def alarm_texts(run: RunData) -> list[str]:
    """What the newest evaluation that was compared had to say, with its step."""
    if not run.alarms:
        return []
    newest = run.alarms[-1]
    return [f"after {newest['step']} steps: {alarm['text']}" for alarm in newest["alarms"]]
