"""Scores of held-out pairs as a run stores them, and what was gained between two evaluations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.evaluation.statistics import lower_bound
from cluster.storage import RunFolder, samples_folder, scores_file
from prompts.schema import Poses

SHOWN_RAW = ("psnr", "gold", "content", "sharpness", "motion")
"""Measurements compared beside the reward: what a reward hacker would sacrifice."""
TOTAL = "total reward"


@dataclass(frozen=True, slots=True)
class EvalSample:
    """One held-out (prompt, noise) pair, scored with all rewards."""

    prompt_id: str
    prompt: str
    seed: int
    total: float
    """Weighted sum of the parts."""
    parts: Mapping[str, float]
    """Before their weights, as in a step's row."""
    raw: Mapping[str, float]
    c2w: Poses | None = None
    """A hand-given camera path [F, 4, 4], where there was one."""


@dataclass(frozen=True, slots=True)
class Gain:
    """A figure before and after, over the same pairs."""

    name: str
    before: float
    after: float
    lower: float
    """One-sided 95 % bootstrap bound of the mean paired gain; prompts are drawn."""
    pairs: int

    @property
    def gain(self) -> float:
        """Mean paired gain."""
        return self.after - self.before


def video_file(step: int, prompt_id: str, seed: int, average: bool = False) -> str:
    """Where the video of a held-out pair is, relative to the run."""
    return f"{samples_folder(step)}/{'ema_' if average else ''}{prompt_id}_{seed}.mp4"


def load_evaluation(folder: RunFolder, step: int, average: bool = False) -> list[EvalSample]:
    """Scores stored by an evaluation; FileNotFoundError when the step was not evaluated."""
    rows = json.loads(folder.read_text(scores_file(step, average)))
    return [EvalSample(**row) for row in rows]


def paired_gains(before: Sequence[EvalSample], after: Sequence[EvalSample]) -> list[Gain]:
    """Gains of the total, of each part and of the guarded measurements over common pairs."""
    later = {(s.prompt_id, s.seed): _figures(s) for s in after}
    rows = [
        (s.prompt_id, _figures(s), later[s.prompt_id, s.seed])
        for s in before
        if (s.prompt_id, s.seed) in later
    ]
    gains = []
    for name in _names(figures for _, *sides in rows for figures in sides):
        known = [(prompt, a[name], b[name]) for prompt, a, b in rows if name in a and name in b]
        if known:
            first, last = np.array([values for _, *values in known]).T
            bound = lower_bound(last - first, [prompt for prompt, _, _ in known])
            gains.append(Gain(name, float(first.mean()), float(last.mean()), bound, len(known)))
    return gains


def _figures(sample: EvalSample) -> dict[str, float]:
    """What is compared of a sample, by the name that tables show."""
    parts = {f"  {name}": value for name, value in sample.parts.items()}
    raw = {name: sample.raw[name] for name in SHOWN_RAW if name in sample.raw}
    return {TOTAL: sample.total} | parts | raw


def _names(sides: Iterable[Mapping[str, float]]) -> list[str]:
    """The total, the parts by name, then the measurements."""
    present = {name for figures in sides for name in figures}
    parts = sorted(name for name in present if name not in (TOTAL, *SHOWN_RAW))
    return [name for name in (TOTAL, *parts, *SHOWN_RAW) if name in present]


def gains_table(gains: Sequence[Gain], first: str = "before", last: str = "after") -> str:
    """Aligned text table of `paired_gains`."""
    lines = [
        f"{'':<14}{first:>9}{last:>9}{'gain':>9}{'95 % >':>9}{'change':>9}",
    ]
    for gain in gains:
        change = f"{gain.gain / abs(gain.before):+.0%}" if abs(gain.before) > 1e-9 else "–"
        lines.append(
            f"{gain.name:<14}{gain.before:>9.3f}{gain.after:>9.3f}{gain.gain:>+9.3f}"
            f"{gain.lower:>+9.3f}{change:>9}"
            + (f"  ({gain.pairs} pairs)" if gain.pairs < gains[0].pairs else "")
        )
    pairs = gains[0].pairs if gains else 0
    return "\n".join([*lines, f"{pairs} held-out (prompt, noise) pairs, sampled by the ODE"])
