"""200 broken videos through the reward workers: scores or `ScoreFailure`s, nothing escapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from prompts.config import CameraConfig
from prompts.motions import Motion
from rewards.aesthetic_worker import AestheticWorker
from rewards.config import RewardConfig
from rewards.score import Score, ScoreFailure
from rewards.worker import ReconstructionWorker
from tests.rewards.clips import clip

CONFIG = RewardConfig()
RECONSTRUCTION = ReconstructionWorker(CONFIG, CameraConfig(), 9)
AESTHETIC = AestheticWorker(CONFIG)
SEEDS = range(10)
Breaking = Callable[[np.ndarray, np.random.Generator], Any]


def truncated(video: np.ndarray, rng: np.random.Generator) -> Any:
    return video[: rng.integers(0, len(video))]


def one_frame(video: np.ndarray, rng: np.random.Generator) -> Any:
    return video[rng.integers(len(video))][None]


def too_long(video: np.ndarray, rng: np.random.Generator) -> Any:
    return np.concatenate([video, video[: rng.integers(1, 9)]])


def tiny(video: np.ndarray, rng: np.random.Generator) -> Any:
    return video[:, : rng.integers(0, 20), : rng.integers(0, 20)]


def thin(video: np.ndarray, rng: np.random.Generator) -> Any:
    return video[:, : rng.integers(1, 4)]


def odd_size(video: np.ndarray, rng: np.random.Generator) -> Any:
    return video[:, : rng.integers(33, 60) // 2 * 2 + 1, : rng.integers(40, 90) // 2 * 2 + 1]


def floats(video: np.ndarray, rng: np.random.Generator) -> Any:
    return (video / 255).astype(rng.choice(["float16", "float32", "float64"]))


def not_finite(video: np.ndarray, rng: np.random.Generator) -> Any:
    broken = video.astype(np.float32)
    broken[rng.integers(9)] = rng.choice([np.nan, np.inf])
    return broken


def signed(video: np.ndarray, rng: np.random.Generator) -> Any:
    return video.astype(rng.choice(["int8", "int64", "uint16", "bool"]))


def channels(video: np.ndarray, rng: np.random.Generator) -> Any:
    return np.repeat(video[..., :1], rng.choice([0, 1, 2, 4]), axis=-1)


def moved_axis(video: np.ndarray, rng: np.random.Generator) -> Any:
    return np.moveaxis(video, -1, rng.integers(0, 3))


def missing_axis(video: np.ndarray, rng: np.random.Generator) -> Any:
    return video[0] if rng.random() < 0.5 else video[None]


def objects(video: np.ndarray, rng: np.random.Generator) -> Any:
    return [None, "video.mp4", b"\x00\x01", 7, list(video), {}][rng.integers(6)]


def black(video: np.ndarray, rng: np.random.Generator) -> Any:
    return np.full_like(video, rng.choice([0, 255]))


def half_black(video: np.ndarray, rng: np.random.Generator) -> Any:
    broken = video.copy()
    broken[rng.integers(1, 9) :] = 0
    return broken


def noisy(video: np.ndarray, rng: np.random.Generator) -> Any:
    return rng.integers(0, 256, video.shape).astype(np.uint8)


def torn(video: np.ndarray, rng: np.random.Generator) -> Any:
    """Blocks of every frame from elsewhere, as a decoder leaves them after lost packets."""
    broken = video.copy()
    for frame in broken:
        v, u = rng.integers(0, 48), rng.integers(0, 64)
        frame[v : v + 16, u : u + 32] = frame[::-1][v : v + 16, u : u + 32]
    return broken


def striped(video: np.ndarray, rng: np.random.Generator) -> Any:
    broken = np.zeros_like(video)
    broken[:, :, :: int(rng.integers(2, 5))] = 255
    return broken


def checkered(video: np.ndarray, rng: np.random.Generator) -> Any:
    parity = np.add.outer(np.arange(64), np.arange(96)) + np.arange(9)[:, None, None]
    board = (parity % 2 * 255).astype(np.uint8)
    return np.repeat(board[..., None], 3, axis=-1)


def views(video: np.ndarray, rng: np.random.Generator) -> Any:
    """Not contiguous, and read-only, as it comes out of an object store."""
    broken = video[::-1, :, ::-1]
    broken.flags.writeable = False
    return broken


MUST_FAIL: tuple[Breaking, ...] = (
    truncated, one_frame, too_long, tiny, thin, floats, not_finite, signed, channels, moved_axis,
    missing_axis, objects,
)  # fmt: skip
MAY_FAIL: tuple[Breaking, ...] = (
    odd_size, black, half_black, noisy, torn, striped, checkered, views,
)  # fmt: skip


def test_there_are_two_hundred() -> None:
    assert (len(MUST_FAIL) + len(MAY_FAIL)) * len(SEEDS) == 200


@pytest.mark.parametrize("breaking", MUST_FAIL, ids=lambda f: f.__name__)
def test_what_is_no_video_is_a_failure_with_a_reason(breaking: Breaking) -> None:
    shot = clip(Motion.PUSH_IN)
    for seed in SEEDS:
        video = breaking(shot.video, np.random.default_rng(seed))
        outcome, meta_view, artifacts = RECONSTRUCTION.score(video, shot.prompt, True)
        assert isinstance(outcome, ScoreFailure), (seed, outcome)
        assert outcome.kind == "reconstruction"
        assert len(outcome.reason) > 20
        assert not outcome.retry
        assert meta_view is artifacts is None
        general = AESTHETIC.score(video, shot.prompt)
        assert isinstance(general, Score | ScoreFailure)


@pytest.mark.slow
@pytest.mark.parametrize("breaking", MAY_FAIL, ids=lambda f: f.__name__)
def test_what_only_looks_broken_is_a_finite_score_or_a_failure(breaking: Breaking) -> None:
    shot = clip(Motion.PUSH_IN)
    for seed in SEEDS:
        video = breaking(shot.video, np.random.default_rng(seed))
        outcome, _, _ = RECONSTRUCTION.score(video, shot.prompt, False)
        if isinstance(outcome, Score):
            assert all(0 <= value <= 1 for value in outcome.parts.values())
        else:
            assert isinstance(outcome, ScoreFailure)
            assert len(outcome.reason) > 20
        assert isinstance(AESTHETIC.score(video, shot.prompt), Score | ScoreFailure)
