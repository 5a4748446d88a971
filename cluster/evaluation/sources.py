"""What is evaluated: a folder of videos, or a model that is sampled first.

A model is the untrained policy ("base"), a run's newest checkpoint, or a folder that `worldr1
export` wrote; it is sampled by the rollout's own code on fixed prompts and seeds, the same for both
sides of a comparison.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.clips import INDEX, SCORES, Clip, read_clips, unlike
from cluster.config import ConfigError, RunConfig, load, with_overrides
from cluster.storage import RunFolder, absolute_url
from cluster.video import U8, decode_mp4
from cluster.weights import ADAPTER, TrainedWeights, load_weights
from prompts.camera import requested_path
from prompts.config import Amplitudes
from prompts.dataset import load_prompts
from prompts.schema import Prompt

BASE = "base"


@dataclass(frozen=True)
class Source:
    """One side of an evaluation, before anything is sampled or read."""

    name: str
    """As it was given."""
    trained: TrainedWeights | None
    """Weights, where it is a trained model."""
    videos: str | None
    """URL of its videos, where it is a folder of them."""

    @property
    def title(self) -> str:
        """What it is, for tables."""
        if self.trained is not None:
            kind = "EMA" if self.trained.average else "raw"
            run = self.trained.source.rstrip("/").rpartition("/")[2]
            return f"{run}, {self.trained.step} steps, {kind}"
        return "base" if self.videos is None else self.name.rstrip("/").rpartition("/")[2]


def find_source(name: str, average: bool | None) -> Source:
    """The source that a word on the command line names; ConfigError where it is none.

    `average` chooses among a run's weights, as `load_weights` has it.
    """
    url = absolute_url(name)
    folder = RunFolder(url)
    if name == BASE:
        if folder.exists(INDEX):
            raise ConfigError(
                f"{BASE!r} is the untrained policy, and {url!r} a folder of videos; name the "
                f"folder ./{BASE}, or start elsewhere to sample the policy"
            )
        return Source(name, None, None)
    if folder.exists("config.json") or folder.exists(ADAPTER):
        return Source(name, load_weights(url, average), None)
    if not folder.exists(INDEX) and not folder.exists(SCORES) and not folder.find("", "*.mp4"):
        raise ConfigError(
            f"{name!r} is nothing to evaluate; allowed: base, a run, an export, or a folder of mp4"
        )
    return Source(name, None, url)


def config_of(sources: Sequence[Source], preset: str | None, overrides: Sequence[str]) -> RunConfig:
    """The configuration that samples and scores all sides: a named preset, that of the first
    trained source, or toy; `overrides` over it."""
    trained = [source.trained for source in sources if source.trained is not None]
    if preset is not None or not trained:
        return load(preset or "toy", overrides)
    return with_overrides(trained[0].config, overrides)


def fixed_pairs(config: RunConfig, prompts: str | None, pairs: int) -> list[tuple[Prompt, int]]:
    """(prompt, seed) pairs that a model is sampled on: as in a run's held-out evaluation."""
    source = prompts or config.prompts.test
    try:
        found = load_prompts(source)
    except (ValueError, OSError) as error:
        raise ConfigError(f"--prompts {source!r} cannot be used: {error}") from None
    return [(found[index % len(found)], index) for index in range(pairs)]


