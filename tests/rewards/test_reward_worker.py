"""The reward workers end to end: order of clips, failures, definitions, known answers."""

from __future__ import annotations

import subprocess
import sys
from typing import cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from prompts.config import CameraConfig
from prompts.motions import Motion
from prompts.schema import Prompt
from rewards import known_answer, spoilt
from rewards.aesthetic_worker import AestheticWorker
from rewards.checks import WorkerBroken, guarded
from rewards.config import AestheticConfig, JudgeConfig, ReconstructionConfig, RewardConfig
from rewards.judge_worker import JudgeWorker
from rewards.known_answer import KnownAnswerError, canaries, known_answer_aesthetic
from rewards.score import Score, ScoreFailure
from rewards.scoring import affine_to_unit
from rewards.worker import ReconstructionWorker
from tests.rewards.clips import clip, decoded, independent
from toyworld.scenes import CORRUPTIONS

CONFIG = RewardConfig()
RECONSTRUCTION = ReconstructionWorker(CONFIG, CameraConfig(), 9, "cpu", 1)
JUDGE = JudgeWorker(CONFIG, "cpu", 1)
AESTHETIC = AestheticWorker(CONFIG, "cpu", 1)
MOTIONS = (Motion.PUSH_IN, Motion.ORBIT_RIGHT)


def scored(video: np.ndarray, prompt: Prompt) -> Score:
    outcome, _, _ = RECONSTRUCTION.score(video, prompt, False)
    assert isinstance(outcome, Score), outcome
    return outcome


def geometry(video: np.ndarray, prompt: Prompt) -> float:
    parts = scored(video, prompt).parts
    return parts["recon"] + parts["traj"]


@pytest.mark.slow
def test_a_consistent_clip_outscores_each_corruption_on_average() -> None:
    """S_recon + S_traj over two motions: by 0.15 (a shaken camera that films a rigid world is the
    mildest), by more where the world itself breaks."""

    def mean(corruption: str) -> float:
        shots = [clip(motion, corruption) for motion in MOTIONS]
        return float(np.mean([geometry(shot.video, shot.prompt) for shot in shots]))

    consistent = mean("none")
    assert consistent > 1.7
    margins = {corruption: consistent - mean(corruption) for corruption in CORRUPTIONS}
    assert min(margins.values()) > 0.15, margins
    assert margins["drift"] > 0.25
    assert margins["warp"] > 0.4
    assert margins["wrong_camera"] > 0.4


def test_unrelated_frames_are_worth_next_to_nothing() -> None:
    parts = scored(independent(Motion.PUSH_IN), clip(Motion.PUSH_IN).prompt).parts
    assert parts["recon"] < 0.4
    assert parts["traj"] < 0.3


def test_blur_and_noise_of_a_decoder_cost_little() -> None:
    for motion in MOTIONS:
        shot = clip(motion, seed=2)
        assert geometry(decoded(shot.video), shot.prompt) > geometry(shot.video, shot.prompt) - 0.2


def test_the_wrong_request_scores_low_in_the_trajectory_alone() -> None:
    shot = clip(Motion.MOVE_LEFT)
    wrong = Prompt.from_text("w", shot.prompt.text.replace("move left", "orbit right"))
    right, mistaken = scored(shot.video, shot.prompt).parts, scored(shot.video, wrong).parts
    assert right["traj"] > 0.85
    assert mistaken["traj"] < 0.45
    assert mistaken["recon"] == right["recon"]


def test_a_frozen_clip_is_gated_where_motion_was_asked() -> None:
    shot = clip(Motion.PUSH_IN)
    score = scored(spoilt.frozen(shot.video), shot.prompt)
    assert score.parts["traj"] == 0.0
    assert "motion gate: S_traj = 0" in score.notes


def test_a_clip_without_texture_scores_zero_by_definition_and_says_so() -> None:
    flat = np.full((9, 64, 96, 3), 128, np.uint8)
    outcome, meta_view, _ = RECONSTRUCTION.score(flat, clip(Motion.FIXED).prompt, True)
    assert isinstance(outcome, Score)
    assert outcome.parts == {"recon": 0.0, "traj": 0.0}
    assert any(note.startswith("texture gate: S_recon") for note in outcome.notes)
    assert meta_view is not None
    judged = JUDGE.score(meta_view, clip(Motion.FIXED).prompt)
    assert isinstance(judged, Score)
    assert judged.parts["meta"] < 0.1


