"""Known-answer tests: clips whose order is known before any scorer sees them.

Ray-cast clips are shipped in `canary/`; most spoilt versions are made from them (`spoilt.py`). A
scorer that does not tell them apart must not train anything, so every check fails closed. These are
the short checks of every worker that joins a run; the whole examination is `examiner.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from prompts.schema import Prompt
from rewards.checks import BROKEN
from rewards.score import Score, ScoreFailure
from rewards.spoilt import frozen, greyed, shuffled, speckled, warped

if TYPE_CHECKING:
    from rewards.aesthetic_worker import AestheticWorker
    from rewards.config import AestheticConfig
    from rewards.judge_worker import JudgeWorker
    from rewards.worker import ReconstructionWorker

U8 = NDArray[np.uint8]

FOLDER = Path(__file__).parent / "canary"
MARGIN = 0.25
"""By how much S_recon + S_traj of a consistent clip exceeds that of each spoilt version."""
FRAME_MARGIN = 0.1
"""By how much a good picture exceeds a spoilt one before the judge and the frame scorer."""
ATTEMPTS = 3
"""At a picture, while its scorer says that another may help: a worker that joins a run under way
must not be lost to a busy server."""
PROOF_CLIPS = ("orbit", "push")
"""Clips that every joining worker scores."""


class KnownAnswerError(RuntimeError):
    """A scorer ranks known-answer clips wrongly, or cannot score them."""


@dataclass(frozen=True, eq=False)
class Canary:
    """A consistent clip, the prompt that it fulfils, and its versions that had to be filmed."""

    name: str
    prompt: Prompt
    versions: Mapping[str, U8]
    """uint8 [F, H, W, 3] by name, "consistent" among them."""

    @property
    def video(self) -> U8:
        """The consistent version."""
        return self.versions["consistent"]


@cache
def canaries() -> tuple[Canary, ...]:
    """The shipped clips; KnownAnswerError when a file is missing or broken."""
    try:
        described = json.loads((FOLDER / "clips.json").read_text())
        return tuple(_load(name, **fields) for name, fields in sorted(described.items()))
    except (OSError, ValueError, TypeError) as error:
        raise KnownAnswerError(f"the known-answer clips cannot be read: {error}") from error


def _load(name: str, prompt: str, frames: int, versions: list[str]) -> Canary:
    videos = {version: _strip(f"{name}_{version}.png", frames) for version in versions}
    if "consistent" not in videos:
        raise ValueError(f"{name} has no consistent version")
    return Canary(name, Prompt.from_text(f"canary-{name}", prompt), videos)


def _strip(file: str, frames: int) -> U8:
    strip = cv2.imread(str(FOLDER / file), cv2.IMREAD_COLOR)
    if strip is None:
        raise ValueError(f"{file} is no readable picture")
    return np.stack(np.split(strip[..., ::-1].astype(np.uint8), frames, axis=1))


def proof_clips() -> tuple[Canary, ...]:
    """The few clips of the start-up check."""
    return tuple(canary for canary in canaries() if canary.name in PROOF_CLIPS)


def known_answer_reconstruction(worker: ReconstructionWorker) -> dict[str, float]:
    """S_recon + S_traj of the consistent clips and of their spoilt versions, by name.

    Raises KnownAnswerError unless each consistent clip wins by `MARGIN` over each of its versions.
    """
    rows: dict[str, float] = {}
    for canary in proof_clips():
        versions = {"consistent": canary.video} | {
            spoil.__name__: spoil(canary.video) for spoil in (shuffled, frozen, warped)
        }
        scores = {}
        for name, video in versions.items():
            try:
                score, _, _ = worker.assess(video, canary.prompt, False)
            except Exception as error:
                raise KnownAnswerError(
                    f"reconstruction cannot score the {name} {canary.name} clip: {error}"
                ) from error
            scores[name] = score.parts["recon"] + score.parts["traj"]
        _require_order("reconstruction", canary.name, scores, MARGIN)
        rows |= {f"{canary.name}.{name}": value for name, value in scores.items()}
    return rows


def known_answer_judge(worker: JudgeWorker) -> dict[str, float]:
    """S_meta of a good picture, of a speckled one and of an empty one, by name."""
    rows: dict[str, float] = {}
    for canary in proof_clips():
        picture = canary.video[0]
        pictures = {
            "good": picture,
            "speckled": speckled(picture),
            "empty": np.zeros_like(picture),
        }
        scores = {
            name: _score(partial(worker.score, image, canary.prompt), name).parts["meta"]
            for name, image in pictures.items()
        }
        _require_order("judge", canary.name, scores, FRAME_MARGIN)
        rows |= {f"{canary.name}.{name}": value for name, value in scores.items()}
    return rows


def known_answer_aesthetic(worker: AestheticWorker) -> dict[str, float]:
    """R_gen of a good clip, of a colourless one and of a speckled one, by name; before it is
    clipped, since a learned scorer may find all of these small pictures too poor for its range."""
    rows: dict[str, float] = {}
    for canary in proof_clips():
        versions = {"good": canary.video} | {
            spoil.__name__: spoil(canary.video) for spoil in (greyed, speckled)
        }
        scores = {
            name: _unclipped(
                _score(partial(worker.score, video, canary.prompt), name), worker.config
            )
            for name, video in versions.items()
        }
        _require_order("aesthetic", canary.name, scores, FRAME_MARGIN)
        rows |= {f"{canary.name}.{name}": value for name, value in scores.items()}
    return rows


def _unclipped(score: Score, config: AestheticConfig) -> float:
    """R_gen before it is clipped; NaN, which no order holds for, where there is none."""
    if not np.isfinite(score.parts["gen"]):
        return float("nan")
    return (score.raw.get("aesthetic_raw", float("nan")) - config.offset) / config.scale


def _score(score: Callable[[], Score | ScoreFailure], name: str) -> Score:
    for _ in range(ATTEMPTS):
        try:
            outcome = score()
        except BROKEN as error:
            raise KnownAnswerError(f"the {name} clip finds a broken worker: {error}") from error
        if isinstance(outcome, Score) or not outcome.retry:
            break
    if isinstance(outcome, ScoreFailure):
        raise KnownAnswerError(f"{outcome.kind} cannot score the {name} clip: {outcome.reason}")
    return outcome


def _require_order(kind: str, clip: str, scores: Mapping[str, float], margin: float) -> None:
    """The first of `scores` must be finite and exceed every other by `margin`."""
    (best, top), *others = scores.items()
    for name, value in others:
        if not (np.isfinite(top) and np.isfinite(value) and top >= value + margin):
            raise KnownAnswerError(
                f"{kind} scores the {best} {clip} clip {top:.3f} and the {name} one {value:.3f}; "
                f"the first must be larger by {margin}"
            )