def index_by_names(url: str, prompts: str) -> list[Clip]:
    """Videos of a folder without an index, matched with prompts by file name.

    A file is named by its prompt's id or text, with -N or _N behind it for seed N.
    """
    try:
        known = load_prompts(prompts)
    except (ValueError, OSError) as error:
        raise ConfigError(f"--prompts {prompts!r} cannot be used: {error}") from None
    by_name = {prompt.text: prompt for prompt in known} | {prompt.id: prompt for prompt in known}
    clips = []
    for file in RunFolder(url).find("", "*.mp4"):
        if "/" in file:
            continue
        stem = file.removesuffix(".mp4")
        match = re.fullmatch(r"(?P<name>.+)[-_](?P<seed>\d+)", stem)
        if stem in by_name:
            prompt, seed = by_name[stem], 0
        elif match and match["name"] in by_name:
            prompt, seed = by_name[match["name"]], int(match["seed"])
        else:
            raise ConfigError(
                f"{file!r} in {url!r} is named after no prompt of {prompts!r}; allowed: ID.mp4, "
                "ID_SEED.mp4, TEXT.mp4, TEXT-SEED.mp4"
            )
        clips.append(Clip(file=file, id=prompt.id, prompt=prompt.text, seed=seed, c2w=prompt.c2w))
    if not clips:
        raise ConfigError(f"{url!r} holds no mp4 beside each other; folders below it are not read")
    return clips


def listed(url: str, prompts: str | None) -> list[Clip]:
    """The clips of a folder, by its index or else by file names."""
    folder = RunFolder(url)
    if folder.exists(INDEX) or folder.exists(SCORES):
        clips = read_clips(url)
    elif prompts is None:
        raise ConfigError(f"{url!r} has no {INDEX}; name its prompts with --prompts SOURCE")
    else:
        clips = index_by_names(url, prompts)
    seen: dict[tuple[str, int], str] = {}
    for clip in clips:
        other = seen.setdefault((clip.id, clip.seed), clip.file)
        if other != clip.file:
            raise ConfigError(
                f"{other!r} and {clip.file!r} in {url!r} are both prompt {clip.id!r} with seed "
                f"{clip.seed}; allowed: one video for each"
            )
    return clips


class UnreadableClip(ValueError):
    """A clip that cannot be measured, or not as it was asked for."""


def read_video(
    data: bytes, clip: Clip, frames: int | None, amplitudes: Amplitudes
) -> tuple[Prompt, U8]:
    """What a clip was asked to show, and its frames uint8 [F, H, W, 3], the first `frames` of them.

    `data` is its file; `amplitudes` are asked where the clip itself names none. Raises
    UnreadableClip.
    """
    try:
        video = decode_mp4(data)
    except (ValueError, OSError) as error:
        raise UnreadableClip(f"{clip.file!r} cannot be decoded: {error}") from None
    if frames is not None and len(video) < frames:
        raise UnreadableClip(f"{clip.file!r} has {len(video)} frames; --frames asks for {frames}")
    try:
        prompt, asked = clip.as_prompt(), clip.amplitudes or amplitudes
        if frames is None and asked == amplitudes:
            return prompt, video
        return excerpt(prompt, video, frames or len(video), asked)
    except ValueError as error:
        raise UnreadableClip(f"{clip.file!r}: {error}") from None


def require_comparable(first: Sequence[Clip], second: Sequence[Clip], names: Sequence[str]) -> None:
    """ConfigError unless two sides share pairs, and mean the same by each (prompt id, seed)."""
    theirs = {(clip.id, clip.seed): clip for clip in second}
    common = [(c, theirs[c.id, c.seed]) for c in first if (c.id, c.seed) in theirs]
    if not common:
        raise ConfigError(
            f"{names[0]!r} and {names[1]!r} share no prompt and seed; generate both from the same"
        )
    for mine, other in common:
        what = unlike(mine, other)
        if what:
            raise ConfigError(
                f"prompt {mine.id!r} is another {what} in {names[0]!r} than in {names[1]!r}; "
                "generate both from the same prompts"
            )


def excerpt(prompt: Prompt, video: U8, frames: int, amplitudes: Amplitudes) -> tuple[Prompt, U8]:
    """The first `frames` of a video, asked for what the whole one was to have shown by then: a pan
    by 30 degrees over 121 frames has turned by 12 at the 49th. ValueError for a path given by hand
    that has not the video's length."""
    path = requested_path(prompt, len(video), amplitudes)
    if path is not None:
        begun = path.c2w[:frames].tolist()
        prompt = Prompt.model_validate({**prompt.model_dump(by_alias=True), "c2w": begun})
    return prompt, video[:frames]