def test_reach_is_scored_where_it_has_a_weight() -> None:
    paying = RewardConfig.model_validate({"weights": {"reach": 1.0}})
    worker = ReconstructionWorker(paying, CameraConfig(), 9, "cpu", 1)
    # What these scenes show lies half as deep again as the plane that the request is made for:
    # turns are reached, and two thirds of a translation.
    for motion, reached in ((Motion.MOVE_LEFT, 0.66), (Motion.PAN_RIGHT, 1.0)):
        shot = clip(motion)
        parts = {
            name: worker.assess(video, shot.prompt, False)[0].parts
            for name, video in (("whole", shot.video), ("frozen", spoilt.frozen(shot.video)))
        }
        assert parts["whole"]["reach"] == pytest.approx(reached, abs=0.03)
        assert parts["frozen"]["reach"] < 0.1
        assert "reach" not in scored(shot.video, shot.prompt).parts
    flat = np.full((9, 64, 96, 3), 128, np.uint8)
    assert worker.assess(flat, shot.prompt, False)[0].parts["reach"] == 0.0
    still = Prompt.from_text("still", "A red box and a blue ball on a green floor.")
    assert set(worker.assess(shot.video, still, False)[0].parts) == {"recon"}


def test_a_prompt_without_motion_has_no_trajectory_part() -> None:
    prompt = Prompt.from_text("still", "A red box and a blue ball on a green floor.")
    score = scored(clip(Motion.PUSH_IN).video, prompt)
    assert set(score.parts) == {"recon"}
    assert "rotation_error_deg" not in score.raw


def test_scores_carry_what_was_measured() -> None:
    shot = clip(Motion.ORBIT_LEFT)
    outcome, meta_view, artifacts = RECONSTRUCTION.score(shot.video, shot.prompt, True)
    assert isinstance(outcome, Score)
    assert {"psnr", "sharpness", "motion", "rotation_error_deg", "translation_error"} <= set(
        outcome.raw
    )
    assert 25 < outcome.raw["psnr"] < 60
    assert outcome.raw["motion"] > 0.5
    assert outcome.raw["rotation_error_deg"] < 1.5
    assert outcome.seconds > 0
    assert meta_view is not None
    assert meta_view.shape == (64, 96, 3)
    assert meta_view.dtype == np.uint8
    assert artifacts is not None
    assert artifacts.rerender.shape == shot.video.shape
    assert artifacts.estimated_c2w[0] == pytest.approx(np.eye(4))
    assert artifacts.requested_c2w is not None
    assert artifacts.requested_c2w.shape == (9, 4, 4)
    assert artifacts.depth.shape == (9, 64, 96)
    assert np.median(artifacts.depth[0]) == pytest.approx(1.0, abs=0.2)
    assert artifacts.splats.startswith(b"ply\nformat binary_little_endian 1.0\n")
    assert RECONSTRUCTION.score(shot.video, shot.prompt, False)[2] is None
    content = AESTHETIC.score(shot.video, shot.prompt)
    assert isinstance(content, Score)
    assert content.raw["content"] > 0.8
    assert -1 <= content.parts["gen"] <= 1


def test_the_same_video_gives_the_same_score() -> None:
    shot = clip(Motion.PULL_OUT)
    first, second = (scored(shot.video, shot.prompt) for _ in range(2))
    assert first.parts == second.parts
    assert first.raw == second.raw


def test_what_cannot_be_reconstructed_is_a_failure_with_its_reason() -> None:
    worker = ReconstructionWorker(CONFIG, CameraConfig(), 2, "cpu", 1)
    video = np.random.default_rng(0).integers(0, 255, (2, 64, 96, 3)).astype(np.uint8)
    outcome, meta_view, artifacts = worker.score(video, clip(Motion.FIXED).prompt, True)
    assert isinstance(outcome, ScoreFailure)
    assert outcome.kind == "reconstruction"
    assert outcome.error == "ReconstructionError"
    assert "no camera found" in outcome.reason
    assert outcome.scorer == "photometric-v3+multiscale-v1"
    assert meta_view is None
    assert artifacts is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_part_that_is_not_finite_is_a_failure(value: float) -> None:
    outcome = guarded("judge", "some-judge", lambda: Score("judge", {"meta": value}))
    assert isinstance(outcome, ScoreFailure)
    assert "only finite parts are scores" in outcome.reason


def test_a_broken_video_is_a_failure_and_a_wrong_device_an_error() -> None:
    """More of them in `test_broken_videos.py`."""
    shot = clip(Motion.FIXED)
    for video, reason in (
        (shot.video / 255, "video is float64"),
        (shot.video[:5], "allowed: [9, H, W, 3]"),
    ):
        outcome, _, _ = RECONSTRUCTION.score(video, shot.prompt, False)
        assert isinstance(outcome, ScoreFailure)
        assert reason in outcome.reason
        assert not outcome.retry
    general = AESTHETIC.score(shot.video[0], shot.prompt)
    assert isinstance(general, ScoreFailure)
    assert "allowed: numpy uint8" in general.reason
    with pytest.raises(ValueError, match="runs on the CPU only"):
        JudgeWorker(CONFIG, "cuda", 1)
    with pytest.raises(ValueError, match="runs on the CPU only"):
        ReconstructionWorker(CONFIG, CameraConfig(), 9, "cuda", 1)
    with pytest.raises(ValueError, match="threads is 0"):
        JudgeWorker(CONFIG, "cpu", 0)


