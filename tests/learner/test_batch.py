"""Plans of a batch: every trajectory once, equal work for every rank, one normalisation."""

from __future__ import annotations

import itertools
import math

import pytest

from learner.batch import (
    BatchShape,
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


def _alone(micro_batch: int, updates: int = 1) -> BatchShape:
    """Each trajectory with states of its own, windows of two steps."""
    return BatchShape(micro_batch, updates, window=2, shared_prefix=False)


def _shared(micro_batch: int, updates: int = 1, window: int = 2) -> BatchShape:
    return BatchShape(micro_batch, updates, window, shared_prefix=True)


def test_one_rank_takes_all_in_order() -> None:
    (plan,) = plan_batch(_groups(3, 2), 1, _alone(2))
    assert plan.samples == (0, 1, 2, 3, 4)
    (update,) = plan.updates
    assert [micro.indices for micro in update] == [(0, 1), (2, 3), (4,)]
    assert [micro.weights for micro in update] == [(0.2, 0.2), (0.2, 0.2), (0.2,)]
    assert [micro.sharing for micro in update] == [(1, 1), (1, 1), (1,)]
    assert {micro.steps for micro in update} == {(0, 1)}


def test_a_group_passes_the_first_step_in_one_state() -> None:
    """Groups of 3 and 2, two states a pass: one pass at step 0 instead of three."""
    (plan,) = plan_batch(_groups(3, 2), 1, _shared(2))
    (update,) = plan.updates
    first, *others = update
    assert (first.indices, first.sharing, first.steps) == ((0, 1, 2, 3, 4), (3, 2), (0,))
    assert first.weights == (0.2,) * 5
    assert [micro.indices for micro in others] == [(0, 1), (2, 3), (4,)]
    assert {(micro.steps, micro.sharing) for micro in others[:2]} == {((1,), (1, 1))}
    (only,) = plan_batch(_groups(3, 2), 1, _shared(2, window=1))[0].updates
    assert [micro.indices for micro in only] == [(0, 1, 2, 3, 4)]


def test_ranks_with_fewer_groups_pass_an_idle_state() -> None:
    """Groups of 2, 2 and 4 on two ranks, one state a pass: the first rank has two groups in its
    share, the second one; it repeats a trajectory at weight 0."""
    first, second = plan_batch(_groups(2, 2, 4), 2, _shared(1))
    assert [m.indices for m in first.updates[0] if m.steps == (0,)] == [(0, 1), (2, 3)]
    idle = [m for m in second.updates[0] if m.steps == (0,)]
    assert [(m.indices, m.weights) for m in idle] == [((4, 5, 6, 7), (0.125,) * 4), ((4,), (0.0,))]


def test_uneven_counts_are_padded_at_weight_zero() -> None:
    """Five trajectories on two ranks: three and two; the second repeats its first at weight 0."""
    first, second = plan_batch(_groups(3, 2), 2, _alone(2))
    assert [m.indices for m in first.updates[0]] == [(0, 1), (2,)]
    assert [m.indices for m in second.updates[0]] == [(3, 4), (3,)]
    assert [m.weights for m in second.updates[0]] == [(0.2, 0.2), (0.0,)]
    assert second.samples == (3, 4)


@pytest.mark.parametrize("shared", [False, True])
def test_every_plan_is_complete_and_balanced(shared: bool) -> None:
    """Over sizes, ranks, micro-batches and updates: weights sum to 1 per update and window step,
    every trajectory has weight exactly once in each, no pass has more states than allowed, and all
    ranks have equally many passes at each step."""
    shapes = itertools.product([(2,), (3, 2), (4, 4, 1, 3)], [1, 2, 3, 7], [1, 2, 5], [1, 2])
    for sizes, ranks, micro_batch, updates in shapes:
        groups = _groups(*sizes)
        plans = plan_batch(groups, ranks, BatchShape(micro_batch, updates, 2, shared))
        for step in (0, 1):
            seen: list[int] = []
            for update in range(updates):
                micros = [[m for m in p.updates[update] if step in m.steps] for p in plans]
                assert len({len(rank) for rank in micros}) == 1
                flat = [m for rank in micros for m in rank]
                assert all(len(m.sharing) <= micro_batch for m in flat)
                assert all(sum(m.sharing) == len(m.indices) == len(m.weights) for m in flat)
                pairs = [p for m in flat for p in zip(m.indices, m.weights, strict=True)]
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
    (plan,) = plan_batch(groups, 1, _alone(4))
    assert plan.samples == (0, 1)
    (nothing,) = plan_batch(groups[1:], 1, _alone(4, updates=2))
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
        plan_batch(_groups(2, 2)[::-1], 1, _alone(1))
    with pytest.raises(ValueError, match="micro_batch = 0"):
        plan_batch(_groups(2), 1, _alone(0))


def test_non_finite_rewards_are_named() -> None:
    bad = ScoredGroup(3, "p", (0, 2), (1.0, math.nan))
    assert non_finite_reward([*_groups(2), bad]) == "reward of group 3 member 2 is nan"
    assert non_finite_reward(_groups(2)) is None
