"""What the sides of an evaluation are made of, and clips that are no ordinary ones."""

from __future__ import annotations

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest

from cluster.cli import main
from cluster.clips import Clip, read_clips, unlike, write_index
from cluster.config import ConfigError, RunConfig, load
from cluster.evaluation.measure import ClipFigures, _scored, finite
from cluster.evaluation.request import Request, notes_on, plan_sides, sampled_pairs
from cluster.evaluation.sampling import model_digest
from cluster.evaluation.sources import Source, find_source, read_video
from cluster.evaluation.vbench import by_video
from cluster.evaluation.vbench_driver import DIMENSIONS
from cluster.pools import SampleScores
from cluster.storage import RunFolder
from cluster.video import decode_mp4, encode_mp4
from prompts.camera import requested_path
from prompts.config import Amplitudes
from prompts.motions import Motion
from prompts.schema import Prompt
from rewards.score import Score
from rewards.worker import Artifacts
from toyworld.scenes import random_scene, render_clip

BASE = Source("base", None, None)
TEXTS = ("Camera pan left. A red box.", "Camera push in. A blue ball.", "A box.")
WIDE = Amplitudes(pan_deg=30.0)


def folder_of(path: Path, frames: int = 9, size: tuple[int, int] = (64, 96)) -> str:
    """Three black clips with seeds that no fixed pair has."""
    folder = RunFolder(str(path))
    clips = [Clip.of(Prompt.from_text(f"mine-{i}", t), 7 + i, None) for i, t in enumerate(TEXTS)]
    for clip in clips:
        folder.write_bytes(clip.file, encode_mp4(np.zeros((frames, *size, 3), np.uint8)))
    write_index(folder, clips)
    return folder.url


def asked(*sources: Source, config: RunConfig | None = None, **fields: object) -> Request:
    chosen = {"prompts": None, "pairs": None, "frames": None, "vbench": None} | fields
    return Request(sources=sources, config=config or load("toy"), device="cpu", **chosen)  # type: ignore[arg-type]


def test_a_model_beside_a_folder_is_sampled_on_the_folders_own_pairs(tmp_path: Path) -> None:
    videos = find_source(folder_of(tmp_path / "videos"), None)
    pairs = [(prompt.text, seed) for prompt, seed in sampled_pairs(asked(BASE, videos))]
    assert pairs == [(text, 7 + i) for i, text in enumerate(TEXTS)]
    out = RunFolder(str(tmp_path / "out"))
    first, second = plan_sides(asked(videos, BASE), out)
    assert [(c.id, c.seed) for c in first.clips] == [(c.id, c.seed) for c in second.clips]
    assert (first.frames, second.frames, first.size, second.size) == (9, 9, (64, 96), (64, 96))
    assert notes_on([first, second]) == []
    assert len(sampled_pairs(asked(videos, BASE, pairs=2))) == 2
    assert len(sampled_pairs(asked(BASE))) == 22
    fewer = notes_on(plan_sides(asked(videos, BASE, pairs=2), out))
    assert fewer == [
        "The sides have 3 and 2 clips, and 2 prompts and seeds in common: differences are over "
        "these alone, each side's means over all of its own."
    ]


def test_sides_of_another_size_are_told_and_of_another_length_refused(tmp_path: Path) -> None:
    out = RunFolder(str(tmp_path / "out"))
    usual = find_source(folder_of(tmp_path / "usual"), None)
    larger = find_source(folder_of(tmp_path / "larger", size=(96, 160)), None)
    (note,) = notes_on(plan_sides(asked(usual, larger), out))
    assert note.startswith("The sides' clips have 64 x 96 and 96 x 160 pixels")
    longer = find_source(folder_of(tmp_path / "longer", frames=13), None)
    with pytest.raises(ConfigError, match="clips of 9 and of 13 frames"):
        plan_sides(asked(usual, longer), out)
    assert [side.frames for side in plan_sides(asked(usual, longer, frames=9), out)] == [9, 9]


