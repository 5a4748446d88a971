"""What a reward worker answers: a `Score` or a `ScoreFailure`, never a number for an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

RewardKind = Literal["reconstruction", "judge", "aesthetic"]
"""The three families of reward workers."""

RewardPart = Literal["recon", "traj", "reach", "meta", "gen"]
"""S_recon, S_traj and S_reach (reconstruction), S_meta (judge), R_gen (aesthetic); method section
3."""


@dataclass(frozen=True, slots=True)
class Score:
    """A scored sample, from one reward worker."""

    kind: RewardKind
    parts: Mapping[str, float]
    """Reward parts by `RewardPart`, each in its stated range: recon, traj, reach, meta in [0, 1],
    gen in [-1, 1]. `traj` is absent where the prompt names no motion, and so is `reach`, which is
    also absent where its weight is 0."""
    raw: Mapping[str, float] = field(default_factory=dict)
    """What was measured on the way (psnr, sharpness, motion, rotation error, raw scale, ...)."""
    scorer: str = ""
    """Name and version of the scorer that answered."""
    notes: tuple[str, ...] = ()
    """Rules that decided by definition, e.g. "texture gate: S_recon = 0"."""
    digits: tuple[float, ...] = ()
    """The judge's probabilities of the digits 0-9; empty for other kinds."""
    seconds: float = 0.0
    """Wall seconds of the scoring."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of a picture, or a frame scorer of a clip, before it is a `Score`."""

    score: float
    """S_meta in [0, 0.9], or the raw score that an affine map takes to R_gen."""
    raw: Mapping[str, float] = field(default_factory=dict)
    """What was measured on the way."""
    digits: tuple[float, ...] = ()
    """Probabilities of the digits 0-9 behind a judge's score."""


@dataclass(frozen=True, slots=True)
class ScoreFailure:
    """A sample that could not be scored; never enters an average."""

    kind: RewardKind
    reason: str
    """One sentence: what failed on what input."""
    error: str = ""
    """Type name of the exception, empty where none was raised."""
    scorer: str = ""
    seconds: float = 0.0
    retry: bool = True
    """Whether another attempt might answer; not for a video of one frame or missing weights."""
    attempt: int = 1
    """Which attempt failed last."""
