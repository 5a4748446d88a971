"""A scored group as files on any fsspec URL: JSON, and safetensors for trajectories and videos.

    group_00000481.json                      request, scores, rewards, what the rollout reported
    group_00000481_3.safetensors             member 3's trajectory
    group_00000481_3_video.safetensors       member 3's video, without loss, where videos were given

The JSON is written last: where it is, all of the group is.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from fsspec.core import url_to_fs
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from actors.trajectory import (
    RolloutReport,
    RolloutRequest,
    Trajectory,
    load_trajectory,
    save_trajectory,
)
from cluster.buffer import MemberReward, ReadyGroup
from cluster.collect import GroupRecord
from cluster.patience import again
from cluster.pool import Ref
from cluster.pools import GroupRollout, Published, SampleScores
from cluster.storage import make_folder
from learner.batch import ScoredGroup
from learner.schedule import Phase
from rewards.score import Score, ScoreFailure

Video = NDArray[np.uint8]


class _Scores(BaseModel):
    """`SampleScores` without its pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: list[Score]
    failures: list[ScoreFailure]
    attempts: int
    seconds: float


class _Kept(BaseModel):
    """One group's JSON file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request: RolloutRequest
    phase: Phase
    report: RolloutReport
    group: ScoredGroup
    scores: list[_Scores]
    rewards: list[MemberReward]
    rollout_s: float


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """What the files of a group hold."""

    group: ScoredGroup
    phase: Phase
    report: RolloutReport
    request: RolloutRequest
    scores: list[SampleScores]
    rewards: list[MemberReward]
    rollout_s: float
    trajectories: list[Trajectory]
    videos: list[Video]
    """Empty where none were written."""

    def restored(self, trajectories: Sequence[Ref]) -> tuple[ReadyGroup, GroupRecord]:
        """The group as the collector holds it, its trajectories behind refs."""
        # Its weights are gone with the earlier start; its trajectories cannot be made again.
        rollout = GroupRollout(
            self.report, Published(self.report.weights, None), tuple(trajectories), ()
        )
        record = GroupRecord(
            self.request, self.phase, rollout, self.scores, self.rewards, self.rollout_s
        )
        return ReadyGroup(self.group, self.phase, self.report.weights), record


def write_group(
    url: str,
    group: ScoredGroup,
    record: GroupRecord,
    trajectories: Sequence[Trajectory],
    videos: Sequence[Video] = (),
) -> None:
    """Write a group below a directory URL."""
    fs, path = url_to_fs(url)
    make_folder(fs, path)
    kept = _Kept(
        request=record.request,
        phase=record.phase,
        report=record.rollout.report,
        group=group,
        scores=[
            _Scores(
                scores=[_finite(score) for score in s.scores.values()],
                failures=list(s.failures),
                attempts=s.attempts,
                seconds=s.seconds,
            )
            for s in record.scores
        ],
        rewards=record.rewards,
        rollout_s=record.rollout_s,
    )
    stem = f"{path}/group_{record.request.group:08d}"
    with tempfile.TemporaryDirectory() as folder:
        for member, trajectory in enumerate(trajectories):
            local = Path(folder) / "trajectory.safetensors"
            save_trajectory(trajectory, local)
            fs.pipe_file(f"{stem}_{member}.safetensors", local.read_bytes())
    for member, video in enumerate(videos):
        data = safetensors.numpy.save({"video": np.ascontiguousarray(video)})
        fs.pipe_file(f"{stem}_{member}_video.safetensors", data)
    fs.pipe_file(f"{stem}.json", kept.model_dump_json().encode())


def read_groups(url: str, videos: bool = True) -> Iterator[StoredGroup]:
    """Every group below a directory URL, ascending by serial, one in memory at a time, with its
    videos or without; none where it does not exist."""
    fs, path = url_to_fs(url)
    if not fs.exists(path):
        return
    names = sorted(fs.ls(path, False))
    present = set(names) if videos else set()
    for name in filter(_is_group, names):
        yield again(f"reading {name}", partial(_read, fs, name, present))


def _is_group(name: str) -> bool:
    return name.endswith(".json") and name.rpartition("/")[2].startswith("group_")


def _read(fs: Any, name: str, present: set[str]) -> StoredGroup:
    kept = _Kept.model_validate_json(fs.cat_file(name))
    stem = name.removesuffix(".json")
    trajectories, videos = [], []
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "trajectory.safetensors"
        for member in range(kept.request.members):
            local.write_bytes(fs.cat_file(f"{stem}_{member}.safetensors"))
            trajectories.append(load_trajectory(local))
            video = f"{stem}_{member}_video.safetensors"
            if video in present:
                videos.append(safetensors.numpy.load(fs.cat_file(video))["video"])
    scores = [
        SampleScores({s.kind: s for s in own.scores}, tuple(own.failures), own.attempts, None,
                     own.seconds)
        for own in kept.scores
    ]  # fmt: skip
    return StoredGroup(
        group=kept.group,
        phase=kept.phase,
        report=kept.report,
        request=kept.request,
        scores=scores,
        rewards=kept.rewards,
        rollout_s=kept.rollout_s,
        trajectories=trajectories,
        videos=videos,
    )


def _finite(score: Score) -> Score:
    """JSON has no NaN, and a measurement that is none says nothing."""
    return replace(score, raw={k: v for k, v in score.raw.items() if math.isfinite(v)})