def test_a_path_that_cannot_be_sampled_is_found_before_anything_is_loaded(tmp_path: Path) -> None:
    poses = np.tile(np.eye(4), (5, 1, 1)).tolist()
    plain = Prompt.from_text("p", "A box.").model_dump(by_alias=True)
    prompt = Prompt.model_validate({**plain, "c2w": poses})
    file = tmp_path / "mine.jsonl"
    file.write_text(prompt.model_dump_json(by_alias=True))
    with pytest.raises(ConfigError, match="prompt 'p'"):
        plan_sides(asked(BASE, prompts=str(file)), RunFolder(str(tmp_path / "out")))


def test_a_folder_called_base_is_not_taken_for_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_source("base", None) == BASE
    url = folder_of(tmp_path / "base")
    with pytest.raises(ConfigError, match=r"name the folder \./base"):
        find_source("base", None)
    assert find_source("./base", None).videos == url


def test_a_clip_is_held_to_the_motion_that_it_was_asked_for() -> None:
    """A pan by 30 degrees, measured under settings that have pans by 14."""
    prompt = Prompt.from_text("p", TEXTS[0])
    clip, data = Clip.of(prompt, 0, WIDE), encode_mp4(np.zeros((9, 32, 32, 3), np.uint8))
    found, _ = read_video(data, clip, None, Amplitudes())
    path, wanted = requested_path(found, 9), requested_path(prompt, 9, WIDE)
    assert path is not None
    assert wanted is not None
    np.testing.assert_allclose(path.c2w, wanted.c2w, atol=1e-12)
    usual = Clip.of(prompt, 0, Amplitudes())
    assert unlike(clip, usual).startswith("extent of the camera's motion")
    assert unlike(clip, Clip.of(prompt, 0, None)) == ""
    assert unlike(clip, clip.model_copy(update={"c2w": ((),)})) == "camera path"
    still = Prompt.from_text("p", TEXTS[2])
    assert unlike(Clip.of(still, 0, WIDE), Clip.of(still, 0, Amplitudes())) == ""


