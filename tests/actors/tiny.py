"""A Wan pipeline of random weights, small enough for a unit test: 32 x 48 pixels, 9 frames."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

LAYERS = 2
TEXT_DIM = 24
TOKENS = 16
SHIFT = 3.0
WORDS = "camera push in orbit left right fixed a red green blue box ball on the floor . ,"


def build_tiny_wan(directory: Path, seed: int = 0) -> Path:
    """Save a WanPipeline of random weights, the same for the same seed, to `directory`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = WanPipeline(
            tokenizer=_tokenizer(),
            text_encoder=_text_encoder(),
            vae=_vae(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
            transformer=_transformer(),
        )
        pipeline.save_pretrained(directory, safe_serialization=True)
    return directory


def _transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=TEXT_DIM,
        freq_dim=32,
        ffn_dim=32,
        num_layers=LAYERS,
        rope_max_seq_len=32,
    )


def _vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=12,
        decoder_base_dim=12,
        z_dim=16,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        patch_size=2,
        in_channels=12,
        out_channels=12,
        is_residual=True,
        scale_factor_spatial=8,
        scale_factor_temporal=4,
        latents_mean=[0.1 * (i - 8) for i in range(16)],
        latents_std=[1.0 + 0.05 * i for i in range(16)],
    )


def _text_encoder() -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(WORDS.split()) + 3,
            d_model=TEXT_DIM,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
