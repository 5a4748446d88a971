"""A folder of videos and what each was asked to show.

    DIR/videos.jsonl    one line a video: file, id, prompt, seed, how far named motions were to go,
                        and c2w where a path was given
    DIR/*.mp4

`worldr1 generate` writes one; the folder of an evaluation, RUN/samples/step_*, is read as one too.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.config import ConfigError
from cluster.storage import RunFolder, stored_config
from prompts.config import Amplitudes
from prompts.motions import detect_segments
from prompts.schema import Poses, Prompt, PromptId

INDEX, SCORES = "videos.jsonl", "scores.json"


class Clip(BaseModel):
    """A video of a folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(pattern=r"^[^/\\]+\.mp4$")
    """Name of the file in the folder."""
    id: PromptId
    """`Prompt.id`."""
    prompt: str = Field(min_length=1)
    """`Prompt.text`."""
    seed: int = Field(default=0, ge=0)
    """Seed of the noise."""
    c2w: Poses | None = None
    """A hand-given camera path [F, 4, 4], where there was one."""
    amplitudes: Amplitudes | None = None
    """How far the motions that the prompt names were asked to go, where that is known."""

    @classmethod
    def of(cls, prompt: Prompt, seed: int, amplitudes: Amplitudes | None) -> Clip:
        """The entry of a sample of a prompt, under the name that evaluations use too."""
        return cls(
            file=f"{prompt.id}_{seed}.mp4",
            id=prompt.id,
            prompt=prompt.text,
            seed=seed,
            c2w=prompt.c2w,
            amplitudes=amplitudes,
        )

    def as_prompt(self) -> Prompt:
        """The prompt, hand-given path included; ValueError where the path is none."""
        prompt = Prompt.from_text(self.id, self.prompt)
        if self.c2w is None:
            return prompt
        return Prompt.model_validate({**prompt.model_dump(by_alias=True), "c2w": self.c2w})


def unlike(first: Clip, second: Clip) -> str:
    """What two clips of one prompt id were asked that is not the same; "" where all is."""
    if first.prompt != second.prompt:
        return "text"
    if first.c2w != second.c2w:
        return "camera path"
    known = first.amplitudes is not None and second.amplitudes is not None
    named = first.c2w is None and bool(detect_segments(first.prompt))
    if known and named and first.amplitudes != second.amplitudes:
        return "extent of the camera's motion (camera.amplitudes)"
    return ""


def write_index(folder: RunFolder, clips: Sequence[Clip]) -> None:
    """Write `videos.jsonl`; last, so that a folder with it is whole."""
    lines = (f"{clip.model_dump_json(exclude_none=True)}\n" for clip in clips)
    folder.write_text(INDEX, "".join(lines))


def read_clips(url: str) -> list[Clip]:
    """The videos of a folder, in the order of its index; ConfigError in one sentence where it has
    none, a line is wrong or a file is missing."""
    folder = RunFolder(url)
    try:
        clips = _indexed(folder) if folder.exists(INDEX) else _evaluated(folder)
    except ConfigError:
        raise
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ConfigError(f"{url!r}: {INDEX}: {place}: {error.errors()[0]['msg']}") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ConfigError(f"{url!r} cannot be read as a folder of videos: {error}") from None
    missing = sorted({clip.file for clip in clips} - folder.sizes("").keys())
    if missing:
        raise ConfigError(f"{url!r} lacks {len(missing)} of its videos (first: {missing[0]})")
    if not clips:
        raise ConfigError(f"{url!r} holds no video")
    return clips


def _indexed(folder: RunFolder) -> list[Clip]:
    return [Clip.model_validate_json(line) for line in folder.read_text(INDEX).splitlines()]


def _evaluated(folder: RunFolder) -> list[Clip]:
    if not folder.exists(SCORES):
        raise ConfigError(
            f"{folder.url!r} has no {INDEX}; allowed: a folder that `worldr1 generate` wrote, or "
            "RUN/samples/step_*"
        )
    rows = json.loads(folder.read_text(SCORES))
    run = RunFolder(folder.url.rstrip("/").rsplit("/", 2)[0])
    asked = None
    with contextlib.suppress(ConfigError):  # of another version, or no run's folder
        asked = stored_config(run).camera.amplitudes
    return [
        Clip(
            file=f"{row['prompt_id']}_{row['seed']}.mp4",
            id=row["prompt_id"],
            prompt=row["prompt"],
            seed=row["seed"],
            c2w=row.get("c2w"),
            amplitudes=asked,
        )
        for row in rows
    ]
