"""Layouts reserved on real raylets with logical GPUs, and filled by actors that import ray only.

Not covered: real GPUs, and real networks between nodes: all raylets are on this machine.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cluster.config import RunConfig, load
from cluster.layout import PlacementError, layout
from cluster.plan import configured_workers, gpus_taken

pytestmark = pytest.mark.cluster
NODE_CPUS = 96


@contextmanager
def fleet(kinds: list[str], gpus: int = 8) -> Iterator[Any]:
    """A head without resources and a raylet per entry with so many logical GPUs of that type."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "num_gpus": 0,
            "include_dashboard": False,
            "object_store_memory": 80 * 2**20,
            # A dead raylet is noticed within seconds.
            "_system_config": {
                "health_check_initial_delay_ms": 0,
                "health_check_period_ms": 500,
                "health_check_failure_threshold": 3,
            },
        },
    )
    try:
        for kind in kinds:
            add_node(cluster, kind, gpus)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def add_node(cluster: Any, kind: str, gpus: int) -> None:
    cluster.add_node(
        num_cpus=NODE_CPUS,
        num_gpus=gpus,
        labels={"ray.io/accelerator-type": kind},
        object_store_memory=80 * 2**20,
        wait=True,
    )


class Occupant:
    """Holds a worker's place."""

    def where(self) -> tuple[str, tuple[str, ...]]:
        """Node and GPUs that Ray gave this worker."""
        import ray

        context = ray.get_runtime_context()
        return context.get_node_id(), tuple(context.get_accelerator_ids()["GPU"])


def fill(config: RunConfig) -> tuple[Any, dict[str, Counter[str]], dict[tuple[str, str], float]]:
    """Reserve a run's layout and spawn an occupant per worker: workers per node by pool, and load
    of every GPU by (node, GPU)."""
    import ray

    from cluster.handles import worker_options
    from cluster.placement import place

    placement = place(config, layout(config))
    remote: Any = ray.remote(Occupant)
    actors = [
        (shape, remote.options(**worker_options(shape, placement, index)).remote())
        for shape in layout(config)
        for index in range(shape.workers)
    ]
    places: dict[str, Counter[str]] = {}
    load_of: dict[tuple[str, str], float] = {}
    found = ray.get([actor.where.remote() for _, actor in actors])
    for (shape, _), (node, gpus) in zip(actors, found, strict=True):
        places.setdefault(shape.name, Counter())[node] += 1
        for gpu in gpus:
            load_of[node, gpu] = load_of.get((node, gpu), 0.0) + min(shape.gpus, 1.0)
    for _, actor in actors:
        ray.kill(actor)
    return placement, places, load_of


def check_against_layout(config: RunConfig) -> None:
    """Every share on a node of its own with exactly its workers, every GPU given out once."""
    placement, places, load_of = fill(config)
    nodes = placement.nodes()
    assert len(set(nodes)) == len(placement.shares)
    for share, node in zip(placement.shares, nodes, strict=True):
        there = {pool: counter[node] for pool, counter in places.items() if counter[node]}
        assert there == dict(share.workers)
    assert len(load_of) == gpus_taken(config, configured_workers(config))
    assert len(load_of) == sum(share.gpus for share in placement.shares)
    assert max(load_of.values()) <= 1.0 + 1e-6
    placement.release()
    wait_until_all_are_free()


