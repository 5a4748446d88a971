"""The toy Wan pipeline: diffusers' own classes at a size that two CPU cores can train and run.

Latents are [B, 16, (F - 1) / 4 + 1, H / 8, W / 8], as the real Wan 2.1 has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.models.umt5.configuration_umt5 import UMT5Config
from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

from prompts.motions import COMPOSITES, PRIMITIVES
from toyworld.palette import FLOOR_COLORS, OBJECT_COLORS
from toyworld.scenes import SHAPES

M = TypeVar("M", bound=torch.nn.Module)

SHIFT = 3.0
"""Wan's timestep shift at 480p; the toy world uses the same."""
MAX_TEXT_TOKENS = 32
"""Prompts are padded to this length with zero embeddings, which the transformer attends to: it is
part of the model, and the sampler must use the same (`max_sequence_length=32`)."""
LATENT_CHANNELS = 16
TEXT_DIM = 48
_SENTENCE = "camera then a and on floor that slides to the . ,"


def build_vae() -> AutoencoderKLWan:
    """A residual (Wan 2.2 style) causal video VAE: 8× in space, 4× in time, 16 channels."""
    return AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=16,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        patch_size=2,
        in_channels=12,
        out_channels=12,
        is_residual=True,
        scale_factor_spatial=8,
        scale_factor_temporal=4,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def build_transformer() -> WanTransformer3DModel:
    """Six Wan blocks of width 128: 1.8 M parameters, 72 tokens for a 9-frame clip of 64×96."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=64,
        ffn_dim=512,
        num_layers=6,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )


def build_text_encoder(vocabulary_size: int) -> UMT5EncoderModel:
    """A two-layer UMT5 encoder of width 48, trained together with the transformer."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary_size,
            d_model=TEXT_DIM,
            d_kv=12,
            d_ff=96,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the toy world's few dozen words, built without any download."""
    phrases = [*PRIMITIVES, *COMPOSITES, *OBJECT_COLORS, *FLOOR_COLORS, *SHAPES, _SENTENCE]
    words = dict.fromkeys(word for phrase in phrases for word in phrase.split())
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_TEXT_TOKENS,
    )


def save_pipeline(
    out: Path,
    vae: AutoencoderKLWan,
    transformer: WanTransformer3DModel,
    text_encoder: UMT5EncoderModel,
) -> None:
    """Write a complete WanPipeline to `out` in half precision, safetensors only.

    Half precision costs no quality here (the VAE's error is a hundred times larger) and halves what
    the repository carries; loading with `torch_dtype=torch.float32` gives back float32 modules.
    """
    # diffusers annotates the tokenizer with transformers' factory class, of which nothing is one.
    tokenizer: Any = build_tokenizer()
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=_half(text_encoder, build_text_encoder(text_encoder.config.vocab_size)),
        vae=_half(vae, AutoencoderKLWan.from_config(vae.config)),
        transformer=_half(transformer, build_transformer()),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    )
    pipeline.save_pretrained(out, safe_serialization=True)


def _half(trained: M, empty: M) -> M:
    """A half-precision copy; the trained module itself keeps its precision."""
    empty.load_state_dict(trained.state_dict())
    return empty.half()
