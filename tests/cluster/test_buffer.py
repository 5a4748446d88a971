"""Group completion by tables: what trains, what is dropped, what is rolled out again."""

from __future__ import annotations

import itertools

import pytest

from actors.trajectory import WeightsVersion
from cluster.buffer import (
    GroupBuffer,
    GroupDecision,
    MemberReward,
    NoProgressError,
    decide_group,
)
from cluster.versions import Lineages
from learner.batch import advantages
from learner.grpo import ADVANTAGE_EPSILON
from learner.schedule import Phase
from rewards.config import WeightsConfig
from rewards.scoring import combine

WEIGHTS = {"recon": 1.0, "gen": 0.5}


def members(*totals: float | None) -> list[MemberReward]:
    return [
        MemberReward(i, total, {} if total is None else {"recon": total, "gen": 0.0})
        for i, total in enumerate(totals)
    ]


@pytest.mark.parametrize(
    ("totals", "minimum", "verdict", "trained"),
    [
        ((1.0, 2.0, 3.0), 2, "train", (0, 1, 2)),
        ((1.0, None, 3.0), 2, "train", (0, 2)),
        ((1.0, None, 3.0), 3, "too_few_scored", None),
        ((None, None, 3.0), 1, "too_few_scored", None),
        ((None, None, None), 2, "too_few_scored", None),
        ((2.0, 2.0, 2.0), 2, "no_gradient", None),
        ((2.0, None, 2.0), 2, "no_gradient", None),
        ((2.0, 2.0, 2.0 + 1e-15), 2, "train", (0, 1, 2)),
    ],
)
def test_verdicts(totals, minimum, verdict, trained) -> None:  # type: ignore[no-untyped-def]
    decision = decide_group(7, "p", members(*totals), WEIGHTS, minimum)
    assert decision.verdict == verdict
    assert decision.failed == sum(total is None for total in totals)
    if trained is None:
        assert decision.group is None
    else:
        assert decision.group is not None
        assert decision.group.members == trained
        assert decision.group.rewards == tuple(totals[i] for i in trained)
        assert decision.group.weights == WEIGHTS


def test_part_that_one_member_lacks_is_left_out_of_the_parts() -> None:
    rows = [MemberReward(0, 1.0, {"recon": 1.0}), MemberReward(1, 2.0, {"recon": 1.0, "gen": 2.0})]
    decision = decide_group(0, "p", rows, WEIGHTS, 2)
    assert decision.group is not None
    assert set(decision.group.parts) == {"recon"}


def test_a_parts_share_of_the_advantage_is_its_weight_however_small() -> None:
    # Group standard deviations of .01: a part taken times its weight of .1 would have only ten
    # times the advantages' epsilon left, and 9 % less of a share.
    parts = ({"recon": 0.81, "gen": 0.49}, {"recon": 0.79, "gen": 0.51})
    weights = WeightsConfig(recon=3.0, gen=0.1, traj=0.0, meta=0.0)
    rows = [MemberReward(i, *combine(part, weights, "main")) for i, part in enumerate(parts)]
    decision = decide_group(0, "p", rows, weights.model_dump(), 2)
    assert decision.group is not None
    first, second = advantages([decision.group], "group_parts", 5.0)
    share = 0.01 / (0.01 + ADVANTAGE_EPSILON)
    assert first == pytest.approx((3.0 - 0.1) / 3.1 * share, rel=1e-9)
    assert second == pytest.approx(-first, rel=1e-9)


V0 = WeightsVersion(0, "a", "c")


def filled(buffer: GroupBuffer, *decisions: GroupDecision, phase: Phase = "main") -> None:
    """Issue and complete groups."""
    for decision in decisions:
        buffer.issue(decision.serial, phase)
    for decision in decisions:
        assert not buffer.add(decision, V0)


def good(serial: int) -> GroupDecision:
    return decide_group(serial, f"p{serial}", members(1.0, 2.0 + serial), WEIGHTS, 2)


def test_batch_is_the_same_whatever_order_groups_arrive_in() -> None:
    batches = set()
    for order in itertools.permutations([good(s) for s in (3, 8, 9)]):
        buffer = GroupBuffer(3)
        filled(buffer, *order)
        batches.add(tuple(ready.group.group for ready in buffer.take("main")))
    assert batches == {(3, 8, 9)}


