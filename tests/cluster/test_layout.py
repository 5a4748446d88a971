"""Layouts by tables of clusters, without a cluster: who lives where, and the sentence when not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.config import load
from cluster.layout import (
    Node,
    PlacementError,
    PoolShape,
    Share,
    assign,
    bundle_indices,
    describe,
    layout,
    missing,
)


def nodes(count: int, gpus: int = 8, cpus: int = 96, kind: str = "H200") -> list[Node]:
    return [Node(f"{kind}-{index}", cpus, gpus, kind) for index in range(count)]


def pools(
    rollout: int, learner: int, reconstruction: int, judge: float = 1, aesthetic: float = 1
) -> list[PoolShape]:
    """A run of whole-GPU workers; `judge` and `aesthetic` are GPUs of one worker each."""
    return [
        PoolShape("rollout", rollout, 4, 1, "SPREAD"),
        PoolShape("learner", learner, 4, 1, "PACK"),
        PoolShape("reconstruction", reconstruction, 4, 1, "SPREAD"),
        PoolShape("judge", 1, 4, judge, "SPREAD"),
        PoolShape("aesthetic", 1, 4, aesthetic, "SPREAD"),
    ]


def workers_of(shares: tuple[Share, ...], pool: str) -> list[int]:
    return [share.workers.get(pool, 0) for share in shares]


def test_layout_of_the_toy_preset() -> None:
    shapes = {shape.name: shape for shape in layout(load("toy"))}
    assert list(shapes) == ["rollout", "learner", "reconstruction", "judge", "aesthetic"]
    assert (shapes["learner"].workers, shapes["learner"].strategy) == (2, "PACK")
    assert (shapes["rollout"].workers, shapes["rollout"].strategy) == (2, "SPREAD")
    assert shapes["reconstruction"].workers == 2
    assert sum(shape.workers * shape.cpus for shape in shapes.values()) <= 2.0
    assert all(shape.gpus == 0 for shape in shapes.values())
    (share,) = assign(tuple(shapes.values()), [Node("here", 2.0)])
    assert share.cpus == pytest.approx(1.8)
    assert share.bundle() == {"CPU": share.cpus}


@pytest.mark.parametrize(
    ("cluster", "rollout", "learner", "reconstruction", "learner_nodes"),
    [
        (nodes(6), 26, 16, 4, 2),
        (nodes(6), 30, 12, 4, 2),
        (nodes(12), 58, 32, 4, 4),
        (nodes(1), 3, 2, 1, 1),
    ],
    ids=["8x6", "8x6 uneven", "8x12", "one node"],
)
def test_every_gpu_is_used_and_the_learner_is_packed(
    cluster: list[Node], rollout: int, learner: int, reconstruction: int, learner_nodes: int
) -> None:
    shares = assign(pools(rollout, learner, reconstruction), cluster)
    assert sum(share.gpus for share in shares) == sum(node.gpus for node in cluster)
    assert all(share.gpus == 8 for share in shares)
    assert sum(count > 0 for count in workers_of(shares, "learner")) == learner_nodes
    assert sum(workers_of(shares, "rollout")) == rollout
    room = [8 - share.workers.get("learner", 0) for share in shares]
    spread = [n for n, free in zip(workers_of(shares, "rollout"), room, strict=True) if free == 8]
    assert max(spread, default=0) - min(spread, default=0) <= 1


def test_what_it_looks_like() -> None:
    shares = assign(pools(26, 16, 4), nodes(6))
    assert describe(shares) == [
        "2 x 8 H200 GPUs, 32 CPUs: learner 8",
        "2 x 8 H200 GPUs, 32 CPUs: rollout 7, reconstruction 1",
        "1 x 8 H200 GPUs, 32 CPUs: rollout 6, reconstruction 1, judge 1",
        "1 x 8 H200 GPUs, 32 CPUs: rollout 6, reconstruction 1, aesthetic 1",
    ]
    assert bundle_indices(shares, "learner") == (0,) * 8 + (1,) * 8


def test_mixed_types_keep_the_learner_on_one_and_obey_what_is_asked_for() -> None:
    cluster = nodes(2, kind="A100") + nodes(4, kind="H100")
    shapes = pools(18, 16, 12)
    shares = assign(shapes, cluster)
    kinds = {share.gpu_type for share in shares if share.workers.get("learner")}
    assert len(kinds) == 1
    wanted = [
        replace(shape, gpu_type={"reconstruction": "A100"}.get(shape.name, "H100"))
        if shape.name in ("learner", "rollout", "reconstruction")
        else shape
        for shape in pools(16, 16, 12)
    ]
    for share in assign(wanted, cluster):
        there = {name for name, count in share.workers.items() if count}
        assert share.gpu_type == "A100" or "reconstruction" not in there
        assert share.gpu_type == "H100" or not {"learner", "rollout"} & there
    with pytest.raises(PlacementError, match="one type of GPU; so many fit: A100: 8, H100: 8"):
        assign(pools(1, 12, 1), nodes(1, kind="A100") + nodes(1, kind="H100"))
    with pytest.raises(PlacementError, match="of type H200; so many fit: A100: 0, H100: 0"):
        assign([replace(s, gpu_type="H200") for s in pools(1, 2, 1)], cluster)


def test_fractions_share_a_gpu() -> None:
    shapes = pools(5, 2, 0, judge=0.5, aesthetic=0.5)
    (share,) = assign(shapes, nodes(1))
    assert share.gpus == 8
    assert share.workers == {"rollout": 5, "learner": 2, "judge": 1, "aesthetic": 1}
    halves = [
        PoolShape("rollout", 6, 4, 1, "SPREAD"),
        PoolShape("judge", 2, 4, 0.6, "SPREAD"),
        PoolShape("aesthetic", 1, 4, 0.5, "SPREAD"),
    ]
    with pytest.raises(PlacementError, match=r"worker 1 of 1 of pool 'aesthetic' needs 0\.5 GPUs"):
        assign(halves, nodes(1))
    six = [PoolShape("judge", 12, 1, 0.5, "SPREAD"), PoolShape("rollout", 42, 1, 1, "SPREAD")]
    shares = assign(six, nodes(6))
    assert [share.gpus for share in shares] == [8] * 6
    assert sum(workers_of(shares, "judge")) == 12


def test_a_judge_on_two_gpus_needs_them_on_one_node() -> None:
    shares = assign(pools(25, 16, 4, judge=2), nodes(6))
    assert sum(share.gpus for share in shares) == 48
    shapes = [PoolShape("learner", 7, 1, 1, "PACK"), PoolShape("judge", 1, 1, 2, "SPREAD")]
    with pytest.raises(
        PlacementError,
        match=r"worker 1 of 1 of pool 'judge' needs 2 GPUs and 1 CPUs on one node; .* at most 1",
    ):
        assign(shapes, [*nodes(1), Node("small", 8, 1, "H200")])


def test_a_node_short() -> None:
    with pytest.raises(
        PlacementError,
        match=r"needs 48 GPUs \(rollout 26 x 1, learner 16 x 1, .*\), the cluster has 40 free",
    ):
        assign(pools(26, 16, 4), nodes(5))
    with pytest.raises(PlacementError, match="CPUs"):
        assign(pools(26, 16, 4), nodes(6, cpus=31))


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"CPU": 8.0, "GPU": 3.0}, None),
        ({"CPU": 8.0, "GPU": 2.5}, "needs 3 GPUs (learner 2 x 1, judge 2 x 0.5)"),
        ({"CPU": 3.0, "GPU": 9.0}, "needs 4 CPUs (learner 2 x 1, judge 2 x 1), the cluster has 3"),
        ({}, "needs 3 GPUs"),
    ],
)
def test_what_is_missing_is_one_sentence(resources: dict[str, float], words: str | None) -> None:
    shapes = [PoolShape("learner", 2, 1, 1, "PACK"), PoolShape("judge", 2, 1, 0.5, "SPREAD")]
    found = missing(shapes, resources)
    if words is None:
        assert found is None
    else:
        assert found is not None
        assert words in found
