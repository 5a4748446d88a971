"""What is kept of some groups for people to look at: videos, reconstructions, scores, advantages.

Which groups are kept is decided before they are sampled, but for the best and the worst sample of a
step, which are reconstructed once more. Nothing that trains is computed from what is kept: a run
has the same bits whatever the policy (`tests/cluster/test_report_data.py`).
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cluster.collect import Batch, GroupRecord
from cluster.kept import Extreme, KeptGroup, KeptMember, step_folder
from cluster.pictures import camera_overlay, depth_video, even_sides
from cluster.pool import Pool
from cluster.pools import Rewards, SampleScores
from cluster.storage import RunFolder
from cluster.video import encode_mp4
from learner.batch import advantages, flat_keys
from learner.config import LearnerConfig, ScheduleConfig
from learner.schedule import Phase
from rewards.config import ArtifactsConfig
from rewards.worker import Artifacts

U8 = NDArray[np.uint8]


def groups_to_keep(config: ArtifactsConfig, step: int, steps: int, schedule: ScheduleConfig) -> int:
    """How many groups of a step are kept: of the first, middle and last, and every so often.

    Nobody reconstructs the clips of a dynamic step: where the middle or the last step is one, the
    main step before it keeps groups too.
    """
    chosen = {0, (steps - 1) // 2, steps - 1}
    chosen |= {_main_step_before(other, schedule) for other in chosen}
    periodic = config.every > 0 and step % config.every == 0
    return config.keep if step in chosen or periodic else 0


def _main_step_before(step: int, schedule: ScheduleConfig) -> int:
    """`step` or the nearest main step before it; 0 where there is none."""
    beyond = step % (schedule.main_steps + schedule.dynamic_steps) - schedule.main_steps
    return step if beyond < 0 else max(step - beyond - 1, 0)


async def keep_groups(
    folder: RunFolder,
    pool: Pool,
    rewards: Rewards,
    step: int,
    phase: Phase,
    batch: Batch,
    learner: LearnerConfig,
    extremes: bool,
) -> list[KeptGroup]:
    """Write the groups of a batch whose records are marked `kept`; `pool` reads their videos.

    With `extremes` also those of the best and the worst sample, which `rewards` reconstructs again.
    """
    values = advantages(batch.groups, learner.advantage, learner.advantage_clip)
    gained = dict(zip(flat_keys(batch.groups), values, strict=True))
    totals = {
        key: reward for g in batch.groups for key, reward in zip(g.keys, g.rewards, strict=True)
    }
    extreme = await _extremes(batch, totals, rewards, phase) if extremes else {}
    written = []
    for serial in [g.group for g in batch.groups if batch.records[g.group].kept]:
        record = batch.records[serial]
        videos = [await pool.fetch(video) for video in record.rollout.videos]
        keys = [(serial, member) for member in range(len(videos))]
        fates = [_Fate(totals.get(key), gained.get(key), extreme.get(key)) for key in keys]
        written.append(
            await asyncio.to_thread(_write_group, folder, step, phase, record, videos, fates)
        )
    return written


async def _extremes(
    batch: Batch, totals: Mapping[tuple[int, int], float], rewards: Rewards, phase: Phase
) -> dict[tuple[int, int], Extreme]:
    """The best and the worst sample of which there is a video, which groups that a checkpoint held
    have not; their groups are kept and their reconstructions at hand."""
    shown = [key for key in totals if batch.records[key[0]].rollout.videos]
    if len(shown) < 2:
        return {}
    worst, *_, best = sorted(shown, key=lambda key: (totals[key], key))
    for serial, member in (best, worst):
        record = batch.records[serial]
        record.kept = True
        scores = record.scores[member]
        if phase == "main" and scores.artifacts is None:
            video = record.rollout.videos[member]
            seen = await rewards.artifacts(video, record.request.prompt)
            record.scores[member] = replace(scores, artifacts=seen)
    return {best: "best", worst: "worst"}


@dataclass(frozen=True, slots=True)
class _Fate:
    """What became of a sample."""

    reward: float | None
    advantage: float | None
    extreme: Extreme | None


def _write_group(
    folder: RunFolder,
    step: int,
    phase: Phase,
    record: GroupRecord,
    videos: Sequence[U8],
    fates: Sequence[_Fate],
) -> KeptGroup:
    request = record.request
    name = f"group_{request.group:06d}"
    shown = [scores.artifacts for scores in record.scores]
    paths = [a.requested_c2w for a in shown if a is not None and a.requested_c2w is not None]
    members = []
    for index, (scores, video) in enumerate(zip(record.scores, videos, strict=True)):
        stem = f"{name}/member_{index:02d}"
        files = {"video": (f"{stem}.mp4", encode_mp4(video))}
        if scores.artifacts is not None:
            files |= picture_files(video, scores.artifacts, stem)
        for file, data in files.values():
            folder.write_bytes(f"{step_folder(step)}/{file}", data)
        members.append(_member(index, scores, fates[index], {k: f for k, (f, _) in files.items()}))
    group = KeptGroup(
        step=step,
        phase=phase,
        group=request.group,
        prompt_id=request.prompt.id,
        prompt=request.prompt.text,
        window_start=request.window_start,
        requested_c2w=paths[0].tolist() if paths else None,
        members=tuple(members),
    )
    folder.write_text(f"{step_folder(step)}/{name}.json", group.model_dump_json())
    return group


def _member(index: int, scores: SampleScores, fate: _Fate, files: Mapping[str, str]) -> KeptMember:
    artifacts, judged = scores.artifacts, scores.scores.get("judge")
    return KeptMember(
        member=index,
        video=files["video"],
        rerender=files.get("rerender"),
        meta_view=files.get("meta_view"),
        depth=files.get("depth"),
        overlay=files.get("overlay"),
        splats=files.get("splats"),
        digits=() if judged is None else judged.digits,
        extreme=fate.extreme,
        reward=fate.reward,
        advantage=fate.advantage,
        parts=scores.parts,
        raw=scores.raw,
        notes=(
            *(note for score in scores.scores.values() for note in score.notes),
            *(f"{f.kind} failed: {f.reason}" for f in scores.failures),
        ),
        recovered_c2w=None if artifacts is None else recovered_path(artifacts).tolist(),
    )


def picture_files(video: U8, artifacts: Artifacts, stem: str) -> dict[str, tuple[str, bytes]]:
    """Everything that people look at of one reconstruction: field of `KeptMember` → (file, data).

    `video` [F, H, W, 3] is the whole sample; the cameras are drawn into the frames that were
    reconstructed.
    """
    overlay = camera_overlay(
        video[artifacts.frames], recovered_path(artifacts), artifacts.requested_c2w
    )
    return {
        "rerender": (f"{stem}_rerender.mp4", encode_mp4(even_sides(artifacts.rerender))),
        "meta_view": (f"{stem}_meta.png", encode_png(artifacts.meta_view)),
        "depth": (f"{stem}_depth.mp4", encode_mp4(even_sides(depth_video(artifacts.depth)))),
        "overlay": (f"{stem}_cameras.mp4", encode_mp4(even_sides(overlay))),
        "splats": (f"{stem}.ply", artifacts.splats),
    }


def recovered_path(artifacts: Artifacts) -> NDArray[np.float64]:
    """The estimated path [F, 4, 4] with the translation scale that S_traj fitted."""
    c2w = artifacts.estimated_c2w.copy()
    c2w[:, :3, 3] *= artifacts.scale
    return c2w


def encode_png(image: U8) -> bytes:
    """PNG of a picture [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
