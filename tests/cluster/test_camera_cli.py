"""`worldr1 camera`: says what was understood, draws it, refuses in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.camera_cli import camera_words
from cluster.cli import main
from prompts.camera import camera_path
from prompts.dataset import without_camera
from prompts.motions import Motion
from prompts.schema import Prompt


def test_words_amounts_and_the_last_camera_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pan by 90 degrees to the right, then 0.3 depths forwards: 0.3 to the right of the start."""
    file = tmp_path / "sheets" / "camera.png"
    text = "Camera pan right by 90 degrees, then push in by 0.3 depths."
    assert main(["camera", text, "rollout.frames=17", "--out", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "1. pan right by 90 degrees: frames 0 to 8\n" in printed
    assert "2. push in by 0.3 depths: frames 8 to 16\n" in printed
    assert "+0.300 right, +0.000 down, +0.000 forward (scene depths), turned 90.0" in printed
    pixels = np.asarray(Image.open(file))
    # Three rows: titles, path and flow in colour, two rows of noise with its spread of greys.
    colours = np.ptp(pixels.astype(int), axis=-1) > 60
    third = len(pixels) // 3
    assert colours[:third].sum() > 100
    assert 30 < pixels[-60:-20, 20:280].std() < 50


def test_a_json_path_takes_the_place_of_the_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = camera_path([Motion.CRANE_UP], 9)
    assert path is not None
    file = tmp_path / "path.json"
    file.write_text(json.dumps({"c2w": path.c2w.tolist()}))
    out = tmp_path / "camera.png"
    assert main(["camera", "Camera pan left.", "--path", str(file), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "a given path of 9 cameras" in printed
    assert "-0.130 down" in printed
    assert out.stat().st_size > 10_000


def test_no_motion_word_says_so_and_draws_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "camera.png"
    assert main(["camera", "A remote pushing insect.", "--out", str(out)]) == 0
    assert "no motion word was found: no camera path" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["push in by 3 degrees"], "cannot be followed: 'push in' is asked for by 3 degrees"),
        ([""], "the prompt '' cannot be used: String should have at least 1 character"),
        (["word " * 401], "has 401 words; allowed: at most 400"),
        (["push in", "--path", "/nowhere.json"], "/nowhere.json cannot be used"),
        (["push in by 3 depths, pan left", "rollout.frames=5"], "passes through the plane"),
        (["push in", "--seed", "-1"], "--seed is -1; allowed: 0 or more"),
        (["push in", "--out", "/proc/camera.png"], "--out /proc/camera.png cannot be written"),
    ],
)
def test_what_cannot_be_followed_is_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["camera", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("worldr1: ")
    assert error.count("\n") == 1


def test_the_camera_in_words() -> None:
    prompt = Prompt.from_text("p", "Camera push in, then pan left by 30 degrees. A box.")
    assert camera_words(prompt) == "camera push in, then pan left by 30 degrees"
    silent = Prompt.from_text("p", "The camera pans left over a box.")
    assert camera_words(silent) == "no camera motion is named: plain noise"
    path = tuple(tuple(map(tuple, pose)) for pose in np.tile(np.eye(4), (9, 1, 1)).tolist())
    given = silent.model_copy(update={"c2w": path})
    assert camera_words(given) == "camera as given, 9 poses"
    assert without_camera([prompt, given]) == []
    (line,) = without_camera([prompt, silent, given])
    assert line.startswith("1 of 3 name no camera motion (first: 'The camera pans left over a")
