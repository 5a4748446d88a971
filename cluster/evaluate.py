"""Held-out prompts with fixed noises, sampled by the ODE: their scores, videos and alarms."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from cluster.collect import gather_or_cancel
from cluster.config import RunConfig
from cluster.held_out import SHOWN_RAW, EvalSample, load_evaluation, video_file
from cluster.metrics import MetricsLog, mean_spread
from cluster.patience import patiently
from cluster.pools import Published, SampleScores, Workers
from cluster.storage import (
    RunFolder,
    evaluated_kinds,
    evaluation_kind,
    has_evaluation,
    scores_file,
)
from cluster.video import encode_mp4
from prompts.schema import Prompt
from rewards.scoring import combine


class Evaluator:
    """Samples, scores and stores the held-out pairs of a run."""

    def __init__(
        self,
        config: RunConfig,
        prompts: Sequence[Prompt],
        folder: RunFolder,
        metrics: MetricsLog,
    ) -> None:
        self.config = config
        self.folder = folder
        self.metrics = metrics
        self.pairs = [(prompts[i % len(prompts)], i) for i in range(config.eval.prompts)]

    async def evaluate(
        self, step: int, weights: Published, workers: Workers, average: bool = False
    ) -> list[EvalSample]:
        """Sample and score every pair; writes videos and `scores.json` of the step. Those of the
        running `average` are stored beside, never in place of, the scores of the weights.

        A pair whose scoring fails is left out of the figures and counted in the row.
        """
        if not self.pairs:
            return []
        prompts = [prompt for prompt, _ in self.pairs]
        videos = await workers.rollouts.sample(prompts, [seed for _, seed in self.pairs], weights)
        scored: dict[int, SampleScores] = {}
        second: dict[int, dict[str, float] | str] = {}

        async def score(index: int) -> None:
            scored[index] = await workers.rewards.score(videos[index], prompts[index], "main")
            if self.config.eval.gold:
                second[index] = await workers.rewards.second_opinion(videos[index], prompts[index])

        await gather_or_cancel([score(index) for index in range(len(videos))])
        samples = [
            self._sample(index, scored[index], second.get(index, ""))
            for index in range(len(videos))
            if not scored[index].failures
        ]
        pool = workers.rollouts.pool
        for (prompt, seed), video in zip(self.pairs, videos, strict=True):
            data = await asyncio.to_thread(encode_mp4, await pool.fetch(video))
            await self._write(video_file(step, prompt.id, seed, average), data)
        await self._write(scores_file(step, average), _encoded(samples))
        self._report(step, samples, average)
        if step and average == (True in evaluated_kinds(self.config, step)):
            await self._raise_alarms(step, samples)
        return samples

    async def _write(self, name: str, data: bytes) -> None:
        """A store that fails for a while costs no sample: they wait for it."""
        write = partial(asyncio.to_thread, self.folder.write_bytes, name, data)
        await patiently(f"writing {name}", write, self.metrics.say)

    def _untrained(self) -> list[EvalSample] | None:
        return load_evaluation(self.folder, 0) if has_evaluation(self.folder, 0) else None

    def _sample(
        self, index: int, scores: SampleScores, second: dict[str, float] | str
    ) -> EvalSample:
        prompt, seed = self.pairs[index]
        total, _ = combine(scores.parts, self.config.rewards.weights, "main")
        raw = {**scores.raw, "proxy": proxy(scores.parts)}
        if not isinstance(second, str):
            raw |= {"gold": second["gold"], "gold_consistency": second["consistency"]}
        return EvalSample(prompt.id, prompt.text, seed, total, scores.parts, raw, prompt.c2w)

    async def _raise_alarms(self, step: int, samples: Sequence[EvalSample]) -> None:
        """Compare with the untrained policy; say and store what is wrong, if anything is."""
        from cluster.evaluation.alarms import find_alarms

        read = partial(asyncio.to_thread, self._untrained)
        untrained = await patiently("reading the first evaluation", read, self.metrics.say)
        if untrained is None:
            return
        alarms = find_alarms(
            untrained,
            samples,
            self.config.eval.max_fall,
            [(prompt.id, seed) for prompt, seed in self.pairs],
        )
        self.metrics.write(
            {"kind": "alarm", "step": step, "alarms": [asdict(alarm) for alarm in alarms]}
        )
        for alarm in alarms:
            self.metrics.say(f"ALARM after {step} steps: {alarm.text}")

    def _report(self, step: int, samples: Sequence[EvalSample], average: bool) -> None:
        names = sorted({name for sample in samples for name in sample.parts})
        row: dict[str, Any] = {
            "kind": evaluation_kind(average),
            "step": step,
            "reward": mean_spread(sample.total for sample in samples),
            "parts": {
                name: mean_spread(s.parts[name] for s in samples if name in s.parts)
                for name in names
            },
            "raw": {
                name: mean_spread(s.raw[name] for s in samples if name in s.raw)
                for name in SHOWN_RAW
            },
            "unscored": len(self.pairs) - len(samples),
            "proxy": mean_spread(s.raw["proxy"] for s in samples),
        }
        if self.config.eval.gold:
            found = [s.raw["gold"] for s in samples if "gold" in s.raw]
            row |= {"gold": mean_spread(found), "gold_failures": len(samples) - len(found)}
        self.metrics.write(row)
        parts = " ".join(f"{name} {row['parts'][name]['mean']:.3f}" for name in names)
        what = "averaged weights" if average else "eval"
        self.metrics.say(
            f"{what} after {step} steps: R {row['reward'].get('mean', float('nan')):.3f} | {parts} "
            f"({len(samples)} of {len(self.pairs)} pairs)"
        )


def _encoded(samples: Sequence[EvalSample]) -> bytes:
    rows = [
        {**asdict(sample), "parts": dict(sample.parts), "raw": dict(sample.raw)}
        for sample in samples
    ]
    return json.dumps(rows, indent=1).encode()


def proxy(parts: Mapping[str, float]) -> float:
    """S_recon + S_traj, or twice S_recon where no motion is requested: what gold is compared to."""
    return parts["recon"] + parts.get("traj", parts["recon"])
