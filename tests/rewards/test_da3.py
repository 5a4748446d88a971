"""Depth Anything 3 without its package: conventions on hand-made answers, failures, memory.

The network itself is run in its own environment (`test_da3_real.py`, mark `hand`).
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from prompts.camera import invert_pose
from prompts.config import CameraConfig
from prompts.motions import Motion
from prompts.schema import Prompt
from rewards.checks import psnr, worth_a_retry
from rewards.config import ReconstructionConfig, RewardConfig
from rewards.reconstruct.da3 import (
    DepthAnything3,
    from_prediction,
    load_network,
    require_own_classes,
    resized,
)
from rewards.reconstruct.reconstruction import Reconstruction, ReconstructionError
from rewards.scoring import trajectory_score
from rewards.weights import WeightsMissing
from rewards.worker import ReconstructionWorker
from tests.rewards.clips import scene
from toyworld.scenes import Clip, render_clip

DC = 0.28209479177387814


@cache
def small(motion: Motion) -> Clip:
    return render_clip(scene(1), (motion,), frames=5, height=48, width=64)


def hand_made(shot: Clip, terms: int = 9) -> dict[str, Any]:
    """What a perfect network answers: true depth and cameras, a Gaussian on every pixel of every
    frame in its colour, a third of a pixel wide, all in the world of the first camera."""
    frames, height, width = shot.depth.shape
    v, u = np.mgrid[:height, :width] + 0.5
    focal, centre = shot.intrinsics[0, 0], shot.intrinsics[:2, 2]
    rays = np.stack([(u - centre[0]) / focal, (v - centre[1]) / focal, np.ones_like(u)], axis=-1)
    points = shot.depth[..., None] * rays
    world = np.einsum("fij,fhwj->fhwi", shot.c2w[:, :3, :3], points)
    world = world + shot.c2w[:, None, None, :3, 3]
    count = frames * height * width
    harmonics = np.zeros((1, count, 3, terms))
    harmonics[0, :, :, 0] = (shot.video.reshape(-1, 3) / 255 - 0.5) / DC
    scale = np.repeat(shot.depth.reshape(-1, 1) * 0.33 / focal, 3, axis=1)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).float()

    return {
        "extrinsics": tensor(invert_pose(shot.c2w))[None, :, :3],
        "intrinsics": tensor(np.tile(shot.intrinsics, (frames, 1, 1)))[None],
        "depth": tensor(shot.depth)[None],
        "depth_conf": torch.ones(1, frames, height, width),
        "gaussians": SimpleNamespace(
            means=tensor(world.reshape(1, -1, 3)),
            scales=tensor(scale)[None],
            rotations=torch.tensor([1.0, 0, 0, 0]).repeat(1, count, 1),
            harmonics=tensor(harmonics),
            opacities=torch.full((1, count), 0.95),
        ),
    }


def read(answer: Mapping[str, Any], shot: Clip) -> Reconstruction:
    return from_prediction(answer, shot.video, np.arange(len(shot.video)), "torch")


@pytest.mark.parametrize(
    "motion",
    [
        Motion.ORBIT_LEFT,
        pytest.param(Motion.PUSH_IN, marks=pytest.mark.slow),
        pytest.param(Motion.PAN_RIGHT, marks=pytest.mark.slow),
    ],
)
def test_a_hand_made_answer_has_the_known_scores(motion: Motion) -> None:
    """w2c, pixels, wxyz, harmonics and units are read as they are meant: S_traj is 1 and the
    re-rendering shows the video; with c2w for w2c neither holds."""
    shot = small(motion)
    found = read(hand_made(shot), shot)
    path = invert_pose(found.w2c)
    assert trajectory_score(shot.c2w, path, found.median_depth).score == pytest.approx(1, abs=1e-4)
    assert found.median_depth == pytest.approx(float(np.median(shot.depth[0])), rel=1e-5)
    # A rendering is low-passed (eps2d): the video is, too.
    video = np.stack([cv2.GaussianBlur(frame, (0, 0), 0.65) for frame in shot.video]) / 255
    shown = psnr(video, found.rerender)
    assert shown > 24
    assert found.confidence.shape == (5, 48, 64)
    assert found.motion_px > 0.5
    mistaken = hand_made(shot)
    mistaken["extrinsics"] = torch.from_numpy(shot.c2w).float()[None, :, :3]
    wrong = read(mistaken, shot)
    assert trajectory_score(shot.c2w, invert_pose(wrong.w2c), wrong.median_depth).score < 0.4
    assert psnr(video, wrong.rerender) < shown - 4


def test_the_nested_models_metric_scale_is_taken_back() -> None:
    """It scales depth and translations, not the Gaussians."""
    shot = small(Motion.PUSH_IN)
    plain = hand_made(shot)
    metric = plain | {"scale_factor": 4.0, "depth": plain["depth"] * 4}
    metric["extrinsics"] = plain["extrinsics"].clone()
    metric["extrinsics"][..., 3] *= 4
    first, second = read(plain, shot), read(metric, shot)
    np.testing.assert_allclose(first.w2c, second.w2c, atol=1e-6)
    assert first.median_depth == pytest.approx(second.median_depth)
    np.testing.assert_allclose(first.rerender, second.rerender, atol=1e-5)


def test_what_is_not_finite_or_not_there_is_a_failure() -> None:
    shot = small(Motion.FIXED)
    good = hand_made(shot, terms=1)
    broken = {
        "the predicted cameras are not finite": {"extrinsics": good["extrinsics"] * float("nan")},
        "cameras are not finite": {"intrinsics": good["intrinsics"] * float("inf")},
        "no depth found": {"depth": good["depth"] * float("nan")},
        "the model has no Gaussian head": {"gaussians": None},
    }
    for reason, change in broken.items():
        with pytest.raises(ReconstructionError, match=reason):
            read(good | change, shot)
    faint = SimpleNamespace(**vars(good["gaussians"]))
    faint.opacities = faint.opacities * 0
    with pytest.raises(ReconstructionError, match="zero Gaussians: none of 15360"):
        read(good | {"gaussians": faint}, shot)


def test_gaussians_that_are_not_finite_are_left_out() -> None:
    shot = small(Motion.FIXED)
    answer = hand_made(shot, terms=1)
    answer["gaussians"].means[0, :100] = float("nan")
    answer["gaussians"].scales[0, 100:200, 0] = float("inf")
    found = read(answer, shot)
    assert len(found.gaussians) == 5 * 48 * 64 - 200
    assert np.isfinite(found.rerender).all()


class Hungry(DepthAnything3):
    """A network whose memory holds so many frames; it knows the clip that it is shown."""

    network = None  # type: ignore[assignment]

    def __init__(self, shot: Clip, holds: int) -> None:
        super().__init__(ReconstructionConfig(backend="da3", resolution=112))
        self.shot, self.holds = shot, holds
        self.asked: list[int] = []

    def _predict(self, network: Any, video: np.ndarray) -> Mapping[str, Any]:
        self.asked.append(len(video))
        if len(video) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        chosen = np.linspace(0, 8, len(video)).round().astype(int)
        shot = self.shot
        part = replace(
            shot, video=shot.video[chosen], depth=shot.depth[chosen], c2w=shot.c2w[chosen]
        )
        return hand_made(part, terms=1)


@pytest.mark.slow
def test_frames_are_thinned_until_they_fit_and_stay_thinned() -> None:
    shot = render_clip(scene(1), (Motion.PUSH_IN,), height=84, width=112)
    reconstruct = Hungry(shot, holds=5)
    for _ in range(2):
        found = reconstruct(shot.video, np.eye(3))
        assert found.frames.tolist() == [0, 3, 5, 8]
        assert len(found.w2c) == len(found.rerender) == 4
    assert reconstruct.asked == [9, 9, 6, 6, 4, 4]
    starved = Hungry(shot, holds=0)
    with pytest.raises(ReconstructionError, match="do not fit into the GPU's memory"):
        starved(shot.video, np.eye(3))
    assert starved.asked == [9, 9, 6, 6, 4, 4, 3, 3]


class Full(DepthAnything3):
    """Always out of memory, with something in it that has to be let go."""

    network = None  # type: ignore[assignment]

    def __init__(self, events: list[str]) -> None:
        super().__init__(ReconstructionConfig(backend="da3", resolution=56, max_frames=81))
        self.events = events
        self.held: list[weakref.ref[torch.Tensor]] = []

    def _reconstruct(self, network: Any, shown: Any, frames: Any) -> Reconstruction:
        assert all(held() is None for held in self.held)
        too_much = torch.zeros(1)
        self.held.append(weakref.ref(too_much))
        self.events.append(f"predict {len(frames)}")
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_memory_is_let_go_before_fewer_frames_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """While an error is handled, its traceback holds the frames that did not fit."""
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("empty"))
    reconstruct, video = Full(events), np.zeros((81, 32, 48, 3), np.uint8)
    with pytest.raises(ReconstructionError, match="3 frames of 42 x 56 pixels do not fit"):
        reconstruct(video, np.eye(3))
    asked = [f"predict {frames}" for frames in (81, 54, 36, 24, 16, 10, 6, 4, 3)]
    assert events == [event for each in asked for event in (each, "empty", each, "empty")]
    events.clear()
    with pytest.raises(ReconstructionError, match="do not fit"):
        reconstruct(video, np.eye(3))
    assert set(events) == {"predict 3", "empty"}, "what was learnt of the memory is kept"


@pytest.mark.slow
def test_a_thinned_clip_is_scored_against_the_cameras_of_its_frames() -> None:
    shot = render_clip(scene(1), (Motion.PUSH_IN,), height=84, width=112)
    config = RewardConfig(reconstruction=ReconstructionConfig(renderer="torch"))
    worker = ReconstructionWorker(config, CameraConfig(), frames=9)
    worker.reconstructor = Hungry(shot, holds=5)  # type: ignore[assignment]
    score, _, artifacts = worker.assess(shot.video, Prompt.from_text("p", "Camera push in."), True)
    assert artifacts is not None
    assert artifacts.requested_c2w is not None
    assert score.raw["frames"] == 4
    assert artifacts.frames.tolist() == [0, 3, 5, 8]
    assert score.parts["traj"] == pytest.approx(1, abs=1e-3)
    assert artifacts.requested_c2w[-1, 2, 3] == pytest.approx(CameraConfig().amplitudes.push)


def test_a_video_of_two_frames_has_no_camera() -> None:
    reconstruct = DepthAnything3(ReconstructionConfig(backend="da3"))
    with pytest.raises(ReconstructionError, match="2 frames; needed: 3") as error:
        reconstruct(np.zeros((2, 64, 96, 3), np.uint8), np.eye(3))
    assert not worth_a_retry(error.value)


def test_the_processed_size_is_whole_patches_with_the_aspect_kept() -> None:
    def size(height: int, width: int, resolution: int) -> tuple[int, ...]:
        return resized(np.zeros((1, height, width, 3), np.uint8), resolution).shape[1:3]

    assert size(480, 832, 504) == (294, 504)
    assert size(832, 480, 504) == (504, 294)
    assert size(84, 112, 112) == (84, 112)
    assert size(64, 96, 504) == (336, 504)


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the real one's name that has a network, a function and another's class."""
    folder = tmp_path / "depth_anything_3" / "model"
    folder.mkdir(parents=True)
    (folder / "da3.py").write_text(
        "from torch import nn\nfrom torch.nn import Linear\n"
        "class Net(nn.Module):\n    pass\n\ndef make(path):\n    raise RuntimeError(path)\n"
    )
    (tmp_path / "depth_anything_3" / "cfg.py").write_text("class Net:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("", ".model", ".model.da3", ".cfg"):
        monkeypatch.delitem(sys.modules, f"depth_anything_3{name}", raising=False)


@pytest.mark.usefixtures("own_package")
def test_a_models_configuration_may_name_networks_of_its_own_package_alone() -> None:
    def config(path: str, name: str = "Net", **more: Any) -> dict[str, Any]:
        target = {"path": path, "name": name, "args": "as_params", **more}
        return {"net": {"__object__": target, "layers": [{"a": 1}]}}

    require_own_classes(config("depth_anything_3.model.da3"))
    for path, name in (
        ("os", "system"),
        ("depth_anything_3x.evil", "Net"),
        ("depth_anything_3.cfg", "Net"),
        ("depth_anything_3.model.da3", "make"),
        ("depth_anything_3.model.da3", "Linear"),
        ("depth_anything_3.model.da3", "missing"),
        ("depth_anything_3.model.missing", "Net"),
    ):
        with pytest.raises(WeightsMissing, match="no network class of depth_anything_3"):
            require_own_classes(config(path, name))
    with pytest.raises(WeightsMissing, match="no network class of depth_anything_3"):
        require_own_classes(config("depth_anything_3.model.da3", more="argv"))
    with pytest.raises(WeightsMissing, match="holds the expression"):
        require_own_classes({"sizes": ["${eval:1}"]})


def test_a_missing_package_is_one_sentence(tmp_path: Path) -> None:
    """Core has no depth-anything-3."""
    with pytest.raises(WeightsMissing, match="worldr1 envs build reconstruction"):
        load_network(str(tmp_path))
