"""The standing examiner: its clips, the order that it demands, and what it calls a fault."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from prompts.config import CameraConfig
from rewards.config import RewardConfig
from rewards.examiner import MARGINS, drift, examine, faults, known_clips
from rewards.worker import ReconstructionWorker

KINDS = {
    "consistent", "flickering", "moving_object", "warped_1px", "warped_2px", "morph",
    "changing_objects", "independent_frames", "noise", "shuffled", "frozen", "flat_grey",
    "wrong_request",
}  # fmt: skip
ROW = {"recon": 0.9, "traj": 0.98, "psnr": 30.0}


def fine() -> dict[str, dict[str, float]]:
    """Scores in perfect order."""
    rows = {"push.consistent": dict(ROW)}
    for name, margin in MARGINS.items():
        share = 0.05 if name in ("moving_object", "morph", "warped_1px") else 0.1
        rows[f"push.{name}"] = {"recon": 0.9 - share, "traj": max(0.95 - margin, 0), "psnr": 20.0}
    recon = {"warped_2px": 0.6, "changing_objects": 0.5, "independent_frames": 0.2, "noise": 0.1}
    for name, value in recon.items():
        rows[f"push.{name}"]["recon"] = value
    rows["push.flat_grey"] = {"recon": 0.0, "traj": 0.0}
    rows["push.frozen"] = {"recon": 0.95, "traj": 0.0, "psnr": 40.0}
    return rows


def test_the_clips_are_all_there_and_always_the_same() -> None:
    clips = {clip.name: clip for clip in known_clips()}
    assert {name.partition(".")[2] for name in clips} == KINDS
    assert {name.partition(".")[0] for name in clips} == {"orbit", "push", "pull", "move", "pan"}
    assert len(clips) == 2 * len(KINDS) + 3
    again = {clip.name: clip for clip in known_clips()}
    for name, clip in clips.items():
        assert clip.video.shape == (9, 64, 96, 3)
        assert clip.video.dtype == np.uint8
        assert np.array_equal(clip.video, again[name].video)
    assert clips["push.wrong_request"].prompt.text.startswith("Camera move left.")


@pytest.mark.slow
def test_the_photometric_scorer_is_in_order() -> None:
    """What `worldr1 rewards check` demands: at least 27 dB and S_traj 0.95 on five motions."""
    rows = examine(ReconstructionWorker(RewardConfig(), CameraConfig(), 9))
    assert faults(rows) == []
    assert len(rows) == 29


def test_perfect_order_has_no_fault() -> None:
    assert faults(fine()) == []


@pytest.mark.parametrize("name", sorted(MARGINS))
def test_a_spoilt_clip_that_scores_like_the_consistent_one_is_a_fault(name: str) -> None:
    rows = fine()
    rows[f"push.{name}"] = dict(ROW)
    assert any(name in fault for fault in faults(rows))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"psnr": 26.9}, "26.9 dB; at least 27"),
        ({"traj": 0.94}, "S_traj 0.940; at least 0.95"),
        ({"psnr": float("nan")}, "nan dB"),
    ],
)
def test_a_consistent_clip_must_be_seen_as_one(change: dict[str, float], fault: str) -> None:
    rows = fine()
    rows["push.consistent"] |= change
    assert any(fault in found for found in faults(rows))


def test_a_consistent_clip_that_cannot_be_scored_is_a_fault_and_a_spoilt_one_is_none() -> None:
    rows = fine()
    rows["push.noise"] = {}
    assert faults(rows) == []
    rows["push.consistent"] = {}
    assert "push.consistent cannot be scored" in faults(rows)


def test_a_scorer_that_likes_everything_breaks_nearly_every_relation() -> None:
    rows = {name: dict(ROW) for name in fine()}
    assert len(faults(rows)) >= len(MARGINS)


def test_drift_is_a_change_of_a_known_score() -> None:
    first, now = fine(), fine()
    assert drift(first, now) == []
    now["push.morph"]["recon"] -= 0.03
    assert drift(first, now) == ["push.morph: recon was 0.850 and is 0.820"]
    now = copy.deepcopy(first)
    now["push.noise"] = {}
    assert len(drift(first, now)) == 2
    assert drift(now, now) == []
