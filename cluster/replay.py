"""One stage of a recorded step again, alone: rollouts, rewards or the learner.

Steps are those that `cluster/record.py` wrote. The same configuration gives the same bits, on the
same number of ranks and kind of device; another one shows what it would have changed, a changed
reward over all recorded samples for example.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from cluster.collect import gather_or_cancel
from cluster.config import ConfigError, RunConfig
from cluster.group_files import StoredGroup
from cluster.pools import DeliveryError, Learner, Published, Rewards, Rollouts
from cluster.record import (
    RecordedStep,
    read_step,
    read_step_groups,
    read_weights,
    recorded_steps,
    step_folder,
)
from cluster.runs import in_this_process
from cluster.storage import RunFolder
from rewards.scoring import combine

Stage = Literal["rollout", "rewards", "learner"]
Calls = Rollouts | Rewards | Learner
"""What a stage is run by."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One recorded step, one stage of it run again."""

    step: int
    stage: Stage
    identical: bool
    """Whether everything came out bit for bit as it was recorded."""
    summary: str
    """What differs, in one line."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """A row per sample."""


def steps_to_replay(folder: RunFolder, step: int | None) -> list[int]:
    """The step asked for, or all that are recorded. ConfigError where there is none."""
    known = recorded_steps(folder)
    if not known:
        raise ConfigError(
            f"RUN = {folder.url!r} has no recorded step; train it with record.every=N"
        )
    if step is not None and step not in known:
        raise ConfigError(
            f"--step {step} is not recorded; recorded are {', '.join(map(str, known))}"
        )
    return known if step is None else [step]


@contextlib.contextmanager
def open_stage(config: RunConfig, stage: Stage, local: bool) -> Iterator[Calls]:
    """The pools that a stage needs, on Ray or in this process."""
    if local:
        with in_this_process(config) as workers:
            calls: dict[Stage, Calls] = {
                "rollout": workers.rollouts,
                "rewards": workers.rewards,
                "learner": workers.learner,
            }
            yield calls[stage]
        return
    from cluster.handles import connect, ray_stage  # here, so that --local never imports ray

    connect()
    with ray_stage(config, stage) as called:
        yield called


async def replay(
    config: RunConfig,
    calls: Calls,
    stage: Stage,
    steps: Sequence[int],
    say: Callable[[str], None],
) -> list[Replayed]:
    """Run a stage of some recorded steps again and say, step by step, what came out."""
    folder, found = RunFolder(config.run), []
    for step in steps:
        done = read_step(folder, step)
        groups = _Whole(read_step_groups(folder, step, videos=stage != "learner"))
        if isinstance(calls, Rollouts):
            again = await _rollout(folder, done, groups, calls)
        elif isinstance(calls, Rewards):
            again = await _rewards(config, done, groups, calls)
        else:
            again = await _learner(folder, done, groups.groups, calls)
        if groups.lost:
            lost = f"{groups.lost} of {groups.lost + groups.whole} groups"
            say(f"replay  step {step:>4}: {lost} of an earlier start left out")
            if not groups.whole:
                continue
        found.append(again)
        outcome = "identical bits" if again.identical else "differs"
        say(f"replay  step {step:>4} {stage}: {again.summary}: {outcome}")
    if not found:
        raise ConfigError(
            f"no recorded step has groups whose videos are recorded, which --stage {stage} needs; "
            "allowed: --stage learner"
        )
    return found


class _Whole:
    """Groups with videos, one in memory at a time. Of those that a start took over from an earlier
    one (`checkpoint.keep_inflight`) neither videos nor weights were there to be recorded."""

    def __init__(self, groups: Iterator[StoredGroup]) -> None:
        self.groups, self.whole, self.lost = groups, 0, 0

    def __iter__(self) -> Iterator[StoredGroup]:
        for stored in self.groups:
            if stored.videos:
                self.whole += 1
                yield stored
            else:
                self.lost += 1


def to_rows(found: Sequence[Replayed]) -> list[dict[str, Any]]:
    """What `--json` writes."""
    return [asdict(again) for again in found]


async def _rollout(
    folder: RunFolder, done: RecordedStep, groups: Iterable[StoredGroup], rollouts: Rollouts
) -> Replayed:
    """Draw every group again with the weights that it was drawn from."""
    pool = rollouts.pool
    rows: list[dict[str, Any]] = []
    for stored in groups:
        version = stored.report.weights
        weights = await pool.store(read_weights(folder, done.step, version))
        drawn = await rollouts.rollout(stored.request, Published(version, weights))
        for member, before in enumerate(stored.trajectories):
            after = await pool.fetch(drawn.trajectories[member])
            video = await pool.fetch(drawn.videos[member])
            rows.append(
                {
                    "group": stored.request.group,
                    "member": member,
                    "states": _gap(before.states.numpy(), after.states.numpy()),
                    "log_probs": _gap(before.log_probs.numpy(), after.log_probs.numpy()),
                    "grey_levels": _gap(stored.videos[member], video),
                }
            )
    worst = {
        name: max((row[name] for row in rows), default=0.0)
        for name in ("states", "log_probs", "grey_levels")
    }
    shown = ", ".join(f"{name} {value:.2g}" for name, value in worst.items())
    return Replayed(
        done.step,
        "rollout",
        not any(worst.values()),
        f"{len(rows)} samples drawn again, largest differences: {shown}",
        rows,
    )


def _gap(before: Any, after: Any) -> float:
    """Largest absolute difference; infinite where the shapes differ."""
    if before.shape != after.shape:
        return float("inf")
    return float(np.abs(before.astype(np.float64) - after.astype(np.float64)).max())


async def _rewards(
    config: RunConfig, done: RecordedStep, groups: Iterable[StoredGroup], rewards: Rewards
) -> Replayed:
    """Score every stored video again, and combine the parts by the configuration's weights."""
    rows: list[dict[str, Any]] = []
    for stored in groups:
        prompt, phase = stored.request.prompt, stored.phase
        scores = await gather_or_cancel(
            [rewards.score(video, prompt, phase) for video in stored.videos]
        )
        for member, (own, reward) in enumerate(zip(scores, stored.rewards, strict=True)):
            total, parts = (
                (None, {}) if own.failures else combine(own.parts, config.rewards.weights, phase)
            )
            rows.append(
                {
                    "group": stored.request.group,
                    "member": member,
                    "before": reward.total,
                    "after": total,
                    "parts_before": dict(reward.parts),
                    "parts_after": parts,
                    "failures": [f"{f.kind}: {f.reason}" for f in own.failures],
                }
            )
    both = [r for r in rows if r["before"] is not None and r["after"] is not None]
    serials = sorted({row["group"] for row in rows})
    kept = sum(_same_order(both, serial) for serial in serials)
    means = [
        statistics.fmean(r[name] for r in both) if both else 0.0 for name in ("before", "after")
    ]
    identical = all(
        (r["before"], r["parts_before"]) == (r["after"], r["parts_after"]) for r in rows
    )
    return Replayed(
        done.step,
        "rewards",
        identical,
        f"{len(rows)} samples, {len(both)} scored before and after, mean total {means[0]:.4f} -> "
        f"{means[1]:.4f}, order kept in {kept} of {len(serials)} groups",
        rows,
    )


