"""Weights by path or hub id, and LPIPS without its weights: honest sentences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rewards.config import PerceptualConfig
from rewards.lpips import (
    ALEXNET,
    CHANNELS,
    LAYERS,
    AlexTrunk,
    _Lpips,
    torchvision_tensors,
    trunk_tensors,
)
from rewards.perceptual import build_distance
from rewards.weights import WeightsMissing, weights_file, weights_folder


def test_a_folder_has_to_hold_every_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsMissing, match=r"has no model\.safetensors"):
        weights_folder("key", str(tmp_path), ("config.json", "model.safetensors"))
    (tmp_path / "model.safetensors").write_bytes(b"")
    found = weights_folder("key", str(tmp_path), ("config.json", "model.safetensors"))
    assert found == tmp_path
    assert weights_file("key", str(tmp_path), "config.json") == tmp_path / "config.json"
    assert weights_file("key", str(tmp_path / "config.json"), "x") == tmp_path / "config.json"


def test_neither_folder_nor_hub_id() -> None:
    with pytest.raises(WeightsMissing, match="key = '/no/where' is neither a folder nor a hub id"):
        weights_folder("key", "/no/where", ("a",))


def test_a_hub_id_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsMissing, match="not on this machine and cannot be fetched"):
        weights_folder("rewards.reconstruction.model", "owner/name", ("model.safetensors",))


def test_lpips_without_weights_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"rewards\.perceptual\.weights"):
        build_distance(PerceptualConfig(backend="lpips"))
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsMissing, match=r"has no features\.0\.weight"):
        trunk_tensors(str(tmp_path / "other.safetensors"))


def test_the_trunk_is_alexnets_and_the_distance_is_lpips() -> None:
    """Shapes of torchvision's AlexNet; equal pictures 0, symmetric, growing with noise. Equality
    with the package is checked in its environment (`test_da3_real.py`)."""
    torch.manual_seed(0)
    trunk = AlexTrunk()
    taps = trunk(torch.zeros(1, 3, 64, 96))
    assert [tuple(tap.shape[1:]) for tap in taps] == [
        (64, 15, 23), (192, 7, 11), (384, 3, 5), (256, 3, 5), (256, 3, 5)
    ]  # fmt: skip
    heads = [torch.rand(1, c, 1, 1) for c in CHANNELS[1:]]
    distance = _Lpips(trunk, heads).requires_grad_(False)
    a, b = torch.rand(2, 3, 64, 96), torch.rand(2, 3, 64, 96)
    assert distance(a, a).tolist() == [0.0, 0.0]
    assert torch.allclose(distance(a, b), distance(b, a))
    near = distance(a, a + 0.05 * (b - a))
    assert (near < distance(a, b)).all()
    assert len(LAYERS) == len(taps)
    assert np.isfinite(distance(a, b).numpy()).all()


def test_a_cached_pickle_of_anything_but_tensors_is_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write to the cache of torchvision's downloads runs nothing here by it."""
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (marker.touch, ())

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    file = folder / ALEXNET.rpartition("/")[2]
    torch.save({"features.0.weight": Evil()}, file)
    with pytest.raises(WeightsMissing, match="AlexNet for LPIPS cannot be had"):
        torchvision_tensors()
    assert not marker.exists()
    torch.save({"features.0.weight": torch.ones(2)}, file)
    assert torchvision_tensors()["features.0.weight"].tolist() == [1.0, 1.0]
