"""Export: diffusers loads what was trained, under both names and merged, to one step's 1e-5."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import WanPipeline
from safetensors.numpy import load_file

from actors.policy import Policy
from actors.sde import ode_step, sigma_schedule
from cluster.cli import main
from cluster.config import REPOSITORY, ConfigError, RunConfig, resolve_model
from cluster.export import data_hash, is_hub_id
from cluster.storage import RunFolder
from cluster.weights import TrainedWeights, load_weights
from learner.export import comfy_weights
from prompts.schema import Prompt
from tests.cluster.trained_run import train_smallest

pytestmark = pytest.mark.slow
PROMPT = Prompt.from_text("p", "Camera push in. A red box and a blue ball on a green floor.")
MODEL = str(REPOSITORY / "toyworld/model")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return train_smallest(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def exported(run: RunConfig) -> Path:
    to = Path(run.run).parent / "export"
    assert main(["export", run.run, "--to", str(to), "--merged"]) == 0
    return to


def noise() -> torch.Tensor:
    return torch.randn(1, 16, 3, 8, 12, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def our_step(trained: TrainedWeights, with_adapter: bool = True) -> torch.Tensor:
    """The rollout's own first step of ten."""
    config = trained.config.policy.model_copy(
        update={"model": resolve_model(trained.config.policy.model)}
    )
    policy = Policy.load(config, "cpu", with_decoder=False)
    if with_adapter:
        policy.load_lora(trained.weights)
    sigmas = sigma_schedule(10, trained.config.rollout.shift)
    return ode_step(noise(), policy.bind([PROMPT])(noise(), sigmas[0]), sigmas[0], sigmas[1])


def their_step(config: RunConfig, pipeline: WanPipeline) -> torch.Tensor:
    """WanPipeline's first step of ten, by its own scheduler."""
    seen: list[torch.Tensor] = []

    def stop(pipe: WanPipeline, step: int, time: object, tensors: dict) -> dict:  # type: ignore[type-arg]
        seen.append(tensors["latents"])
        pipe._interrupt = True
        return tensors

    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        prompt=PROMPT.text, height=64, width=96, num_frames=9, num_inference_steps=10,
        guidance_scale=config.policy.guidance_scale, max_sequence_length=32,
        latents=noise(), output_type="latent", callback_on_step_end=stop,
    )  # fmt: skip
    return seen[0]


def base_with(folder: Path, file: str) -> WanPipeline:
    """The base model in float32, as the policy computes (its files are float16), and the LoRA."""
    pipeline = WanPipeline.from_pretrained(MODEL, dtype=torch.float32)
    pipeline.load_lora_weights(folder, weight_name=file)
    return pipeline


@pytest.mark.parametrize(
    "loaded",
    [
        lambda to: base_with(to, "pytorch_lora_weights.safetensors"),
        lambda to: base_with(to, "comfyui_lora.safetensors"),
        lambda to: WanPipeline.from_pretrained(to / "pipeline"),
    ],
    ids=["diffusers", "comfyui", "merged"],
)
def test_one_step_of_diffusers_with_the_export_is_the_rollouts_own(
    run: RunConfig, exported: Path, loaded: Callable[[Path], WanPipeline]
) -> None:
    trained = load_weights(run.run)
    assert trained.average
    expected = our_step(trained)
    step = their_step(run, loaded(exported))
    print(f"largest difference {float((step - expected).abs().max()):.1e}")
    torch.testing.assert_close(step, expected, rtol=0, atol=1e-5)
    assert float((our_step(trained, with_adapter=False) - expected).abs().max()) > 1e-3


def test_average_and_raw_weights_are_what_the_run_holds(run: RunConfig, tmp_path: Path) -> None:
    raw, average = (load_weights(run.run, kind) for kind in (False, True))
    assert raw.weights.keys() == average.weights.keys()
    assert max(float(np.abs(raw.weights[n] - average.weights[n]).max()) for n in raw.weights) > 1e-4
    assert main(["export", run.run, "--to", str(tmp_path), "--weights", "raw"]) == 0
    again = load_weights(str(tmp_path))
    assert (again.step, again.average) == (2, False)
    for name, array in raw.weights.items():
        np.testing.assert_array_equal(again.weights[name], array)
    with pytest.raises(ConfigError, match="holds the raw weights alone"):
        load_weights(str(tmp_path), average=True)


