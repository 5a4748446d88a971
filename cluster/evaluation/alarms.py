"""When a rising reward is no longer to be believed: proxy and gold part, motion or sharpness dies,
or clips can no longer be judged.

Compared are held-out pairs before training and now; both sides were sampled with the same noises.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.evaluation.statistics import Difference, difference
from cluster.held_out import EvalSample

AlarmKind = Literal["parted", "motion", "sharpness", "unjudged"]

PROXY, GOLD = "proxy", "gold"
"""Names in `EvalSample.raw`: S_recon + S_traj, and their counterpart by the independent
estimator."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something to stop for and look at."""

    kind: AlarmKind
    text: str
    """One sentence with the figures."""


def find_alarms(
    before: Sequence[EvalSample],
    now: Sequence[EvalSample],
    max_fall: float,
    asked: Collection[tuple[str, int]],
) -> list[Alarm]:
    """Alarms that held-out samples give rise to, against those of the untrained policy.

    `parted`: the proxy has risen and the gold figure has fallen, both outside the 95 % interval of
    their paired difference. `motion`, `sharpness`: the mean has fallen by more than the share
    `max_fall`, and the fall lies outside its interval. `unjudged`: so much larger a share of the
    pairs has no gold figure (or no score at all), outside its interval; the other alarms see only
    the pairs that both sides have, which then are the better ones. `asked`: (prompt id, seed) of
    the pairs that were sampled now; an earlier evaluation may have had more.
    """
    alarms = _unjudged(before, now, max_fall, asked)
    proxy, gold = paired(before, now, PROXY), paired(before, now, GOLD)
    if proxy is not None and gold is not None and proxy.lower > 0 > gold.upper:
        alarms.append(
            Alarm(
                "parted",
                f"proxy and gold part: the reward's reconstructor sees {_moved(proxy)}, the "
                f"independent estimator {_moved(gold)} over {gold.pairs} pairs",
            )
        )
    kinds: tuple[Literal["motion", "sharpness"], ...] = ("motion", "sharpness")
    for name in kinds:
        found = paired(before, now, name)
        if found is None or found.first <= 0:
            continue
        fall = -found.mean / found.first
        if fall > max_fall and found.upper < 0:
            text = f"{name} dies: {_moved(found)}, a fall of {fall:.0%} (allowed: {max_fall:.0%})"
            alarms.append(Alarm(name, text))
    return alarms


def _unjudged(
    before: Sequence[EvalSample],
    now: Sequence[EvalSample],
    max_share: float,
    asked: Collection[tuple[str, int]],
) -> list[Alarm]:
    name = GOLD if any(GOLD in sample.raw for sample in (*before, *now)) else PROXY
    judged = [{(s.prompt_id, s.seed) for s in side if name in s.raw} for side in (before, now)]
    # A pair that neither side could judge tells nothing.
    pairs = (judged[0] | judged[1]).intersection(asked)
    first, second = ({pair: float(pair not in side) for pair in pairs} for side in judged)
    lost = difference(first, second)
    if lost is None or lost.mean <= max_share or lost.lower <= 0:
        return []
    text = (
        f"clips can no longer be judged: {int(sum(second.values()))} of {len(pairs)} pairs have no "
        f"{name}, before training {int(sum(first.values()))}"
    )
    return [Alarm("unjudged", text)]


def paired(before: Sequence[EvalSample], now: Sequence[EvalSample], name: str) -> Difference | None:
    """Difference of a measurement over the pairs in which both sides have it."""

    def values(samples: Sequence[EvalSample]) -> dict[tuple[str, int], float]:
        return {(s.prompt_id, s.seed): s.raw[name] for s in samples if name in s.raw}

    return difference(values(before), values(now))


def _moved(found: Difference) -> str:
    ends = f"[{found.lower:+.3f}, {found.upper:+.3f}]"
    return f"{found.first:.3f} → {found.second:.3f} ({found.mean:+.3f} {ends})"
