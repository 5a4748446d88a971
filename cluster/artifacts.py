"""What is kept of some groups for people to look at: videos, reconstructions, scores, advantages.

    RUN/artifacts/step_000012/group_000034.json      `KeptGroup`; written after everything it names
    RUN/artifacts/step_000012/group_000034/*         videos, re-renderings, depth, cameras as mp4;
                                                     meta-views as PNG; Gaussians as .ply

Which groups are kept is decided before they are sampled, but for the best and the worst sample of a
step, which are reconstructed once more. Nothing that trains is computed from what is kept: a run
has the same bits whatever the policy (`tests/cluster/test_report_data.py`).
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from cluster.collect import Batch, GroupRecord
from cluster.pictures import camera_overlay, depth_video, even_sides
from cluster.pools import Pool, Rewards, SampleScores
from cluster.storage import RunFolder
from cluster.video import encode_mp4
from learner.batch import advantages, flat_keys
from learner.config import LearnerConfig, ScheduleConfig
from learner.schedule import Phase
from rewards.config import ArtifactsConfig
from rewards.worker import Artifacts

U8 = NDArray[np.uint8]
Extreme = Literal["best", "worst"]

ARTIFACTS = "artifacts"
Poses = list[list[list[float]]]
"""Camera-to-world matrices [F, 4, 4] relative to the first camera, as JSON."""


class KeptMember(BaseModel):
    """One sample of a kept group. File names are relative to the step's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    member: int
    """Place in the group."""
    video: str
    """mp4 of the sample."""
    rerender: str | None
    """mp4 of the Gaussians seen by the estimated cameras; None where nothing was reconstructed."""
    meta_view: str | None
    """PNG of the unseen view that was judged."""
    depth: str | None = None
    """mp4 of the Gaussians' depth in colours: near red, far blue."""
    overlay: str | None = None
    """mp4 of the sample with a map of requested and estimated cameras."""
    splats: str | None = None
    """.ply of the Gaussians, which the common viewers of Gaussian splats open."""
    digits: tuple[float, ...] = ()
    """The judge's probabilities of the digits 0-9."""
    extreme: Extreme | None = None
    """Whether it had the largest or the smallest reward of its step."""
    reward: float | None
    """Total, or None where a scorer failed."""
    advantage: float | None
    """What the learner trained on; None for a member that did not train."""
    parts: dict[str, float]
    """Reward parts."""
    raw: dict[str, float]
    """Measurements behind them."""
    notes: tuple[str, ...]
    """Rules that decided a score by definition, and failures of scorers."""
    recovered_c2w: Poses | None
    """Estimated path of `KeptGroup.requested_c2w`'s frames, in the request's unit of length."""


class KeptGroup(BaseModel):
    """A group as the report shows it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    """Optimizer step that trained on it."""
    phase: Phase
    """Phase of that step."""
    group: int
    """Serial number."""
    prompt_id: str
    """Which prompt."""
    prompt: str
    """Its text."""
    window_start: int
    """First stochastic step."""
    requested_c2w: Poses | None
    """Requested path in scene depths; None where the prompt names no motion, or nobody measured."""
    members: tuple[KeptMember, ...]
    """All samples, by place."""


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


def step_folder(step: int) -> str:
    """Folder of a step's kept groups, relative to the run."""
    return f"{ARTIFACTS}/step_{step:06d}"


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
    """The best and the worst sample; their groups are kept and their reconstructions at hand."""
    if len(totals) < 2:
        return {}
    worst, *_, best = sorted(totals, key=lambda key: (totals[key], key))
    for serial, member in (best, worst):
        record = batch.records[serial]
        record.kept = True
        scores = record.scores[member]
        if phase == "main" and scores.artifacts is None:
            video = record.rollout.videos[member]
            shown = await rewards.artifacts(video, record.request.prompt)
            record.scores[member] = replace(scores, artifacts=shown)
    return {best: "best", worst: "worst"}


def load_groups(folder: RunFolder) -> list[KeptGroup]:
    """Every kept group of a run, by (step, serial number)."""
    names = folder.find(ARTIFACTS, "group_*.json")
    return [KeptGroup.model_validate_json(folder.read_bytes(name)) for name in sorted(names)]


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
