"""What is particular to Wan2.1: the only place of the policy that knows the model's classes.

A directory or hub id holds a diffusers `WanPipeline`: `transformer`, `vae`, `text_encoder` and
`tokenizer`, the first three as safetensors (nothing is unpickled).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel
from transformers.utils import logging as transformers_logging

_TRAIN_TIMESTEPS = 1000.0
_WEIGHTS = {
    "transformer": "diffusion_pytorch_model*.safetensors",
    "vae": "diffusion_pytorch_model*.safetensors",
    "text_encoder": "model*.safetensors",
    "tokenizer": "tokenizer*",
}


def require_parts(model: str, with_decoder: bool, with_text_encoder: bool) -> None:
    """ValueError unless `model` is a hub id, or a directory with the parts that are asked for."""
    root = Path(model)
    if not root.is_dir():
        if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not model.startswith("."):
            return
        raise ValueError(
            f"policy.model is {model!r}, which is neither an existing directory nor a hub id "
            "such as 'Wan-AI/Wan2.1-T2V-1.3B-Diffusers'"
        )
    asked = ["transformer"] + ["vae"] * with_decoder
    asked += ["text_encoder", "tokenizer"] * with_text_encoder
    for part in asked:
        if not any((root / part).glob(_WEIGHTS[part])):
            raise ValueError(
                f"policy.model {model!r} has no {part}/{_WEIGHTS[part]}; allowed: a diffusers "
                f"WanPipeline directory in safetensors with {', '.join(_WEIGHTS)}"
            )


def load_transformer(model: str, dtype: torch.dtype) -> WanTransformer3DModel:
    """The velocity network; diffusers keeps its time embedding and norms in float32."""
    return WanTransformer3DModel.from_pretrained(
        model, subfolder="transformer", torch_dtype=dtype, use_safetensors=True
    )


def load_vae(model: str) -> AutoencoderKLWan:
    """The video autoencoder, in float32: its decoder is not stable in bfloat16."""
    return AutoencoderKLWan.from_pretrained(
        model, subfolder="vae", torch_dtype=torch.float32, use_safetensors=True
    )


def load_text_encoder(
    model: str, dtype: torch.dtype
) -> tuple[PreTrainedTokenizerBase, UMT5EncoderModel]:
    """The tokenizer and the text encoder."""
    # A bar per worker would drown the log of a run.
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model, subfolder="tokenizer")
    encoder = UMT5EncoderModel.from_pretrained(
        model, subfolder="text_encoder", dtype=dtype, use_safetensors=True
    )
    return tokenizer, encoder


def embed_prompt(
    tokenizer: PreTrainedTokenizerBase, encoder: UMT5EncoderModel, text: str, max_tokens: int
) -> Tensor:
    """Text embedding [n, D] of the n tokens of a prompt; WanPipeline appends zeros to it.

    The encoder sees the prompt padded to `max_tokens`, as WanPipeline shows it.
    """
    tokens = tokenizer(
        [prompt_clean(text)],
        padding="max_length",
        max_length=max_tokens,
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    ).to(encoder.device)
    hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state[0]
    return hidden[: int(tokens.attention_mask.sum())]


def raw_velocity(
    transformer: nn.Module, latents: Tensor, sigmas: Tensor, embeddings: Tensor
) -> Tensor:
    """Velocity float32 [B, ...] of `latents` at `sigmas` float32 [B] given [B, L, D] embeddings.

    The timestep 1000·sigma enters in float32, and Wan computes its sinusoids and its time
    embedding in float32 too; only latents and text are rounded to the network's dtype. (A wrapper
    that casts a module's inputs, such as FSDP's mixed precision, must leave it alone.)
    """
    dtype = cast(torch.dtype, transformer.dtype)
    velocity = transformer(
        hidden_states=latents.to(dtype),
        timestep=sigmas * _TRAIN_TIMESTEPS,
        encoder_hidden_states=embeddings.to(dtype),
        return_dict=False,
    )[0]
    return cast(Tensor, velocity).float()


def decode_clips(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Pixels in [0, 1], float32 [B, 3, F, H, W], of clips' latents [B, 16, F', h, w]."""
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config["latents_mean"], device=latents.device).view(shape)
    std = torch.tensor(vae.config["latents_std"], device=latents.device).view(shape)
    pixels = vae.decode(latents * std + mean, return_dict=False)[0]
    return (pixels / 2 + 0.5).clamp(0, 1)
