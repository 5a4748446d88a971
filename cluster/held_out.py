"""Scores of held-out pairs as a run stores them, and what was gained between two evaluations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.storage import RunFolder, samples_folder, scores_file

SHOWN_RAW = ("psnr", "gold", "content", "sharpness", "motion")
"""Measurements compared beside the reward: what a reward hacker would sacrifice."""


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


@dataclass(frozen=True, slots=True)
class Gain:
    """A figure before and after, over the same pairs."""

    name: str
    before: float
    after: float
    lower: float
    """One-sided 95 % bootstrap bound of the mean paired gain."""
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


def paired_gains(
    before: Sequence[EvalSample],
    after: Sequence[EvalSample],
    resamples: int = 10_000,
) -> list[Gain]:
    """Gains of the total, of each part and of the guarded measurements over common pairs."""
    later = {(s.prompt_id, s.seed): s for s in after}
    common = [(s, later[s.prompt_id, s.seed]) for s in before if (s.prompt_id, s.seed) in later]
    gains = []
    for name, values in _figures(common).items():
        first, last = np.array(values).T
        gains.append(
            Gain(
                name,
                float(first.mean()),
                float(last.mean()),
                bootstrap_lower(last - first, resamples),
                len(values),
            )
        )
    return gains


def bootstrap_lower(
    gains: NDArray[np.float64], resamples: int = 10_000, level: float = 0.05
) -> float:
    """Lower end of the one-sided bootstrap interval of a mean (percentile method, fixed seed)."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(gains), (resamples, len(gains)))
    return float(np.quantile(gains[picks].mean(axis=1), level))


def _figures(
    common: Sequence[tuple[EvalSample, EvalSample]],
) -> dict[str, list[tuple[float, float]]]:
    figures: dict[str, list[tuple[float, float]]] = {
        "total reward": [(a.total, b.total) for a, b in common]
    }
    part_names = sorted({name for a, b in common for name in a.parts if name in b.parts})
    for name in part_names:
        figures[f"  {name}"] = [
            (a.parts[name], b.parts[name]) for a, b in common if name in a.parts and name in b.parts
        ]
    for name in SHOWN_RAW:
        pairs = [(a.raw[name], b.raw[name]) for a, b in common if name in a.raw and name in b.raw]
        if pairs:
            figures[name] = pairs
    return figures


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
        )
    pairs = gains[0].pairs if gains else 0
    return "\n".join([*lines, f"{pairs} held-out (prompt, noise) pairs, sampled by the ODE"])
