"""Alarms by hand: when proxy and gold part, when motion or sharpness dies, and when not."""

from __future__ import annotations

import pytest

from cluster.evaluate import proxy
from cluster.evaluation import alarms
from cluster.evaluation.alarms import Alarm
from cluster.held_out import EvalSample


def samples(**raw: float) -> list[EvalSample]:
    """Eight pairs with small differences between prompts."""
    return [
        EvalSample(f"p{i}", "A box.", i, 1.0, {}, {k: v * (1 + 0.01 * i) for k, v in raw.items()})
        for i in range(8)
    ]


PAIRS = [(f"p{i}", i) for i in range(8)]


def find_alarms(before: list[EvalSample], now: list[EvalSample], max_fall: float) -> list[Alarm]:
    return alarms.find_alarms(before, now, max_fall, PAIRS)


BASE = samples(proxy=1.5, gold=1.2, motion=2.0, sharpness=4.0)


@pytest.mark.parametrize(
    ("now", "kinds"),
    [
        ({"proxy": 1.6, "gold": 1.3, "motion": 2.0, "sharpness": 4.0}, []),
        ({"proxy": 1.6, "gold": 1.1, "motion": 2.0, "sharpness": 4.0}, ["parted"]),
        ({"proxy": 1.4, "gold": 1.1, "motion": 2.0, "sharpness": 4.0}, []),
        ({"proxy": 1.6, "gold": 1.2, "motion": 2.0, "sharpness": 4.0}, []),
        ({"proxy": 1.5, "gold": 1.2, "motion": 1.6, "sharpness": 4.0}, ["motion"]),
        ({"proxy": 1.5, "gold": 1.2, "motion": 1.8, "sharpness": 4.0}, []),  # 10 % is allowed
        (
            {"proxy": 1.6, "gold": 1.0, "motion": 1.0, "sharpness": 2.0},
            ["parted", "motion", "sharpness"],
        ),
    ],
)
def test_what_raises_an_alarm(now: dict[str, float], kinds: list[str]) -> None:
    assert [alarm.kind for alarm in find_alarms(BASE, samples(**now), 0.15)] == kinds


def test_a_fall_within_its_interval_is_none() -> None:
    """One clip of eight stands still: the mean falls by more than 15 %, the interval reaches 0."""
    now = samples(proxy=1.5, gold=1.2, motion=2.0, sharpness=4.0)
    now[3].raw["motion"] = -1.0  # type: ignore[index]
    assert find_alarms(BASE, now, 0.15) == []
    fallen = samples(proxy=1.5, gold=1.2, motion=1.6, sharpness=4.0)
    assert "fall of 20%" in find_alarms(BASE, fallen, 0.15)[0].text


def test_clips_that_can_no_longer_be_judged_are_an_alarm() -> None:
    """The others would be about the clips that are left."""
    better = {"proxy": 1.6, "gold": 1.3, "motion": 2.0, "sharpness": 4.0}

    def blind(count: int) -> list[EvalSample]:
        found = samples(**better)
        for sample in found[:count]:
            del sample.raw["gold"]  # type: ignore[attr-defined]
        return found

    assert find_alarms(BASE, blind(1), 0.15) == []  # one of eight is 12.5 %
    assert find_alarms(BASE, blind(2), 0.15) == []  # 25 %, but chance
    (alarm,) = find_alarms(BASE, blind(6), 0.15)
    assert alarm.kind == "unjudged"
    assert "6 of 8 pairs have no gold, before training 0" in alarm.text
    assert [a.kind for a in find_alarms(BASE, blind(8), 0.15)] == ["unjudged"]
    assert [a.kind for a in find_alarms(BASE, [], 0.15)] == ["unjudged"]  # nothing was scored
    assert find_alarms(blind(8), blind(8), 0.15) == []
    # A resumed run may sample fewer pairs: those are no failures.
    assert alarms.find_alarms(BASE, samples(**better)[:3], 0.15, PAIRS[:3]) == []
    assert find_alarms(blind(6), samples(**better), 0.15) == []


def test_without_gold_nothing_parts() -> None:
    assert find_alarms(samples(proxy=1.0), samples(proxy=2.0), 0.15) == []
    assert proxy({"recon": 0.8, "traj": 0.5}) == pytest.approx(1.3)
    assert proxy({"recon": 0.8}) == pytest.approx(1.6)
