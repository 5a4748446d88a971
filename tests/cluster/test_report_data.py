"""What a run keeps for its report: which groups, which files, and that keeping changes no bit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.artifacts import groups_to_keep, keep_groups
from cluster.config import RunConfig
from cluster.kept import REPORT, KeptGroup, drop_superseded, load_groups, step_folder
from cluster.local import LocalPool
from cluster.pools import Rewards, SampleScores
from cluster.report.data import load_run
from cluster.report.figures import clock_plots
from cluster.runs import in_this_process, run_training
from cluster.storage import RunFolder
from cluster.video import decode_mp4
from learner.config import LearnerConfig, ScheduleConfig
from rewards.config import ArtifactsConfig, RewardConfig
from tests.cluster.made_run import make_run
from tests.cluster.test_repeats import batch as restored_batch


def test_first_middle_and_last_step_keep_groups() -> None:
    """Of a dynamic step's clips there is no reconstruction: the main step before it is kept too."""

    def kept(policy: ArtifactsConfig, steps: int, main: int, dynamic: int) -> list[int]:
        schedule = ScheduleConfig(main_steps=main, dynamic_steps=dynamic)
        every = range(steps)
        return [step for step in every if groups_to_keep(policy, step, steps, schedule)]

    policy = ArtifactsConfig(keep=2)
    assert kept(policy, 9, main=100, dynamic=50) == [0, 4, 8]
    assert kept(policy, 2, main=100, dynamic=50) == [0, 1]
    assert kept(policy, 24, main=8, dynamic=4) == [0, 7, 11, 19, 23]
    assert kept(ArtifactsConfig(keep=1, every=3), 9, main=100, dynamic=0) == [0, 3, 4, 6, 8]
    assert kept(ArtifactsConfig(keep=0, every=1), 9, main=100, dynamic=0) == []


def test_pools_that_came_and_went_are_shown_with_their_workers(
    smallest: Callable[..., RunConfig],
) -> None:
    run = load_run(make_run(smallest(), steps=4, groups=0, evals=()).url)
    assert "pools" not in [plot.name for plot in clock_plots(run)]
    sizes = {"reconstruction": (1, 2, 3, 1), "rollout": (2, 2, 2, 2)}
    steps = tuple(
        {**row, "stages": {name: {**row["stages"][name], "workers": size[i]}
                           for name, size in sizes.items()}}
        for i, row in enumerate(run.steps)
    )  # fmt: skip
    (plot,) = [p for p in clock_plots(replace(run, steps=steps)) if p.name == "pools"]
    (trace,) = plot.figure.data
    assert trace.name == "reconstruction"
    assert list(trace.y) == [1, 2, 3, 1]


def train(config: RunConfig) -> str:
    return run_training(config, in_this_process, say=lambda _: None).weights_checksum


def rows(config: RunConfig) -> list[dict]:  # type: ignore[type-arg]
    """Rows of metrics.jsonl without their clocks."""
    text = (Path(config.run) / "metrics.jsonl").read_text()
    clocks = {"time", "seconds", "stages", "bottleneck", "durable_step"}
    return [
        {key: value for key, value in json.loads(line).items() if key not in clocks}
        for line in text.splitlines()
    ]


@pytest.mark.slow
def test_kept_groups_are_whole_and_change_no_bit_of_the_run(
    smallest: Callable[..., RunConfig],
) -> None:
    once = "rewards.repeat_every=0"  # in which step a repetition ends is a matter of time
    with_pictures = smallest("rewards.artifacts.keep=1", once, name="kept")
    without = smallest("rewards.artifacts.keep=0", once, name="bare")
    assert train(with_pictures) == train(without)
    assert rows(with_pictures) == rows(without)
    assert load_groups(RunFolder(without.run)) == []
    groups = load_groups(RunFolder(with_pictures.run))
    phases = {0: "main", 1: "main", 2: "dynamic"}
    assert {group.step for group in groups} == set(phases)
    for step, phase in phases.items():
        kept = [group for group in groups if group.step == step]
        assert all(group.phase == phase and len(group.members) == 2 for group in kept)
        require_extremes(kept)
        pictured = [all(m.rerender for m in group.members) for group in kept]
        assert any(pictured) is (phase == "main")  # one group was drawn before it was sampled
    for group in groups:
        require_whole(group, Path(with_pictures.run), with_pictures.rollout.frames)


