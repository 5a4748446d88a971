"""Whole runs over plain objects: determinism, resume, learning rate 0, phases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.config import ConfigError, RunConfig
from cluster.runs import in_this_process, run_training
from cluster.storage import RunFolder

Build = Callable[..., RunConfig]


def run(config: RunConfig, lines: list[str] | None = None) -> str:
    """Train under --local; the checksum of the final weights."""
    return run_training(
        config, in_this_process, say=(lines if lines is not None else []).append
    ).weights_checksum


def steps(config: RunConfig) -> list[dict]:  # type: ignore[type-arg]
    text = (Path(config.run) / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    return [row for row in rows if row["kind"] == "step"]


@pytest.mark.slow
def test_same_seed_same_weights_and_a_resumed_run_equals_an_undisturbed_one(
    smallest: Build,
) -> None:
    whole = run(smallest(name="whole"))
    assert run(smallest(name="again")) == whole
    assert run(smallest("seed=1", name="other")) != whole
    run(smallest("steps=2", name="halves"))
    lines: list[str] = []
    assert run(smallest(name="halves"), lines) == whole
    assert any("resuming" in line and "step 2" in line for line in lines)
    rows = steps(smallest(name="halves"))
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert [row["phase"] for row in rows] == ["main", "main", "dynamic"]
    assert set(rows[0]["parts"]) == {"recon", "traj", "meta", "gen"}
    assert set(rows[2]["parts"]) == {"gen"}


@pytest.mark.slow
def test_learning_rate_zero_moves_nothing(smallest: Build) -> None:
    weights = ("rewards.weights.recon=3", "rewards.weights.traj=0.5")
    config = smallest("learner.learning_rate=0", "eval.prompts=2", "steps=2", *weights)
    lines: list[str] = []
    run(config, lines)
    before, after = (
        json.loads((Path(config.run) / f"samples/step_{step:06d}/scores.json").read_text())
        for step in (0, 2)
    )
    assert before == after
    assert len(before) == 2
    for sample in before:
        parts = sample["parts"]
        weighted = 3 * parts["recon"] + 0.5 * parts["traj"] + parts["meta"] + parts["gen"]
        assert sample["total"] == pytest.approx(weighted)
        assert max(parts.values()) <= 1
    rows = [json.loads(x) for x in (Path(config.run) / "metrics.jsonl").read_text().splitlines()]
    evals = {(row["kind"], row["step"]): row for row in rows if row["kind"] != "step"}
    assert set(evals) == {("eval", 0), ("eval", 2), ("ema", 2), ("alarm", 2), ("repeat", 1)}
    assert evals["repeat", 1]["difference"] == 0  # embedded scorers repeat themselves exactly
    assert evals["alarm", 2]["alarms"] == []  # equal clips: nothing parts, nothing falls
    judged = evals["eval", 0]
    assert judged["gold"] == evals["ema", 2]["gold"]
    assert judged["gold"]["n"] + judged["gold_failures"] == 2
    assert judged["proxy"]["mean"] == pytest.approx(
        sum(sample["parts"]["recon"] + sample["parts"]["traj"] for sample in before) / 2
    )
    assert (Path(config.run) / "before_after.png").stat().st_size > 1000
    assert any(line.startswith("proof  ratio       ok") for line in lines)


@pytest.mark.slow
def test_finished_run_is_not_trained_again(smallest: Build) -> None:
    config = smallest("steps=1")
    checksum = run(config)
    lines: list[str] = []
    assert run(config, lines) == checksum
    assert any("has all of its 1 steps" in line for line in lines)
    assert len(steps(config)) == 1


@pytest.mark.slow
def test_run_killed_before_its_last_evaluation_makes_up_for_it(smallest: Build) -> None:
    config = smallest("steps=1", "eval.prompts=1")
    checksum = run(config)
    (Path(config.run) / "samples/step_000001/scores.json").unlink()
    lines: list[str] = []
    assert run(config, lines) == checksum
    assert any(line.startswith("eval after 1 steps") for line in lines)
    assert any("total reward" in line for line in lines)
    assert len(steps(config)) == 1
    (Path(config.run) / "samples/step_000001/ema_scores.json").unlink()
    again: list[str] = []
    assert run(config, again) == checksum
    said = [line.partition(":")[0] for line in again if line.startswith(("eval", "averaged"))]
    assert said == ["averaged weights after 1 steps"]


@pytest.mark.slow
def test_a_start_that_reached_no_checkpoint_leaves_no_baseline(smallest: Build) -> None:
    """Another reward, corrected in the same folder: its scores are none to compare with."""

    def baseline(config: RunConfig) -> list[float]:
        text = (Path(config.run) / "metrics.jsonl").read_text()
        found = [json.loads(line) for line in text.splitlines()]
        scores = json.loads((Path(config.run) / "samples/step_000000/scores.json").read_text())
        (row,) = [row for row in found if (row["kind"], row["step"]) == ("eval", 0)]
        assert row["reward"]["mean"] == pytest.approx(sum(s["total"] for s in scores) / len(scores))
        return [s["total"] for s in scores]

    config = smallest("steps=1", "eval.prompts=1")
    run(config)
    first = baseline(config)
    shutil.rmtree(Path(config.run) / "checkpoints")
    other = smallest("steps=1", "eval.prompts=1", "rewards.weights.recon=3")
    run(other)
    assert baseline(other) != first


@pytest.mark.slow
def test_another_configuration_is_refused_with_the_differing_keys(smallest: Build) -> None:
    run(smallest("steps=1"))
    with pytest.raises(ConfigError, match=r"learner\.clip_range"):
        run(smallest("learner.clip_range=0.25"))


@pytest.mark.slow
def test_a_learning_rate_that_changes_on_resume_is_said(smallest: Build) -> None:
    lines: list[str] = []
    first = run(smallest("steps=1"), lines)
    assert run(smallest("steps=2", "learner.learning_rate=0"), lines) == first
    said = [line for line in lines if line.startswith("learner.learning_rate was")]
    assert said == ["learner.learning_rate was 0.0002 until this start and is 0 from now on"]


@pytest.mark.slow
def test_run_in_an_object_store_resumes_to_the_same_weights(
    smallest: Build, s3_bucket: str
) -> None:
    whole = run(smallest("steps=2", name="disk"))
    remote = f"run={s3_bucket}/deep/run"
    run(smallest("steps=1", "eval.prompts=1", remote))
    lines: list[str] = []
    assert run(smallest("steps=2", "eval.prompts=1", remote), lines) == whole, "\n".join(lines)
    assert any("resuming s3://bucket/deep/run" in line for line in lines)
    assert any("pictures: s3://bucket/deep/run/before_after.png" in line for line in lines)
    assert not RunFolder(f"{s3_bucket}/deep/run").exists("lease.json")
