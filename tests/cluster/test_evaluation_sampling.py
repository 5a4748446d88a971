"""Models sampled for an evaluation: by the rollout's own code, with their own adapter, and going on
where a start was cut off; figures that were measured are not measured again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from actors.trajectory import WeightsVersion, weights_checksum
from cluster.cli import main
from cluster.clips import Clip, read_clips
from cluster.config import RunConfig, load, with_overrides
from cluster.evaluation.kept_figures import KeptFigures
from cluster.evaluation.measure import ClipFigures
from cluster.evaluation.sampling import rollout_workers, sample, sampled_unlike_trained
from cluster.evaluation.sources import Source, find_source, fixed_pairs
from cluster.local import local_rollouts
from cluster.lost import ObjectGone
from cluster.pools import Published
from cluster.storage import RunFolder
from cluster.weights import with_adapter
from prompts.schema import Prompt

ADAPTER = "benchmarks/results/reproduction/adapters/full-seed0"
FEW = ("rollout.eval_sampling_steps=2", "rollout.frames=9", "rollout.max_batch=2")


def trained_and_config() -> tuple[Source, RunConfig]:
    """The committed adapter, and its configuration with few steps."""
    source = find_source(str(Path(__file__).parents[2] / ADAPTER), True)
    assert source.trained is not None
    return source, with_overrides(source.trained.config, FEW)


def sampled(
    folder: RunFolder, source: Source, config: RunConfig, pairs: int, prompts: str = "toy_test"
) -> list[str]:
    """What `sample` says."""
    lines: list[str] = []
    own = with_adapter(config, source.trained)
    with rollout_workers(own, None, "cpu") as rollouts:
        chosen = fixed_pairs(config, prompts, pairs)
        asyncio.run(sample(rollouts, own, source, chosen, folder, lines.append))
    return lines


def test_a_start_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    source, config = trained_and_config()
    whole, cut = RunFolder(str(tmp_path / "whole")), RunFolder(str(tmp_path / "cut"))
    assert sampled(whole, source, config, 4)[0].endswith("0 of them sampled before")
    files = [clip.file for clip in read_clips(whole.url)]
    assert len(files) == 4
    sampled(cut, source, config, 2)
    lines = sampled(cut, source, config, 4)
    assert lines[0].endswith("4 (prompt, seed) pairs, 2 of them sampled before")
    assert lines[1:] == [f"{source.title}: 4/4 sampled"]
    assert {f: cut.read_bytes(f) for f in files} == {f: whole.read_bytes(f) for f in files}


@pytest.mark.parametrize("losses", [2, 3])
def test_samples_that_die_with_their_node_are_made_again(tmp_path: Path, losses: int) -> None:
    source, config = trained_and_config()
    own, folder, lines = with_adapter(config, source.trained), RunFolder(str(tmp_path)), list[str]()
    with rollout_workers(own, None, "cpu") as rollouts:
        fetch, left = rollouts.pool.fetch, losses

        async def lost(video: Any) -> Any:
            nonlocal left
            left -= 1
            if left >= 0:
                raise ObjectGone("the node died")
            return await fetch(video)

        rollouts.pool.fetch = lost  # type: ignore[method-assign]
        chosen = fixed_pairs(config, "toy_test", 2)
        work = sample(rollouts, own, source, chosen, folder, lines.append)
        if losses == 3:
            with pytest.raises(ObjectGone):
                asyncio.run(work)
            return
        asyncio.run(work)
    assert lines[-1] == f"{source.title}: 2/2 sampled"
    assert len(read_clips(folder.url)) == 2


def test_samples_of_other_weights_prompts_or_settings_are_not_taken_for_these(
    tmp_path: Path,
) -> None:
    source, config = trained_and_config()
    folder = RunFolder(str(tmp_path / "videos"))
    sampled(folder, source, config, 2)
    first = read_clips(folder.url)[0].file
    trained = folder.read_bytes(first)

    base = Source("base", None, None)
    assert sampled(folder, base, config, 2)[0].endswith(" 0 of them sampled before")
    assert folder.read_bytes(first) != trained
    more = with_overrides(config, ["rollout.eval_sampling_steps=3"])
    assert sampled(folder, base, more, 2)[0].endswith(" 0 of them sampled before")

    rows = [json.loads(line) for line in folder.read_text("videos.jsonl").splitlines()]
    others = tmp_path / "prompts.jsonl"
    texts = ["Camera push in. A blue box on a red floor.", rows[1]["prompt"]]
    named = zip([row["id"] for row in rows], texts, strict=True)
    prompts = [Prompt.from_text(name, text) for name, text in named]
    others.write_text("\n".join(prompt.model_dump_json(by_alias=True) for prompt in prompts))
    again = sampled(folder, base, more, 2, str(others))
    assert again[0].endswith(" 1 of them sampled before")  # the other text has the same id


def test_another_clip_of_the_same_name_is_not_taken_for_a_sample(tmp_path: Path) -> None:
    """Another evaluation may have copied its clips here, and a person keeps files of his own."""
    source, config = trained_and_config()
    config = with_overrides(config, ["rollout.max_batch=1"])  # the same bits, alone or not
    folder = RunFolder(str(tmp_path / "videos"))
    folder.write_text("notes.txt", "mine")
    sampled(folder, source, config, 2)
    first, second = (clip.file for clip in read_clips(folder.url))
    sample_of_it = folder.read_bytes(first)
    folder.write_bytes(first, folder.read_bytes(second))
    assert sampled(folder, source, config, 2)[0].endswith(" 1 of them sampled before")
    assert folder.read_bytes(first) == sample_of_it
    other = with_overrides(config, ["policy.guidance_scale=2.0"])
    assert sampled(folder, source, other, 1)[0].endswith(" 0 of them sampled before")
    assert folder.read_text("notes.txt") == "mine"
    folder.write_text("sampling.json", "torn")
    assert sampled(folder, source, other, 1)[0].endswith(" 0 of them sampled before")


def test_an_adapter_is_scaled_as_it_was_trained() -> None:
    """Another side's alpha would sample another model from the same weights."""
    source, config = trained_and_config()
    other = with_overrides(config, ["policy.lora.alpha=1"])
    assert with_adapter(other, source.trained).policy.lora == config.policy.lora
    assert with_adapter(other, None) == other

    async def video(used: RunConfig) -> bytes:
        assert source.trained is not None
        rollouts, weights = local_rollouts(used), source.trained.weights
        published = Published(WeightsVersion(1, "t", weights_checksum(weights)), weights)
        [(prompt, seed)] = fixed_pairs(used, "toy_test", 1)
        [ref] = await rollouts.sample([prompt], [seed], published)
        return (await rollouts.pool.fetch(ref)).tobytes()

    assert asyncio.run(video(with_adapter(other, source.trained))) == asyncio.run(video(config))
    assert asyncio.run(video(other)) != asyncio.run(video(config))


