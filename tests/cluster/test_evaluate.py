"""Paired gains by hand, videos through mp4, the sheet of pictures, files of a run."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from actors.trajectory import WeightsVersion
from benchmarks.simulated import Durations, SimulatedPool, simulated_workers
from cluster.config import ConfigError, load
from cluster.evaluate import Evaluator
from cluster.evaluation.statistics import lower_bound
from cluster.held_out import EvalSample, gains_table, load_evaluation, paired_gains
from cluster.metrics import MetricsLog
from cluster.pools import Published
from cluster.report.sheet import SHEET_NAME, write_sheet
from cluster.storage import RunFolder
from cluster.video import decode_mp4, encode_mp4
from prompts.dataset import load_prompts


def sample(index: int, total: float, **raw: float) -> EvalSample:
    return EvalSample(f"p{index}", f"Prompt {index}.", index, total, {"recon": total / 2}, raw)


def test_gains_are_paired_and_ignore_pairs_that_one_side_lacks() -> None:
    before = [sample(0, 1.0, psnr=20.0), sample(1, 2.0, psnr=22.0), sample(9, 50.0, psnr=0.0)]
    after = [sample(1, 2.5, psnr=23.0), sample(0, 1.25, psnr=20.0), sample(8, -50.0, psnr=0.0)]
    gains = {gain.name.strip(): gain for gain in paired_gains(before, after)}
    assert list(gains) == ["total reward", "recon", "psnr"]
    total = gains["total reward"]
    assert (total.before, total.after, total.gain, total.pairs) == (1.5, 1.875, 0.375, 2)
    # Two prompts: the drawn means' 5 % quantile is 0.25, 0.125 below the mean; Student's t with one
    # degree of freedom stretches that by sqrt(2) 6.314 / 1.645.
    assert total.lower == pytest.approx(0.375 - 0.125 * 5.428, abs=1e-3)
    assert gains["psnr"].gain == 0.5
    table = gains_table(list(gains.values()))
    assert "+0.375" in table
    assert "+25%" in table


@pytest.mark.parametrize("noises", [1, 4])
def test_the_bound_covers_as_often_as_it_says(noises: int) -> None:
    """Also where gains differ by prompt and each prompt has several noises."""
    rng = np.random.default_rng(3)
    prompts = [f"p{index // noises}" for index in range(40 * noises)]
    below = []
    for _ in range(300):
        gains = rng.normal(0.3, 1.0, 40).repeat(noises) + rng.normal(0, 0.3, 40 * noises)
        below.append(lower_bound(gains, prompts) <= 0.3)
    assert np.mean(below) == pytest.approx(0.95, abs=0.04)


def test_video_survives_mp4() -> None:
    ramp = np.linspace(0, 255, 96)[None, None, :, None] * np.ones((9, 64, 1, 3))
    video = ramp.astype(np.uint8)
    decoded = decode_mp4(encode_mp4(video))
    assert decoded.shape == video.shape
    assert np.abs(decoded.astype(int) - video).mean() < 3


def test_sheet_shows_both_rows_of_every_prompt(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "run"))
    samples = [sample(i, float(i)) for i in range(3)]
    for step, level in ((0, 30), (5, 220)):
        base = f"samples/step_{step:06d}"
        for s in samples:
            video = np.full((9, 64, 96, 3), level, np.uint8)
            folder.write_bytes(f"{base}/{s.prompt_id}_{s.seed}.mp4", encode_mp4(video))
        folder.write_text(f"{base}/scores.json", json.dumps([asdict(s) for s in samples]))
    assert load_evaluation(folder, 5) == samples
    path = write_sheet(folder, samples, 5)
    assert path.endswith(SHEET_NAME)
    pixels = np.asarray(Image.open(path).convert("L"))
    assert (abs(pixels.astype(int) - 30) < 6).sum() == pytest.approx(3 * 5 * 144 * 96, rel=0.05)
    assert (abs(pixels.astype(int) - 220) < 6).sum() == pytest.approx(3 * 5 * 144 * 96, rel=0.05)


def test_run_folder_on_memory_and_disk(tmp_path: Path) -> None:
    for url in ("memory://bucket/run", str(tmp_path / "deep" / "run")):
        folder = RunFolder(url)
        folder.require_writable()
        folder.write_text("a/b.json", "[1]")
        assert folder.exists("a/b.json")
        assert folder.read_text("a/b.json") == "[1]"
        assert not folder.exists("a/c.json")


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a renamed file that was never flushed is empty."""
    flushed: list[tuple[str, bytes]] = []

    def fsync(handle: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{handle}")).name
        there = tmp_path / "folder/state.json"
        flushed.append((name, there.read_bytes() if there.exists() else b""))

    monkeypatch.setattr(os, "fsync", fsync)
    RunFolder(str(tmp_path / "folder")).write_text("state.json", "new")
    (first, before), (second, after) = flushed
    assert first.startswith("state.json.")
    assert first.endswith(".partial")
    assert (before, second, after) == (b"", "folder", b"new")


def test_unknown_scheme_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="nosuch"):
        RunFolder("nosuch://bucket/run")


class Flaky(RunFolder):
    """A store of which every second write fails."""

    writes = 0

    def write_bytes(self, name: str, data: bytes) -> None:
        self.writes += 1
        if self.writes % 2:
            raise OSError("503 slow down")
        super().write_bytes(name, data)


def test_a_store_that_fails_for_a_while_costs_no_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.patience.FIRST_PAUSE_S", 0.001)
    config = load("toy", ["eval.prompts=3", "eval.gold=false", f"run={tmp_path}"])
    folder, said = Flaky(config.run), list[str]()
    metrics = MetricsLog(RunFolder(config.run), 10, 0, said.append)
    prompts = load_prompts(config.prompts.test)
    workers = simulated_workers(config, Durations(0.0, 0.0))
    asked: list[int] = []

    async def sample(_: Any, seeds: Sequence[int], version: WeightsVersion, *weights: Any) -> Any:
        asked.extend(seeds)
        return (version, *(np.full((3, 32, 32, 3), 40 + seed, np.uint8) for seed in seeds))

    rollouts = workers.rollouts.pool
    assert isinstance(rollouts, SimulatedPool)
    rollouts._methods["sample"] = sample
    for pool in workers.rewards.pools.values():
        assert isinstance(pool, SimulatedPool)
        usual = pool._methods["score"]

        async def score(video: Any, *args: Any, usual: Any = usual) -> Any:
            return await usual((int(np.asarray(video).flat[0]), 0), *args)

        pool._methods["score"] = score
    weights = Published(WeightsVersion(5, "a", "c"), None)
    evaluator = Evaluator(config, prompts, folder, metrics)
    samples = asyncio.run(evaluator.evaluate(5, weights, workers))
    assert (sorted(asked), len(samples)) == ([0, 1, 2], 3)
    assert load_evaluation(folder, 5) == samples
    assert len(folder.find("samples/step_000005", "*.mp4")) == 3
    assert sum("503 slow down; trying again" in line for line in said) == 4
