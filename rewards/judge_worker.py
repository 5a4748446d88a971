"""The worker that judges meta-views: a plain class, wrapped as an actor where it is spawned."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from prompts.schema import Prompt
from rewards.checks import guarded, pin_threads, require_cpu, require_image
from rewards.config import RewardConfig
from rewards.judge import GeometryJudge
from rewards.judge_client import VisionLanguageJudge
from rewards.score import Score, ScoreFailure, Verdict

LIMIT_SHARE = 0.9
"""Of `rewards.timeout_s`: a worker that answers late is killed, with all that it has in flight."""


class JudgeWorker:
    """Judges meta-views, S_meta. With a backend that is served it takes calls from many threads."""

    def __init__(self, config: RewardConfig, device: str = "cpu", threads: int = 1) -> None:
        pin_threads(threads)
        judge = config.judge
        if judge.backend != "vllm":
            require_cpu("judge.backend", judge.backend, device)
        self._served: VisionLanguageJudge | None = None
        if judge.backend != "embedded":
            limit_s = LIMIT_SHARE * config.timeout_s
            self._served = VisionLanguageJudge(judge, limit_s, device)
        self._embedded = GeometryJudge()
        self.version = self._embedded.version if self._served is None else self._served.version

    def describe(self) -> dict[str, str]:
        """Scorer, for the run's log; process ids of the worker and of its own server, if it has
        one, and how often that was started."""
        found = {"kind": "judge", "scorer": self.version, "pid": str(os.getpid())}
        server = self._served.server if self._served is not None else None
        if server is not None:
            found |= {"server_pid": str(server.pid), "server_starts": str(server.starts)}
        return found

    def score(self, meta_view: NDArray[np.uint8], prompt: Prompt) -> Score | ScoreFailure:
        """S_meta of a meta-view uint8 [H, W, 3]."""
        require_image(meta_view)

        def scored() -> Score:
            verdict = self._verdict(meta_view, prompt)
            parts = {"meta": verdict.score}
            return Score("judge", parts, verdict.raw, self.version, digits=verdict.digits)

        return guarded("judge", self.version, scored)

    def _verdict(self, meta_view: NDArray[np.uint8], prompt: Prompt) -> Verdict:
        if self._served is not None:
            return self._served(meta_view, prompt.text)
        found = self._embedded(meta_view, prompt)
        raw = {
            "meta_covered": found.covered,
            "meta_tidy": found.tidy,
            "meta_unstretched": found.unstretched,
            "meta_content": found.content,
        }
        return Verdict(found.score, raw, found.digits)

    def known_answers(self) -> dict[str, float]:
        """Scores of the known-answer images; KnownAnswerError when their order is wrong."""
        from rewards.known_answer import known_answer_judge

        return known_answer_judge(self)

    def close(self) -> None:
        """End the judge's own server."""
        if self._served is not None:
            self._served.close()
