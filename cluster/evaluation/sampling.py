"""Samples of a model on fixed pairs, by rollout workers as in a run; started again, they go on.

FOLDER/sampling.json    what decides the samples: where it is another, all of them are made again
FOLDER/*.mp4            one per prompt and seed       FOLDER/videos.jsonl    once all are there
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from actors.trajectory import WeightsVersion, weights_checksum
from cluster.clips import Clip, write_index
from cluster.config import ConfigError, RunConfig, flatten_tree
from cluster.evaluation.sources import Source
from cluster.local import local_rollouts
from cluster.pools import Published, Rollouts
from cluster.storage import RunFolder
from cluster.video import encode_mp4
from prompts.schema import Prompt

IDENTITY = "sampling.json"
SAMPLER = ("policy.guidance_scale", "policy.negative_prompt", "policy.model", "rollout.shift",
           "rollout.eval_sampling_steps", "rollout.frames", "rollout.height", "rollout.width",
           "camera.")  # fmt: skip
"""Keys, or beginnings of keys, that decide an evaluation sample beside the weights."""


def own_policy(config: RunConfig, source: Source) -> RunConfig:
    """The configuration that samples a source: `config`, with the adapter as it was trained. Of a
    run's scale alpha / rank the weights themselves say nothing."""
    if source.trained is None:
        return config
    lora = source.trained.config.policy.lora
    policy = config.policy.model_copy(update={"lora": lora})
    return config.model_copy(update={"policy": policy})


def sampled_unlike_trained(config: RunConfig, sources: Sequence[Source]) -> list[str]:
    """A sentence for every sampler key that a source was trained with another value of."""
    used, found = sampler_keys(config), []
    for source in sources:
        own = {} if source.trained is None else sampler_keys(source.trained.config)
        for key, value in own.items():
            if value != used[key]:
                found.append(
                    f"{source.title} was trained with {key} = {value}; it is sampled with "
                    f"{used[key]}, as every side is"
                )
    return found


def sampler_keys(config: RunConfig) -> dict[str, Any]:
    """The leaves of `SAMPLER`."""
    leaves = flatten_tree(config.model_dump(mode="json"))
    return {key: value for key, value in leaves.items() if key.startswith(SAMPLER)}


async def sample(
    rollouts: Rollouts,
    config: RunConfig,
    source: Source,
    pairs: Sequence[tuple[Prompt, int]],
    folder: RunFolder,
    say: Callable[[str], None],
) -> None:
    """Sample what is not there of the pairs, and write their index.

    ConfigError where the weights do not fit the model.
    """
    try:
        published = await _published(rollouts, source)
        await rollouts.deliver(published)
    except ValueError as error:
        raise ConfigError(f"{source.title} does not fit: {str(error).splitlines()[0]}") from None
    clips = [Clip.of(prompt, seed) for prompt, seed in pairs]
    there = _there(folder, config, published.version.checksum, clips)
    left = [pair for pair, clip in zip(pairs, clips, strict=True) if clip.file not in there]
    done = len(pairs) - len(left)
    say(f"{source.title}: {len(pairs)} (prompt, seed) pairs, {done} of them sampled before")
    share = rollouts.pool.size * config.rollout.max_batch
    for first in range(0, len(left), share):
        chunk = left[first : first + share]
        prompts, seeds = [prompt for prompt, _ in chunk], [seed for _, seed in chunk]
        videos = await rollouts.sample(prompts, seeds, published)
        for (prompt, seed), video in zip(chunk, videos, strict=True):
            data = await asyncio.to_thread(encode_mp4, await rollouts.pool.fetch(video))
            await asyncio.to_thread(folder.write_bytes, Clip.of(prompt, seed).file, data)
        done += len(chunk)
        say(f"{source.title}: {done}/{len(pairs)} sampled")
    write_index(folder, clips)


async def _published(rollouts: Rollouts, source: Source) -> Published:
    pool = rollouts.pool
    if source.trained is None:
        version, weights = await pool.call("untrained", returns=2)
        return Published(version, weights)
    trained = source.trained.weights
    version = WeightsVersion(source.trained.step, "evaluated", weights_checksum(trained))
    return Published(version, await pool.store(trained))


def _there(folder: RunFolder, config: RunConfig, checksum: str, clips: Sequence[Clip]) -> set[str]:
    """Names of the samples that an earlier start left; everything else is removed."""
    sampler = {"weights": checksum, **sampler_keys(config)}
    wanted = {clip.file: clip.model_dump(mode="json") for clip in clips}
    held = json.loads(folder.read_text(IDENTITY)) if folder.exists(IDENTITY) else {}
    if held.get("sampler") != sampler:
        folder.remove("")
    for file in folder.find("", "*.mp4"):
        if held["clips"].get(file) != wanted.get(file):
            folder.remove(file)
    # Only now: where these words are, every file is what they say.
    identity = {"sampler": sampler, "clips": wanted}
    folder.write_text(IDENTITY, json.dumps(identity, indent=1))
    return set(folder.find("", "*.mp4"))


@contextlib.contextmanager
def rollout_workers(config: RunConfig, workers: int | None, device: str) -> Iterator[Rollouts]:
    """Workers that hold the policy: one in this process, or so many on Ray."""
    if workers is None:
        try:
            rollouts = local_rollouts(config, device)
        except (ValueError, OSError) as error:
            raise ConfigError(str(error).splitlines()[0]) from None
        yield rollouts
        return
    from cluster.handles import connect, ray_stage  # Ray only where it is needed

    connect()
    shape = config.rollout.model_copy(update={"workers": workers})
    with ray_stage(config.model_copy(update={"rollout": shape}), "rollout") as stage:
        assert isinstance(stage, Rollouts)
        yield stage