def _same_order(rows: Sequence[dict[str, Any]], group: int) -> bool:
    """Whether the members of a group are ranked as before, which is all that GRPO is told."""
    own = [row for row in rows if row["group"] == group]
    ranks = [
        sorted(own, key=lambda row: (row[name], row["member"])) for name in ("before", "after")
    ]
    return [row["member"] for row in ranks[0]] == [row["member"] for row in ranks[1]]


async def _learner(
    folder: RunFolder, done: RecordedStep, groups: Iterable[StoredGroup], learner: Learner
) -> Replayed:
    """Take the step again, from the state before it."""
    pool = learner.ranks
    await learner.load(f"{folder.url}/{step_folder(done.step)}/learner")
    scored, trajectories = [], []
    for stored in groups:
        scored.append(stored.group)
        for member in stored.group.members:
            trajectories.append(await pool.store(stored.trajectories[member]))
    report = await learner.step(done.step, scored, trajectories)
    version = (await learner.publish(done.step + 1, "replay")).version
    if report.account != done.account:
        raise DeliveryError(
            f"step {done.step} was recorded as trained on other samples (account "
            f"{done.account[:12]}) than its files hold ({report.account[:12]})"
        )
    before = (
        f"loss {done.loss}, gradient norm {done.grad_norm}, weights {done.weights_checksum[:12]}"
    )
    after = f"loss {report.loss}, gradient norm {report.grad_norm}, weights {version.checksum[:12]}"
    return Replayed(
        done.step,
        "learner",
        version.checksum == done.weights_checksum,
        f"{done.ranks} ranks: {before}; {pool.size} ranks: {after}",
        [
            {
                "loss_before": done.loss,
                "loss_after": report.loss,
                "grad_norm_before": done.grad_norm,
                "grad_norm_after": report.grad_norm,
                "weights_before": done.weights_checksum,
                "weights_after": version.checksum,
            }
        ],
    )
