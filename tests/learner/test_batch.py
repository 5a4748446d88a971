"""Plans of a batch: every trajectory once, equal work for every rank, one normalisation."""

from __future__ import annotations

import itertools
import math

import pytest

from learner.batch import (
    ScoredGroup,
    advantages,
    flat_keys,
    non_finite_reward,
    plan_batch,
    trainable_indices,
)


def _groups(*sizes: int) -> tuple[ScoredGroup, ...]:
    return tuple(
        ScoredGroup(10 * i, f"p{i}", tuple(range(n)), tuple(float(m) for m in range(n)))
        for i, n in enumerate(sizes)
    )


def test_one_rank_takes_all_in_order() -> None:
    (plan,) = plan_batch(_groups(3, 2), ranks=1, micro_batch=2, updates=1)
    assert plan.samples == (0, 1, 2, 3, 4)
    (update,) = plan.updates
    assert [micro.indices for micro in update] == [(0, 1), (2, 3), (4,)]
    assert [micro.weights for micro in update] == [(0.2, 0.2), (0.2, 0.2), (0.2,)]


def test_uneven_counts_are_padded_at_weight_zero() -> None:
    """Five trajectories on two ranks: three and two; the second repeats its first at weight 0."""
    first, second = plan_batch(_groups(3, 2), ranks=2, micro_batch=2, updates=1)
    assert [m.indices for m in first.updates[0]] == [(0, 1), (2,)]
    assert [m.indices for m in second.updates[0]] == [(3, 4), (3,)]
    assert [m.weights for m in second.updates[0]] == [(0.2, 0.2), (0.0,)]
    assert second.samples == (3, 4)


def test_every_plan_is_complete_and_balanced() -> None:
    """Over sizes, ranks, micro-batches and updates: weights sum to 1 per update, every trajectory
    has weight exactly once, all ranks have micro-batches of the same sizes."""
    shapes = itertools.product([(2,), (3, 2), (4, 4, 1, 3)], [1, 2, 3, 7], [1, 2, 5], [1, 2])
    for sizes, ranks, micro_batch, updates in shapes:
        groups = _groups(*sizes)
        plans = plan_batch(groups, ranks, micro_batch, updates)
        seen: list[int] = []
        for update in range(updates):
            micros = [plan.updates[update] for plan in plans]
            assert len({tuple(len(m.indices) for m in rank) for rank in micros}) == 1
            pairs = [
                p for rank in micros for m in rank for p in zip(m.indices, m.weights, strict=True)
            ]
            if pairs:
                assert math.fsum(w for _, w in pairs) == pytest.approx(1.0, abs=1e-12)
            seen += [i for i, w in pairs if w > 0]
        assert sorted(seen) == list(trainable_indices(groups))


def test_groups_of_equal_rewards_are_left_out() -> None:
    groups = (
        *_groups(2),
        ScoredGroup(11, "p", (0, 1), (0.5, 0.5)),
        ScoredGroup(12, "p", (0,), (1.0,)),
    )
    assert trainable_indices(groups) == (0, 1)
    (plan,) = plan_batch(groups, 1, 4, 1)
    assert plan.samples == (0, 1)
    (nothing,) = plan_batch(groups[1:], 1, 4, 2)
    assert nothing.updates == ((), ())


def test_advantages_follow_the_flat_order() -> None:
    """(0, 1) gives -1, +1; equal rewards give 0."""
    groups = (*_groups(2), ScoredGroup(11, "p", (0, 2), (0.5, 0.5)))
    assert flat_keys(groups) == ((0, 0), (0, 1), (11, 0), (11, 2))
    for kind in ("group", "batch"):
        got = advantages(groups, kind, 5.0)
        assert got == pytest.approx((-1.0, 1.0, 0.0, 0.0), abs=1e-3)


def test_parts_advantages_need_parts() -> None:
    parts = {"recon": (0.0, 1.0), "gen": (5.0, -5.0)}
    group = ScoredGroup(1, "p", (0, 1), (5.0, -4.0), parts, {"recon": 1.0, "gen": 3.0})
    assert advantages([group], "group_parts", 5.0) == pytest.approx((0.5, -0.5), abs=1e-3)
    with pytest.raises(ValueError, match="scored group 0 has no parts"):
        advantages(_groups(2), "group_parts", 5.0)


def test_inconsistent_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scored group 4: members .* are not strictly ascending"):
        ScoredGroup(4, "p", (1, 0), (0.0, 1.0))
    with pytest.raises(ValueError, match="scored group 4: rewards has 1 values for 2 members"):
        ScoredGroup(4, "p", (0, 1), (0.0,))
    with pytest.raises(ValueError, match="scored group 4: gen has 3 values for 2 members"):
        ScoredGroup(4, "p", (0, 1), (0.0, 1.0), {"gen": (1.0, 2.0, 3.0)})
    with pytest.raises(ValueError, match="not strictly ascending: 10 before 0"):
        plan_batch(_groups(2, 2)[::-1], 1, 1, 1)
    with pytest.raises(ValueError, match="micro_batch = 0"):
        plan_batch(_groups(2), 1, 0, 1)


def test_non_finite_rewards_are_named() -> None:
    bad = ScoredGroup(3, "p", (0, 2), (1.0, math.nan))
    assert non_finite_reward([*_groups(2), bad]) == "reward of group 3 member 2 is nan"
    assert non_finite_reward(_groups(2)) is None
