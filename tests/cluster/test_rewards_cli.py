"""`worldr1 rewards`: a score with its pictures, an examination, bad input in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from cluster.cli import main
from cluster.video import decode_mp4, encode_mp4
from rewards.known_answer import canaries


def video(tmp_path: Path, frames: int = 9) -> Path:
    (push,) = (canary for canary in canaries() if canary.name == "push")
    file = tmp_path / "clip.mp4"
    file.write_bytes(encode_mp4(push.video[:frames]))
    return file


@pytest.mark.slow
def test_a_video_is_scored_with_numbers_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (push,) = (canary for canary in canaries() if canary.name == "push")
    assert main(["rewards", "score", str(video(tmp_path)), "--prompt", push.prompt.text]) == 0
    said, out = capsys.readouterr().out, tmp_path / "clip_score"
    table = json.loads((out / "score.json").read_text())
    assert set(table["parts"]) == {"recon", "traj", "meta", "gen"}
    assert table["total"] == pytest.approx(sum(table["parts"].values()))
    assert f"total: {table['total']:.3f}" in said
    assert table["parts"]["recon"] > 0.7
    assert table["parts"]["traj"] > 0.85
    (judged,) = (row for row in table["scores"] if row["kind"] == "judge")
    assert sum(judged["digits"]) == pytest.approx(1)
    expected = 0.1 * sum(digit * p for digit, p in enumerate(judged["digits"]))
    assert expected == pytest.approx(judged["parts"]["meta"])
    assert {file.name for file in out.iterdir()} == {
        "score.json", "sheet.png", "sample_rerender.mp4", "sample_meta.png", "sample_depth.mp4",
        "sample_cameras.mp4", "sample.ply",
    }  # fmt: skip
    assert decode_mp4((out / "sample_depth.mp4").read_bytes()).shape == (9, 64, 96, 3)
    assert Image.open(out / "sheet.png").size == (1200, 910)


def test_a_video_that_cannot_be_scored_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = video(tmp_path, 2), tmp_path / "elsewhere"
    arguments = ["rewards", "score", str(file), "--prompt", "A red box.", "--out", str(out)]
    assert main(arguments) == 1
    said = capsys.readouterr().out
    assert "reconstruction: no score: " in said
    assert "needed: 3 frames" in said
    assert "total: none" in said
    assert json.loads((out / "score.json").read_text())["total"] is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["/no/such.mp4", "--prompt", "x"], "VIDEO = '/no/such.mp4' cannot be read"),
        ([__file__, "--prompt", "x"], "cannot be read"),
        (["VIDEO", "--prompt", " "], "--prompt ' ' cannot be used"),
        (["VIDEO", "rewards.variant=best", "--prompt", "x"], "rewards.variant"),
        (["VIDEO", "rewards.reconstruction.gpus=1", "--prompt", "x"], "runs on the CPU only"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(video(tmp_path)) if a == "VIDEO" else a for a in arguments]
    assert main(["rewards", "score", *given]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_the_check_prints_every_clip(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "check"]) == 0
    said = capsys.readouterr().out
    assert "29 clips: all in order" in said
    assert "pan.consistent" in said
    assert "judge: " in said


def test_a_threshold_that_gates_everything_breaks_the_order(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["rewards", "check", "rewards.reconstruction.texture_threshold=255"]) == 1
    assert "BROKEN  push.consistent: S_traj 0.000" in capsys.readouterr().out


def test_scorers_of_other_processes_are_not_passed_over(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is left would look like an examination of them."""
    assert main(["rewards", "check", "--preset", "small"]) == 2
    assert ".env = 'judge' is not of this process" in capsys.readouterr().err
    served = ["rewards.judge.backend=endpoint", "rewards.judge.url=http://judge:8000/v1"]
    assert main(["rewards", "check", *served]) == 2
    assert (
        "rewards.judge.backend, a served model, is not of this process" in capsys.readouterr().err
    )
