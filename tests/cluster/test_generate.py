"""Generate: the rollout worker's own evaluation samples, bit for bit, with index and sheet."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from actors.trajectory import WeightsVersion, weights_checksum
from actors.worker import RolloutWorker
from cluster.cli import main
from cluster.clips import Clip, read_clips
from cluster.config import ConfigError, load, resolve_model
from cluster.generate import generate as generate_clips
from cluster.generate import load_policy
from cluster.storage import RunFolder
from cluster.video import decode_mp4, encode_mp4
from cluster.weights import load_weights
from prompts.camera import camera_path
from prompts.motions import detect_segments
from prompts.schema import Prompt
from tests.cluster.trained_run import train_smallest

TEXT = "Camera push in. A red box and a blue ball on a green floor."
ADAPTER = str(Path(__file__).parents[2] / "benchmarks/results/reproduction/adapters/full-seed0")
FEW = ("rollout.eval_sampling_steps=2", "rollout.frames=9")


def generate(out: Path, *arguments: str) -> dict[str, bytes]:
    """Run the command; files by name."""
    assert main(["generate", *arguments, "--out", str(out), "--device", "cpu"]) == 0
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.slow
def test_videos_are_those_of_the_rollout_worker(tmp_path: Path) -> None:
    run = train_smallest(tmp_path)
    files = generate(tmp_path / "out", "--lora", run.run, "--prompt", TEXT, "--samples", "2")
    trained = load_weights(run.run)
    policy = run.policy.model_copy(update={"model": resolve_model(run.policy.model)})
    worker = RolloutWorker(policy, run.rollout, run.camera, "cpu", 1)
    prompt = Prompt.from_text("prompt-1", TEXT)
    version = WeightsVersion(2, "test", weights_checksum(trained.weights))
    held, *videos = worker.sample([prompt, prompt], [0, 1], version, trained.weights)
    assert held == version
    for seed, video in enumerate(videos):
        assert files[f"prompt-1_{seed}.mp4"] == encode_mp4(np.asarray(video))
    untrained = generate(
        tmp_path / "bare", "--lora", run.run, "--weights", "none", "--prompt", TEXT
    )
    assert untrained["prompt-1_0.mp4"] != files["prompt-1_0.mp4"]
    initial = {name: np.zeros_like(value) for name, value in trained.weights.items()}
    version = WeightsVersion(0, "test", weights_checksum(initial))
    _, bare = worker.sample([prompt], [0], version, initial)
    assert untrained["prompt-1_0.mp4"] == encode_mp4(np.asarray(bare))


def test_same_video_gives_the_same_file() -> None:
    """x264 by its own defaults does not; what lies in memory around the frames must not matter."""
    rng = np.random.default_rng(0)
    video = np.kron(rng.integers(0, 256, (9, 8, 12, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    files = set()
    for _ in range(20):
        rng.bytes(int(rng.integers(1000, 300_000)))
        files.add(encode_mp4(video))
    assert len(files) == 1
    assert np.abs(decode_mp4(files.pop()).astype(int) - video).mean() < 12


def test_untrained_model_follows_words_or_a_given_path(tmp_path: Path) -> None:
    """The same prompt and seed under another camera path is another video; the index says which."""
    path = camera_path(detect_segments("pan left"), 9)
    assert path is not None
    (tmp_path / "path.json").write_text(json.dumps(path.c2w.tolist()))
    words = generate(tmp_path / "words", "--prompt", TEXT, *FEW)
    given = generate(
        tmp_path / "given", "--prompt", TEXT, *FEW, "--camera", str(tmp_path / "path.json")
    )
    video = decode_mp4(words["prompt-1_0.mp4"])
    assert video.shape == (9, 64, 96, 3)
    assert words["prompt-1_0.mp4"] != given["prompt-1_0.mp4"]
    (clip,) = read_clips(str(tmp_path / "given"))
    assert (clip.file, clip.prompt, clip.seed) == ("prompt-1_0.mp4", TEXT, 0)
    np.testing.assert_allclose(np.array(clip.as_prompt().c2w), path.c2w)
    assert Image.open(io.BytesIO(words["sheet.png"])).size == (756, 134)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to generate"),
        (["--prompt", TEXT, "--seed", "-1"], "--seed -1"),
        (["--prompt", TEXT, "--samples", "0"], "--samples 0"),
        (["--prompt", TEXT, "--weights", "raw"], "it needs --lora RUN"),
        (["--prompt", TEXT, "--lora", "{tmp}"], "holds no trained weights"),
        (["--prompt", TEXT, "--camera", "{tmp}/none.json"], "none.json cannot be used"),
        (["--prompt", " "], "is blank"),
        (["--prompts", "nothing"], "--prompts 'nothing' cannot be used"),
        (["--prompt", TEXT, "--out", "/proc/none"], "is not writable"),
        (["rollout.frames=10", "--prompt", TEXT], "rollout.frames"),
        (["seed=7", "--prompt", TEXT], "seed changes no video: --seed keys the noise"),
        (["rollout.sampling_steps=9", "--prompt", TEXT], "rollout.eval_sampling_steps is how many"),
        (
            ["policy.lora.alpha=1", "--lora", ADAPTER, "--prompt", TEXT],
            "policy.lora.alpha changes no video: an adapter is applied as it was trained",
        ),
        (["policy.model=nowhere", "--prompt", TEXT], "policy.model"),
    ],
)
def test_what_cannot_be_generated_is_one_sentence(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    if "--out" not in given:
        given += ["--out", str(tmp_path / "out")]
    assert main(["generate", *given]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_a_start_that_is_cut_off_leaves_no_clips_of_another_model(tmp_path: Path) -> None:
    """The folder holds what it held, which the index names, and no clip of the cut-off start."""
    few = ("--prompt", TEXT, "--samples", "3", *FEW)
    before = generate(tmp_path, *few)
    assert len([f for f in before if f.endswith(".mp4")]) == 3

    class Killed(Exception):
        pass

    def killed() -> None:
        raise Killed

    config = load("toy", [*FEW, "rollout.max_batch=1"])
    policy = load_policy(config, None, "cpu")
    pairs = [(Prompt.from_text("other-1", TEXT), seed) for seed in range(2)]
    with pytest.raises(Killed):
        generate_clips(policy, config, pairs, RunFolder(str(tmp_path)), "other", killed)
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    pairs = [(Prompt.from_text("prompt-1", TEXT), seed) for seed in (0, 1)]
    calls = 0

    def killed_later() -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise Killed

    with pytest.raises(Killed):
        generate_clips(policy, config, pairs, RunFolder(str(tmp_path)), "other", killed_later)
    left = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(left) - set(before) == {"prompt-1_0.mp4.partial"}
    assert {name: left[name] for name in before} == before
    assert [clip.seed for clip in read_clips(str(tmp_path))] == [0, 1, 2]


def test_an_export_whose_files_are_of_two_exports_is_refused(tmp_path: Path) -> None:
    """The newer adapter beside the older description, after a copy that was cut off."""
    shutil.copytree(ADAPTER, tmp_path / "export")
    assert load_weights(str(tmp_path / "export")).step > 0
    file = tmp_path / "export/pytorch_lora_weights.safetensors"
    doubled = {name: 2 * array for name, array in safetensors.numpy.load_file(file).items()}
    safetensors.numpy.save_file(doubled, file)
    with pytest.raises(ConfigError, match=r"other weights in pytorch_lora_weights.safetensors"):
        load_weights(str(tmp_path / "export"))


def test_folder_of_videos_is_read_or_refused(tmp_path: Path) -> None:
    clip = Clip.of(Prompt.from_text("a.b", "A box."), 3, None)
    assert clip.file == "a.b_3.mp4"
    (tmp_path / "videos.jsonl").write_text(clip.model_dump_json(exclude_none=True))
    with pytest.raises(ConfigError, match=r"lacks 1 of its videos \(first: a\.b_3\.mp4\)"):
        read_clips(str(tmp_path))
    (tmp_path / clip.file).write_bytes(b"x")
    assert read_clips(str(tmp_path)) == [clip]
    (tmp_path / "videos.jsonl").write_text('{"file": "../a.mp4", "id": "a", "prompt": "b"}')
    with pytest.raises(ConfigError, match=r"videos\.jsonl: file: "):
        read_clips(str(tmp_path))
    (tmp_path / "videos.jsonl").write_text('{"file": "a.mp4", "id": "../a", "prompt": "b"}')
    with pytest.raises(ConfigError, match=r"videos\.jsonl: id: .*names files; allowed: letters"):
        read_clips(str(tmp_path))
    with pytest.raises(ConfigError, match=r"has no videos\.jsonl; allowed"):
        read_clips(str(tmp_path / "nowhere"))
