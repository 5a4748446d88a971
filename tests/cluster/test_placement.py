"""Layout of the pools by tables, without a cluster."""

from __future__ import annotations

import pytest

from cluster.config import load
from cluster.placement import PoolShape, layout, missing


def test_layout_of_the_toy_preset() -> None:
    shapes = {shape.name: shape for shape in layout(load("toy"))}
    assert list(shapes) == ["learner", "rollout", "reconstruction", "judge", "aesthetic"]
    assert (shapes["learner"].workers, shapes["learner"].strategy) == (2, "PACK")
    assert (shapes["rollout"].workers, shapes["rollout"].strategy) == (2, "SPREAD")
    assert shapes["reconstruction"].workers == 2
    assert sum(shape.workers * shape.cpus for shape in shapes.values()) <= 2.0
    assert all(shape.gpus == 0 for shape in shapes.values())


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"CPU": 8.0, "GPU": 3.0}, None),
        ({"CPU": 8.0, "GPU": 2.5}, "needs 3 GPUs (learner 2 x 1, judge 2 x 0.5)"),
        ({"CPU": 3.0, "GPU": 9.0}, "needs 4 CPUs (learner 2 x 1, judge 2 x 1), the cluster has 3"),
        ({}, "CPUs"),
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