def require_extremes(groups: list[KeptGroup]) -> None:
    """One best and one worst sample, with pictures where there is a reconstruction."""
    members = [member for group in groups for member in group.members]
    (best,) = (member for member in members if member.extreme == "best")
    (worst,) = (member for member in members if member.extreme == "worst")
    rewards = [member.reward for member in members if member.reward is not None]
    assert (best.reward, worst.reward) == (max(rewards), min(rewards))
    if groups[0].phase == "main":
        assert best.splats
        assert worst.splats


def require_whole(group: KeptGroup, run: Path, frames: int) -> None:
    base = run / f"artifacts/step_{group.step:06d}"
    values = [member.advantage for member in group.members]
    rewards = [member.reward for member in group.members]
    # Two members: advantages of equal size, the better one's positive.
    assert values[0] == pytest.approx(-values[1])
    assert (values[0] > 0) == (rewards[0] > rewards[1])
    for member in group.members:
        assert decode_mp4((base / member.video).read_bytes()).shape == (frames, 64, 96, 3)
        if group.phase == "dynamic":
            assert member.rerender is member.meta_view is member.recovered_c2w is None
            assert set(member.parts) == {"gen"}
            continue
        assert member.reward == pytest.approx(sum(member.parts.values()))
        assert sum(member.digits) == pytest.approx(1)
        if member.rerender is None:
            assert member.extreme is None
            assert member.splats is member.depth is member.overlay is None
            continue
        assert (base / str(member.splats)).read_bytes().startswith(b"ply\n")
        for file in (member.depth, member.overlay):
            assert decode_mp4((base / str(file)).read_bytes()).shape[0] == frames
        assert decode_mp4((base / str(member.rerender)).read_bytes()).shape[0] == frames
        assert Image.open(base / str(member.meta_view)).size == (96, 64)
        recovered = np.array(member.recovered_c2w)
        assert recovered.shape == np.array(group.requested_c2w).shape == (frames, 4, 4)
        np.testing.assert_allclose(recovered[0], np.eye(4), atol=1e-9)
        turned = recovered[:, :3, :3]
        np.testing.assert_allclose(
            turned @ turned.swapaxes(1, 2), np.broadcast_to(np.eye(3), turned.shape), atol=1e-6
        )


def test_what_an_earlier_start_kept_is_not_shown_beside_what_came_after(
    smallest: Callable[..., RunConfig],
) -> None:
    folder = make_run(smallest(), steps=4, groups=3, evals=())
    before = load_groups(folder)
    steps = sorted({group.step for group in before})
    assert steps[-1] > steps[0]
    folder.write_bytes(f"{REPORT}/media/{step_folder(steps[-1])}/old.ply", b"ply")
    drop_superseded(folder, steps[-1])
    assert load_groups(folder) == [group for group in before if group.step < steps[-1]]
    assert folder.sizes(step_folder(steps[-1])) == {}
    assert folder.sizes(f"{REPORT}/media/{step_folder(steps[-1])}") == {}
    folder.write_bytes("artifacts/step_000009 copy/mine.txt", b"kept by hand")
    drop_superseded(folder, 0)
    assert load_groups(folder) == []
    assert folder.read_bytes("artifacts/step_000009 copy/mine.txt") == b"kept by hand"


def test_extremes_are_sought_where_there_are_videos(tmp_path: Path) -> None:
    """Groups that a checkpoint held come back without; the one here has the best sample."""
    batch = restored_batch(videos=False)
    folder = RunFolder(str(tmp_path))
    clip = np.zeros((9, 64, 96, 3), np.uint8)
    record = batch.records[1]
    record.scores = [SampleScores({}, (), 1)] * 3
    record.rollout = replace(record.rollout, videos=(clip,) * 3)
    best = replace(batch.groups[0], rewards=(9.0, 8.0))
    batch = replace(batch, groups=(best, batch.groups[1]))
    pools = [LocalPool(kind, None) for kind in ("reconstruction", "judge", "aesthetic")]
    found = asyncio.run(
        keep_groups(
            folder,
            LocalPool("rollout", None),
            Rewards(*pools, RewardConfig()),
            4,
            "dynamic",
            batch,
            LearnerConfig(),
            extremes=True,
        )
    )
    (kept,) = found
    assert kept.group == 1
    assert [member.extreme for member in kept.members] == ["worst", None, "best"]
