"""A blind study: which of two models do people prefer, and how sure is that?

    DIR/study.html    for the participants: videos, questions, nothing that tells the models apart
    DIR/key.json      for the experimenter: which video is of which model
    answers-*.json    what a participant's browser saves at the end

Neither side knows during the study which video is whose: videos are known by random tokens, and
every browser draws its own order of pairs and its own sides.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cluster.clips import Clip, read_clips, unlike
from cluster.config import ConfigError
from cluster.storage import RunFolder

PAGE, KEY = "study.html", "key.json"
TEMPLATES = Path(__file__).parent / "templates"
MAX_BYTES = 256 * 1024**2
"""Videos of a page: what a browser opens without complaint."""
QUESTIONS = {
    "geometry": "In which video does the scene hold together better, as one solid place in three "
    "dimensions?",
    "camera": "In which video does the camera move more like the description says?",
    "overall": "Which video is better overall?",
}
"""The three questions of the paper's study: geometry, camera control, overall preference."""


class StudyPair(BaseModel):
    """A prompt and seed that both models were given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """Random token of the pair."""
    prompt: str
    """What both were asked to show."""
    questions: tuple[str, ...]
    """Names of the questions that are asked; `camera` only where the text, which is all that a
    participant reads, moves the camera."""
    a: str
    """Random token of A's video."""
    b: str
    """Random token of B's video."""


class StudyKey(BaseModel):
    """`key.json`: what must not be shown to a participant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str = Field(min_length=1)
    """Random name of the study, which its answers carry."""
    seed: int
    """Of the choice of pairs."""
    a: str
    """Folder of A."""
    b: str
    """Folder of B."""
    pairs: tuple[StudyPair, ...]
    """By token."""


def write_study(a: str, b: str, to: Path, pairs: int, seed: int | None) -> StudyKey:
    """Write the page and the key of a study of up to `pairs` pairs.

    ConfigError where the folders share no (prompt, seed), or the videos are too large for a page.
    """
    seed = secrets.randbits(32) if seed is None else seed
    rng = np.random.default_rng(seed)
    # Not of the seed: browsers keep answers by the study's name, and two studies are two.
    tokens = iter(_tokens(3 * pairs + 1))
    study = next(tokens)
    common = _common(a, b)
    chosen = [common[i] for i in sorted(rng.permutation(len(common))[:pairs])]
    shown = []
    videos: dict[str, bytes] = {}
    folders = RunFolder(a), RunFolder(b)
    for first, second in chosen:
        # People judge by the words, which say nothing of a path that was given by hand.
        moves = first.c2w is None and bool(first.as_prompt().motions)
        asked = tuple(name for name in QUESTIONS if moves or name != "camera")
        pair = StudyPair(
            id=next(tokens), prompt=first.prompt, questions=asked, a=next(tokens), b=next(tokens)
        )
        shown.append(pair)
        for token, folder, clip in zip((pair.a, pair.b), folders, (first, second), strict=True):
            videos[token] = folder.read_bytes(clip.file)
    size = sum(map(len, videos.values()))
    if size > MAX_BYTES:
        raise ConfigError(
            f"the videos of {len(shown)} pairs are {size / 1024**2:.0f} MiB; a page holds at most "
            f"{MAX_BYTES // 1024**2}: use --pairs {len(shown) * MAX_BYTES // size} or fewer"
        )
    key = StudyKey(
        study=study, seed=seed, a=a, b=b, pairs=tuple(sorted(shown, key=lambda pair: pair.id))
    )
    try:
        to.mkdir(parents=True, exist_ok=True)
        (to / PAGE).write_text(_page(key, videos), encoding="utf-8")
        (to / KEY).write_text(key.model_dump_json(indent=1), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--to {to} cannot be written: {error.strerror}") from None
    return key


def _common(a: str, b: str) -> list[tuple[Clip, Clip]]:
    """Videos of both folders of the same prompt and seed, in A's order."""
    theirs = {(clip.id, clip.seed): clip for clip in read_clips(b)}
    common = [
        (clip, theirs[clip.id, clip.seed])
        for clip in read_clips(a)
        if (clip.id, clip.seed) in theirs
    ]
    if not common:
        raise ConfigError(f"{a!r} and {b!r} share no prompt and seed; generate both from the same")
    for first, second in common:
        what = unlike(first, second)
        if what:
            raise ConfigError(
                f"prompt {first.id!r} is another {what} in {a!r} than in {b!r}; generate both from "
                "the same prompts"
            )
    return common


def _tokens(count: int) -> list[str]:
    """Distinct random names, of which none says anything."""
    names: dict[str, None] = {}
    while len(names) < count:
        names[secrets.token_hex(6)] = None
    return list(names)


def _page(key: StudyKey, videos: Mapping[str, bytes]) -> str:
    """The page; of a pair it holds two tokens in the order of their names."""
    data: dict[str, Any] = {
        "study": key.study,
        "questions": QUESTIONS,
        "pairs": [
            {
                "id": pair.id,
                "prompt": pair.prompt,
                "questions": pair.questions,
                "videos": sorted((pair.a, pair.b)),
            }
            for pair in key.pairs
        ],
        "videos": {
            token: base64.b64encode(videos[token]).decode("ascii") for token in sorted(videos)
        },
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("study.html.j2").render(
        pairs=len(key.pairs),
        # No "</script>" may end the element that holds it.
        data=json.dumps(data).replace("<", "\\u003c"),
        css=(TEMPLATES / "study.css").read_text(encoding="utf-8"),
        script=(TEMPLATES / "study.js").read_text(encoding="utf-8"),
    )


def summary(key: StudyKey) -> Sequence[str]:
    """What an experimenter is told about a written study."""
    asked = sum(len(pair.questions) for pair in key.pairs)
    return (
        f"{len(key.pairs)} pairs, {asked} questions a participant",
        f"A = {key.a}",
        f"B = {key.b}",
    )
