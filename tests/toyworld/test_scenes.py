"""The ray-caster's clips against their own geometry: depth, poses and pixels must agree."""

from __future__ import annotations

import numpy as np
import pytest

from prompts.camera import camera_path, invert_pose
from prompts.motions import COMPOSITES, Motion
from toyworld.scenes import (
    CORRUPTIONS,
    Clip,
    command,
    random_scene,
    render_clip,
    sample_clip,
    spelled_out,
)


def scene(seed: int, dynamic: bool = False):
    return random_scene(np.random.default_rng(seed), dynamic)


def reprojection_error(clip: Clip, c2w: np.ndarray, source: int, target: int) -> float:
    """Median colour difference (0-255) between the source's pixels and where they land."""
    height, width = clip.depth.shape[1:]
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    rays = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(clip.intrinsics).T
    points = rays * clip.depth[source][..., None]
    move = invert_pose(c2w[target]) @ c2w[source]
    landed = (points @ move[:3, :3].T + move[:3, 3]) @ clip.intrinsics.T
    x, y = (np.floor(landed[..., k] / landed[..., 2]).astype(int) for k in (0, 1))
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    # Pixels that another surface hides in the target frame are no evidence.
    inside[inside] &= np.abs(clip.depth[target][y[inside], x[inside]] - landed[inside][:, 2]) < 0.05
    assert inside.mean() > 0.3
    colors = clip.video[target][y[inside], x[inside]].astype(float)
    return float(np.abs(colors - clip.video[source][inside]).mean())


@pytest.mark.parametrize("name", [*Motion, *COMPOSITES])
def test_a_consistent_clip_agrees_with_its_own_depth_and_poses(name: str) -> None:
    motions = COMPOSITES.get(name) or (Motion(name),)
    clip = render_clip(scene(1), motions)
    assert clip.corruption == "none"
    assert reprojection_error(clip, clip.c2w, source=0, target=8) < 5
    assert reprojection_error(clip, clip.c2w, source=8, target=3) < 5


def test_poses_are_the_commanded_path_and_depth_is_that_of_the_wall() -> None:
    clip = render_clip(scene(2), (Motion.PUSH_IN,))
    path = camera_path((Motion.PUSH_IN,), 9)
    assert path is not None
    np.testing.assert_array_equal(clip.c2w, path.c2w)
    # The wall is at 2.2; the top row sees nothing else.
    np.testing.assert_allclose(clip.depth[0, 0], 2.2, atol=1e-5)
    np.testing.assert_allclose(clip.depth[8, 0], 1.6, atol=1e-5)
    # The lowest ray centre (y = 31.75 px under the axis, f = 115.2) meets the floor at 0.2 depth.
    assert clip.depth[0, 63, 0] == pytest.approx(0.2 * 115.2 / 31.75, rel=1e-5)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_corruption_breaks_agreement_with_the_commanded_path(kind: str) -> None:
    commanded = camera_path((Motion.MOVE_LEFT,), 9)
    assert commanded is not None
    ratios = []
    for seed in range(3):
        good = render_clip(scene(seed), (Motion.MOVE_LEFT,))
        bad = render_clip(scene(seed), (Motion.MOVE_LEFT,), kind)
        # The bad pixels under the geometry that was asked for.
        mixed = Clip(bad.video, good.depth, good.c2w, good.intrinsics, good.prompt, kind)
        baseline = reprojection_error(good, commanded.c2w, 0, 8)
        ratios.append(reprojection_error(mixed, commanded.c2w, 0, 8) / baseline)
    assert np.mean(ratios) > 1.5, ratios


def test_a_dynamic_clip_moves_one_object_only_and_says_so() -> None:
    world = scene(4, dynamic=True)
    clip = render_clip(world, (Motion.FIXED,))
    assert clip.prompt.is_dynamic
    assert clip.corruption == "none"
    assert "that slides to the" in clip.prompt.text
    changed = np.abs(clip.video[8].astype(int) - clip.video[0]).max(axis=-1) > 12
    mover = next(i for i, thing in enumerate(world.objects) if thing.slides)
    half = changed[:, :48] if mover == 1 else changed[:, 48:]
    assert 0.01 < changed.mean() < 0.3
    assert half.mean() < changed.mean()


def test_the_same_seed_gives_the_same_clip_and_another_seed_another() -> None:
    first, again, other = (sample_clip(np.random.default_rng(s)) for s in (5, 5, 6))
    np.testing.assert_array_equal(first.video, again.video)
    assert (first.prompt, first.corruption) == (again.prompt, again.corruption)
    assert (first.video != other.video).any()
    assert (first.video.shape, first.video.dtype) == ((9, 64, 96, 3), np.uint8)
    assert (first.depth.shape, first.depth.dtype) == ((9, 64, 96), np.float32)


def test_the_pretraining_mixture_has_the_stated_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = np.zeros((9, 64, 96, 3), np.uint8), np.zeros((9, 64, 96), np.float32)
    monkeypatch.setattr("toyworld.scenes.cast", lambda *_: blank)
    clips = [sample_clip(np.random.default_rng((9, i))) for i in range(1500)]
    assert np.mean([c.corruption != "none" for c in clips]) == pytest.approx(0.33, abs=0.04)
    assert np.mean([c.prompt.is_dynamic for c in clips]) == pytest.approx(0.12, abs=0.03)
    assert not any(c.prompt.is_dynamic and c.corruption != "none" for c in clips)
    assert {c.corruption for c in clips} == {"none", *CORRUPTIONS}


def test_size_and_length_are_free_and_wrong_arguments_are_named() -> None:
    clip = render_clip(scene(7), (Motion.FIXED,), frames=5, height=32, width=48)
    assert clip.video.shape == (5, 32, 48, 3)
    assert (clip.video[0] == clip.video[4]).all()
    with pytest.raises(ValueError, match="corruption is 'blur'; allowed: none, drift"):
        render_clip(scene(7), (Motion.FIXED,), "blur")
    with pytest.raises(ValueError, match="motions is empty"):
        render_clip(scene(7), ())


def test_commands_read_as_sentences() -> None:
    assert command(spelled_out(COMPOSITES["pull left"])) == (
        "Camera move left, pull out, then pan left."
    )
    assert command(spelled_out((Motion.PUSH_IN,))) == "Camera push in."
