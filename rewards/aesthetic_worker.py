"""The worker that scores single frames: a plain class, wrapped as an actor where it is spawned."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prompts.schema import Prompt
from rewards.aesthetic import FrameScorer
from rewards.checks import guarded, pin_threads, require_cpu, require_video
from rewards.config import RewardConfig
from rewards.human_preference import HumanPreference
from rewards.score import Score, ScoreFailure, Verdict
from rewards.scoring import affine_to_unit


class AestheticWorker:
    """Scores frames for how they look and for showing what was asked, R_gen."""

    def __init__(self, config: RewardConfig, device: str = "cpu", threads: int = 1) -> None:
        pin_threads(threads)
        self.config = config.aesthetic
        self._learned: HumanPreference | None = None
        if self.config.backend == "hpsv3":
            self._learned = HumanPreference(self.config, device)
        else:
            require_cpu("aesthetic.backend", self.config.backend, device)
        self._embedded = FrameScorer(self.config)
        self.version = (self._learned or self._embedded).version

    def describe(self) -> dict[str, str]:
        """Scorer, for the run's log."""
        return {"kind": "aesthetic", "scorer": self.version}

    def score(self, video: NDArray[np.uint8], prompt: Prompt) -> Score | ScoreFailure:
        """R_gen of a video uint8 [F, H, W, 3]; the raw score is kept beside it."""

        def scored() -> Score:
            require_video(video, None)
            verdict = self._verdict(video, prompt)
            gen = affine_to_unit(verdict.score, self.config.offset, self.config.scale)
            # Clipping would make a number of an infinite score.
            finite = gen if np.isfinite(verdict.score) else float("nan")
            raw = {"aesthetic_raw": verdict.score, **verdict.raw}
            return Score("aesthetic", {"gen": finite}, raw, self.version)

        return guarded("aesthetic", self.version, scored)

    def _verdict(self, video: NDArray[np.uint8], prompt: Prompt) -> Verdict:
        if self._learned is not None:
            return self._learned(video[: self.config.frames], prompt.text)
        found = self._embedded(video, prompt)
        raw = {
            "content": found.content,
            "frame_sharpness": found.sharpness,
            "contrast": found.contrast,
        }
        return Verdict(found.raw, raw)

    def known_answers(self) -> dict[str, float]:
        """Scores of the known-answer clips; KnownAnswerError when their order is wrong."""
        from rewards.known_answer import known_answer_aesthetic

        return known_answer_aesthetic(self)
