"""Stage clocks by hand-computed intervals."""

from __future__ import annotations

import pytest

from cluster.clocks import Meter, StageClock, bottleneck


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_seconds_of_two_workers_sum_to_the_interval() -> None:
    hand = Hand()
    meter = Meter(2, hand)
    meter.change(busy=1, waiting=3)
    hand.now = 4.0  # one of two busy for 4 s: 2 busy, 2 starved
    meter.change(busy=1, waiting=-1)
    hand.now = 5.0  # both busy for 1 s
    meter.change(busy=-2, blocked=True)
    meter.ended(5.0)
    meter.ended(1.0)
    hand.now = 8.0  # both held back for 3 s
    clock = meter.lap()
    assert (clock.busy_s, clock.starved_s, clock.blocked_s) == (3.0, 2.0, 3.0)
    assert clock.interval_s == 8.0
    assert clock.busy_share == pytest.approx(3 / 8)
    assert clock.queued_s == 3 * 4 + 2 * 1 + 2 * 3
    assert (clock.calls, clock.service_s) == (2, 3.0)
    hand.now = 9.0
    meter.change(workers=2)
    hand.now = 12.0  # four workers for 3 s, after two for 1 s
    assert meter.lap() == StageClock(0.0, 0.0, 4.0, 8.0, 0, 0.0, workers=(2 * 1 + 4 * 3) / 4)


def test_bottleneck_is_the_busiest_stage() -> None:
    def clock(busy_s: float) -> StageClock:
        return StageClock(busy_s, 10 - busy_s, 0.0, 0.0, 1, busy_s)

    clocks = {"rollout": clock(6.0), "rewards": clock(9.0), "learner": clock(2.0)}
    assert bottleneck(clocks) == "rewards"
    assert bottleneck({}) == ""
