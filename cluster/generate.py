"""Videos of prompts: the rollout's own sampler, without its stochastic window.

DIR/videos.jsonl   what each video was asked to show
DIR/*.mp4          one per prompt and seed
DIR/sheet.png      a row of frames for each
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from actors.policy import Policy
from actors.sampler import Velocity, sample_ode
from cluster.clips import INDEX, Clip, write_index
from cluster.config import ConfigError, RunConfig, resolve_model
from cluster.storage import RunFolder
from cluster.strips import U8, blank, caption, sheet_png, strip
from cluster.video import encode_mp4
from cluster.weights import TrainedWeights, with_adapter
from prompts.schema import Prompt

SHEET = "sheet.png"
SHEET_CLIPS = 24
PARTIAL = ".partial"
"""Ending of a video while others of its start are still to be sampled."""


def load_policy(config: RunConfig, trained: TrainedWeights | None, device: str) -> Policy:
    """The policy of a configuration with trained weights in its adapter, or untrained; ConfigError
    where they do not fit it."""
    torch.set_num_threads(config.threads if device == "cpu" else torch.get_num_threads())
    found = {"model": resolve_model(config.policy.model)}
    own = with_adapter(config, trained).policy.model_copy(update=found)
    try:
        policy = Policy.load(own, device)
        if trained is not None:
            policy.load_lora(trained.weights)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    return policy


def default_device() -> str:
    """cuda where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def generate(
    policy: Policy,
    config: RunConfig,
    samples: Sequence[tuple[Prompt, int]],
    folder: RunFolder,
    title: str,
    advance: Callable[[], None],
) -> None:
    """Sample a video of every (prompt, seed) and write them with their index and sheet.

    `advance` is called after each of `network_passes` passes through the network. The noise is
    keyed on the seed alone, as in evaluations: two models given the same pairs are comparable.
    Until all are sampled, the folder holds what it held, and the new ones under names of their own:
    clips of two models never lie side by side.
    """
    clips = [Clip.of(prompt, seed, config.camera.amplitudes) for prompt, seed in samples]
    blocks: list[U8] = []
    for first in range(0, len(samples), config.rollout.max_batch):
        chunk = samples[first : first + config.rollout.max_batch]
        latents = sample_ode(
            lambda prompts: _counted(policy.bind(prompts), advance),
            [prompt for prompt, _ in chunk],
            [seed for _, seed in chunk],
            config.rollout,
            config.camera,
            policy.device,
            config.rollout.eval_sampling_steps,
        )
        videos = policy.decode(latents, config.rollout.decode_batch).numpy()
        for clip, video in zip(clips[first:], videos, strict=False):
            folder.write_bytes(f"{clip.file}{PARTIAL}", encode_mp4(video))
            if len(blocks) < SHEET_CLIPS:
                words = f"{clip.file}   {title}"
                rows = (caption(clip.prompt, bold=True), strip(video), caption(words), blank())
                blocks.append(np.concatenate(rows))
    folder.remove(INDEX)
    for clip in clips:
        folder.fs.mv(folder.path(f"{clip.file}{PARTIAL}"), folder.path(clip.file))
    folder.write_bytes(SHEET, sheet_png(blocks))
    write_index(folder, clips)


def network_passes(config: RunConfig, samples: int) -> int:
    """How often `generate` calls `advance`."""
    batches = -(-samples // config.rollout.max_batch)
    return batches * config.rollout.eval_sampling_steps


def _counted(velocity: Velocity, advance: Callable[[], None]) -> Velocity:
    def counted(latents: Tensor, sigma: Tensor) -> Tensor:
        predicted = velocity(latents, sigma)
        advance()
        return predicted

    return counted
