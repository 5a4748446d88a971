"""Everything that some steps were made of, so that one stage of them can be run again alone.

    RUN/record/step_000012/learner/               the ranks' state before the step (DCP)
    RUN/record/step_000012/weights_<sum>.safetensors   the weights that its groups were drawn from
    RUN/record/step_000012/group_00000034*        requests, trajectories, videos, scores
    RUN/record/step_000012/step.json              what the step did; written last

Read by `worldr1 replay`. What cannot be written is missed; nothing in training depends on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import safetensors.numpy
from pydantic import BaseModel, ConfigDict

from actors.trajectory import LoraWeights, WeightsVersion
from cluster.collect import Batch
from cluster.group_files import StoredGroup, read_groups, write_group
from cluster.lost import ObjectGone
from cluster.patience import missing_is_fine
from cluster.pool import Pool
from cluster.pools import Published
from cluster.recovery import DurableLearner
from cluster.sections import RecordConfig
from cluster.storage import RunFolder
from learner.rank import StepReport
from learner.schedule import Phase

RECORD = "record"


class RecordedStep(BaseModel):
    """`step.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    phase: Phase
    ranks: int
    """Learner ranks that took the step: their number decides the last bits."""
    loss: float | None
    """None where no update was tried."""
    grad_norm: float | None
    weights_checksum: str
    """Of the weights after it."""
    account: str
    """`learner.account` after it."""


class Recorder:
    """Writes the recordings of a run."""

    def __init__(
        self,
        config: RecordConfig,
        folder: RunFolder,
        pool: Pool,
        learner: DurableLearner,
        say: Callable[[str], None],
    ) -> None:
        """`pool` reads trajectories, videos and weights."""
        self._config, self._folder, self._pool = config, folder, pool
        self._learner, self._say = learner, say
        self._begun: int | None = None

    async def before(self, step: int, batch: Batch) -> None:
        """Write a batch, and the learner's state before it is trained on, if the step is due."""
        self._begun = None
        if not self._config.every or step % self._config.every:
            return
        with contextlib.suppress(ObjectGone), missing_is_fine(f"step {step}'s record", self._say):
            await asyncio.to_thread(self._make_room, step)
            url = f"{self._folder.url}/{step_folder(step)}"
            await self._learner.guarded(lambda: self._learner.learner.save(f"{url}/learner"))
            await self._write_groups(url, step, batch)
            self._begun = step

    async def after(self, phase: Phase, report: StepReport, weights: Published) -> None:
        """Write what the step did; the record is complete."""
        if self._begun != report.step:
            return
        done = RecordedStep(
            step=report.step,
            phase=phase,
            ranks=self._learner.learner.ranks.size,
            loss=report.loss if math.isfinite(report.loss) else None,
            grad_norm=report.grad_norm if math.isfinite(report.grad_norm) else None,
            weights_checksum=weights.version.checksum,
            account=report.account,
        )
        with missing_is_fine(f"step {report.step}'s record", self._say):
            name = f"{step_folder(report.step)}/step.json"
            await asyncio.to_thread(self._folder.write_text, name, done.model_dump_json(indent=1))

    async def _write_groups(self, url: str, step: int, batch: Batch) -> None:
        written = set()
        for group in batch.groups:
            record = batch.records[group.group]
            rollout = record.rollout
            trajectories = [await self._pool.fetch(ref) for ref in rollout.trajectories]
            videos = [await self._pool.fetch(ref) for ref in rollout.videos]
            await asyncio.to_thread(write_group, url, group, record, trajectories, videos)
            checksum = rollout.report.weights.checksum
            if checksum not in written and rollout.published.weights is not None:
                weights = await self._pool.fetch(rollout.published.weights)
                data = safetensors.numpy.save({k: np.asarray(v) for k, v in weights.items()})
                name = f"{step_folder(step)}/{weights_file(checksum)}"
                await asyncio.to_thread(self._folder.write_bytes, name, data)
                written.add(checksum)

    def _make_room(self, step: int) -> None:
        """Delete what a superseded start left of this step, and the oldest records."""
        older = [known for known in recorded_steps(self._folder) if known < step]
        doomed = [step, *older[: max(0, len(older) - self._config.keep + 1)]]
        for known in doomed:
            self._folder.remove(step_folder(known))


def step_folder(step: int) -> str:
    """Folder of a recorded step, relative to the run."""
    return f"{RECORD}/step_{step:06d}"


def weights_file(checksum: str) -> str:
    """File of some weights, relative to a recorded step."""
    return f"weights_{checksum[:16]}.safetensors"


def recorded_steps(folder: RunFolder) -> list[int]:
    """Steps whose record is complete, ascending."""
    names = folder.find(RECORD, "step.json")
    found = (re.search(r"step_(\d+)/step\.json$", name) for name in names)
    return sorted(int(match.group(1)) for match in found if match)


def read_step(folder: RunFolder, step: int) -> RecordedStep:
    """What a recorded step did."""
    return RecordedStep.model_validate_json(folder.read_bytes(f"{step_folder(step)}/step.json"))


def read_step_groups(folder: RunFolder, step: int, videos: bool) -> Iterator[StoredGroup]:
    """The groups of a recorded step, ascending; with their videos one has gigabytes."""
    return read_groups(f"{folder.url}/{step_folder(step)}", videos)


def read_weights(folder: RunFolder, step: int, version: WeightsVersion) -> LoraWeights:
    """The weights that a group of a recorded step was drawn from. FileNotFoundError."""
    data = folder.read_bytes(f"{step_folder(step)}/{weights_file(version.checksum)}")
    weights: dict[str, Any] = safetensors.numpy.load(data)
    return weights
