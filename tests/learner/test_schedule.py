"""The schedule is a pure function of step, seed and group."""

from __future__ import annotations

import pytest

from learner.config import LearnerConfig, ScheduleConfig
from learner.schedule import guard_active, phase_of, window_start


def test_phase_alternates_main_and_dynamic() -> None:
    """8 main and 4 dynamic steps: 0-7 main, 8-11 dynamic, 12-19 main."""
    config = ScheduleConfig(main_steps=8, dynamic_steps=4)
    phases = "".join(phase_of(step, config)[0] for step in range(24))
    assert phases == "mmmmmmmmddddmmmmmmmmdddd"


def test_no_dynamic_steps_means_main_for_ever() -> None:
    config = ScheduleConfig(main_steps=3, dynamic_steps=0)
    assert {phase_of(step, config) for step in range(50)} == {"main"}
    with pytest.raises(ValueError, match="step = -1 is negative"):
        phase_of(-1, config)


def test_window_start_is_pinned() -> None:
    """Stored runs depend on these values: they must never change."""
    assert [window_start(0, group, 1, 6) for group in range(8)] == [2, 1, 4, 1, 5, 2, 4, 3]


def test_window_start_is_uniform_and_keyed_on_seed_and_group() -> None:
    """10,000 groups over 5 starts: chi-square with 4 degrees of freedom below 18.5 (p = 0.001)."""
    starts = [window_start(3, group, 1, 6) for group in range(10_000)]
    counts = [starts.count(value) for value in range(1, 6)]
    assert sum(counts) == 10_000
    assert sum((count - 2000) ** 2 / 2000 for count in counts) < 18.5
    assert starts[:50] != [window_start(4, group, 1, 6) for group in range(50)]


@pytest.mark.parametrize(("low", "stop"), [(3, 3), (4, 2), (-1, 2)])
def test_empty_window_range_is_refused(low: int, stop: int) -> None:
    with pytest.raises(ValueError, match="empty or negative"):
        window_start(0, 0, low, stop)


def test_guard_is_on_by_default_only_off_policy() -> None:
    assert not guard_active(LearnerConfig(), max_staleness=0)
    assert guard_active(LearnerConfig(), max_staleness=1)
    assert guard_active(LearnerConfig(updates_per_batch=2), max_staleness=0)
    assert not guard_active(LearnerConfig(guard=False, updates_per_batch=2), max_staleness=3)
    assert guard_active(LearnerConfig(guard=True), max_staleness=0)
