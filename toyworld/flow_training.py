"""Trains the toy transformer and its text encoder by flow matching on the VAE's latents."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor
from torch.nn import functional as F
from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

from toyworld.architecture import (
    MAX_TEXT_TOKENS,
    SHIFT,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
    save_pipeline,
)
from toyworld.training_tools import (
    Clock,
    TrainingLog,
    adamw,
    load_state,
    muon,
    rate_factor,
    save_state,
    update,
)
from toyworld.vae_training import Videos, to_float

BATCH = 32
MATRIX_RATE, OTHER_RATE = 3e-3, 2e-3
"""Peak learning rates: Muon for the blocks' matrices (at 100 steps its held-out loss was 0.77
against AdamW's 0.80, for 6 % more time a step), AdamW for everything else."""
PROMPT_DROPOUT = 0.1
EMA_DECAY = 0.998
REPORT_S, EXPORT_S = 60.0, 300.0
"""Seconds between log lines (with a saved state), and between exports of the pipeline so far."""
HELDOUT = 256
"""The last clips of the set, kept out of training for the held-out loss."""


@torch.no_grad()
def encode_clips(vae: AutoencoderKLWan, videos: Videos, batch: int = 16) -> Tensor:
    """Latents float16 [N, 16, F', H/8, W/8], normalised by the statistics in the VAE's config."""
    mean = torch.tensor(vae.config["latents_mean"]).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config["latents_std"]).view(1, -1, 1, 1, 1)
    parts = []
    for start in range(0, len(videos), batch):
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(to_float(videos[start : start + batch])).latent_dist.mode()
        parts.append(((latents.float() - mean) / std).half())
    return torch.cat(parts)


class Models(NamedTuple):
    """The two modules that are trained together."""

    transformer: WanTransformer3DModel
    text_encoder: UMT5EncoderModel


