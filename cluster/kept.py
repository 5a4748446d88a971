"""Kept groups as they are stored, for whoever shows them; written by `cluster.artifacts`.

RUN/artifacts/step_000012/group_000034.json      `KeptGroup`; written after everything it names
RUN/artifacts/step_000012/group_000034/*         videos, re-renderings, depth, cameras as mp4;
                                                 meta-views as PNG; Gaussians as .ply
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict

from cluster.storage import RunFolder
from learner.schedule import Phase

Extreme = Literal["best", "worst"]

ARTIFACTS = "artifacts"
REPORT = "report"
"""Folders of a run: kept groups, and the page with its copies of them."""
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


def step_folder(step: int) -> str:
    """Folder of a step's kept groups, relative to the run."""
    return f"{ARTIFACTS}/step_{step:06d}"


def drop_superseded(folder: RunFolder, step: int) -> None:
    """Delete what an earlier start kept of the steps from `step` on, and the report's copies: they
    are made again, and may be of other groups."""
    for below in (ARTIFACTS, f"{REPORT}/media/{ARTIFACTS}"):
        names = {name[len(below) + 1 :].partition("/")[0] for name in folder.sizes(below)}
        for name in sorted(names):
            found = re.fullmatch(r"step_(\d+)", name)
            if found and int(found.group(1)) >= step:
                folder.remove(f"{below}/{name}")


def load_groups(folder: RunFolder) -> list[KeptGroup]:
    """Every kept group of a run, by (step, serial number)."""
    names = folder.find(ARTIFACTS, "group_*.json")
    return [KeptGroup.model_validate_json(folder.read_bytes(name)) for name in sorted(names)]
