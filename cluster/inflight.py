"""Scored groups that no step has consumed, beside a checkpoint: rolled out once, trained on later.

    RUN/checkpoints/step_000120/inflight/      `cluster/group_files.py`

Only with `checkpoint.keep_inflight`; without it they are rolled out again on resume. The files are
covered by the manifest like every other one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cluster.buffer import ReadyGroup
from cluster.collect import GroupRecord
from cluster.group_files import read_groups, write_group
from cluster.lost import ObjectGone
from cluster.pool import Pool

FOLDER = "inflight"

Waiting = Sequence[tuple[ReadyGroup, GroupRecord]]
"""Scored groups that no step has consumed."""


async def write_in_flight(url: str, pool: Pool, waiting: Waiting) -> None:
    """Write scored groups with their trajectories, read from `pool`, below a checkpoint's URL.

    A group whose trajectories were lost with their node is left out: a resume rolls it out again.
    """
    for ready, record in waiting:
        try:
            trajectories = [await pool.fetch(ref) for ref in record.rollout.trajectories]
        except ObjectGone:
            continue
        folder = f"{url}/{FOLDER}"
        await asyncio.to_thread(write_group, folder, ready.group, record, trajectories)


async def read_in_flight(url: str, pool: Pool) -> list[tuple[ReadyGroup, GroupRecord]]:
    """What `write_in_flight` wrote, ascending by serial; empty where it wrote nothing."""
    found, groups = [], read_groups(f"{url}/{FOLDER}")
    while (stored := await asyncio.to_thread(next, groups, None)) is not None:
        refs = [await pool.store(trajectory) for trajectory in stored.trajectories]
        found.append(stored.restored(refs))
    return found
