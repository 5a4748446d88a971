"""Trains the toy VAE: single images first, then whole clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from toyworld.architecture import build_vae
from toyworld.training_tools import (
    Clock,
    TrainingLog,
    adamw,
    load_state,
    rate_factor,
    save_state,
    update,
)

Videos = NDArray[np.uint8]

IMAGE_STAGE = 0.15
"""Share of the budget spent on single frames: fifteen times cheaper, and colours come first."""
PEAK_RATE = 3e-3
POSTERIOR_NOISE = 0.05
"""Noise added to the latents in training, so that nearby latents decode to nearby videos."""


def to_float(videos: Videos) -> Tensor:
    """uint8 [B, F, H, W, 3] to float32 [B, 3, F, H, W] in [-1, 1], as the VAE wants it."""
    # The copy makes the read-only memory map writable, which torch insists on.
    return torch.from_numpy(np.array(videos)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def decode_unclamped(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """`vae.decode` without its final clamp, which stops the gradient of overshooting pixels."""
    vae.clear_cache()
    latents = vae.post_quant_conv(latents)
    chunks = []
    for index in range(latents.shape[2]):
        vae._conv_idx = [0]
        chunk = latents[:, :, index : index + 1]
        chunks.append(
            vae.decoder(
                chunk, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0
            )
        )
    vae.clear_cache()
    patches = torch.cat(chunks, dim=2)
    p = vae.config["patch_size"]
    b, _, f, h, w = patches.shape
    # Wan stores the column of a patch before its row.
    pixels = patches.view(b, 3, p, p, f, h, w).permute(0, 1, 4, 5, 3, 6, 2)
    return pixels.reshape(b, 3, f, h * p, w * p)


def vae_loss(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Reconstruction loss of video [B, 3, F, H, W]: absolute, squared and gradient errors.

    The squared error is what PSNR counts, the gradients keep silhouettes sharp, and a small pull
    of the latents towards 0 fixes their scale.
    """
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encode(video).latent_dist.mean
        noisy = latents + POSTERIOR_NOISE * torch.randn_like(latents)
        output = decode_unclamped(vae, noisy)
    error = output.float() - video
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return (
        error.abs().mean()
        + 4 * error.square().mean()
        + 0.3 * edges
        + 1e-4 * latents.float().square().mean()
    )


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKLWan, videos: Videos, batch: int = 8) -> float:
    """Mean over clips of the PSNR (dB) of decode(encode(video)), through the public interface."""
    scores = []
    for start in range(0, len(videos), batch):
        video = to_float(videos[start : start + batch]).to(vae.dtype)
        output = vae.decode(vae.encode(video).latent_dist.mode()).sample
        mse = F.mse_loss(output.float(), video.float(), reduction="none").mean(dim=(1, 2, 3, 4))
        scores.append(10 * torch.log10(4 / mse))
    return float(torch.cat(scores).mean())


def train_vae(
    videos: Videos, heldout: Videos, minutes: float, seed: int, work: Path, log: TrainingLog
) -> AutoencoderKLWan:
    """Train a VAE for `minutes` of wall-clock time on videos uint8 [N, F, H, W, 3].

    The state is kept in `work`, and training resumes from it. Returns the VAE in float32 with the
    latents' statistics in its config.
    """
    torch.manual_seed(seed)
    vae = build_vae()
    optimizer = adamw(vae.parameters(), PEAK_RATE)
    step, spent = 0, 0.0
    if (state := load_state(work / "vae.pt")) is not None:
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["spent_s"]
    clock = Clock(60 * minutes, spent)
    # A resumed run must not draw the noise of its first steps again.
    torch.manual_seed(seed + step)
    rng = np.random.default_rng((seed, step))
    next_report = clock.spent_s + 30
    while clock.progress < 1:
        video = _batch(videos, rng, single_frames=clock.progress < IMAGE_STAGE)
        loss = vae_loss(vae, video)
        update([optimizer], loss, rate_factor(step, clock.progress))
        step += 1
        if clock.spent_s > next_report:
            next_report = clock.spent_s + 45
            psnr = reconstruction_psnr(vae, heldout[:32])
            log.write("vae", clock, step, loss=loss.item(), heldout_psnr_db=psnr)
            save_state(
                work / "vae.pt",
                vae=vae.state_dict(),
                optimizer=optimizer.state_dict(),
                step=step,
                spent_s=clock.spent_s,
            )
    set_latent_statistics(vae, videos[:256])
    log.write("vae", clock, step, heldout_psnr_db=reconstruction_psnr(vae, heldout))
    return vae


def _batch(videos: Videos, rng: np.random.Generator, single_frames: bool) -> Tensor:
    """A random batch: 24 single frames, or 4 whole clips."""
    chosen = np.sort(rng.integers(len(videos), size=24 if single_frames else 4))
    if single_frames:
        frames = rng.integers(videos.shape[1], size=len(chosen))
        return to_float(videos[chosen, frames][:, None])
    return to_float(videos[chosen])


@torch.no_grad()
def set_latent_statistics(vae: AutoencoderKLWan, videos: Videos) -> None:
    """Put the latents' mean and deviation per channel into the config, where Wan looks for them.

    The pipeline decodes `z · latents_std + latents_mean`: the transformer works on unit variance.
    """
    latents = torch.cat(
        [
            vae.encode(to_float(videos[start : start + 8])).latent_dist.mode()
            for start in range(0, len(videos), 8)
        ]
    )
    vae.register_to_config(
        latents_mean=latents.mean(dim=(0, 2, 3, 4)).tolist(),
        latents_std=latents.std(dim=(0, 2, 3, 4)).tolist(),
    )
