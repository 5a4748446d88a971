"""Samples of a model on fixed pairs, by rollout workers as in a run; started again, they go on.

FOLDER/sampling.json    what decides the samples, and each one's digest
FOLDER/*.mp4            one per prompt and seed       FOLDER/videos.jsonl    once all are there
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from actors.trajectory import WeightsVersion, weights_checksum
from cluster.clips import INDEX, Clip, write_index
from cluster.config import ConfigError, RunConfig, flatten, resolve_model
from cluster.evaluation.sources import Source
from cluster.local import local_rollouts
from cluster.lost import MAX_LOSSES, ObjectGone
from cluster.patience import again
from cluster.pools import Published, Rollouts
from cluster.storage import RunFolder
from cluster.video import encode_mp4
from prompts.schema import Prompt

IDENTITY = "sampling.json"
MODEL_END = 1 << 20
"""Bytes of each end of a model's file that tell it from another."""
SAMPLER = ("policy.", "rollout.shift", "rollout.eval_sampling_steps", "rollout.frames",
           "rollout.height", "rollout.width", "camera.")  # fmt: skip
ELSEWHERE = ("policy.text_encoder", "policy.cached_prompts")
"""Keys, or beginnings of keys, that decide an evaluation sample beside the weights, and those among
them that do not."""


def sampled_unlike_trained(config: RunConfig, sources: Sequence[Source]) -> list[str]:
    """A sentence for every sampler key that a source was trained with another value of; its adapter
    is its own."""
    used, found = sampler_keys(config), []
    for source in sources:
        own = {} if source.trained is None else sampler_keys(source.trained.config)
        for key, value in own.items():
            if value != used[key] and not key.startswith("policy.lora."):
                found.append(
                    f"{source.title} was trained with {key} = {value}; it is sampled with "
                    f"{used[key]}, as every side is"
                )
    return found


def sampler_keys(config: RunConfig) -> dict[str, Any]:
    """The leaves of `SAMPLER`, as JSON has them."""
    leaves = flatten(config)
    return {k: v for k, v in leaves.items() if k.startswith(SAMPLER) and k not in ELSEWHERE}


def model_digest(model: str) -> str:
    """Of the files of a model in a directory: another model in the same place has another. By name,
    size and both ends of each, since a whole one is tens of gigabytes. Empty for a hub id, and
    where the directory is on other machines alone."""
    try:
        place = Path(resolve_model(model))
    except ConfigError:
        return ""
    if not place.is_dir():
        return ""
    digest = hashlib.sha256()
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(place)} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(MODEL_END))
            file.seek(max(size - MODEL_END, 0))
            digest.update(file.read(MODEL_END))
    return digest.hexdigest()


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
    clips = [Clip.of(prompt, seed, config.camera.amplitudes) for prompt, seed in pairs]
    sampler = {"weights": published.version.checksum, **sampler_keys(config)}
    kept = _Kept(folder, sampler, await asyncio.to_thread(model_digest, config.policy.model))
    left = [(*pair, c) for pair, c in zip(pairs, clips, strict=True) if not kept.has(c)]
    done = len(pairs) - len(left)
    say(f"{source.title}: {len(pairs)} (prompt, seed) pairs, {done} of them sampled before")
    if left:
        folder.remove(INDEX)  # until all are there, what the folder holds is not whole
    share = rollouts.pool.size * config.rollout.max_batch
    for first in range(0, len(left), share):
        chunk = left[first : first + share]
        prompts, seeds = [prompt for prompt, _, _ in chunk], [seed for _, seed, _ in chunk]
        files = await _sampled(rollouts, prompts, seeds, published)
        for (_, _, clip), data in zip(chunk, files, strict=True):
            await asyncio.to_thread(again, f"writing {clip.file}", partial(kept.write, clip, data))
        await asyncio.to_thread(again, f"writing {IDENTITY}", kept.note)
        done += len(chunk)
        say(f"{source.title}: {done}/{len(pairs)} sampled")
    write_index(folder, clips)


async def _sampled(
    rollouts: Rollouts, prompts: Sequence[Prompt], seeds: Sequence[int], published: Published
) -> list[bytes]:
    """Samples as mp4 files; made again where a node dies with them. ObjectGone the last time."""
    for loss in range(1, MAX_LOSSES + 1):
        videos = await rollouts.sample(prompts, seeds, published)
        try:
            tensors = [await rollouts.pool.fetch(video) for video in videos]
        except ObjectGone:
            if loss == MAX_LOSSES:
                raise
            continue
        return [await asyncio.to_thread(encode_mp4, tensor) for tensor in tensors]
    raise AssertionError("unreachable")


class _Kept:
    """Samples in a folder, each known by what it shows and by its bytes."""

    def __init__(self, folder: RunFolder, sampler: Mapping[str, Any], model: str) -> None:
        self._folder, self._sampler, self._model = folder, dict(sampler), model
        self._files: dict[str, str] = {}
        with contextlib.suppress(ValueError, KeyError, FileNotFoundError):
            held = json.loads(folder.read_text(IDENTITY))
            if held["sampler"] == self._sampler and held.get("model", model) == model:
                self._files = held["files"]

    def has(self, clip: Clip) -> bool:
        """Whether the clip's file is the sample that an earlier start noted."""
        if clip.file not in self._files or not self._folder.exists(clip.file):
            return False
        return self._files[clip.file] == _digest(clip, self._folder.read_bytes(clip.file))

    def write(self, clip: Clip, data: bytes) -> None:
        """Keep a sample."""
        self._folder.write_bytes(clip.file, data)
        self._files[clip.file] = _digest(clip, data)

    def note(self) -> None:
        """Let a later start know of the samples."""
        tree = {"sampler": self._sampler, "model": self._model, "files": self._files}
        self._folder.write_text(IDENTITY, json.dumps(tree, indent=1))


def _digest(clip: Clip, data: bytes) -> str:
    shown = clip.model_dump_json(exclude={"amplitudes"})  # the sampler's keys have them
    return hashlib.sha256(shown.encode() + data).hexdigest()


async def _published(rollouts: Rollouts, source: Source) -> Published:
    pool = rollouts.pool
    if source.trained is None:
        version, weights = await pool.call("untrained", returns=2)
        return Published(version, weights)
    trained = source.trained.weights
    version = WeightsVersion(source.trained.step, "evaluated", weights_checksum(trained))
    return Published(version, await pool.store(trained))


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