def test_rejections_are_counted_and_ask_for_a_replacement() -> None:
    buffer = GroupBuffer(1, max_rejected=2)
    for serial, totals in ((0, (1.0, 1.0)), (1, (1.0, None))):
        buffer.issue(serial, "main")
        decision = decide_group(serial, "p", members(*totals), WEIGHTS, 2)
        assert buffer.add(decision, V0)
        assert buffer.room == 1
    assert {k: v for k, v in buffer.rejected.items() if v} == {
        "no_gradient": 1,
        "too_few_scored": 1,
    }
    assert buffer.failed_members == 1
    with pytest.raises(ValueError, match="0 of 1"):
        buffer.take("main")
    buffer.issue(2, "main")
    with pytest.raises(NoProgressError, match="2 because all their rewards were equal"):
        buffer.add(decide_group(2, "p", members(1.0, 1.0), WEIGHTS, 2), V0)


def test_a_group_cannot_be_completed_twice_or_unasked() -> None:
    buffer = GroupBuffer(2)
    filled(buffer, good(4))
    with pytest.raises(ValueError, match="group 4 was completed twice"):
        buffer.add(good(4), V0)
    with pytest.raises(ValueError, match="group 5 was completed twice or never issued"):
        buffer.add(good(5), V0)


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_never_more_than_s_plus_one_batches_are_open(staleness: int) -> None:
    """Counted while the learner works, too: with 0 nothing is issued until it has published."""
    buffer = GroupBuffer(2, staleness)
    serials = itertools.count()
    phases: list[Phase] = ["main"] * (staleness + 1)

    def fill() -> int:
        issued = 0
        while buffer.room and buffer.wanted(phases):
            filled(buffer, good(next(serials)))
            issued += 1
        return issued

    assert fill() == 2 * (staleness + 1)
    for _ in range(3):
        buffer.take("main")
        assert (buffer.open, fill()) == (2 * (staleness + 1), 0)
        with pytest.raises(ValueError, match="does not fit"):
            buffer.issue(99, "main")
        buffer.published()
        assert fill() == 2


def test_what_is_rejected_while_a_batch_trains_is_counted_with_the_next() -> None:
    buffer = GroupBuffer(2, 1)
    filled(buffer, good(0), good(1))
    buffer.take("main")
    bad = decide_group(2, "p", members(1.0, None, None), WEIGHTS, 2)
    buffer.issue(2, "main")
    assert buffer.add(bad, V0)
    buffer.published()
    assert (buffer.rejected["too_few_scored"], buffer.failed_members) == (1, 2)
    filled(buffer, good(3), good(4))
    buffer.take("main")
    assert (buffer.rejected["too_few_scored"], buffer.failed_members) == (0, 0)


def test_groups_are_issued_for_the_phases_to_come_and_for_no_other() -> None:
    buffer = GroupBuffer(2, 2)
    phases: list[Phase] = ["main", "dynamic", "main"]
    asked = []
    for serial in range(6):
        phase = buffer.wanted(phases)
        assert phase is not None
        asked.append(phase)
        buffer.issue(serial, phase)
    assert asked == ["main", "main", "dynamic", "dynamic", "main", "main"]
    assert buffer.wanted(phases) is None
    for serial in range(6):
        buffer.add(good(serial), V0)
    first = [r.group.group for r in buffer.take("main")]
    assert first == [s for s, phase in enumerate(asked) if phase == "main"][:2]
    buffer.published()
    assert buffer.wanted(["dynamic", "main"]) is None, "the run ends: nothing beyond it is issued"
    assert all(asked[r.group.group] == "dynamic" for r in buffer.take("dynamic"))


def test_orphaned_groups_are_no_sign_of_a_broken_scorer() -> None:
    buffer = GroupBuffer(2, 3, max_rejected=1)
    filled(buffer, *(good(serial) for serial in range(4)))
    expired = buffer.expire(1, Lineages(starts=(("other", 0),)))
    assert [e.reason for e in expired] == ["orphaned"] * 4
    buffer.issue(4, "main")
    buffer.reject(4, "stale")
    buffer.issue(5, "main")
    with pytest.raises(NoProgressError, match="6 groups of one step were rejected"):
        buffer.reject(5, "no_gradient")


@pytest.mark.parametrize(
    ("version", "step", "reason"),
    [
        ((5, "a"), 6, None),
        ((5, "a"), 7, "stale"),
        ((6, "gone"), 6, "orphaned"),
        ((8, "a"), 8, "orphaned"),
    ],
)
def test_old_groups_are_closed_and_counted(
    version: tuple[int, str], step: int, reason: str | None
) -> None:
    """At most max_staleness = 1 update old; lineage "a" was left at step 7."""
    buffer = GroupBuffer(1, 1)
    buffer.issue(0, "main")
    buffer.add(good(0), WeightsVersion(*version, "c"))
    lineages = Lineages(starts=(("a", 0), ("b", 7)))
    expired = buffer.expire(step, lineages)
    assert [e.reason for e in expired] == ([] if reason is None else [reason])
    assert (buffer.open, buffer.ready("main")) == ((1, True) if reason is None else (0, False))
    assert sum(buffer.rejected.values()) == len(expired)
