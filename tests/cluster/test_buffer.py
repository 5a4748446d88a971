"""Group completion by tables: what trains, what is dropped, what is rolled out again."""

from __future__ import annotations

import itertools

import pytest

from cluster.buffer import GroupBuffer, MemberReward, NoProgressError, decide_group

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


def test_batch_is_the_same_whatever_order_groups_arrive_in() -> None:
    decisions = [decide_group(s, f"p{s}", members(1.0, 2.0 + s), WEIGHTS, 2) for s in (3, 8, 9)]
    batches = set()
    for order in itertools.permutations(decisions):
        buffer = GroupBuffer(3)
        assert not any(buffer.add(decision) for decision in order)
        batches.add(tuple(group.group for group in buffer.take()))
    assert batches == {(3, 8, 9)}


def test_rejections_are_counted_and_ask_for_a_replacement() -> None:
    buffer = GroupBuffer(1, max_rejected=2)
    assert buffer.add(decide_group(0, "p", members(1.0, 1.0), WEIGHTS, 2))
    assert buffer.add(decide_group(1, "p", members(1.0, None), WEIGHTS, 2))
    assert buffer.rejected == {"no_gradient": 1, "too_few_scored": 1}
    assert buffer.failed_members == 1
    with pytest.raises(ValueError, match="0 of 1"):
        buffer.take()
    with pytest.raises(NoProgressError, match="2 because all their rewards were equal"):
        buffer.add(decide_group(2, "p", members(1.0, 1.0), WEIGHTS, 2))


def test_a_group_cannot_be_completed_twice() -> None:
    buffer = GroupBuffer(2)
    decision = decide_group(4, "p", members(1.0, 2.0), WEIGHTS, 2)
    buffer.add(decision)
    with pytest.raises(ValueError, match="group 4 was completed twice"):
        buffer.add(decision)
