"""Scored groups that no step has consumed, beside a checkpoint: rolled out once, trained on later.

    RUN/checkpoints/step_000120/inflight/group_00000481.json               rewards, scores, rows
    RUN/checkpoints/step_000120/inflight/group_00000481_3.safetensors      member 3's trajectory

Only with `checkpoint.keep_inflight`; without it they are rolled out again on resume. The files are
covered by the manifest like every other one.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fsspec.core import url_to_fs
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
from cluster.pools import GroupRollout, Pool, Published, SampleScores
from learner.batch import ScoredGroup
from learner.schedule import Phase
from rewards.score import Score, ScoreFailure

FOLDER = "inflight"

Waiting = Sequence[tuple[ReadyGroup, GroupRecord]]
"""Scored groups that no step has consumed."""


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


async def write_in_flight(url: str, pool: Pool, waiting: Waiting) -> None:
    """Write scored groups with their trajectories, read from `pool`, below a checkpoint's URL."""
    for ready, record in waiting:
        trajectories = [await pool.fetch(ref) for ref in record.rollout.trajectories]
        await asyncio.to_thread(_write, url, ready, record, trajectories)


async def read_in_flight(url: str, pool: Pool) -> list[tuple[ReadyGroup, GroupRecord]]:
    """What `write_in_flight` wrote, ascending by serial; empty where it wrote nothing."""
    fs, path = url_to_fs(f"{url}/{FOLDER}")
    if not await asyncio.to_thread(fs.exists, path):
        return []
    names = sorted(await asyncio.to_thread(fs.ls, path, False))
    found = []
    for name in names:
        if not name.endswith(".json"):
            continue
        kept, trajectories = await asyncio.to_thread(_read, fs, name)
        refs = tuple([await pool.store(trajectory) for trajectory in trajectories])
        # Its weights are gone with the earlier start; its trajectories cannot be made again.
        rollout = GroupRollout(kept.report, Published(kept.report.weights, None), refs, ())
        scores = [
            SampleScores(
                {score.kind: score for score in s.scores}, tuple(s.failures), s.attempts, None,
                s.seconds,
            )
            for s in kept.scores
        ]  # fmt: skip
        record = GroupRecord(
            kept.request, kept.phase, rollout, scores, kept.rewards, kept.rollout_s
        )
        found.append((ReadyGroup(kept.group, kept.phase, kept.report.weights), record))
    return found


def _write(
    url: str, ready: ReadyGroup, record: GroupRecord, trajectories: Sequence[Trajectory]
) -> None:
    fs, path = url_to_fs(f"{url}/{FOLDER}")
    fs.makedirs(path, exist_ok=True)
    kept = _Kept(
        request=record.request,
        phase=record.phase,
        report=record.rollout.report,
        group=ready.group,
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
    fs.pipe_file(f"{stem}.json", kept.model_dump_json().encode())


def _read(fs: object, name: str) -> tuple[_Kept, list[Trajectory]]:
    kept = _Kept.model_validate_json(fs.cat_file(name))  # type: ignore[attr-defined]
    trajectories = []
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "trajectory.safetensors"
        for member in range(kept.request.members):
            stored = f"{name.removesuffix('.json')}_{member}.safetensors"
            local.write_bytes(fs.cat_file(stored))  # type: ignore[attr-defined]
            trajectories.append(load_trajectory(local))
    return kept, trajectories


def _finite(score: Score) -> Score:
    """JSON has no NaN, and a measurement that is none says nothing."""
    return replace(score, raw={k: v for k, v in score.raw.items() if math.isfinite(v)})
