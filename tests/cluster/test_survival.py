"""The benchmarks that hurt a run, at the size of CI: kill -9 at random points, a store that fails.

Not covered: two ranks, frozen processes, the loss of a node (by hand, benchmarks/results).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.chaos import KINDS, STEPS_PER_KILL, measure, met, plan
from benchmarks.checkpoints import measure as measure_checkpoints
from benchmarks.faulty_store import Faults


def test_kills_are_drawn_from_the_seed_in_equal_shares() -> None:
    kills = plan(seed=3, kills=60)
    assert kills == plan(seed=3, kills=60)
    assert kills != plan(seed=4, kills=60)
    assert Counter(kill.kind for kill in kills) == dict.fromkeys(KINDS, 10)
    assert [kill.step for kill in kills] == sorted(kill.step for kill in kills)
    assert kills[0].step >= 0
    assert kills[-1].step < 60 * STEPS_PER_KILL


@pytest.mark.cluster
@pytest.mark.slow
def test_six_kills_lose_nothing_and_change_no_bit(tmp_path: Path) -> None:
    """Every kind of process once, the coordinator too."""
    row = measure(tmp_path, kills=6, seed=0, ranks=1)
    assert row["kills"] == dict.fromkeys(KINDS, 1)
    assert row["starts"] == 2
    assert (row["lost"], row["double"], row["findings"]) == (0, 0, [])
    assert row["groups_trained"] == 2 * row["steps"]
    assert met(row), row


@pytest.mark.slow
def test_a_failing_store_gives_no_wrong_state() -> None:
    """More errors than by hand, so that the clients' own retries do not hide them all."""
    row = measure_checkpoints(5, Faults(errors=0.3, delays=0.05, delay_s=0.3, seed=1))
    assert row["wrong"] == []
    assert row["writers killed"] == row["newest damaged"] == 1
    for fault in ("unavailable", "reset", "answer lost", "truncated"):
        assert row["requests"][fault] > 0, fault
    reasons = " ".join(row["skipped"])
    assert "no manifest" in reasons
    assert "does not match its SHA-256" in reasons