@pytest.mark.slow
def test_known_answers_hold_for_every_worker() -> None:
    rows = RECONSTRUCTION.known_answers()
    assert set(rows) == {
        f"{name}.{version}"
        for name in ("orbit", "push")
        for version in ("consistent", "shuffled", "frozen", "warped")
    }
    assert len(set(JUDGE.known_answers().values())) > 2
    assert len(set(AESTHETIC.known_answers().values())) > 2


def test_known_answers_fail_closed() -> None:
    """A reconstructor that likes everything equally, and one that always fails."""

    class Blind(ReconstructionWorker):
        def assess(self, *_: object) -> tuple:  # type: ignore[override]
            return Score("reconstruction", {"recon": 0.9, "traj": 0.9}), None, None

    class Broken(ReconstructionWorker):
        def assess(self, *_: object) -> tuple:  # type: ignore[override]
            raise RuntimeError("no weights")

    arguments = (CONFIG, CameraConfig(), 9, "cpu", 1)
    with pytest.raises(KnownAnswerError, match=r"must be larger by 0\.25"):
        Blind(*arguments).known_answers()
    with pytest.raises(
        KnownAnswerError, match="cannot score the consistent orbit clip: no weights"
    ):
        Broken(*arguments).known_answers()


def test_the_canary_is_small_and_readable() -> None:
    files = list(known_answer.FOLDER.iterdir())
    assert sum(file.stat().st_size for file in files) < 1_000_000
    for canary in canaries():
        assert canary.video.shape == (9, 64, 96, 3)
        assert canary.prompt.motions != ()


def test_workers_describe_themselves_without_borrowed_names() -> None:
    for worker in (RECONSTRUCTION, JUDGE, AESTHETIC):
        text = " ".join(worker.describe().values()).lower()
        assert worker.describe()["kind"] in ("reconstruction", "judge", "aesthetic")
        assert not any(name in text for name in ("qwen", "lpips", "hps"))


def test_the_config_refuses_what_does_not_exist() -> None:
    with pytest.raises(ValidationError, match="photometric"):
        ReconstructionConfig(backend="colmap")
    with pytest.raises(ValidationError, match="max_workers = 1 is below min_workers = 2"):
        JudgeConfig(min_workers=2)
    with pytest.raises(ValidationError, match="frozen"):
        CONFIG.variant = "paper"


def test_the_config_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, rewards.config; "
        "sys.exit(bool({'torch', 'numpy', 'ray', 'cv2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "error",
    [torch.AcceleratorError("CUDA error: launch failure"), WorkerBroken("gone")],
)
def test_what_ends_a_worker_is_no_failure_of_a_sample(error: Exception) -> None:
    def scored() -> Score:
        raise error

    with pytest.raises(type(error)):
        guarded("aesthetic", "scorer", scored)

    class Broken:
        def score(self, *_: object) -> Score | ScoreFailure:
            return guarded("aesthetic", "scorer", scored)

    with pytest.raises(KnownAnswerError, match=r"the good clip finds a broken worker"):
        known_answer_aesthetic(cast(AestheticWorker, Broken()))


def test_known_clips_below_the_range_of_the_reward_are_still_told_apart() -> None:
    """A scorer that finds all of them poor: the good one at -3, where R_gen is clipped at -2."""

    class Strict:
        config = AestheticConfig(offset=5.0, scale=7.0)

        def score(self, video: np.ndarray, *_: object) -> Score:
            grey = not np.ptp(video, axis=-1).any()
            known = any(np.array_equal(video, canary.video) for canary in canaries())
            raw = -3.0 if known else (-4.0 if grey else -6.5)
            gen = affine_to_unit(raw, self.config.offset, self.config.scale)
            return Score("aesthetic", {"gen": gen}, {"aesthetic_raw": raw}, "strict")

    rows = known_answer_aesthetic(cast(AestheticWorker, Strict()))
    assert rows["orbit.good"] == pytest.approx(-8 / 7)
    assert rows["orbit.greyed"] == pytest.approx(-9 / 7)
    assert rows["push.speckled"] == pytest.approx(-11.5 / 7)


@pytest.mark.parametrize(("retry", "asked"), [(True, 3), (False, 1)])
def test_a_known_clip_is_tried_again_where_that_may_help(retry: bool, asked: int) -> None:
    """A busy endpoint at the moment at which a worker joins."""
    calls: list[int] = []

    class Busy:
        def score(self, *_: object) -> Score | ScoreFailure:
            calls.append(1)
            return ScoreFailure("aesthetic", "answers 429", retry=retry)

    with pytest.raises(KnownAnswerError, match="cannot score the good clip: answers 429"):
        known_answer_aesthetic(cast(AestheticWorker, Busy()))
    assert len(calls) == asked
