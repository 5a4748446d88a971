"""200 broken videos through the reward workers: 200 `ScoreFailure`s, nothing escapes, no number.

What only looks broken (odd sizes, torn, striped or black pictures, views of arrays) can be scored
and is counted apart: a finite score or a `ScoreFailure`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch

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


def no_pixels(video: np.ndarray, rng: np.random.Generator) -> Any:
    return video[:, :0] if rng.random() < 0.5 else video[:, :, :0]


def ragged(video: np.ndarray, rng: np.random.Generator) -> Any:
    """Frames of different sizes, which numpy holds as objects."""
    broken = np.empty(len(video), object)
    for index, frame in enumerate(video):
        broken[index] = frame[: rng.integers(32, 64)]
    return broken


def encoded(video: np.ndarray, rng: np.random.Generator) -> Any:
    """A file's bytes instead of its pictures."""
    kind = str(rng.choice([".png", ".jpg", ".webp"]))
    return cv2.imencode(kind, video[rng.integers(len(video))])[1].ravel()


def strip(video: np.ndarray, rng: np.random.Generator) -> Any:
    """All frames side by side, or below each other, in one picture."""
    return np.concatenate(list(video), axis=int(rng.integers(2)))


def tensor(video: np.ndarray, rng: np.random.Generator) -> Any:
    """A policy's tensor that was never turned into pictures."""
    kinds = (torch.uint8, torch.float32, torch.bfloat16)
    return torch.from_numpy(video).to(kinds[rng.integers(3)])


def exotic(video: np.ndarray, rng: np.random.Generator) -> Any:
    return video.astype(rng.choice(["complex64", "U3", "S3", "O", ">u2"]))


def lost_middle(video: np.ndarray, rng: np.random.Generator) -> Any:
    """The frame that everything is matched with is empty, the others are not."""
    broken = video.copy()
    broken[len(video) // 2] = rng.integers(256)
    return broken


def lost_half(video: np.ndarray, rng: np.random.Generator) -> Any:
    """Empty from the middle on, or up to it, as a decoder fills up what it did not get."""
    broken, middle = video.copy(), len(video) // 2
    lost = slice(middle, None) if rng.random() < 0.5 else slice(None, middle + 1)
    broken[lost] = rng.integers(256)
    return broken


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


NO_VIDEO: tuple[Breaking, ...] = (
    floats, not_finite, signed, exotic, channels, moved_axis, missing_axis, no_pixels, strip,
    ragged, encoded, tensor, objects,
)  # fmt: skip
"""Nothing that any scorer could look at."""
NO_CLIP: tuple[Breaking, ...] = (
    truncated, one_frame, too_long, tiny, thin, lost_middle, lost_half,
)  # fmt: skip
"""Pictures, of which no reconstruction can be made, or which are not those that were asked for."""
MAY_FAIL: tuple[Breaking, ...] = (
    odd_size, black, half_black, noisy, torn, striped, checkered, views,
)  # fmt: skip


def test_there_are_two_hundred() -> None:
    assert (len(NO_VIDEO) + len(NO_CLIP)) * len(SEEDS) == 200


@pytest.mark.parametrize("breaking", NO_VIDEO + NO_CLIP, ids=lambda f: f.__name__)
def test_a_broken_video_is_a_failure_with_a_reason(breaking: Breaking) -> None:
    shot = clip(Motion.PUSH_IN)
    for seed in SEEDS:
        video = breaking(shot.video, np.random.default_rng(seed))
        outcome, meta_view, artifacts = RECONSTRUCTION.score(video, shot.prompt, True)
        assert isinstance(outcome, ScoreFailure), (seed, outcome)
        assert outcome.kind == "reconstruction"
        assert len(outcome.reason) > 20
        assert meta_view is artifacts is None
        general = AESTHETIC.score(video, shot.prompt)
        if breaking in NO_VIDEO:
            assert not outcome.retry
            assert isinstance(general, ScoreFailure)
        elif isinstance(general, Score):
            assert all(np.isfinite(value) for value in general.parts.values())


@pytest.mark.slow
@pytest.mark.parametrize("breaking", MAY_FAIL, ids=lambda f: f.__name__)
def test_what_only_looks_broken_is_a_finite_score_or_a_failure(breaking: Breaking) -> None:
    shot = clip(Motion.PUSH_IN)
    for seed in SEEDS[:4]:
        video = breaking(shot.video, np.random.default_rng(seed))
        outcome, _, _ = RECONSTRUCTION.score(video, shot.prompt, False)
        if isinstance(outcome, Score):
            assert all(0 <= value <= 1 for value in outcome.parts.values())
        else:
            assert isinstance(outcome, ScoreFailure)
            assert len(outcome.reason) > 20
        assert isinstance(AESTHETIC.score(video, shot.prompt), Score | ScoreFailure)
