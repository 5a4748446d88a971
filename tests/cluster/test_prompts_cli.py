"""`worldr1 prompts` as a person uses it; training refuses what `check` names; kill and resume."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.config import RolloutConfig
from cluster.cli import main
from cluster.collect import RequestSource
from prompts.dataset import load_prompts


def bad_file(tmp_path: Path) -> Path:
    file = tmp_path / "bad.jsonl"
    good = json.dumps({"id": "a", "prompt": "Camera push in. A box.", "motions": ["push in"]})
    wrong = json.dumps({"id": "b", "prompt": "A box.", "motions": ["push in"]})
    file.write_text("\n".join([good, "{", wrong, good]))
    return file


def test_check_lists_every_problem_and_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = bad_file(tmp_path)
    assert main(["prompts", "check", str(file), str(tmp_path / "missing.txt")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines[:4]] == [
        f"{file}, line 2",
        f"{file}, line 3",
        f"{file}, line 4",
        str(tmp_path / "missing.txt"),
    ]
    assert lines[-1] == "2 files, 1 prompts, 0 of them gated for quality: 4 problems"


def test_check_of_good_files_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "check", "prompts/data/toy_train.jsonl"]) == 0
    assert capsys.readouterr().out == "1 files, 64 prompts, 0 of them gated for quality: ok\n"


def test_training_refuses_to_start_on_a_bad_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = bad_file(tmp_path)
    run = tmp_path / "run"
    assert main(["train", "toy", "--local", f"prompts.train={file}", "--run", str(run)]) == 2
    error = capsys.readouterr().err
    assert "prompts.train = " in error
    assert f"{file}, line 2: " in error
    assert "(and 2 more: `worldr1 prompts check" in error
    assert not run.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prompts", "stats", "no_such.jsonl"], "cannot be read"),
        (["prompts", "generate", "--out", "/proc/none"], "cannot be written"),
        (
            [
                "prompts",
                "enhance",
                "toy",
                "--out",
                "x.jsonl",
                "--url",
                "http://h/v1",
                "--model",
                "m",
            ],
            "prompt set 'toy' is unknown",
        ),
        (
            [
                "prompts",
                "enhance",
                "toy_test",
                "--out",
                "x.txt",
                "--url",
                "http://h/v1",
                "--model",
                "m",
            ],
            "does not end in .jsonl",
        ),
        (
            ["prompts", "enhance", "toy_test", "--out", "x.jsonl", "--url", "h", "--model", "m"],
            "url",
        ),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


loaded = functools.cache(load_prompts)


def steps(workers: int, killed_at: int | None, source_name: str) -> Iterator[list[str]]:
    """Prompt ids of 12 steps of 6 groups, drawn by `workers` workers in turns; a kill throws away
    a half-drawn step and resumes from the integers of the checkpoint before it."""
    sets = {"train": loaded(source_name), "dynamic": loaded("toy_dynamic")}
    rollout = RolloutConfig(groups_per_step=6)
    source = RequestSource(5, rollout, sets)
    for step in range(12):
        saved = (source.next_group, dict(source.cursors))
        if step == killed_at:
            for _ in range(workers):
                source.draw("main")
            source = RequestSource(5, rollout, sets, *saved)
        phase = "dynamic" if step % 4 == 3 else "main"
        waiting = [source.draw(phase) for _ in range(rollout.groups_per_step)]
        # Each worker takes every n-th request; the step's groups are put in order afterwards.
        done = [request for w in range(workers) for request in waiting[w::workers]]
        yield [r.prompt.id for r in sorted(done, key=lambda r: r.group)]


@pytest.mark.parametrize("name", ["train[:1000]", "0.6*train + 0.4*toy_train"])
@pytest.mark.parametrize("workers", [1, 3, 8])
def test_killed_at_any_step_the_sequence_of_prompts_is_the_same(workers: int, name: str) -> None:
    expected = list(steps(1, None, name))
    assert len({id for step in expected for id in step}) > 60
    for killed_at in range(12):
        assert list(steps(workers, killed_at, name)) == expected
