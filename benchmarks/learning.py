"""Does it learn? Paired held-out gains of whole runs: `python -m benchmarks.learning`.

Per seed: the toy preset in one process, held-out (prompt, noise) pairs sampled by the ODE before
and after. Controls: rewards replaced by noise (nothing may rise significantly), learning rate 0
(nothing may move). The baseline of every row is the untrained policy on the same pairs, in the same
run. Takes hours on two cores; `--quick` shows the mechanics.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from scipy.stats import ttest_1samp

from actors.seeds import keyed_generator
from benchmarks.results import Result, machine, write
from cluster.config import RunConfig, for_one_process, load
from cluster.evaluate import Evaluator
from cluster.held_out import EvalSample, Gain, gains_table, load_evaluation, paired_gains
from cluster.metrics import MetricsLog
from cluster.pool import Ref
from cluster.pools import Rewards, SampleScores, Workers
from cluster.runs import in_this_process, run_training
from cluster.storage import RunFolder
from learner.schedule import Phase
from prompts.dataset import load_prompts
from prompts.schema import Prompt
from rewards.reconstruct.photometric import VERSION

GUARDED = ("sharpness", "motion", "content")
MAX_FALL = 0.10
LEVEL = 0.05
"""One-sided error rate of every verdict; the control's is shared by all figures it looks at."""
NOISE_RUNS = ("noise rewards 0", "noise rewards 1", "noise rewards 2")


class NoiseRewards(Rewards):
    """Scores whose parts are uniform noise, keyed on the order of the calls.

    One sample per prompt and phase is scored really, to know the parts; the videos of the others
    are not looked at.
    """

    def __init__(self, rewards: Rewards) -> None:
        self.pools, self.config, self._calls = rewards.pools, rewards.config, 0
        self._like: dict[tuple[Phase, str], SampleScores] = {}

    async def score(
        self, video: Ref, prompt: Prompt, phase: Phase, keep_artifacts: bool = False
    ) -> SampleScores:
        """Scores of the phase's kinds with every part replaced."""
        self._calls += 1
        call = self._calls  # others count on while this one waits
        scores = self._like.get((phase, prompt.id))
        if scores is None:
            scores = await super().score(video, prompt, phase, keep_artifacts)
            if not scores.failures:
                self._like[phase, prompt.id] = scores
        import torch

        generator = keyed_generator("noise rewards", call)
        noisy = {
            kind: replace(
                score,
                parts={name: float(torch.rand((), generator=generator)) for name in score.parts},
            )
            for kind, score in scores.scores.items()
        }
        return replace(scores, scores=noisy)


@contextlib.contextmanager
def with_noise_rewards(config: RunConfig) -> Iterator[Workers]:
    """Workers in this process whose rewards are noise."""
    with in_this_process(config) as workers:
        yield replace(workers, rewards=NoiseRewards(workers.rewards))


Evaluation = tuple[list[EvalSample], list[EvalSample]]


def run_and_evaluate(config: RunConfig, noise: bool) -> Evaluation:
    """Train a run; its first and last weights' held-out samples under the real rewards."""
    unevaluated = config.model_copy(
        update={"eval": config.eval.model_copy(update={"prompts": 0, "every": 0})}
    )
    say = lambda line: print(line, flush=True)  # noqa: E731
    state = run_training(unevaluated, with_noise_rewards if noise else in_this_process, say)
    folder = RunFolder(config.run)
    metrics = MetricsLog(folder, config.steps, state.step, say)
    evaluator = Evaluator(config, load_prompts(config.prompts.test), folder, metrics)

    async def both(workers: Workers) -> None:
        await evaluator.evaluate(0, await workers.learner.publish(0, "base"), workers)
        await workers.learner.load(f"{config.run}/checkpoints/step_{config.steps:06d}/learner")
        last = await workers.learner.publish(config.steps, "trained")
        await evaluator.evaluate(config.steps, last, workers)

    with in_this_process(config) as workers:
        asyncio.run(both(workers))
    return load_evaluation(folder, 0), load_evaluation(folder, config.steps)


def rising(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rewards that rise significantly over the runs with noise for rewards.

    The unit is the run: all pairs of a run share one set of weights, and any change of weights
    moves them together. One-sided t-test of the runs' mean gains, Bonferroni's correction over the
    figures.
    """
    gains: dict[str, list[float]] = {}
    for row in rows:
        for gain in row["gains"]:
            if gain["name"] not in GUARDED:
                gains.setdefault(gain["name"].strip(), []).append(gain["gain"])
    level = LEVEL / len(gains)
    return [
        name
        for name, values in gains.items()
        if ttest_1samp(values, 0.0, alternative="greater").pvalue < level
    ]


def judge(name: str, gains: Sequence[Gain]) -> list[tuple[str, bool]]:
    """Goals of one run and whether they are met; runs on noise are judged together."""
    by_name = {gain.name.strip(): gain for gain in gains}
    total = by_name["total reward"]
    if name == "learning rate 0":
        return [("nothing moves", all(gain.gain == 0 for gain in gains))]
    if name in NOISE_RUNS:
        return []
    goals = [(f"total reward rises, 95 % bound {total.lower:+.3f} > 0", total.lower > 0)]
    for guard in GUARDED:
        gain = by_name[guard]
        change = gain.gain / abs(gain.before)
        goals.append((f"{guard} {change:+.1%} falls less than 10 %", change > -MAX_FALL))
    return goals


def main() -> int:
    """Run, print the tables, write the JSON; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=66)
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate")
    parser.add_argument("--only", nargs="*", help="names of runs, e.g. 'seed 1'")
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="wr1-learning-"))
    small = ["steps=2", "eval.prompts=4", "rollout.groups_per_step=1"] if options.quick else []
    sizes = [f"steps={options.steps}", f"eval.prompts={options.pairs}"]
    sizes.append(f"learner.learning_rate={options.rate}")
    sizes.append("rewards.repeat_every=0")  # noise rewards are keyed on the order of all scorings
    runs = {f"seed {seed}": [f"seed={seed}"] for seed in (0, 1, 2)}
    runs |= {name: [f"seed={seed}"] for seed, name in enumerate(NOISE_RUNS)}
    runs |= {"learning rate 0": ["learner.learning_rate=0", "steps=2"]}
    rows, missed = [], 0
    for name, extra in runs.items():
        if options.only and name not in options.only:
            continue
        folder = f"run={work / name.replace(' ', '_')}"
        config = for_one_process(load("toy", [*sizes, *options.overrides, *extra, *small, folder]))
        gains = paired_gains(*run_and_evaluate(config, noise=name in NOISE_RUNS))
        goals = judge(name, gains)
        missed += sum(not met for _, met in goals)
        print(f"\n== {name}, {config.steps} steps\n{gains_table(gains)}")
        for goal, met in goals:
            print(f"{'met   ' if met else 'MISSED'} {goal}", flush=True)
        rows.append(
            {
                "run": name,
                "steps": config.steps,
                "learning_rate": config.learner.learning_rate,
                "reconstructor": VERSION,
                "gains": [asdict(g) | {"gain": g.gain} for g in gains],
                "goals": [{"goal": goal, "met": met} for goal, met in goals],
            }
        )
    if options.json:
        rows = write(options.json, Result("learning", machine(), rows))
    control = [row for row in rows if row["run"] in NOISE_RUNS]
    if len(control) == len(NOISE_RUNS):
        found = rising(control)
        missed += bool(found)
        print(f"noise rewards: rising significantly: {', '.join(found) or 'nothing'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