def test_comfy_names_and_alpha(run: RunConfig, exported: Path) -> None:
    stored = load_file(exported / "comfyui_lora.safetensors")
    stem = "diffusion_model.blocks.0"
    assert {
        f"{stem}.self_attn.q.lora_down.weight",
        f"{stem}.cross_attn.o.lora_up.weight",
        f"{stem}.ffn.0.lora_down.weight",
        f"{stem}.ffn.2.alpha",
    } <= stored.keys()
    assert float(stored[f"{stem}.ffn.2.alpha"]) == run.policy.lora.alpha
    weights = load_weights(run.run).weights
    assert stored.keys() == comfy_weights(weights, run.policy.lora).keys()
    assert len(stored) == len(weights) * 3 // 2


def test_card_says_what_it_is_and_what_was_measured(run: RunConfig, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "mit"
    assert front["library_name"] == "diffusers"
    assert "base_model" not in front
    training = json.loads((exported / "training.json").read_text())
    for split in ("train", "dynamic"):
        assert training["prompts"][split] == data_hash(getattr(run.prompts, split))
        assert training["prompts"][split]["sha256"][:16] in card
    assert training["weights_checksum"][:16] in card
    assert "2 held-out (prompt, noise) pairs" in card
    assert "| total reward |" in card
    assert "pipeline/" in card


def test_an_export_to_an_object_store_is_read_back_from_there(run: RunConfig) -> None:
    to = "memory://exports/mine"
    assert main(["export", run.run, "--to", to]) == 0
    assert sorted(RunFolder(to).sizes("")) == [
        "README.md", "comfyui_lora.safetensors", "pytorch_lora_weights.safetensors",
        "training.json",
    ]  # fmt: skip
    here, there = load_weights(run.run), load_weights(to)
    assert (here.step, here.average) == (there.step, there.average)
    for name, array in here.weights.items():
        np.testing.assert_array_equal(there.weights[name], array)
    assert main(["export", run.run, "--to", to, "--weights", "raw"]) == 0
    assert not load_weights(to).average


def test_a_merge_that_fails_leaves_the_export_that_was_there(
    run: RunConfig, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base model is gone from this machine."""
    to, moved, empty = tmp_path / "export", tmp_path / "run", tmp_path / "model"
    shutil.copytree(exported, to)
    shutil.copytree(run.run, moved)
    empty.mkdir()
    config = json.loads((moved / "config.json").read_text())
    config["policy"]["model"] = str(empty)
    (moved / "config.json").write_text(json.dumps(config))
    before = {path: path.read_bytes() for path in to.rglob("*") if path.is_file()}
    assert main(["export", str(moved), "--to", str(to), "--merged"]) == 2
    error = capsys.readouterr().err
    assert f"--merged: '{empty}' cannot be read or written" in error
    assert len(error.splitlines()) == 1
    assert {path: path.read_bytes() for path in to.rglob("*") if path.is_file()} == before


def test_the_card_names_a_hub_model_alone() -> None:
    assert is_hub_id("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    for directory in ("toyworld/model", "/mnt/models/wan", "models/wan/1.3B"):
        assert not is_hub_id(directory)


def test_what_cannot_be_exported_is_one_sentence(
    run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.tex").write_text("x")
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer/pytorch_lora_weights.safetensors").write_bytes(b"mine")
    damaged = tmp_path / "damaged"
    shutil.copytree(run.run, damaged)
    for file in damaged.glob("checkpoints/*/learner/*.distcp"):
        file.write_bytes(file.read_bytes()[:-1])
    for source, to, words in (
        (str(tmp_path / "nothing"), "new", "holds no trained weights"),
        (run.run, "taken", "holds other files"),
        (run.run, "taken/thesis.tex", "is not writable"),
        (run.run, "trainer", "holds other files"),  # diffusers' trainers name theirs alike
        (str(damaged), "new", "has no whole checkpoint"),
    ):
        assert main(["export", source, "--to", str(tmp_path / to)]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "new/training.json").exists()
