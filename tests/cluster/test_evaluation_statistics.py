"""Intervals, paired differences and rank agreement by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.evaluation.statistics import difference, estimate, interval, rank_agreement


def test_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    names = [f"p{i}" for i in range(40)]
    hits = 0
    for _ in range(200):
        lower, upper = interval(rng.normal(0.3, 1.0, 40), names)
        hits += lower <= 0.3 <= upper
    assert hits / 200 == pytest.approx(0.95, abs=0.05)


def test_samples_of_one_prompt_do_not_narrow_the_interval() -> None:
    values = np.array([1.0, 2.0, 4.0, 7.0])
    once = interval(values, ["a", "b", "c", "d"])
    repeated = interval(np.repeat(values, 5), [p for p in "abcd" for _ in range(5)])
    assert repeated == pytest.approx(once)
    for_clips = interval(np.repeat(values, 5), [str(i) for i in range(20)])
    assert for_clips[1] - for_clips[0] < 0.6 * (once[1] - once[0])


def test_estimate_and_difference_by_hand() -> None:
    found = estimate([1.0, 3.0], ["a", "b"])
    assert (found.mean, found.lower, found.upper, found.clips) == (2.0, 1.0, 3.0, 2)
    first = {("a", 0): 1.0, ("b", 0): 2.0, ("only here", 0): 99.0}
    second = {("b", 0): 2.5, ("a", 0): 1.25}
    paired = difference(first, second)
    assert paired is not None
    assert (paired.first, paired.second, paired.mean, paired.pairs) == (1.5, 1.875, 0.375, 2)
    assert (paired.lower, paired.upper) == (0.25, 0.5)
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
