"""What is kept of some groups for people to look at: videos, reconstructions, scores, advantages.

    RUN/artifacts/step_000012/group_000034.json      `KeptGroup`; written after everything it names
    RUN/artifacts/step_000012/group_000034/*.mp4     videos and re-renderings; meta-views as PNG

Which groups are kept is decided before they are sampled, and nothing that trains is computed from
what is kept: a run has the same bits whatever the policy (`tests/cluster/test_report_data.py`).
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from cluster.collect import Batch, GroupRecord
from cluster.pools import Pool
from cluster.storage import RunFolder
from cluster.video import encode_mp4
from learner.batch import advantages, flat_keys
from learner.config import LearnerConfig
from learner.schedule import Phase
from rewards.config import ArtifactsConfig
from rewards.worker import Artifacts

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


def groups_to_keep(config: ArtifactsConfig, step: int, steps: int) -> int:
    """How many groups of a step are kept: of the first, middle and last, and every so often."""
    chosen = step in (0, (steps - 1) // 2, steps - 1)
    periodic = config.every > 0 and step % config.every == 0
    return config.keep if chosen or periodic else 0


def step_folder(step: int) -> str:
    """Folder of a step's kept groups, relative to the run."""
    return f"{ARTIFACTS}/step_{step:06d}"


async def keep_groups(
    folder: RunFolder, pool: Pool, step: int, phase: Phase, batch: Batch, learner: LearnerConfig
) -> list[KeptGroup]:
    """Write the groups of a batch whose records are marked `kept`; `pool` reads their videos."""
    values = advantages(batch.groups, learner.advantage, learner.advantage_clip)
    gained = dict(zip(flat_keys(batch.groups), values, strict=True))
    rewards = {
        key: reward for g in batch.groups for key, reward in zip(g.keys, g.rewards, strict=True)
    }
    written = []
    for serial in [g.group for g in batch.groups if batch.records[g.group].kept]:
        record = batch.records[serial]
        videos = [await pool.fetch(video) for video in record.rollout.videos]
        keys = [(serial, member) for member in range(len(videos))]
        written.append(
            await asyncio.to_thread(
                _write_group,
                folder,
                step,
                phase,
                record,
                videos,
                [(rewards.get(key), gained.get(key)) for key in keys],
            )
        )
    return written


def load_groups(folder: RunFolder) -> list[KeptGroup]:
    """Every kept group of a run, by (step, serial number)."""
    names = folder.find(ARTIFACTS, "group_*.json")
    return [KeptGroup.model_validate_json(folder.read_bytes(name)) for name in sorted(names)]


def _write_group(
    folder: RunFolder,
    step: int,
    phase: Phase,
    record: GroupRecord,
    videos: Sequence[NDArray[np.uint8]],
    outcomes: Sequence[tuple[float | None, float | None]],
) -> KeptGroup:
    request = record.request
    name = f"group_{request.group:06d}"
    shown = [scores.artifacts for scores in record.scores]
    paths = [a.requested_c2w for a in shown if a is not None and a.requested_c2w is not None]
    members = []
    for index, (scores, video) in enumerate(zip(record.scores, videos, strict=True)):
        stem, artifacts = f"{name}/member_{index:02d}", scores.artifacts
        files = {f"{stem}.mp4": encode_mp4(video)}
        if artifacts is not None:
            files[f"{stem}_rerender.mp4"] = encode_mp4(artifacts.rerender)
            files[f"{stem}_meta.png"] = _png(artifacts.meta_view)
        for file, data in files.items():
            folder.write_bytes(f"{step_folder(step)}/{file}", data)
        members.append(
            KeptMember(
                member=index,
                video=f"{stem}.mp4",
                rerender=None if artifacts is None else f"{stem}_rerender.mp4",
                meta_view=None if artifacts is None else f"{stem}_meta.png",
                reward=outcomes[index][0],
                advantage=outcomes[index][1],
                parts=scores.parts,
                raw=scores.raw,
                notes=(
                    *(note for score in scores.scores.values() for note in score.notes),
                    *(f"{f.kind} failed: {f.reason}" for f in scores.failures),
                ),
                recovered_c2w=None if artifacts is None else _recovered(artifacts),
            )
        )
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


def _recovered(artifacts: Artifacts) -> Poses:
    """The estimated path with the translation scale that S_traj fitted."""
    c2w = artifacts.estimated_c2w.copy()
    c2w[:, :3, 3] *= artifacts.scale
    poses: Poses = c2w.tolist()
    return poses


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
