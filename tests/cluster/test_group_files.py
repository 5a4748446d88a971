"""A scored group comes back from its files as it was, on a disk and in an object store."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.trajectory import (
    RolloutReport,
    RolloutRequest,
    Trajectory,
    TrajectoryMeta,
    WeightsVersion,
)
from cluster.buffer import MemberReward, ReadyGroup
from cluster.collect import GroupRecord
from cluster.group_files import read_groups, write_group
from cluster.inflight import read_in_flight, write_in_flight
from cluster.local import LocalPool
from cluster.lost import ObjectGone
from cluster.pools import GroupRollout, Published, SampleScores
from learner.batch import ScoredGroup
from prompts.schema import Prompt
from rewards.score import Score, ScoreFailure

VERSION = WeightsVersion(step=4, lineage="a", checksum="c" * 64)
MEMBERS = 3
GROUP = ScoredGroup(7, "p", (0, 2), (1.5, 2.5), {"gen": (0.5, 1.5)}, {"gen": 1.0})


def trajectory(member: int) -> Trajectory:
    draw = torch.Generator().manual_seed(member)
    meta = TrajectoryMeta(7, member, "p", "A box.", 0, 1, "sde", 0.7, 2.5, "h", VERSION)
    states = torch.randn(3, 16, 2, 4, 4, generator=draw)
    return Trajectory(
        meta, torch.linspace(1, 0, 5), states, states[1:] + 0.1, states[1:, 0, 0, 0, 0].clone()
    )


def record(refs: tuple[object, ...] = ()) -> GroupRecord:
    prompt = Prompt.from_text("p", "Camera push in. A box.")
    request = RolloutRequest(7, prompt, MEMBERS, 0, 1)
    report = RolloutReport(7, MEMBERS, 1, VERSION, "host:1", {"decode": 0.1})
    good = SampleScores(
        {"aesthetic": Score("aesthetic", {"gen": 0.5}, {"sharpness": float("nan")}, "v")}, (), 1
    )
    bad = SampleScores({}, (ScoreFailure("aesthetic", "no answer", "TimeoutError"),), 3)
    rewards = [MemberReward(0, 1.5, {"gen": 0.5}), MemberReward(1, None), MemberReward(2, 2.5)]
    rollout = GroupRollout(report, Published(VERSION, None), refs, ())
    return GroupRecord(request, "main", rollout, [good, bad, good], rewards, 2.0)


def assert_equal(found: Trajectory, wanted: Trajectory) -> None:
    assert found.meta == wanted.meta
    for name in ("sigmas", "states", "means", "log_probs"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_every_member_comes_back_with_its_own_tensors(where: str, tmp_path: Path) -> None:
    url = str(tmp_path / "a") if where == "disk" else f"memory://{uuid.uuid4().hex}"
    trajectories = [trajectory(member) for member in range(MEMBERS)]
    videos = [np.full((2, 4, 4, 3), member, np.uint8) for member in range(MEMBERS)]
    assert list(read_groups(url)) == []
    write_group(url, GROUP, record(), trajectories, videos)
    (stored,) = read_groups(url)
    for found, wanted in zip(stored.trajectories, trajectories, strict=True):
        assert_equal(found, wanted)
    assert [video.max() for video in stored.videos] == [0, 1, 2]
    assert stored.group == GROUP
    assert stored.request == record().request
    assert stored.report == record().rollout.report
    assert [asdict(r) for r in stored.rewards] == [asdict(r) for r in record().rewards]
    assert stored.scores[0].parts == {"gen": 0.5}
    assert stored.scores[0].raw == {}, "JSON has no NaN"
    assert stored.scores[1].failures == record().scores[1].failures


def test_a_group_whose_trajectories_are_lost_is_left_out(tmp_path: Path) -> None:
    class Losing(LocalPool):
        async def fetch(self, ref: object) -> object:
            if ref == "lost":
                raise ObjectGone("lost with its node")
            return ref

    pool = Losing("rollout", None)
    ready = ReadyGroup(GROUP, "main", VERSION)
    whole = record(tuple(trajectory(member) for member in range(MEMBERS)))
    waiting = [(ready, record(("lost",) * MEMBERS)), (ready, whole)]

    async def there_and_back() -> list[tuple[ReadyGroup, GroupRecord]]:
        await write_in_flight(str(tmp_path), pool, waiting)
        return await read_in_flight(str(tmp_path), pool)

    ((found, restored),) = asyncio.run(there_and_back())
    assert found == ready
    assert_equal(restored.rollout.trajectories[1], trajectory(1))