def wait_until_all_are_free(limit_s: float = 30.0) -> None:
    """Raylets report a little later that what was released is free."""
    import ray

    deadline = time.monotonic() + limit_s
    while ray.available_resources().get("GPU") != ray.cluster_resources()["GPU"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def check_the_doctor(config: RunConfig) -> None:
    """Every raylet looks at itself: all is well but for the GPUs, which are only logical."""
    from cluster.handles import check_cluster

    found = {finding.check: finding for finding in check_cluster(config)}
    fine = {name for name, finding in found.items() if finding.ok}
    assert {"versions", "clocks", "layout", "environments", "model", "store", "ports"} <= fine
    assert "no node shows a GPU" in found["GPUs"].text
    assert "H100 GPUs" in found["layout"].text


def whole(*overrides: str) -> RunConfig:
    """The toy preset with a GPU for every worker, but for what is overridden."""
    pools = ("reconstruction", "judge", "aesthetic")
    return load(
        "toy",
        [
            "rollout.gpus_per_worker=1",
            "learner.gpus_per_rank=1",
            *(f"rewards.{pool}.gpus=1" for pool in pools),
            'rewards.judge.backend="vllm"',
            "placement.timeout_s=60",
            *overrides,
        ],
    )


def check_that_later_workers_keep_to_their_type(config: RunConfig) -> None:
    """Workers beyond the layout of a pool on A100: on that node alone, though others are free."""
    import ray

    from cluster.handles import worker_options
    from cluster.placement import Placement

    (shape,) = [shape for shape in layout(config) if shape.name == "reconstruction"]
    remote: Any = ray.remote(Occupant)
    options = worker_options(shape, Placement(), 99)
    later = [remote.options(**options).remote() for _ in range(4)]
    # The head node, which has no GPU, may stand anywhere in the list.
    types = {node["NodeID"]: node["Labels"].get("ray.io/accelerator-type") for node in ray.nodes()}
    found = ray.get([actor.where.remote() for actor in later], timeout=60)
    assert [types[node] for node, _ in found] == ["A100"] * 4
    for actor in later:
        ray.kill(actor)
    wait_until_all_are_free()


@pytest.mark.parametrize(
    ("preset", "nodes"),
    [
        pytest.param("small", 6, id="48"),
        pytest.param("large", 12, id="96", marks=pytest.mark.hand),
    ],
)
def test_every_worker_of_a_preset_is_where_the_layout_wants_it(preset: str, nodes: int) -> None:
    config = load(preset, ["placement.timeout_s=60"])
    with fleet(["H200"] * nodes):
        check_against_layout(config)


def test_mixed_types_fractions_and_a_node_that_comes_later(tmp_path: Path) -> None:
    with fleet(["H100", "H100", "A100"], gpus=4) as cluster:
        config = whole(
            f"run={tmp_path / 'run'}",
            "rollout.workers=4",
            "learner.ranks=4",
            "placement.learner_gpu=H100",
            "placement.rollout_gpu=H100",
            "placement.reward_gpu=A100",
            "rewards.reconstruction.max_workers=2",
            "rewards.reconstruction.min_workers=2",
            "rewards.judge.gpus=0.5",
            "rewards.aesthetic.gpus=0.5",
        )
        check_the_doctor(config)
        check_against_layout(config)
        check_that_later_workers_keep_to_their_type(config)
        larger = whole("rollout.workers=8", "learner.ranks=4", "placement.timeout_s=20")
        with pytest.raises(PlacementError, match=r"needs 16 GPUs .* the cluster has 12 free"):
            fill(larger)
        add_node(cluster, "H100", 4)
        check_against_layout(larger)


def test_the_doctor_looks_at_the_nodes_that_come_while_it_waits(tmp_path: Path) -> None:
    """As an autoscaler brings them; here the test starts a raylet."""
    from cluster.handles import check_cluster

    config = whole(f"run={tmp_path / 'run'}", "placement.autoscaler=true")
    with fleet(["H100"], gpus=2) as cluster, ThreadPoolExecutor(1) as beside:
        asked = beside.submit(check_cluster, config)
        time.sleep(2.0)
        add_node(cluster, "H100", 8)
        found = {finding.check: finding for finding in asked.result(timeout=120)}
        assert found["layout"].ok, found["layout"].line()
        assert found["versions"].text.endswith("on 3 nodes")  # a head without resources, too


def test_the_share_of_a_lost_node_moves_to_a_node_with_room() -> None:
    """Two nodes with a share each; one dies, and its workers come back beside the others."""
    import ray

    from cluster.handles import worker_options
    from cluster.placement import place

    config = whole("rollout.workers=2")
    with fleet(["H100", "H100"]) as cluster:
        placement = place(config, layout(config))
        before = placement.nodes()
        assert len(set(before)) == len(before) == 2
        shapes = {shape.name: shape for shape in layout(config)}
        (pool,) = [name for name, count in placement.shares[1].workers.items()][:1]
        index = placement.shares[0].workers.get(pool, 0)
        remote: Any = ray.remote(Occupant)
        options = worker_options(shapes[pool], placement, index)
        actor = remote.options(**options | {"max_restarts": -1}).remote()
        assert ray.get(actor.where.remote())[0] == before[1]
        cluster.remove_node(
            next(node for node in cluster.worker_nodes if node.node_id == before[1]),
            allow_graceful=False,
        )
        assert node_away_from(actor, before[1]) == before[0]
        assert placement.nodes() == (before[0], before[0])


def node_away_from(actor: Any, lost: str, limit_s: float = 60.0) -> str:
    """Node of an actor once it answers from another than the lost one."""
    import ray

    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        with suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            node = str(ray.get(actor.where.remote(), timeout=5)[0])
            if node != lost:
                return node
        time.sleep(0.2)
    raise TimeoutError(f"no answer from another node within {limit_s:g} s")
