"""TensorBoard files: which scalars, in one curve after a resume; what a missing package says."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.cli import main
from cluster.config import ConfigError
from cluster.storage import RunFolder
from cluster.trackers import open_tracker, require_tracker, scalars
from tests.cluster.made_run import step_row


def test_every_finite_number_of_a_row_is_a_scalar() -> None:
    row = {
        "kind": "step",
        "step": 3,
        "time": 1.0,
        "phase": "main",
        "loss": math.nan,
        "update_skipped": True,
        "parts": {"recon": {"mean": 0.5, "n": 2}},
        "bottleneck": "judge",
    }
    assert scalars(row) == {
        "step/update_skipped": 1.0,
        "step/parts/recon/mean": 0.5,
        "step/parts/recon/n": 2.0,
    }


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, round(event.value, 6)) for event in events.Scalars(name)]


def test_resumed_run_goes_on_in_the_same_curve(tmp_path: Path) -> None:
    """Steps 2 and 3 of the first start were lost with it: the second start replaces them."""
    folder = RunFolder(str(tmp_path))
    first = open_tracker("tensorboard", folder, 0, None, {})
    for step in range(4):
        first.log({**step_row(step, "main"), "loss": float(step)})
    first.log({"kind": "eval", "step": 4, "reward": {"mean": 2.5}})
    first.close()
    second = open_tracker("tensorboard", folder, 2, first.run_id, {})
    second.log({**step_row(2, "main"), "loss": 20.0})
    second.close()
    board = tmp_path / "tensorboard"
    assert curve(board, "step/loss") == [(1, 0.0), (2, 1.0), (3, 20.0)]
    assert len(list(board.iterdir())) == 2


def test_events_reach_a_store_that_is_no_disk() -> None:
    folder = RunFolder("memory://trackers/run")
    tracker = open_tracker("tensorboard", folder, 0, None, {})
    tracker.log({**step_row(0, "main"), "loss": 1.0})
    tracker.close()
    (name,) = folder.find("tensorboard", "events.out.tfevents.*")
    assert len(folder.read_bytes(name)) > 200


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_missing_package_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="not installed"):
        require_tracker("wandb")
    run = str(tmp_path / "run")
    assert main(["train", "toy", "metrics.tracker=wandb", "--local", "--run", run]) == 2
    assert "metrics.tracker" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
