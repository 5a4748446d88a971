"""What the page is made of: phases kept apart, bins, refreshes, and where there is no run."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import plotly.graph_objects as go
import psutil
import pytest

from cluster.cli import main
from cluster.config import REPOSITORY, ConfigError, RunConfig
from cluster.report.data import MAX_POINTS, dynamic_spans, load_run, main_steps, series
from cluster.report.gold import gold_plot
from cluster.report.page import write_report
from cluster.report.refresh import Refresher
from cluster.report.style import joined, mark_phases, pieces, smoothed
from learner.config import ScheduleConfig
from learner.schedule import phase_of
from tests.cluster.made_run import make_run


def test_phases_become_spans_half_a_step_wider() -> None:
    schedule = ScheduleConfig(main_steps=3, dynamic_steps=2)
    assert dynamic_spans(schedule, 3) == []
    assert dynamic_spans(schedule, 4) == [(3.5, 4.5)]
    assert dynamic_spans(schedule, 10) == [(3.5, 5.5), (8.5, 10.5)]


def test_curves_are_cut_where_a_phase_lies_between() -> None:
    x, y = pieces([1, 2, 3, 4, 5, 6], [1, 1, 1, 9, 9, 2], [(3.5, 5.5)])
    assert (x, y) == ([[1, 2, 3], [6]], [[1, 1, 1], [2]])
    assert joined(x) == [1, 2, 3, None, 6]
    assert smoothed([[0.0, 3.0], [0.0, 3.0]]) == [[1.5, 1.0], [2.0, 1.5]]


def test_steps_of_two_phases_are_not_averaged_together() -> None:
    """A schedule of 8 and 4, so long that neighbours share a point; main steps are paid 3."""
    schedule = ScheduleConfig(main_steps=8, dynamic_steps=4)
    phases = [phase_of(step, schedule) for step in range(3000)]
    rows = [
        {"kind": "step", "step": s, "phase": p, "reward": {"mean": 3.0 if p == "main" else 0.9}}
        for s, p in enumerate(phases)
    ]
    x, y = series(main_steps(rows), "reward", "mean")
    assert len(x) == 1000
    assert set(y) == {3.0}
    assert min(series(rows, "reward", "mean")[1]) < 2.5


def test_long_curves_are_averaged_in_bins() -> None:
    rows = [{"kind": "step", "step": step, "loss": float(step)} for step in range(3 * MAX_POINTS)]
    x, y = series(rows, "loss")
    assert len(x) == MAX_POINTS
    assert (x[0], y[0]) == (2.0, 1.0)
    assert series(rows, "learner", "kl") == ([], [])


def test_report_is_refreshed_when_it_is_due_and_never_stops_a_run(
    smallest: Callable[..., RunConfig],
) -> None:
    config = smallest("steps=4")
    said: list[str] = []

    async def refresh(every_s: float) -> None:
        refresher = Refresher(config.run, every_s, said.append)
        refresher.refresh_if_due()
        await asyncio.sleep(0.02)
        refresher.refresh_if_due()
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        assert len(under_way) == (every_s == 0.01)
        await asyncio.gather(*under_way)

    asyncio.run(refresh(0.01))
    assert said == [
        f"the report was not written (RUN = {config.run!r} is not a run: it has no config.json)"
    ]
    folder = make_run(config, steps=2, groups=1, evals=(0,))
    asyncio.run(refresh(3600.0))
    asyncio.run(refresh(0.0))
    assert not folder.exists("report/index.html")
    asyncio.run(refresh(0.01))
    assert "2 / 4" in folder.read_text("report/index.html")
    assert len(said) == 1


def test_page_is_made_without_the_libraries_that_train() -> None:
    """A run makes it every minute in a process of its own, which has to start at once."""
    code = "import sys, cluster.cli, cluster.report.page; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "plotly" in loaded
    assert not loaded & {"torch", "ray", "diffusers", "peft", "cv2"}


def test_run_that_ends_during_a_refresh_leaves_no_process(
    smallest: Callable[..., RunConfig],
) -> None:
    config = smallest("steps=4")
    folder = make_run(config, steps=2, groups=1, evals=(0,))
    started: list[psutil.Process] = []
    before = {child.pid for child in psutil.Process().children()}

    async def leave() -> None:
        refresher = Refresher(config.run, 0.001, lambda _: None)
        await asyncio.sleep(0.01)
        refresher.refresh_if_due()
        while not started:
            await asyncio.sleep(0.01)
            started.extend(c for c in psutil.Process().children() if c.pid not in before)

    asyncio.run(leave())
    assert len(started) == 1
    assert not started[0].is_running()
    assert not folder.exists("report/index.html")


def test_phases_are_shaded_once_in_every_panel() -> None:
    plot = go.Figure(
        [
            go.Scatter(x=[0, 9], y=[0, 1]),
            go.Scatter(x=[0, 9], y=[0, 1], yaxis="y2"),
            go.Scatter(x=[0, 9], y=[0, 1], xaxis="x2", yaxis="y3"),
        ]
    )
    mark_phases(plot, [(1.5, 3.5), (6.5, 8.5)])
    assert [(s.x0, s.x1, s.xref, s.yref, s.layer) for s in plot.layout.shapes] == [
        (1.5, 3.5, "x2", "y3 domain", "below"),
        (1.5, 3.5, "x", "y domain", "below"),
        (6.5, 8.5, "x2", "y3 domain", "below"),
        (6.5, 8.5, "x", "y domain", "below"),
    ]
    (label,) = plot.layout.annotations
    assert (label.x, label.text) == (2.5, "dynamic")


def test_second_report_copies_only_what_is_missing(smallest: Callable[..., RunConfig]) -> None:
    config = smallest("steps=4")
    folder = make_run(config, steps=2, groups=1, evals=(0, 2))
    write_report(config.run)
    media = Path(config.run) / "report/media"
    files = {path: path.stat().st_mtime_ns for path in media.rglob("*.*")}
    # 2 members x (sample, re-rendering, meta-view, depth, cameras, Gaussians), 4 pairs x 2
    # evaluations, 4 averaged.
    assert len(files) == 12 + 8 + 4
    lost = next(iter(files))
    lost.unlink()
    write_report(config.run)
    again = {path: path.stat().st_mtime_ns for path in media.rglob("*.*")}
    assert {path for path in files if again[path] != files[path]} == {lost}
    assert folder.exists("report/plotly.min.js")


def test_alarms_and_both_judges_are_shown(smallest: Callable[..., RunConfig]) -> None:
    config = smallest("steps=4")
    folder = make_run(config, steps=4, groups=0, evals=(0, 4))
    write_report(config.run)
    page, figures = folder.read_text("report/index.html"), folder.read_text("report/figures.js")
    assert '<p class="alarm">after 4 steps: motion dies: 2.0 → 1.0</p>' in page
    assert 'data-plot="gold"' in page
    (plot,) = gold_plot(load_run(config.run))
    assert [(trace.name, list(trace.x)) for trace in plot.figure.data] == [
        ("the reward's reconstructor", [0, 4]),
        ("the reward's reconstructor, averaged", [4]),
        ("independent", [0, 4]),
        ("independent, averaged", [4]),
        ("no camera found (clips)", [0, 4, 4]),
    ]
    assert '"gold":' in figures


def test_where_there_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert "nowhere" in error
    assert "no config.json" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
    (tmp_path / "config.json").write_text(json.dumps({"stepz": 3}))
    with pytest.raises(ConfigError, match="another version"):
        load_run(str(tmp_path))
