"""The live view: what it shows, that it stays out of logs, and its arithmetic."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console

from cluster.clocks import Meter
from cluster.live import Lines, Panel, open_view, sparkline
from tests.cluster.made_run import step_row


def row(step: int, phase: str = "main", **changes: Any) -> dict[str, Any]:
    return {**step_row(step, phase), "failures": {}, "update_skipped": False, **changes}


def shown(panel: Panel) -> str:
    output = io.StringIO()
    Console(file=output, width=120, force_terminal=True, color_system=None).print(panel)
    return output.getvalue()


def test_sparkline_reaches_from_least_to_greatest() -> None:
    assert sparkline([1.0, 2.0, 3.0, 8.0]) == "▁▂▃█"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([2.0]) == ""
    assert sparkline([1.0, math.nan, 8.0, math.inf]) == "▁█", "a skipped update has no KL"
    assert sparkline([math.nan, 1.0]) == ""
    assert len(sparkline([float(i) for i in range(99)])) == 32


def test_panel_shows_progress_parts_pools_and_last_failures() -> None:
    meters = {"rollout": Meter(3), "reconstruction": Meter(40), "learner": Meter(1)}
    meters["rollout"].change(busy=2, waiting=5)
    panel = Panel(Console(file=io.StringIO()))
    panel.watch("/runs/night", 20, 0, meters)
    assert "step 0/20" in shown(panel)
    for step in range(4):
        reason = {f"judge: no answer within {step} s": 1}
        panel.log(row(step, failures=reason, reward={"mean": 3.0 + step, "std": 0.25}))
    panel.log({"kind": "eval", "step": 4})
    text = shown(panel)
    for words in (
        "night",
        "main",
        "step 4/20",
        "4.0 s a step",
        "ETA 1:0",
        "6.000 ±0.250",
        "▁▃▆█",
        "●●○",
        "2/3 busy, 5 waiting",
        "0/40 busy",
        "step 4: judge: no answer within 3 s (1 x)",
    ):
        assert words in text, (words, text)
    assert "within 0 s" not in text
    panel.log(row(4, "dynamic", parts={"gen": {"mean": 0.9, "std": 0.1, "n": 8}}))
    assert "recon " not in shown(panel).replace("reconstruction", "")


def test_output_that_is_no_terminal_gets_the_lines_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open_view(Console(file=io.StringIO())) as view:
        assert isinstance(view, Lines)
        view.watch("run", 3, 0, {})
        view.log(row(0))
        view.say("step    1/3 main [not markup]")
    assert capsys.readouterr().out == "step    1/3 main [not markup]\n"


def test_terminal_keeps_the_lines_and_loses_the_panel_at_the_end() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100, color_system=None)
    with open_view(console) as view:
        view.watch("run", 3, 0, {"rollout": Meter(1)})
        view.say("proof [ok]")
    text = output.getvalue()
    assert "proof [ok]\n" in text
    assert "step 0/3" in text
    assert text.rstrip().endswith("\x1b[2K")  # the panel's last line is erased
