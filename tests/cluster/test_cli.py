"""The command as a user starts it wrongly: one sentence, exit 2, no traceback, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def worldr1(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster.cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )


def unreadable_prompts(tmp_path: Path) -> str:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"id": "a"\n')
    return str(file)


def require_refusal(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    """One sentence with these words, exit code 2, nothing written."""
    unreadable_prompts(tmp_path)
    run = tmp_path / "run"
    filled = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    if "--run" not in filled:
        filled += ["--run", str(run)]
    result = worldr1(*filled)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert result.stdout == ""
    for word in words:
        assert word in lines[0]
    assert not any(run.glob("**/*.json*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "tiyo"], ["preset", "'tiyo'", "toy"]),
        (["train", "toy", "rolout.frames=9"], ["rolout", "unknown"]),
        (["train", "toy", "rollout.frames=ten"], ["rollout.frames", "'ten'", "integer"]),
        (["train", "toy", "rollout.frames=8"], ["rollout.frames", "8", "4 k + 1"]),
        (["demo", "rollout.height=10"], ["rollout.height", "10"]),
    ],
)
def test_wrong_configuration(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    require_refusal(tmp_path, arguments, words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "toy", "prompts.train=/nowhere.jsonl"], ["prompts.train", "/nowhere.jsonl"]),
        (["train", "toy", "prompts.train={tmp}/prompts.jsonl"], ["prompts.train", "1"]),
        (["train", "toy", "policy.model=no/such/model"], ["policy.model", "no/such/model"]),
        (
            ["train", "toy", "rewards.judge.backend=vllm", "rewards.judge.env=/no/such/env"],
            ["rewards.judge.env", "/no/such/env", "worldr1 envs build judge"],
        ),
        (["train", "toy", "rewards.aesthetic.backend=hpsv3"], ["hpsv3", "rewards.aesthetic.env"]),
        (["train", "toy", "--run", "/proc/nothing/here"], ["run", "/proc/nothing", "not writable"]),
        (["train", "toy", "--run", "nosuchscheme://bucket/run"], ["run", "nosuchscheme"]),
    ],
)
def test_wrong_file_or_folder(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    """Shows when files are looked at, after torch and Ray were imported."""
    require_refusal(tmp_path, arguments, words)


def test_an_environment_that_is_not_there_is_named() -> None:
    result = worldr1("envs", "check", "judge", "--path", "/no/such/env")
    assert result.returncode == 2
    assert result.stderr.startswith("worldr1: the environment '/no/such/env' does not exist")
    assert "Traceback" not in result.stderr


def test_resolved_configuration_can_be_printed() -> None:
    result = worldr1("train", "toy", "seed=4", "--print-config")
    assert result.returncode == 0
    assert '"seed": 4' in result.stdout


def test_local_run_pins_every_library_before_it_is_imported(tmp_path: Path) -> None:
    """Set after numpy's import, its BLAS would not see it. The run itself ends at its folder."""
    (tmp_path / "file").touch()
    code = f"""
import os, sys
from cluster.cli import main
assert not {{"numpy", "scipy", "torch", "cv2"}} & set(sys.modules)
code = main(["train", "toy", "--local", "threads=3", "--run", {str(tmp_path / "file/run")!r}])
print(code, *(os.environ[f"{{name}}_NUM_THREADS"] for name in ("OMP", "MKL", "OPENBLAS")))
"""
    free = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=free
    )
    assert result.stdout.splitlines()[-1] == "2 3 3 3", result.stderr