def test_samples_of_a_run_know_their_path_and_its_amplitudes(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    config = load("toy", ["camera.amplitudes.pan_deg=30"])
    run.write_text("config.json", config.model_dump_json())
    poses = np.tile(np.eye(4), (2, 1, 1)).tolist()
    row = {"prompt_id": "p", "prompt": TEXTS[0], "seed": 3, "total": 1.0, "parts": {}, "raw": {}}
    rows = [row, row | {"seed": 4, "c2w": poses}]
    run.write_text("samples/step_000004/scores.json", json.dumps(rows))
    for seed in (3, 4):
        run.write_bytes(f"samples/step_000004/p_{seed}.mp4", b"")
    first, second = read_clips(f"{run.url}/samples/step_000004")
    assert first.amplitudes == second.amplitudes == WIDE
    assert first.c2w is None
    assert np.array(second.c2w).shape == (2, 4, 4)


def sound_alone() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def test_whatever_a_file_holds_it_is_a_video_or_a_value_error() -> None:
    whole = encode_mp4(np.zeros((5, 32, 32, 3), np.uint8))
    assert decode_mp4(whole).shape == (5, 32, 32, 3)
    rng = np.random.default_rng(0)
    for data in (b"", b"no video", sound_alone(), whole[: len(whole) // 2]):
        with pytest.raises(ValueError, match=r"no video that FFmpeg can read|at least one array"):
            decode_mp4(data)
    for _ in range(40):
        spoilt = bytearray(whole)
        for place in rng.integers(0, len(whole), 40):
            spoilt[place] = rng.integers(256)
        try:
            decode_mp4(bytes(spoilt))
        except ValueError:
            continue


def test_odd_clips_are_counted_failures_and_the_others_are_measured(tmp_path: Path) -> None:
    """Among them the first, by which no other is judged."""
    made = render_clip(random_scene(np.random.default_rng(0)), (Motion.PAN_LEFT,))
    files = {
        "sound": sound_alone(),
        "whole": encode_mp4(made.video),
        "one": encode_mp4(made.video[:1]),
        "long": encode_mp4(np.concatenate([made.video, made.video])),
        "tiny": encode_mp4(made.video[:, :8, :8]),
    }
    folder, clips = RunFolder(str(tmp_path / "odd")), []
    for name, data in files.items():
        clips.append(Clip(file=f"{name}.mp4", id=name, prompt=made.prompt.text))
        folder.write_bytes(f"{name}.mp4", data)
    write_index(folder, clips)
    assert main(["evaluate", folder.url, "--out", str(tmp_path / "out")]) == 0
    (side,) = json.loads((tmp_path / "out/evaluation.json").read_text())["sides"]
    found = {clip["prompt_id"]: clip for clip in side["clips"]}
    failed = {name: set(clip["failures"]) for name, clip in found.items()}
    assert (failed["sound"], failed["one"], failed["long"]) == ({"file"}, {"length"}, {"length"})
    assert found["long"]["failures"]["length"].startswith("18 frames, not 9")
    assert found["whole"]["figures"]["psnr"] > 20
    assert found["whole"]["failures"] == {}
    assert {"reconstruction", "second"} <= found["tiny"]["failures"].keys()


def test_a_first_clip_of_another_length_than_most_ends_the_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = folder_of(tmp_path / "mixed")
    first = read_clips(url)[0].file
    RunFolder(url).write_bytes(first, encode_mp4(np.zeros((5, 64, 96, 3), np.uint8)))
    assert main(["evaluate", url, "--out", str(tmp_path / "out")]) == 2
    assert "2 of 3 clips" in capsys.readouterr().err
    assert not (tmp_path / "out/evaluation.json").exists()
    assert main(["evaluate", url, "--frames", "5", "--out", str(tmp_path / "out")]) == 0


def test_a_figure_that_is_no_number_is_a_failure() -> None:
    given = {"sharpness": float("nan"), "psnr": float("inf"), "motion": 1.0}
    found = finite(ClipFigures("p", "A box.", 0, given, {"second": "no camera found"}))
    assert found.figures == {"motion": 1.0}
    assert found.failures == {
        "second": "no camera found", "numbers": "sharpness is nan, psnr is inf",
    }  # fmt: skip
    assert finite(found) is found


def test_a_clip_that_memory_did_not_hold_has_no_errors_of_cameras() -> None:
    """They are sums over frames: of fewer, they would be smaller for the same mistake."""
    video = np.zeros((9, 16, 16, 3), np.uint8)
    poses = np.tile(np.eye(4), (9, 1, 1))
    poses[:, 0, 3] = np.linspace(0, 1, 9)

    def scored(frames: int, max_frames: int) -> tuple[dict[str, float], dict[str, str]]:
        used = np.linspace(0, 8, frames).round().astype(np.intp)
        shown = Artifacts(
            rerender=video[used],
            depth=np.ones((frames, 16, 16), np.float32),
            meta_view=video[0],
            splats=b"",
            frames=used,
            requested_c2w=poses[used],
            estimated_c2w=poses[used],
            scale=1.0,
        )
        score = Score("reconstruction", {"recon": 0.5, "traj": 1.0}, {}, "da3")
        return _scored(video, SampleScores({"reconstruction": score}, (), 1, shown), max_frames)

    figures, failures = scored(9, 25)
    assert figures["rot_err"] == pytest.approx(0.0, abs=1e-6)
    assert failures == {}
    figures, failures = scored(6, 25)
    assert "rot_err" not in figures
    assert "ssim" in figures
    assert failures == {
        "memory": "memory held 6 of 9 frames: errors of cameras are sums over frames"
    }
    assert scored(6, 6)[1] == {}, "all clips of the evaluation have as many"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["base", "--weights", "raw"], "--weights chooses among a run's weights"),
        (["{tmp}", "--pairs", "2"], "--pairs is of models that are sampled"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_0.mp4").write_bytes(b"x")
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    assert main(["evaluate", *given, "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err


def test_what_vbench_could_not_measure_is_no_figure() -> None:
    rows = [{"video_path": "a.mp4", "video_results": float("nan")}]
    assert by_video({name: [0.0, rows] for name in DIMENSIONS}) == {}


def test_another_model_in_the_same_place_is_another(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for model in (first, second):
        (model / "vae").mkdir(parents=True)
        (model / "vae/weights.safetensors").write_bytes(b"first")
    assert model_digest(str(first)) == model_digest(str(second)) != ""  # unpacked again
    (second / "vae/weights.safetensors").write_bytes(b"other")
    assert model_digest(str(first)) != model_digest(str(second))
    assert model_digest("Wan-AI/Wan2.1-T2V-1.3B-Diffusers") == ""
