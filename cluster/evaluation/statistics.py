"""Means with bootstrap intervals, and paired comparisons; the prompt is what is drawn again.

Samples of one prompt are alike, so that resampling clips would make intervals too narrow. All
draws are seeded: the same clips give the same interval.

Percentiles of n drawn prompts are too near to each other: the bootstrap's variance lacks a factor
n / (n - 1), and it takes the normal distribution for Student's (Hesterberg 2015, section 5.3). The
distance of each end from the mean is stretched by both: 1.29 at 8 prompts, 1.09 at 22, 1.01 at 264.
One prompt says nothing of others: its interval is without end, and nothing lies outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, spearmanr, t

from cluster.evaluation.figures import Better

F64 = NDArray[np.float64]

RESAMPLES = 5_000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over clips with its two-sided 95 % interval."""

    mean: float
    lower: float
    upper: float
    clips: int
    """Clips that have the figure."""


@dataclass(frozen=True, slots=True)
class Difference:
    """B - A over the (prompt, seed) pairs that both have."""

    first: float
    second: float
    mean: float
    lower: float
    upper: float
    pairs: int

    def verdict(self, better: Better) -> str:
        """ "better", "worse" or "" (not outside the interval); "higher" or "lower" for guards."""
        if self.lower <= 0 <= self.upper:
            return ""
        rises = self.lower > 0
        if better == "neither":
            return "higher" if rises else "lower"
        return "better" if rises == (better == "higher") else "worse"


def estimate(values: Sequence[float], prompts: Sequence[str]) -> Estimate:
    """Mean of values and its interval; `prompts` names the prompt of each value."""
    lower, upper = interval(np.asarray(values, np.float64), prompts)
    return Estimate(float(np.mean(values)), lower, upper, len(values))


def difference(
    first: Mapping[tuple[str, int], float], second: Mapping[tuple[str, int], float]
) -> Difference | None:
    """Paired difference of values by (prompt id, seed); None without a common pair."""
    common = sorted(first.keys() & second.keys())
    if not common:
        return None
    a, b = (np.array([side[key] for key in common]) for side in (first, second))
    lower, upper = interval(b - a, [prompt for prompt, _ in common])
    means = float(a.mean()), float(b.mean())
    return Difference(*means, float((b - a).mean()), lower, upper, len(common))


def interval(values: F64, prompts: Sequence[str]) -> tuple[float, float]:
    """Bootstrap interval of the mean, prompts drawn with replacement; endless for one prompt."""
    tail = (1 - LEVEL) / 2
    lower, upper = _ends(values, prompts, (tail, 1 - tail))
    return lower, upper


def lower_bound(values: F64, prompts: Sequence[str]) -> float:
    """Lower end of the one-sided interval."""
    (lower,) = _ends(values, prompts, (1 - LEVEL,))
    return lower


def _ends(values: F64, prompts: Sequence[str], levels: Sequence[float]) -> list[float]:
    """Ends of intervals of the mean: quantiles of `drawn_means`, as far out as so few prompts
    ask."""
    count = len(set(prompts))
    if count < 2:
        return [-np.inf if level < 0.5 else np.inf for level in levels]
    mean, means = float(np.mean(values)), drawn_means(values, prompts)
    variance = count / (count - 1)
    found = []
    for level in levels:
        stretch = np.sqrt(variance) * t.ppf(level, count - 1) / norm.ppf(level)
        found.append(mean + float(stretch * (np.quantile(means, level) - mean)))
    return found


def drawn_means(values: F64, prompts: Sequence[str]) -> F64:
    """Means [`RESAMPLES`] of values whose prompts are drawn with replacement, each with all of its
    values."""
    names, place = np.unique(np.asarray(prompts), return_inverse=True)
    sums = np.bincount(place, values, len(names))
    counts = np.bincount(place, minlength=len(names))
    picks = np.random.default_rng(0).integers(0, len(names), (RESAMPLES, len(names)))
    return np.asarray(sums[picks].sum(axis=1) / counts[picks].sum(axis=1), np.float64)


def rank_agreement(proxy: Sequence[float], gold: Sequence[float | None]) -> float | None:
    """Spearman's rank correlation of two judges over clips; None where one of them ranks nothing.

    A clip in which the second judge finds no camera comes last in its ranking, tied with others
    like it: that it cannot be followed is its finding.
    """
    known = [value for value in gold if value is not None]
    if len(proxy) < 3 or not known:
        return None
    last = min(known) - 1
    ranked = [last if value is None else value for value in gold]
    if len(set(proxy)) == 1 or len(set(ranked)) == 1:
        return None
    return float(spearmanr(proxy, ranked).statistic)
