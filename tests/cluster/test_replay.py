"""A recorded step run again, stage by stage: the same bits, or what a changed key does.

Not covered: replay on Ray, whose pools are the same code as a run's (test_ray_run.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import main
from cluster.config import RunConfig
from cluster.record import recorded_steps
from cluster.runs import in_this_process, run_training
from cluster.storage import RunFolder

Build = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    from cluster.config import load
    from tests.cluster.conftest import SMALLEST

    run = tmp_path_factory.mktemp("recorded") / "run"
    config = load("toy", [*SMALLEST, f"run={run}", "record.every=1", "record.keep=2"])
    run_training(config, in_this_process, lambda line: None)
    return config


def again(config: RunConfig, stage: str, *arguments: str) -> list[dict[str, Any]]:
    file = Path(config.run).parent / "again.json"
    command = ["replay", config.run, "--stage", stage, "--local", "--json", str(file), *arguments]
    assert main(command) == 0
    rows = json.loads(file.read_text())
    assert isinstance(rows, list)
    return rows


@pytest.mark.slow
def test_the_newest_records_are_kept_whole(recorded: RunConfig) -> None:
    assert recorded_steps(RunFolder(recorded.run)) == [1, 2]
    assert not (Path(recorded.run) / "record/step_000000").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["rollout", "rewards", "learner"])
def test_an_unchanged_stage_gives_the_recorded_bits(recorded: RunConfig, stage: str) -> None:
    rows = again(recorded, stage)
    assert [(row["step"], row["identical"]) for row in rows] == [(1, True), (2, True)]
    assert [len(row["samples"]) for row in rows] == ([1, 1] if stage == "learner" else [4, 4])


@pytest.mark.slow
def test_a_changed_weight_of_a_part_changes_totals_by_that_part(recorded: RunConfig) -> None:
    (row,) = again(recorded, "rewards", "--step", "1", "rewards.weights.gen=3.0")
    assert not row["identical"]
    weight = recorded.rewards.weights.gen
    for sample in row["samples"]:
        gen = sample["parts_before"]["gen"]
        assert gen != 0
        assert sample["after"] - sample["before"] == pytest.approx((3.0 - weight) * gen, abs=1e-9)


@pytest.mark.slow
def test_a_changed_learning_rate_changes_weights_and_not_the_loss(recorded: RunConfig) -> None:
    (row,) = again(recorded, "learner", "--step", "1", "learner.learning_rate=0.01")
    (step,) = row["samples"]
    assert step["loss_after"] == step["loss_before"]
    assert step["grad_norm_after"] == step["grad_norm_before"]
    assert step["weights_after"] != step["weights_before"]


@pytest.mark.slow
def test_a_changed_noise_level_draws_other_samples(recorded: RunConfig) -> None:
    (row,) = again(recorded, "rollout", "--step", "2", "rollout.noise_level=0.3")
    assert not row["identical"]
    assert all(sample["states"] > 1e-3 for sample in row["samples"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["rollout", "rewards"])
def test_groups_of_an_earlier_start_are_left_out_and_said(
    recorded: RunConfig, stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `checkpoint.keep_inflight` records them: trajectories and scores, without videos."""
    run = tmp_path / "run"
    shutil.copytree(recorded.run, run)
    moved = recorded.model_copy(update={"run": str(run)})
    (run / "config.json").write_text(moved.model_dump_json())
    videos = sorted((run / "record/step_000002").rglob("*_video.safetensors"))
    groups = sorted({file.name[: len("group_00000000")] for file in videos})
    assert len(groups) == 2
    for file in videos:
        if file.name.startswith(groups[0]):
            file.unlink()
    (row,) = again(moved, stage, "--step", "2")
    assert "1 of 2 groups of an earlier start left out" in capsys.readouterr().out
    assert row["identical"]
    assert len(row["samples"]) == 2
    assert len(again(moved, "learner", "--step", "2")[0]["samples"]) == 1
    for file in (run / "record/step_000002").rglob("*_video.safetensors"):
        file.unlink()
    assert main(["replay", str(run), "--stage", stage, "--step", "2", "--local"]) == 2
    assert "no recorded step has groups whose videos" in capsys.readouterr().err


def test_what_is_not_there_is_one_sentence(
    smallest: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(tmp_path / "none"), "--stage", "rewards"]) == 2
    assert "holds no config.json" in capsys.readouterr().err
    config = smallest()
    RunFolder(config.run).write_text("config.json", config.model_dump_json())
    assert main(["replay", config.run, "--stage", "rewards", "--local"]) == 2
    assert "has no recorded step; train it with record.every=N" in capsys.readouterr().err
