"""LPIPS (Zhang et al. 2018, arXiv 1801.03924; version 0.1, AlexNet) with or without torchvision.

Where torchvision can be imported, the lpips package computes it. Elsewhere (a CPU torch beside a
CUDA torchvision, say) the same five convolutions are built here, under torchvision's key names, and
the trained linear heads are read from the lpips package's file: equal to the package to 1e-6.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rewards.config import PerceptualConfig
from rewards.weights import WeightsMissing, weights_file

F32 = NDArray[np.float32]

TRUNK_FILE = "model.safetensors"
ALEXNET = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
"""torchvision's `AlexNet_Weights.IMAGENET1K_V1`; the name ends in the start of its SHA-256."""
LAYERS = (0, 3, 6, 8, 10)
"""Places of AlexNet's convolutions in torchvision's `features`; each is tapped after its ReLU."""
TRUNK_TENSORS = tuple(f"features.{p}.{kind}" for p in LAYERS for kind in ("weight", "bias"))
CHANNELS = (3, 64, 192, 384, 256, 256)
SHAPES = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
"""Kernel, stride and padding of each convolution; the second and third follow a max pool."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet statistics for inputs in [-1, 1], as the package has them."""
MIN_SIDE = 32
"""Smaller pictures vanish in the trunk's pools."""
MAX_BATCH_PIXELS = 8_000_000
"""Pixels of one pass through the trunk; longer clips are measured in pieces."""


class AlexTrunk(nn.Module):
    """AlexNet's convolutions; answers the five tapped activations."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict(
            {
                str(place): nn.Conv2d(CHANNELS[i], CHANNELS[i + 1], *SHAPES[i])
                for i, place in enumerate(LAYERS)
            }
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Activations of normalised images [B, 3, H, W]."""
        taps, x = [], images
        for index, place in enumerate(LAYERS):
            if index in (1, 2):
                x = nn.functional.max_pool2d(x, 3, 2)
            x = torch.relu(self.features[str(place)](x))
            taps.append(x)
        return taps


