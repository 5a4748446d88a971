"""Perceptual distance, named colours, the embedded judge and frame scorer: order and smoothness."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest

from prompts.motions import Motion
from prompts.schema import Prompt
from rewards.aesthetic import FrameScorer
from rewards.config import AestheticConfig, PerceptualConfig
from rewards.content import NamedColor, color_shares, content, named_colors, presence
from rewards.judge import GeometryJudge, digit_log_probabilities
from rewards.perceptual import build_distance
from rewards.scoring import digit_expectation
from tests.rewards.clips import clip

DISTANCE = build_distance(PerceptualConfig())
PROMPT = Prompt.from_text("p", "Camera push in. A red box and a blue ball on a green floor.")


def as_float(video: np.ndarray) -> np.ndarray:
    return (video / 255).astype(np.float32)


def faded(video: np.ndarray, share: float) -> np.ndarray:
    grey = video.mean(axis=-1, keepdims=True)
    return (video * (1 - share) + grey * share).astype(np.uint8)


def blurred(video: np.ndarray, sigma: float) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in video])


def test_equal_videos_have_distance_zero_and_the_distance_is_symmetric() -> None:
    a, b = as_float(clip(Motion.PUSH_IN).video), as_float(clip(Motion.PUSH_IN, seed=3).video)
    assert DISTANCE(a, a).tolist() == [0.0] * 9
    assert DISTANCE(a, b) == pytest.approx(DISTANCE(b, a), abs=1e-6)
    assert (DISTANCE(a, b) < 1).all()
    assert DISTANCE(a, b).mean() > 0.4


def test_the_distance_grows_smoothly_with_noise_and_shift() -> None:
    """No saturation between 35 and 18 dB: every step costs something."""
    a = as_float(clip(Motion.ORBIT_LEFT).video)
    noise = np.random.default_rng(0).normal(0, 1, a.shape).astype(np.float32)
    steps = [DISTANCE(a, np.clip(a + s * noise, 0, 1)).mean() for s in (0.01, 0.03, 0.06, 0.12)]
    assert all(later > earlier + 0.02 for earlier, later in pairwise(steps))
    shifts = [DISTANCE(a, np.roll(a, s, axis=2)).mean() for s in (1, 2, 4)]
    assert all(later > earlier + 0.05 for earlier, later in pairwise(shifts))


def test_the_same_error_counts_less_in_a_stronger_picture_only_above_the_contrast() -> None:
    """An error of fixed size added to a picture of 1.3 times the contrast: 12 % less distance where
    it is relative to the picture, the same where it is not."""
    a = as_float(clip(Motion.ORBIT_LEFT).video) * 0.5 + 0.2
    error = 0.03 * np.random.default_rng(0).normal(0, 1, a.shape).astype(np.float32)
    stronger = a.mean() + 1.3 * (a - a.mean())

    def ratio(contrast: float) -> float:
        distance = build_distance(PerceptualConfig(contrast=contrast))
        return float(distance(stronger, stronger + error).mean() / distance(a, a + error).mean())

    assert ratio(0.02) < 0.9
    assert ratio(1.0) == pytest.approx(1.0, abs=0.01)
    assert build_distance(PerceptualConfig(contrast=0.3)).version == "multiscale-v1-contrast-0.3"
    assert DISTANCE.version == "multiscale-v1"


def test_the_distance_refuses_unequal_shapes() -> None:
    with pytest.raises(ValueError, match="allowed: two equal"):
        DISTANCE(np.zeros((2, 32, 32, 3), np.float32), np.zeros((3, 32, 32, 3), np.float32))


def test_named_colours_are_read_in_order() -> None:
    assert named_colors(PROMPT.text) == (
        NamedColor("red", "box"), NamedColor("blue", "ball"), NamedColor("green", "floor")
    )  # fmt: skip
    assert [thing.is_surface for thing in named_colors(PROMPT.text)] == [False, False, True]
    assert named_colors("A hundred blueprints, reddish light.") == ()
    assert named_colors("Deep BLUE sea.") == (NamedColor("blue", "sea"),)


def test_shares_are_the_painted_areas() -> None:
    picture = np.full((40, 100, 3), (0.74, 0.73, 0.72), np.float32)
    picture[:10, :20] = (0.90, 0.13, 0.12)
    picture[20:, :50] = (0.14, 0.27, 0.92)
    things = named_colors("A red box and a blue ball and a yellow ball.")
    assert color_shares(picture, things) == pytest.approx([0.05, 0.25, 0.0], abs=0.015)


def test_shading_keeps_a_colour_and_fading_loses_it() -> None:
    things = (NamedColor("red", "box"),)
    red, grey = np.array([0.9, 0.13, 0.12]), 0.38

    def share(color: np.ndarray) -> float:
        return float(color_shares(np.tile(color, (4, 4, 1)).astype(np.float32), things)[0])

    assert share(red) > 0.95
    assert share(0.5 * red) > 0.95
    fading = [share(red * (1 - a) + grey * a) for a in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert all(later < earlier for earlier, later in pairwise(fading[:-1]))
    assert fading[2] < 0.6
    assert fading[-1] < 0.01


def test_presence_saturates_at_a_sensible_size() -> None:
    things = (NamedColor("red", "box"),)
    sizes = [float(presence(np.array([s], np.float32), things)[0]) for s in (0, 0.012, 0.04, 0.3)]
    assert sizes == pytest.approx([0.0, 1 - np.exp(-1), 0.964, 1.0], abs=1e-3)
    assert content(np.zeros((4, 4, 3), np.float32), ()) == 1.0


def test_every_object_of_the_toy_world_is_seen_in_its_own_clip_alone() -> None:
    for seed in range(6):
        shot = clip(Motion.FIXED, seed=seed)
        things = named_colors(shot.prompt.text)
        assert len(things) == 3
        image = as_float(shot.video)[0]
        assert presence(color_shares(image, things), things).min() > 0.75
        painted = {thing.color for thing in things}
        absent = tuple(
            NamedColor(c, "box") for c in ("red", "yellow", "purple", "cyan") if c not in painted
        )
        assert presence(color_shares(image, absent), absent).max() < 0.25


def test_the_frame_scorer_punishes_fading_blur_noise_and_emptiness() -> None:
    score = FrameScorer(AestheticConfig())
    shot = clip(Motion.PUSH_IN)
    good = score(shot.video, shot.prompt)
    assert 6 < good.raw <= 10
    for spoilt in (faded(shot.video, 0.5), faded(shot.video, 0.95), blurred(shot.video, 1.5)):
        assert score(spoilt, shot.prompt).raw < good.raw - 0.3
    noise = np.random.default_rng(0).normal(0, 40, shot.video.shape)
    noisy = np.clip(shot.video + noise, 0, 255).astype(np.uint8)
    assert score(noisy, shot.prompt).raw < good.raw - 1
    empty = np.repeat(np.median(shot.video, axis=(1, 2), keepdims=True), 64, axis=1).repeat(96, 2)
    assert score(empty.astype(np.uint8), shot.prompt).raw < good.raw - 3
    other = clip(Motion.PUSH_IN, seed=4)
    assert score(other.video, shot.prompt).content < good.content


def test_the_frame_scorer_reads_the_first_frames_alone() -> None:
    shot = clip(Motion.PULL_OUT)
    first = FrameScorer(AestheticConfig(frames=2))(shot.video, shot.prompt)
    assert first == FrameScorer(AestheticConfig(frames=2))(shot.video[:2], shot.prompt)
    assert first != FrameScorer(AestheticConfig(frames=9))(shot.video, shot.prompt)


def test_the_judges_answer_is_an_expectation_around_the_quality() -> None:
    values = [digit_expectation(digit_log_probabilities(q)) for q in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert values[2] == pytest.approx(0.45)
    assert values == sorted(values)
    assert 0 <= values[0] < 0.1
    assert 0.8 < values[-1] <= 0.9


def test_the_judge_punishes_holes_specks_and_missing_objects() -> None:
    judge = GeometryJudge()
    shot = clip(Motion.FIXED)
    image = shot.video[0]
    good = judge(image, shot.prompt)
    holed = image.copy()
    holed[:, ::2] = 0
    assert judge(holed, shot.prompt).covered == pytest.approx(0.5, abs=0.02)
    specks = image.copy()
    where = np.random.default_rng(0).random((64, 96)) < 0.15
    specks[where] = 255
    assert judge(specks, shot.prompt).tidy < good.tidy - 0.2
    grey = faded(image, 1.0)
    for spoilt in (holed, specks, grey, np.zeros_like(image)):
        assert judge(spoilt, shot.prompt).score < good.score - 0.05
    assert judge(np.zeros_like(image), shot.prompt).score < 0.1
