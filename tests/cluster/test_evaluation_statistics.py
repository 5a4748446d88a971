"""Intervals, paired differences and rank agreement by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.evaluation.statistics import (
    difference,
    estimate,
    interval,
    lower_bound,
    rank_agreement,
)


@pytest.mark.parametrize("prompts", [3, 5, 8, 22, 40])
def test_interval_covers_as_often_as_it_says(prompts: int) -> None:
    """Of 400 intervals 380 should hold the truth, plus or minus 13 (three standard errors)."""
    rng = np.random.default_rng(1)
    names = [f"p{i}" for i in range(prompts)]
    hits = one_sided = 0
    for _ in range(400):
        values = rng.normal(0.3, 1.0, prompts)
        lower, upper = interval(values, names)
        hits += lower <= 0.3 <= upper
        one_sided += lower_bound(values, names) <= 0.3
    assert 367 <= hits <= 393
    assert 367 <= one_sided <= 393


def test_one_prompt_says_nothing_of_others() -> None:
    first = {("a", seed): 1.0 for seed in range(16)}
    second = {("a", seed): 1.1 + 0.001 * seed for seed in range(16)}
    found = difference(first, second)
    assert found is not None
    assert (found.lower, found.upper, found.verdict("higher")) == (-np.inf, np.inf, "")


def test_ends_are_stretched_as_students_t_asks() -> None:
    """Two prompts: drawn means are 1, 2, 3; their quantiles lie at both values, 1 from the mean.
    The stretch is sqrt(2 / 1) 12.706 / 1.960 = 9.168."""
    lower, upper = interval(np.array([1.0, 3.0]), ["a", "b"])
    assert (lower, upper) == pytest.approx((2 - 9.168, 2 + 9.168), abs=1e-3)


def test_samples_of_one_prompt_do_not_narrow_the_interval() -> None:
    values = np.array([1.0, 2.0, 4.0, 7.0])
    once = interval(values, ["a", "b", "c", "d"])
    repeated = interval(np.repeat(values, 5), [p for p in "abcd" for _ in range(5)])
    assert repeated == pytest.approx(once)
    for_clips = interval(np.repeat(values, 5), [str(i) for i in range(20)])
    assert for_clips[1] - for_clips[0] < 0.6 * (once[1] - once[0])


def test_estimate_and_difference_by_hand() -> None:
    found = estimate([1.0, 3.0], ["a", "b"])
    assert (found.mean, found.clips) == (2.0, 2)
    assert found.upper - 2.0 == pytest.approx(2.0 - found.lower)
    first = {("a", 0): 1.0, ("b", 0): 2.0, ("only here", 0): 99.0}
    second = {("b", 0): 2.375, ("a", 0): 1.375}
    paired = difference(first, second)
    assert paired is not None
    assert (paired.first, paired.second, paired.mean, paired.pairs) == (1.5, 1.875, 0.375, 2)
    assert difference(first, {}) is None
    assert [paired.verdict(b) for b in ("higher", "lower", "neither")] == [
        "better",
        "worse",
        "higher",
    ]
    unclear = difference({("a", 0): 1.0, ("b", 0): 1.0}, {("a", 0): 0.5, ("b", 0): 1.5})
    assert unclear is not None
    assert unclear.verdict("higher") == ""


def test_rank_agreement_counts_what_could_not_be_judged_as_last() -> None:
    assert rank_agreement([3.0, 2.0, 1.0], [9.0, 5.0, 1.0]) == pytest.approx(1.0)
    assert rank_agreement([3.0, 2.0, 1.0], [9.0, 5.0, None]) == pytest.approx(1.0)
    assert rank_agreement([1.0, 2.0, 3.0], [9.0, 5.0, None]) == pytest.approx(-1.0)
    assert rank_agreement([3.0, 2.0], [1.0, 2.0]) is None
    assert rank_agreement([3.0, 2.0, 1.0], [None, None, None]) is None