def tokenize(texts: Sequence[str]) -> Tensor:
    """Token ids int64 [N, MAX_TEXT_TOKENS], padded with 0, as WanPipeline tokenizes prompts."""
    return build_tokenizer()(
        list(texts),
        padding="max_length",
        max_length=MAX_TEXT_TOKENS,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def embed(text_encoder: UMT5EncoderModel, tokens: Tensor) -> Tensor:
    """Prompt embeddings [B, T, C], zero at the padding, as WanPipeline makes them."""
    mask = tokens.ne(0)
    hidden = text_encoder(tokens, mask.long()).last_hidden_state
    return hidden * mask[..., None]


def flow_loss(
    models: Models, latents: Tensor, tokens: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Flow-matching loss of latents [B, 16, F', h, w] under token ids [B, T].

    x_σ = (1 - σ)·x + σ·ε, the target velocity is ε - x, and σ is uniform before Wan's shift, so
    that training sees the noise levels that shifted sampling visits.
    """
    uniform = torch.rand(len(latents), generator=generator)
    sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
    noise = torch.randn(latents.shape, generator=generator)
    mix = sigma.view(-1, 1, 1, 1, 1)
    velocity = models.transformer(
        hidden_states=(1 - mix) * latents + mix * noise,
        timestep=1000 * sigma,
        encoder_hidden_states=embed(models.text_encoder, tokens),
        return_dict=False,
    )[0]
    return F.mse_loss(velocity, noise - latents)


def train_transformer(
    vae: AutoencoderKLWan,
    videos: Videos,
    texts: Sequence[str],
    minutes: float,
    seed: int,
    work: Path,
    log: TrainingLog,
    out: Path,
    start: Path | None = None,
) -> Models:
    """Train for `minutes` of wall-clock time; returns the averaged weights (EMA) in float32.

    `start` is a saved pipeline to take the first weights from; the optimizers begin anew. The state
    is kept in `work`, and training resumes from it; every few minutes the pipeline so far is
    written to `out`, so that others can use it while this one goes on.
    """
    torch.manual_seed(seed)
    latents, tokens = _cached_latents(vae, videos, work), tokenize(texts)
    empty = tokenize([""])[0]
    models = Models(build_transformer(), build_text_encoder(len(build_tokenizer())))
    if start is not None:
        _load_pipeline(models, start)
    averages = copy.deepcopy(models)
    optimizers = _optimizers(models)
    step, clock = _resume(work / "flow.pt", models, averages, optimizers, 60 * minutes)
    # A resumed run must not draw the noise of its first steps again.
    torch.manual_seed(seed + step)
    rng = np.random.default_rng((seed, step))
    next_report, next_export = clock.spent_s + REPORT_S / 2, clock.spent_s + EXPORT_S
    train_count = len(latents) - HELDOUT
    while clock.progress < 1:
        chosen = torch.from_numpy(rng.integers(train_count, size=BATCH))
        batch_tokens = tokens[chosen].clone()
        batch_tokens[torch.from_numpy(rng.random(BATCH) < PROMPT_DROPOUT)] = empty
        loss = flow_loss(models, latents[chosen].float(), batch_tokens)
        update(optimizers, loss, rate_factor(step, clock.progress))
        step += 1
        _follow(averages, models, min(EMA_DECAY, step / (step + 50)))
        if clock.spent_s > next_report:
            next_report = clock.spent_s + REPORT_S
            heldout = _heldout_loss(averages, latents[-HELDOUT:], tokens[-HELDOUT:])
            log.write("flow", clock, step, loss=loss.item(), heldout_loss=heldout)
            _save(work / "flow.pt", models, averages, optimizers, step, clock)
        if clock.spent_s > next_export:
            next_export = clock.spent_s + EXPORT_S
            save_pipeline(out, vae, averages.transformer, averages.text_encoder)
    heldout = _heldout_loss(averages, latents[-HELDOUT:], tokens[-HELDOUT:])
    log.write("flow", clock, step, heldout_loss=heldout)
    return averages


def _load_pipeline(models: Models, pipeline: Path) -> None:
    """Weights of a saved pipeline, float32, into freshly built models."""
    saved = Models(
        WanTransformer3DModel.from_pretrained(pipeline / "transformer"),
        UMT5EncoderModel.from_pretrained(pipeline / "text_encoder"),
    )
    for model, source in zip(models, saved, strict=True):
        model.load_state_dict(source.float().state_dict())


def _optimizers(models: Models) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer's blocks, AdamW for the rest of both models."""
    matrices = [p for p in models.transformer.blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for model in models for p in model.parameters() if id(p) not in chosen]
    return [muon(matrices, MATRIX_RATE), adamw(others, OTHER_RATE)]


def _cached_latents(vae: AutoencoderKLWan, videos: Videos, work: Path) -> Tensor:
    """The clips' latents float16 [N, ...], encoded once per VAE."""
    path = work / "latents.pt"
    statistics = list(vae.config["latents_mean"])
    stored = load_state(path)
    if stored is not None and stored["latents_mean"] == statistics:
        return stored["latents"]
    latents = encode_clips(vae, videos)
    save_state(path, latents=latents, latents_mean=statistics)
    return latents


@torch.no_grad()
def _follow(averages: Models, models: Models, decay: float) -> None:
    """Exponential moving average of the weights."""
    for average, model in zip(averages, models, strict=True):
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


@torch.no_grad()
def _heldout_loss(models: Models, latents: Tensor, tokens: Tensor) -> float:
    """The loss on fixed noises and noise levels, so that its values can be compared over time."""
    generator = torch.Generator().manual_seed(0)
    return flow_loss(models, latents.float(), tokens, generator).item()


def _save(
    path: Path,
    models: Models,
    averages: Models,
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    clock: Clock,
) -> None:
    save_state(
        path,
        models=[model.state_dict() for model in models],
        averages=[average.state_dict() for average in averages],
        optimizers=[optimizer.state_dict() for optimizer in optimizers],
        step=step,
        spent_s=clock.spent_s,
    )


def _resume(
    path: Path,
    models: Models,
    averages: Models,
    optimizers: Sequence[torch.optim.Optimizer],
    budget_s: float,
) -> tuple[int, Clock]:
    """Load the state at `path`, if there is one; the step and the clock to go on from."""
    state = load_state(path)
    if state is None:
        return 0, Clock(budget_s)
    for kind, modules in (("models", models), ("averages", averages)):
        for module, weights in zip(modules, state[kind], strict=True):
            module.load_state_dict(weights)
    for optimizer, moments in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(moments)
    return state["step"], Clock(budget_s, state["spent_s"])
