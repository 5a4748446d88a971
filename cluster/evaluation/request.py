"""What an evaluation is asked for, and its sides as they will be, checked before anything is
loaded, sampled or scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.clips import INDEX, Clip
from cluster.config import ConfigError, RunConfig
from cluster.evaluation.sources import (
    Source,
    UnreadableClip,
    fixed_pairs,
    listed,
    read_video,
    require_comparable,
)
from cluster.storage import RunFolder
from prompts.camera import require_paths
from prompts.schema import Prompt

PAIRS = 22
"""Pairs by default: each prompt of the toy test set once."""
LETTERS = "ab"
"""Folders of the sides."""


@dataclass(frozen=True, slots=True)
class Request:
    """What `worldr1 evaluate` is asked for."""

    sources: Sequence[Source]
    """One, or two to compare."""
    config: RunConfig
    """Samples and scores."""
    prompts: str | None
    """Prompt set of sampled models, or of a folder without an index."""
    pairs: int | None
    """Pairs that a model is sampled on; None: those of the folder that it is compared with, else
    `PAIRS`."""
    frames: int | None
    """First frames of each clip that are looked at; all of them by default."""
    vbench: str | None
    """Python of an environment that holds the vbench package."""
    device: str
    """Of a sampler in this process: "cpu" or "cuda"."""
    workers: int | None = None
    """Rollout workers on Ray, and the configuration's reward workers; None: this process, but for
    learned scorers, of which one worker each starts on Ray."""


@dataclass(frozen=True, slots=True)
class PlannedSide:
    """A side before it is measured."""

    source: Source
    clips: Sequence[Clip]
    """Its videos, or those that it will be sampled as."""
    frames: int
    """Of each clip, as it is measured; a clip of another length cannot be."""
    size: tuple[int, int]
    """Height and width in pixels, of the first clip."""
    pairs: Sequence[tuple[Prompt, int]] = ()
    """What it is sampled on, where it is a model."""


def videos_folder(out: RunFolder, letter: str) -> RunFolder:
    """Where an evaluation keeps a side's videos."""
    return RunFolder(f"{out.url}/videos/{letter}")


def sampled_pairs(request: Request) -> list[tuple[Prompt, int]]:
    """(prompt, seed) pairs that models are sampled on: those of a folder on the other side, so that
    the two compare, else the fixed ones."""
    folders = [source.videos for source in request.sources if source.videos is not None]
    if not folders:
        return fixed_pairs(request.config, request.prompts, request.pairs or PAIRS)
    if request.prompts is not None and RunFolder(folders[0]).exists(INDEX):
        raise ConfigError(
            f"--prompts {request.prompts!r}: {folders[0]!r} says itself what its videos show, and "
            "the model beside it is sampled on the same; leave it out"
        )
    clips = listed(folders[0], request.prompts)[: request.pairs]
    try:
        return [(clip.as_prompt(), clip.seed) for clip in clips]
    except ValueError as error:
        raise ConfigError(f"{folders[0]!r}: {error}") from None


def plan_sides(request: Request, out: RunFolder) -> list[PlannedSide]:
    """The sides of an evaluation into `out`; ConfigError for whatever would not end well."""
    sides = [
        _sampled(request, source) if source.videos is None else _given(request, source, out, letter)
        for letter, source in zip(LETTERS, request.sources, strict=False)
    ]
    if len(sides) == 2:
        first, second = sides
        require_comparable(first.clips, second.clips, [side.source.name for side in sides])
        if first.frames != second.frames:
            raise ConfigError(
                f"clips of {first.frames} and of {second.frames} frames do not compare: errors of "
                f"cameras are sums over frames; allowed: --frames "
                f"{min(first.frames, second.frames)} or fewer"
            )
    return sides


def notes_on(sides: Sequence[PlannedSide]) -> list[str]:
    """What a reader of a comparison has to know of its sides."""
    if len(sides) < 2:
        return []
    notes = []
    first, second = ({(clip.id, clip.seed) for clip in side.clips} for side in sides)
    common = len(first & second)
    if common < max(len(first), len(second)):
        notes.append(
            f"The sides have {len(first)} and {len(second)} clips, and {common} prompts and seeds "
            "in common: differences are over these alone, each side's means over all of its own."
        )
    if sides[0].size != sides[1].size:
        sizes = " and ".join(f"{height} x {width}" for height, width in (s.size for s in sides))
        notes.append(
            f"The sides' clips have {sizes} pixels: errors in pixels and the warping error differ "
            "by that alone."
        )
    return notes


def _sampled(request: Request, source: Source) -> PlannedSide:
    config, pairs = request.config, sampled_pairs(request)
    rollout, camera = config.rollout, config.camera
    try:
        require_paths((prompt for prompt, _ in pairs), rollout.frames, camera)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if request.frames is not None and request.frames > rollout.frames:
        raise ConfigError(
            f"--frames {request.frames}: {source.title} is sampled with rollout.frames = "
            f"{rollout.frames}; allowed: as many or fewer"
        )
    clips = [Clip.of(prompt, seed, camera.amplitudes) for prompt, seed in pairs]
    frames = request.frames or rollout.frames
    return PlannedSide(source, clips, frames, (rollout.height, rollout.width), pairs)


def _given(request: Request, source: Source, out: RunFolder, letter: str) -> PlannedSide:
    assert source.videos is not None
    clips = listed(source.videos, request.prompts)
    folder, own = RunFolder(source.videos), videos_folder(out, letter).root
    if f"{folder.root}/".startswith(f"{out.root.rstrip('/')}/") and folder.root != own:
        raise ConfigError(
            f"{source.videos!r} lies in --out {out.url!r}, which would be written over it; "
            "choose another --out"
        )
    first: UnreadableClip | None = None
    for clip in clips:  # one that is damaged is counted later; it does not decide for all
        try:
            _, video = read_video(
                folder.read_bytes(clip.file), clip, request.frames, request.config.camera.amplitudes
            )
        except UnreadableClip as error:
            first = first or error
            continue
        return PlannedSide(source, clips, len(video), (video.shape[1], video.shape[2]))
    raise ConfigError(f"{source.videos!r}: no clip can be measured; the first: {first}")
