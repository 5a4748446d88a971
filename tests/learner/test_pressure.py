"""What a reward pays for besides itself, by hand."""

from __future__ import annotations

import math

import pytest

from benchmarks.pressure import correlation, pressure


def test_correlation_by_hand() -> None:
    assert correlation([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == pytest.approx(1.0)
    assert correlation([1.0, 2.0, 3.0], [5.0, 3.0, 1.0]) == pytest.approx(-1.0)
    assert correlation([1.0, 2.0, 3.0, 2.0], [1.0, 0.0, 1.0, 2.0]) == pytest.approx(0.0)
    assert correlation([1.0, 1.0], [0.0, 1.0]) is None


def test_pressure_is_the_mean_over_groups_that_have_the_part_and_vary() -> None:
    rising, falling = [0.0, 1.0, 2.0], [2.0, 1.0, 0.0]
    groups = [
        {"recon": rising, "motion": rising},
        {"recon": rising, "motion": falling},
        {"recon": rising, "motion": rising},
        {"recon": [0.5, 0.5, 0.5], "motion": rising},
        {"motion": rising},
    ]
    mean, error = pressure(groups, "recon", "motion")
    assert mean == pytest.approx(1 / 3)
    assert error == pytest.approx(math.sqrt(4 / 3) / math.sqrt(3))
    assert all(math.isnan(x) for x in pressure(groups[:1], "recon", "motion"))