def test_settings_that_a_source_was_not_trained_with_are_said() -> None:
    source, _ = trained_and_config()
    assert source.trained is not None
    assert sampled_unlike_trained(source.trained.config, [source]) == []
    plain = load("toy", ["camera.strength=0", "rollout.workers=3"])
    said = sampled_unlike_trained(plain, [source, Source("base", None, None)])
    keys = {sentence.split(" was trained with ")[1].split(" = ")[0] for sentence in said}
    assert keys == {"camera.strength", "camera.degradation"}
    assert "camera.strength = 0.9; it is sampled with 0.0" in " ".join(said)


def test_figures_are_kept_for_the_same_clip_and_scorers_alone(tmp_path: Path) -> None:
    out = RunFolder(str(tmp_path))
    clip = Clip(file="a_0.mp4", id="a", prompt="A red box.", seed=0)
    found = ClipFigures("a", "A red box.", 0, {"psnr": 27.5}, {"second": "no camera found"})
    KeptFigures(out, "a", ["v1"]).write(clip, b"video", found)
    assert KeptFigures(out, "a", ["v1"]).read(clip, b"video") == found
    assert KeptFigures(out, "a", ["v2"]).read(clip, b"video") is None
    assert KeptFigures(out, "a", ["v1"]).read(clip, b"other") is None
    assert KeptFigures(out, "b", ["v1"]).read(clip, b"video") is None
    other = clip.model_copy(update={"prompt": "A blue box."})
    assert KeptFigures(out, "a", ["v1"]).read(other, b"video") is None
    lost = Clip(file="b_0.mp4", id="b", prompt="A box.", seed=0)
    for who, figures in (("judge", {}), ("reconstruction", {"content": 0.9})):
        failed = ClipFigures("b", "A box.", 0, figures, {who: "no answer within 60 s"})
        KeptFigures(out, "a", ["v1"]).write(lost, b"video", failed)
        assert KeptFigures(out, "a", ["v1"]).read(lost, b"video") is None
    blank = ClipFigures("b", "A box.", 0, {"s_recon": 0.0}, {"reconstruction": "no texture"})
    KeptFigures(out, "a", ["v1"]).write(lost, b"video", blank)
    assert KeptFigures(out, "a", ["v1"]).read(lost, b"video") == blank
    out.write_text("figures/a/b_0.json", "{torn")
    assert KeptFigures(out, "a", ["v1"]).read(lost, b"video") is None


@pytest.mark.slow
def test_the_command_measures_a_model_against_the_base_and_again_from_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = trained_and_config()
    command = ["evaluate", "base", "--against", source.name, "--pairs", "2", *FEW]
    command += ["--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 0
    first = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert [len(side["clips"]) for side in first["sides"]] == [2, 2]
    assert any("eval_sampling_steps" in note for note in first["notes"])
    kept = sorted((tmp_path / "out/figures").rglob("*.json"))
    assert len(kept) == 4
    touched = {path: path.stat().st_mtime_ns for path in kept}
    capsys.readouterr()
    assert main(command) == 0
    assert "2 of them sampled before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in kept} == touched
    assert json.loads((tmp_path / "out/evaluation.json").read_text()) == first


@pytest.mark.cluster
def test_a_model_is_sampled_and_scored_by_pools_as_in_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rollout workers on Ray, then reward workers: the clips and figures of one process."""
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    source, _ = trained_and_config()
    command = ["evaluate", source.name, "--pairs", "3", *FEW]
    assert main([*command, "--out", str(tmp_path / "one"), "--device", "cpu"]) == 0
    try:
        assert main([*command, "--out", str(tmp_path / "pools"), "--workers", "2"]) == 0
    finally:
        ray.shutdown()
    capsys.readouterr()
    one, pools = (
        json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "pools")
    )
    for alone, pooled in zip(one["sides"][0]["clips"], pools["sides"][0]["clips"], strict=True):
        assert pooled["figures"] == pytest.approx(alone["figures"], rel=1e-6)
    for clip in read_clips(str(tmp_path / "one/videos/a")):
        data = [
            (tmp_path / name / "videos/a" / clip.file).read_bytes() for name in ("one", "pools")
        ]
        assert data[0] == data[1]
