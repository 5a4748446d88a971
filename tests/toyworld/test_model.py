"""The shipped model loads with diffusers' own classes, is small, and makes a video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline

from prompts.dataset import load_prompts
from toyworld.architecture import MAX_TEXT_TOKENS, SHIFT, build_tokenizer
from toyworld.prompts import SIZES
from toyworld.scenes import sample_clip
from toyworld.vae_training import decode_unclamped, reconstruction_psnr, to_float

MODEL = Path(__file__).parents[2] / "toyworld" / "model"


@pytest.fixture(scope="module")
def pipeline() -> WanPipeline:
    loaded = WanPipeline.from_pretrained(MODEL, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_the_model_is_small_and_free_of_pickles() -> None:
    files = [file for file in MODEL.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 12e6
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".log"}


def test_the_pipeline_is_wans_and_makes_a_video_of_the_right_size(pipeline: WanPipeline) -> None:
    names = [type(module).__name__ for module in (pipeline.vae, pipeline.transformer)]
    assert names == ["AutoencoderKLWan", "WanTransformer3DModel"]
    assert type(pipeline.text_encoder).__name__ == "UMT5EncoderModel"
    assert pipeline.scheduler.config.shift == SHIFT
    video = pipeline(
        load_prompts("toy_test")[0].text,
        height=64,
        width=96,
        num_frames=9,
        num_inference_steps=3,
        guidance_scale=2.0,
        max_sequence_length=MAX_TEXT_TOKENS,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames[0]
    assert video.shape == (9, 64, 96, 3)
    assert np.isfinite(video).all()
    assert video.std() > 0.05


def test_the_shipped_tokenizer_knows_every_word_of_every_shipped_prompt(
    pipeline: WanPipeline,
) -> None:
    texts = [p.text for name in SIZES for p in load_prompts(name)]
    ids = [pipeline.tokenizer(text).input_ids for text in texts]
    assert ids == [build_tokenizer()(text).input_ids for text in texts]
    unknown = pipeline.tokenizer.unk_token_id
    assert not any(unknown in line for line in ids)
    assert max(map(len, ids)) <= MAX_TEXT_TOKENS


def test_the_vae_reconstructs_and_its_latents_are_normalised(pipeline: WanPipeline) -> None:
    clips = np.stack([sample_clip(np.random.default_rng((77, i))).video for i in range(6)])
    assert reconstruction_psnr(pipeline.vae, clips) > 27
    with torch.no_grad():
        latents = pipeline.vae.encode(to_float(clips)).latent_dist.mode()
        mean = torch.tensor(pipeline.vae.config["latents_mean"]).view(1, -1, 1, 1, 1)
        std = torch.tensor(pipeline.vae.config["latents_std"]).view(1, -1, 1, 1, 1)
        normal = (latents - mean) / std
        assert abs(normal.mean()) < 0.15
        assert 0.85 < normal.std() < 1.15
        free = decode_unclamped(pipeline.vae, latents[:1])
        torch.testing.assert_close(free.clamp(-1, 1), pipeline.vae.decode(latents[:1]).sample)
