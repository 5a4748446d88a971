"""`worldr1 evaluate`: known clips measured, compared, written; and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from cluster.cli import main
from cluster.clips import Clip, write_index
from cluster.evaluation.figures import figure_of
from cluster.evaluation.measure import ClipFigures, rerendering_figures
from cluster.evaluation.result import Evaluation, Side, from_json, to_csv, to_json, to_markdown
from cluster.evaluation.sources import excerpt
from cluster.evaluation.vbench import by_video, with_vbench
from cluster.storage import RunFolder
from cluster.video import encode_mp4
from prompts.camera import requested_path
from prompts.config import Amplitudes
from prompts.motions import Motion
from rewards.metrics.images import MAX_DB
from rewards.reconstruct.da3 import resized
from rewards.spoilt import frozen, warped
from toyworld.scenes import random_scene, render_clip

MOTIONS = (Motion.PUSH_IN, Motion.ORBIT_LEFT, Motion.MOVE_RIGHT, Motion.PULL_OUT)


def folder_of(path: Path, spoil: str) -> str:
    """Four known clips as they are, frozen or warped, with their index."""
    folder, clips = RunFolder(str(path)), []
    for seed, motion in enumerate(MOTIONS):
        made = render_clip(random_scene(np.random.default_rng(seed)), (motion,))
        clip = Clip(file=f"c{seed}.mp4", id=f"c{seed}", prompt=made.prompt.text, seed=seed)
        video = {"": lambda v: v, "frozen": frozen, "warped": warped}[spoil](made.video)
        folder.write_bytes(clip.file, encode_mp4(video))
        clips.append(clip)
    write_index(folder, clips)
    return folder.url


def test_spoilt_clips_lose_in_every_figure_that_matters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = folder_of(tmp_path / "good", ""), folder_of(tmp_path / "bad", "warped")
    out = tmp_path / "out"
    assert main(["evaluate", bad, "--against", good, "--out", str(out)]) == 0
    assert "## 3D consistency, by the independent estimator" in capsys.readouterr().out
    tree = json.loads((out / "evaluation.json").read_text())
    assert [side["title"] for side in tree["sides"]] == ["bad", "good"]
    for name in (
        "psnr",
        "ssim",
        "perceptual",
        "s_recon",
        "second.consistency",
        "mvcs",
        "warp_error",
    ):
        assert tree["differences"][name]["verdict"] == "better", name
        assert tree["differences"][name]["pairs"] == 4
    for name in ("rot_err", "cam_mc_abs", "second.rot_err", "second.cam_mc_abs", "motion", "judge"):
        assert name in tree["differences"]
    assert tree["scorers"]["independent estimator"] == "corners-v2"
    assert any("stand in" in note for note in tree["notes"])
    rows = list(csv.DictReader((out / "clips.csv").open()))
    assert len(rows) == 8
    assert float(rows[0]["psnr"]) == tree["sides"][0]["clips"][0]["figures"]["psnr"]
    page = (out / "index.html").read_text()
    assert page.count("<video ") == 8
    assert (out / "videos/b/c1.mp4").read_bytes() == (tmp_path / "good/c1.mp4").read_bytes()


def sides() -> Evaluation:
    def clip(index: int, **figures: float) -> ClipFigures:
        failures = {} if "gold" in figures else {"second": "no camera found: 3 corners"}
        return ClipFigures(f"p{index}", "A <box>.", index, figures, failures)

    first = [
        clip(0, psnr=20.0, proxy=1.0, gold=1.0),
        clip(1, psnr=22.0, proxy=0.5),
        clip(2, proxy=2.0, gold=2.0),
    ]
    second = [clip(0, psnr=21.0), clip(1, psnr=24.0)]
    return Evaluation([Side("A", first), Side("B", second)], {"judge": "v1"}, ["note"])


def test_tables_by_hand() -> None:
    evaluation = sides()
    assert evaluation.sides[0].failures() == {"second": 1}
    assert evaluation.sides[0].agreement() == pytest.approx(1.0)  # the failed clip is last in both
    compared = evaluation.compare("psnr")
    assert compared is not None
    # Of two prompts the bootstrap's ends are both values; Student's t stretches them by 9.168.
    assert (compared.mean, compared.pairs) == (1.5, 2)
    assert compared.upper == pytest.approx(1.5 + 0.5 * 9.168, abs=1e-3)
    text = to_markdown(evaluation)
    assert (
        "| PSNR (dB) ↑ | 21.00 [11.83, 30.17] (2 of 3) | 22.50 [8.75, 36.25] | "
        "+1.50 [−3.08, +6.08] |  |" in text
    )
    assert "A: 3 clips; failures: second 1" in text
    rows = list(csv.reader(to_csv(evaluation).splitlines()))
    assert rows[0][:5] == ["model", "prompt_id", "seed", "prompt", "psnr"]
    assert rows[3][4] == ""  # not measured, and no number in its place
    again = from_json(to_json(evaluation))
    assert to_csv(again) == to_csv(evaluation)


def test_a_difference_says_how_many_pairs_it_is_about() -> None:
    """Side B has no camera on 3 of 6 clips: what is left may be the easy ones."""

    def clip(index: int, shift: float, known: bool) -> ClipFigures:
        figures = {"psnr": 20.0 + index + shift} if known else {}
        return ClipFigures(f"p{index}", "A box.", index, figures, {})

    first = Side("A", [clip(i, 0.0, True) for i in range(6)])
    second = Side("B", [clip(i, 1.0, i < 3) for i in range(6)])
    row = Evaluation([first, second], {}).row(figure_of("psnr"))
    assert row.cells[1].endswith("(3 of 6)")
    assert (row.change, row.verdict) == ("+1.00 [+1.00, +1.00]", "better")
    assert row.note == "better over the 3 pairs that both have"
    assert Evaluation([first, first], {}).row(figure_of("psnr")).note == ""


def test_one_prompt_has_no_interval() -> None:
    clips = [ClipFigures("p", "A box.", seed, {"psnr": 20.0 + seed}, {}) for seed in range(3)]
    evaluation = Evaluation([Side("A", clips), Side("B", clips)], {})
    assert "| PSNR (dB) ↑ | 21.00 | 21.00 | +0.00 |  |" in to_markdown(evaluation)
    tree = json.loads(to_json(evaluation))
    assert tree["sides"][0]["estimates"]["psnr"]["lower"] is None


def test_vbench_results_by_file() -> None:
    names = (
        "aesthetic_quality",
        "motion_smoothness",
        "subject_consistency",
        "background_consistency",
    )
    results = {n: [0.5, [{"video_path": "/x/a.mp4", "video_results": 0.5}]] for n in names}
    results["imaging_quality"] = [0.6, [{"video_path": "/x/a.mp4", "video_results": 60.0}]]
    figures = by_video(results)["a.mp4"]
    assert figures["vbench.imaging_quality"] == 60.0
    assert figures["vbench.aesthetic_quality"] == 50.0
    clip = ClipFigures("a", "A box.", 0, {"psnr": 20.0}, {})
    judged = with_vbench(clip, figures)
    assert (judged.figures["psnr"], judged.failures) == (20.0, {})
    assert len(judged.figures) == 6
    left_out = with_vbench(clip, {"vbench.imaging_quality": 60.0}).failures["vbench"]
    assert "motion_smoothness" in left_out
    assert "imaging_quality" not in left_out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere"], ["/nowhere", "nothing to evaluate"]),
        (["base", "--pairs", "0"], ["--pairs 0", "1 or more"]),
        (["base", "--prompts", "toy_tset"], ["toy_tset"]),
        (["{clips}", "--frames", "49"], ["9 frames", "49"]),
        (["{clips}", "--vbench", "/no/python"], ["/no/python"]),
        (["base", "rollout.frames=8"], ["rollout.frames", "8"]),
    ],
)
def test_wrong_requests_are_one_sentence(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = folder_of(tmp_path / "clips", "")
    filled = [argument.replace("{clips}", clips) for argument in arguments]
    assert main(["evaluate", *filled, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    for word in words:
        assert word in error[0]


def small_folder(path: Path, *clips: Clip, frames: int = 5) -> str:
    """Black clips."""
    folder = RunFolder(str(path))
    for clip in clips:
        folder.write_bytes(clip.file, encode_mp4(np.zeros((frames, 32, 32, 3), np.uint8)))
    write_index(folder, clips)
    return folder.url


def box(index: int = 0, text: str = "A red box.", file: str = "") -> Clip:
    return Clip(file=file or f"p{index}_0.mp4", id=f"p{index}", prompt=text, seed=0)


def test_sides_that_do_not_compare_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pairs are matched by prompt id and seed; that these mean the same is looked at."""
    first = small_folder(tmp_path / "first", box())
    others = {
        "another text": small_folder(tmp_path / "text", box(text="A blue ball.")),
        "share no prompt": small_folder(tmp_path / "none", box(1)),
        "clips of 5 and of 9 frames": small_folder(tmp_path / "long", box(), frames=9),
        "both prompt 'p0'": small_folder(tmp_path / "twice", box(), box(file="again.mp4")),
    }
    (tmp_path / "below/deep").mkdir(parents=True)
    (tmp_path / "below/deep/p.mp4").write_bytes(b"")
    for words, other in others.items():
        command = ["evaluate", first, "--against", other, "--out", str(tmp_path / "out")]
        assert main(command) == 2
        assert words in capsys.readouterr().err
    command = ["evaluate", str(tmp_path / "below"), "--prompts", "toy_test"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "holds no mp4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_clips_of_an_evaluation_are_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Side b measured again as side a would take a's place before it is read."""
    out = tmp_path / "out"
    mine = small_folder(out / "videos/a", box())
    other = small_folder(out / "videos/b", box())
    for command in ([other], [mine, "--against", mine], [other, "--against", mine]):
        assert main(["evaluate", *command, "--out", str(out)]) == 2
        assert "would be written over it" in capsys.readouterr().err
    assert main(["evaluate", mine, "--against", other, "--out", str(out)]) == 0


def test_a_clip_that_cannot_be_read_is_a_counted_failure(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "clips", box(), box(1), box(2))
    (tmp_path / "clips/p1_0.mp4").write_bytes(b"no video")
    short = encode_mp4(np.zeros((5, 32, 32, 3), np.uint8)[:4])
    (tmp_path / "clips/p2_0.mp4").write_bytes(short)
    out = tmp_path / "out"
    assert main(["evaluate", folder, "--frames", "5", "--out", str(out)]) == 0
    (side,) = json.loads((out / "evaluation.json").read_text())["sides"]
    assert side["failures"]["file"] == 2
    reasons = [clip["failures"].get("file", "") for clip in side["clips"]]
    assert reasons[0] == ""
    assert "cannot be decoded" in reasons[1]
    assert "has 4 frames; --frames asks for 5" in reasons[2]


def test_vbench_that_fails_takes_no_figure_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = small_folder(tmp_path / "clips", box()), tmp_path / "out"
    assert main(["evaluate", folder, "--vbench", "/bin/false", "--out", str(out)]) == 2
    assert "--vbench '/bin/false' failed" in capsys.readouterr().err
    assert json.loads((out / "evaluation.json").read_text())["sides"][0]["clips"]


def test_an_excerpt_is_held_to_the_part_of_the_path_that_it_shows(tmp_path: Path) -> None:
    """The first 13 of 25 frames of a pan: half of its turn is asked for, and is found."""
    made = render_clip(random_scene(np.random.default_rng(0)), (Motion.PAN_LEFT,), frames=25)
    prompt, video = excerpt(made.prompt, made.video, 13, Amplitudes())
    asked = requested_path(prompt, len(video))
    assert asked is not None
    np.testing.assert_allclose(asked.c2w, made.c2w[:13], atol=1e-9)
    turn = np.arccos((np.trace(asked.c2w[-1, :3, :3]) - 1) / 2)
    assert np.degrees(turn) == pytest.approx(Amplitudes().pan_deg / 2)

    folder = RunFolder(str(tmp_path / "clips"))
    folder.write_bytes("p.mp4", encode_mp4(made.video))
    write_index(folder, [Clip(file="p.mp4", id="p", prompt=made.prompt.text)])
    assert main(["evaluate", folder.url, "--frames", "13", "--out", str(tmp_path / "out")]) == 0
    (clip,) = json.loads((tmp_path / "out/evaluation.json").read_text())["sides"][0]["clips"]
    # Held to the whole pan, its errors would add up to half of the turn times 13 / 2.
    assert clip["figures"]["rot_err"] < 0.2 * turn * 13 / 2
    assert clip["figures"]["second.rot_err"] < 0.2 * turn * 13 / 2


def test_a_folder_without_index_is_matched_by_names(tmp_path: Path) -> None:
    from cluster.evaluation.sources import listed
    from prompts.dataset import load_prompts

    prompts = load_prompts("toy_test")
    data = encode_mp4(np.zeros((5, 16, 16, 3), np.uint8))
    for name in (prompts[0].id, f"{prompts[1].id}_7", f"{prompts[2].text}-3"):
        (tmp_path / f"{name}.mp4").write_bytes(data)
    found = {clip.id: clip.seed for clip in listed(str(tmp_path), "toy_test")}
    assert found == {prompts[0].id: 0, prompts[1].id: 7, prompts[2].id: 3}


def test_a_clip_that_is_reconstructed_larger_is_compared_as_it_was_enlarged() -> None:
    """da3 enlarges 64 x 96 pixels: a perfect re-rendering of what it saw has the PSNR of equals."""
    clip = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3)).astype(np.uint8)
    shown = resized(clip, 504)
    assert shown.shape[1] > 64
    assert rerendering_figures(clip, shown) == {"psnr": MAX_DB, "ssim": pytest.approx(1.0)}
