"""What is done with the trained LoRA tensors besides training them: running average, export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actors.config import LoraConfig
from actors.trajectory import LoraWeights
from learner.fsdp import local


def start_average(current: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A running average that begins at the current weights (sharded like them)."""
    return {name: tensor.detach().clone() for name, tensor in current.items()}


def average_decay(updates: int, decay: float) -> float:
    """Decay of the running average at the update that is the `updates`-th applied one: it grows to
    `decay`, so that a young average is of what was trained and not of where it began (as in
    Flow-GRPO's code)."""
    return min(decay, (1 + updates) / (10 + updates))


@torch.no_grad()
def update_average(
    average: Mapping[str, Tensor], current: Mapping[str, Tensor], decay: float
) -> None:
    """average <- decay x average + (1 - decay) x current, in place, shard by shard.

    A decay of 0 makes the average the current weights, and equal weights leave it alone, exactly.
    """
    for name, tensor in average.items():
        local(tensor).lerp_(local(current[name]), 1.0 - decay)


def to_numpy(full: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Whole CPU tensors as contiguous float32 arrays, as they travel and are saved."""
    return {name: np.ascontiguousarray(tensor.float().numpy()) for name, tensor in full.items()}


def save_adapter(weights: LoraWeights, config: LoraConfig, directory: str | Path) -> Path:
    """Write weights to `directory`/pytorch_lora_weights.safetensors and return that path.

    `WanPipeline.load_lora_weights(directory)` reads it, scale included: rank, alpha and targets
    are in the file's header, without which the loader would take alpha to be the rank.

    Raises ValueError for weights that are no LoRA tensors, or not finite.
    """
    for name, array in weights.items():
        if ".lora_A." not in name and ".lora_B." not in name:
            raise ValueError(f"{name} is no LoRA tensor; names hold .lora_A. or .lora_B.")
        if not np.isfinite(array).all():
            raise ValueError(f"LoRA tensor {name} holds NaN or infinity and is not exported")
    # Imported here: the pipeline pulls in the text encoder's library, which training ranks that
    # never export do not need.
    from diffusers import WanPipeline

    WanPipeline.save_lora_weights(
        directory,
        transformer_lora_layers={k: torch.from_numpy(np.array(v)) for k, v in weights.items()},
        transformer_lora_adapter_metadata={
            "r": config.rank,
            "lora_alpha": config.alpha,
            "target_modules": list(config.targets),
        },
    )
    return Path(directory) / "pytorch_lora_weights.safetensors"
