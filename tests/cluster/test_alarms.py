"""Alarms by hand: when proxy and gold part, when motion or sharpness dies, and when not."""

from __future__ import annotations

import pytest

from cluster.evaluate import proxy
from cluster.evaluation.alarms import find_alarms
from cluster.held_out import EvalSample


def samples(**raw: float) -> list[EvalSample]:
    """Eight pairs with small differences between prompts."""
    return [
        EvalSample(f"p{i}", "A box.", i, 1.0, {}, {k: v * (1 + 0.01 * i) for k, v in raw.items()})
        for i in range(8)
    ]


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
    now = samples(motion=2.0)
    now[3].raw["motion"] = -1.0  # type: ignore[index]
    assert find_alarms(BASE, now, 0.15) == []
    assert "fall of 20%" in find_alarms(BASE, samples(motion=1.6), 0.15)[0].text


def test_without_gold_nothing_parts() -> None:
    assert find_alarms(samples(proxy=1.0), samples(proxy=2.0), 0.15) == []
    assert proxy({"recon": 0.8, "traj": 0.5}) == pytest.approx(1.3)
    assert proxy({"recon": 0.8}) == pytest.approx(1.6)
