"""An adapter for other programs: under ComfyUI's names, and merged into the network's weights.

ComfyUI keeps Wan's original module names. Its loader reads `X.lora_down.weight` (A),
`X.lora_up.weight` (B) and `X.alpha`, X being the module below "diffusion_model.", and adds
alpha / rank x B A to the weight.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from actors.config import LoraConfig
from actors.trajectory import LoraWeights

_COMFY_MODULES = {
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
}
"""Wan's original name of each module, or part of a module's name, of diffusers."""
_COMFY = re.compile("|".join(sorted(map(re.escape, _COMFY_MODULES), key=len, reverse=True)))


def comfy_weights(weights: LoraWeights, config: LoraConfig) -> dict[str, np.ndarray]:
    """The adapter under ComfyUI's names, with an alpha (float32 []) per module."""
    named: dict[str, np.ndarray] = {}
    for name, array in weights.items():
        module, _, factor = name.removesuffix(".weight").rpartition(".")
        stem = f"diffusion_model.{_COMFY.sub(lambda m: _COMFY_MODULES[m[0]], module)}"
        part = {"lora_A": "lora_down", "lora_B": "lora_up"}[factor]
        named[f"{stem}.{part}.weight"] = np.ascontiguousarray(array)
        named[f"{stem}.alpha"] = np.array(config.alpha, dtype=np.float32)
    return named


def save_comfy(weights: LoraWeights, config: LoraConfig, file: Path) -> None:
    """Write `comfy_weights` as safetensors."""
    from safetensors.numpy import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(comfy_weights(weights, config), file, metadata={"format": "pt"})


@torch.no_grad()
def merge_adapter(transformer: nn.Module, weights: LoraWeights, config: LoraConfig) -> int:
    """Add alpha / rank x B A to the weights of a network without an adapter; the number of modules
    that were changed.

    Computed in float32 and rounded once to the stored dtype. KeyError where a module is missing.
    """
    modules = dict(transformer.named_modules())
    scale = config.alpha / config.rank
    names = sorted(name.removesuffix(".lora_A.weight") for name in weights if ".lora_A." in name)
    for name in names:
        weight = modules[name].weight
        assert isinstance(weight, Tensor)
        down, up = (
            torch.from_numpy(np.array(weights[f"{name}.{part}.weight"])).to(weight.device)
            for part in ("lora_A", "lora_B")
        )
        weight.copy_((weight.float() + scale * (up @ down)).to(weight.dtype))
    return len(names)


def save_merged(
    model: str, dtype: torch.dtype, weights: LoraWeights, config: LoraConfig, directory: Path
) -> int:
    """Write the pipeline of `model` with the adapter in its weights; the number of modules changed.

    `directory` is then what `WanPipeline.from_pretrained` and `policy.model` take.
    """
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(
        model, dtype={"default": dtype, "vae": torch.float32}, use_safetensors=True
    )
    changed = merge_adapter(pipeline.transformer, weights, config)
    pipeline.save_pretrained(directory, safe_serialization=True)
    return changed
