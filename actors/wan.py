"""What is particular to Wan2.1: the only place of the policy that knows the model's classes.

A directory or hub id holds a diffusers `WanPipeline`: `transformer`, `vae`, `text_encoder` and
`tokenizer`, the first three as safetensors (nothing is unpickled).
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline, prompt_clean
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel
from transformers.utils import logging as transformers_logging

from actors.wan_shape import WanShape

log = logging.getLogger(__name__)

Transformer = WanTransformer3DModel
Decoder = AutoencoderKLWan
Tokenizer = PreTrainedTokenizerBase
TextEncoder = UMT5EncoderModel

_TRAIN_TIMESTEPS = 1000.0
_WEIGHTS = {
    "transformer": "diffusion_pytorch_model*.safetensors",
    "vae": "diffusion_pytorch_model*.safetensors",
    "text_encoder": "model*.safetensors",
    "tokenizer": "tokenizer*",
}
_CLASSES: dict[str, type] = {
    "transformer": WanTransformer3DModel,
    "vae": AutoencoderKLWan,
    "text_encoder": UMT5EncoderModel,
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
        if part != "tokenizer":
            _require_whole(root / part, _CLASSES[part])


def require_single_network(model: str) -> None:
    """ValueError for a pipeline that needs more than one velocity network or a time of each token,
    as Wan2.2's do: half of one would sample without a word."""
    index = _pipeline_index(model)
    second = any(index.get("transformer_2") or ())
    if second or index.get("boundary_ratio") is not None or index.get("expand_timesteps"):
        raise ValueError(
            f"policy.model {model!r} is a pipeline of two networks or of times per token, such as "
            "Wan2.2; allowed: Wan2.1 text-to-video"
        )


def _pipeline_index(model: str) -> dict[str, Any]:
    """`model_index.json`; empty where there is none, as in an offline copy of single folders."""
    try:
        index, _unused = WanPipeline.load_config(model, return_unused_kwargs=True)
    except OSError:
        return {}
    return index


def _require_whole(folder: Path, expected: type) -> None:
    """ValueError unless the folder's config is of the expected class and no shard is missing."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        indices = [json.loads(file.read_text()) for file in folder.glob("*.safetensors.index.json")]
        shards = {name for index in indices for name in index["weight_map"].values()}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"policy.model: {folder} has no readable config or index: {error}"
        ) from None
    names = [config.get("_class_name"), *config.get("architectures", [])]
    if expected.__name__ not in names:
        found = next((name for name in names if name), "unnamed")
        raise ValueError(
            f"policy.model: {folder} holds a model of class {found}; allowed: {expected.__name__}"
        )
    missing = sorted(name for name in shards if not (folder / name).is_file())
    if missing:
        raise ValueError(
            f"policy.model: {folder} lacks {len(missing)} of {len(shards)} weight files "
            f"(first: {missing[0]}); allowed: a complete download"
        )


def meta_transformer(shape: WanShape, dtype: torch.dtype) -> WanTransformer3DModel:
    """A transformer of that shape without memory, in the dtypes that `load_transformer` gives."""
    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=shape.heads,
            attention_head_dim=shape.head_dim,
            ffn_dim=shape.ffn_dim,
            num_layers=shape.layers,
            text_dim=shape.text_dim,
            freq_dim=shape.freq_dim,
            in_channels=shape.channels,
            out_channels=shape.channels,
        )
    kept = set(WanTransformer3DModel._keep_in_fp32_modules)
    for name, parameter in model.named_parameters():
        if not kept & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return model.eval()


def materialise(model: WanTransformer3DModel, device: torch.device, std: float = 0.02) -> None:
    """Give a meta model memory and normal weights on `device`, adapter included: for benchmarks
    and estimates, which need no trained weights."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                drawn = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                module._parameters[name] = nn.Parameter(
                    drawn.normal_(0.0, std), requires_grad=parameter.requires_grad
                )
    config: Any = model.config
    with torch.device(device):
        model.rope = type(model.rope)(
            config.attention_head_dim, config.patch_size, config.rope_max_seq_len
        )


def load_transformer(model: str, dtype: torch.dtype) -> WanTransformer3DModel:
    """The velocity network; diffusers keeps its time embedding and norms in float32. ValueError
    as in `require_single_network`."""
    require_single_network(model)
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

    The encoder sees the prompt padded to `max_tokens`, as WanPipeline shows it; a longer one is
    cut, which is said.
    """
    cleaned = prompt_clean(text)
    if (length := len(tokenizer(cleaned).input_ids)) > max_tokens:
        log.warning(
            "a prompt has %d tokens, of which policy.max_prompt_tokens = %d are seen: %s",
            *(length, max_tokens, text[:80]),
        )
    tokens = tokenizer(
        [cleaned],
        padding="max_length",
        max_length=max_tokens,
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    ).to(encoder.device)
    hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state[0]
    # A copy: a view would keep the padding's rows in memory for as long as it is cached.
    return hidden[: int(tokens.attention_mask.sum())].clone()


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


def use_decoder(vae: AutoencoderKLWan, tiling: bool, channels_last: bool) -> None:
    """Switch on what makes decoding smaller (`tiling`) or faster (`channels_last`)."""
    if tiling:
        vae.enable_tiling()
    if channels_last:
        for module in vae.decoder.modules():
            if isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            elif isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def decode_clips(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Pixels in [0, 1], float32 [B, 3, F, H, W], of clips' latents [B, 16, F', h, w]."""
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config["latents_mean"], device=latents.device).view(shape)
    std = torch.tensor(vae.config["latents_std"], device=latents.device).view(shape)
    pixels = vae.decode(latents * std + mean, return_dict=False)[0]
    return (pixels / 2 + 0.5).clamp(0, 1)