class LpipsDistance:
    """LPIPS of pairs of frames, clipped to [0, 1]."""

    def __init__(self, config: PerceptualConfig, device: str = "cpu") -> None:
        """Reads the weights at once. Raises WeightsMissing."""
        self.device = torch.device(device)
        self._distance: nn.Module
        package = package_works()
        self._distance = _package(config.weights) if package else _trunk(config.weights)
        self._distance = self._distance.to(self.device).eval().requires_grad_(False)
        self.version = f"lpips-0.1-alex-{'package' if package else 'trunk'}"

    def __call__(self, first: F32, second: F32) -> F32:
        """Distances [F] of two videos [F, H, W, 3] in [0, 1]."""
        if first.shape != second.shape or first.ndim != 4 or first.shape[-1] != 3:
            raise ValueError(
                f"videos have shapes {first.shape} and {second.shape}; allowed: two equal "
                "[F, H, W, 3]"
            )
        if min(first.shape[1:3]) < MIN_SIDE:
            raise ValueError(
                f"frames of {first.shape[1]} x {first.shape[2]} pixels; LPIPS needs {MIN_SIDE}"
            )
        size = max(MAX_BATCH_PIXELS // (first.shape[1] * first.shape[2]), 1)
        parts = [
            self._measure(first[start : start + size], second[start : start + size])
            for start in range(0, len(first), size)
        ]
        return np.clip(np.concatenate(parts), 0, 1)

    @torch.inference_mode()
    def _measure(self, first: F32, second: F32) -> F32:
        a, b = (
            torch.from_numpy(np.ascontiguousarray(x)).to(self.device).permute(0, 3, 1, 2) * 2 - 1
            for x in (first, second)
        )
        return np.asarray(self._distance(a, b).flatten().float().cpu().numpy(), np.float32)


class _Lpips(nn.Module):
    """Trunk and linear heads: what the lpips package computes for its `alex` network."""

    def __init__(self, trunk: AlexTrunk, heads: list[Tensor]) -> None:
        super().__init__()
        self.trunk = trunk
        for index, head in enumerate(heads):
            self.register_buffer(f"head_{index}", head)
        self.register_buffer("shift", torch.tensor(SHIFT)[None, :, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[None, :, None, None])

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distances [B] of images [B, 3, H, W] in [-1, 1]."""
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        total = first.new_zeros(len(first))
        taps = (self.trunk((x - shift) / scale) for x in (first, second))
        for index, (a, b) in enumerate(zip(*taps, strict=True)):
            difference = (_unit(a) - _unit(b)) ** 2
            head = self.get_buffer(f"head_{index}")
            total = total + (difference * head).sum(dim=1).mean(dim=(1, 2))
        return total


def _unit(activation: Tensor) -> Tensor:
    """Length 1 across channels, with the package's guard against 0."""
    return activation / (activation.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def package_works() -> bool:
    """Whether the lpips package and the torchvision that it needs can be imported here."""
    if importlib.util.find_spec("lpips") is None:
        return False
    try:
        import lpips  # noqa: F401
    except Exception:  # torchvision raises RuntimeError beside another build of torch
        return False
    return True


def _package(weights: str | None) -> nn.Module:
    """The package's network; its trunk from `weights`, or torchvision's."""
    import lpips

    # The package would unpickle whatever lies in the cache of torchvision's downloads.
    network: nn.Module = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    tensors = torchvision_tensors() if weights is None else trunk_tensors(weights)
    slices = (f"slice{index + 1}.{place}" for index, place in enumerate(LAYERS))
    names = zip(LAYERS, slices, strict=True)
    state = {
        f"{name}.{kind}": tensors[f"features.{place}.{kind}"]
        for place, name in names
        for kind in ("weight", "bias")
    }
    network.get_submodule("net").load_state_dict(state, strict=True)
    return network


def torchvision_tensors() -> Mapping[str, Tensor]:
    """Tensors of torchvision's AlexNet by name, fetched where `TORCH_HOME` does not hold them: a
    pickle, read as tensors and nothing else. WeightsMissing where they cannot be had."""
    try:
        tensors: Mapping[str, Tensor] = torch.hub.load_state_dict_from_url(
            ALEXNET, map_location="cpu", check_hash=True, weights_only=True
        )
    except Exception as error:  # no connection, a broken file, a pickle of something else
        raise WeightsMissing(
            f"AlexNet for LPIPS cannot be had from {ALEXNET} ({error}); give its `features` as a "
            "safetensors file in rewards.perceptual.weights"
        ) from None
    return tensors


def _trunk(weights: str | None) -> nn.Module:
    tensors = torchvision_tensors() if weights is None else trunk_tensors(weights)
    trunk = AlexTrunk()
    trunk.load_state_dict({name: tensors[name] for name in TRUNK_TENSORS}, strict=True)
    return _Lpips(trunk, head_tensors())


def trunk_tensors(weights: str) -> dict[str, Tensor]:
    """AlexNet's convolutions under torchvision's names, of a file, folder or hub repository."""
    from safetensors.torch import load_file

    file = weights_file("rewards.perceptual.weights", weights, TRUNK_FILE)
    tensors = load_file(file)
    missing = [name for name in TRUNK_TENSORS if name not in tensors]
    if missing:
        raise WeightsMissing(f"{file} has no {missing[0]}: it is no AlexNet as torchvision has it")
    return {name: tensors[name] for name in TRUNK_TENSORS}


def head_tensors() -> list[Tensor]:
    """Weights [1, C, 1, 1] of the five linear heads, from the lpips package's own file; the package
    is not imported. Raises WeightsMissing where it is not installed."""
    found = importlib.util.find_spec("lpips")
    if found is None or found.origin is None:
        raise WeightsMissing(
            "LPIPS needs the lpips package for its trained heads: make its environment with "
            "`worldr1 envs build reconstruction`, or set rewards.perceptual.backend = 'multiscale'"
        )
    file = Path(found.origin).parent / "weights/v0.1/alex.pth"
    state: Mapping[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return [state[f"lin{index}.model.1.weight"].float() for index in range(len(LAYERS))]
