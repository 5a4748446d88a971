"""`worldr1 reproduce toy`: runs and evaluations until the page is whole; started again, it goes on.

OUT/plan.json                  what is reproduced; another plan is refused
OUT/runs/VARIANT-seedN/        a run each, resumed from its checkpoints
OUT/evaluations/NAME/          its evaluation; one that is there is not made again
OUT/reproduction.json, .md     the tables     OUT/index.html     the page, after every step
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.config import OVERRIDES, REPOSITORY, ConfigError, RunConfig, flatten_tree, load
from cluster.evaluation.reproduction import SETTINGS, VARIANTS, Variant
from cluster.evaluation.request import Request
from cluster.evaluation.result import Side, from_json
from cluster.evaluation.run import evaluate
from cluster.evaluation.sources import Source, find_source
from cluster.signals import sigterm_interrupts
from cluster.storage import RunFolder

PRESET = "toy"
PROMPTS = "toy_eval"
"""What is reported is measured on prompts that no run and no choice of settings looks at."""
PLAIN_NOISE = ("camera.strength=0.0",)
"""The base without noise transport: the untouched model."""
REFERENCES = ("base", "base-plain-noise", "base-untrained", "ceiling")
"""What is evaluated without being trained."""

NOT_FOR_EVERY_RUN = {
    "seed": "each run has its own",
    "steps": "--steps sets it",
    "run": "each run has its own folder",
    "learner.ema_decay": "the averaged weights are evaluated",
    "policy.model": "the ceiling's clips are of the toy world",
    "rollout.frames": "the ceiling's clips have the toy world's length",
    "rollout.height": "the ceiling's clips have the toy world's size",
    "rollout.width": "the ceiling's clips have the toy world's size",
    "camera.amplitudes": "the ceiling's clips are filmed along the toy world's paths",
}
"""Keys, or sections, that no override of every run may change, and why."""

Train = Callable[[Sequence[str]], int]
"""Runs `worldr1` with arguments to its end; its exit code."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the figures; stored beside them."""

    steps: int
    pairs: int
    overrides: tuple[str, ...] = ()

    def arguments(self, variant: Variant, seed: int, run: str) -> list[str]:
        """Arguments of `worldr1 train` for one run."""
        files = [arg for file in settings_files(variant) for arg in ("--config", file)]
        every = max(self.steps // 4, 1)
        keys = [f"steps={self.steps}", f"seed={seed}", "eval.prompts=22", f"eval.every={every}"]
        # Constant while the reward rises; then what is learned balances the noise of the gradient,
        # which settles as the steps get shorter.
        falling = max(self.steps // 2, 1)
        keys += [f"learner.decay_after={self.steps - falling}", f"learner.decay_updates={falling}"]
        keys += [*self.overrides, *variant.overrides, f"run={run}"]
        return ["train", PRESET, *keys, *files]

    def measured_by(self, overrides: Sequence[str], files: Sequence[str]) -> RunConfig:
        """What samples and scores a run: sampled as it was trained, but measured like every other,
        whatever scorers paid it."""
        config = load(PRESET, [*self.overrides, *overrides], files)
        return config.model_copy(update={"rewards": load(PRESET, self.overrides).rewards})


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a variant."""

    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """Of its folders."""
        return f"{self.variant.name}-seed{self.seed}"


def jobs(only: Sequence[str], seeds: int) -> list[Job]:
    """Runs in the order of their worth: the first seed of every variant, then the second, ...

    `only` names variants (all by default). ConfigError for an unknown one.
    """
    known = [variant.name for variant in VARIANTS]
    wrong = [name for name in only if name not in known]
    if wrong:
        raise ConfigError(f"--only {wrong[0]!r} is no variant; allowed: {', '.join(known)}")
    chosen = [variant for variant in VARIANTS if not only or variant.name in only]
    return [
        Job(variant, variant.seeds[place])
        for place in range(seeds)
        for variant in chosen
        if place < len(variant.seeds)
    ]


class Reproduction:
    """A reproduction in a folder, as far as it got."""

    def __init__(self, plan: Plan, out: RunFolder, say: Callable[[str], None]) -> None:
        """ConfigError where another plan's figures lie in `out`, or an override of every run would
        undo an ablation."""
        require_own_keys(plan.overrides)
        self.plan, self.out, self.say = plan, out, say
        settings = tomllib.loads((OVERRIDES / SETTINGS).read_text())
        mine = {
            "steps": plan.steps,
            "prompts": PROMPTS,
            "pairs": plan.pairs,
            "overrides": list(plan.overrides),
            "settings": settings,
        }
        if out.exists("plan.json"):
            theirs = json.loads(out.read_text("plan.json"))
            if theirs != mine:
                raise ConfigError(
                    f"{out.url!r} holds a reproduction with {theirs}, not {mine}; choose another "
                    "--out, or the same settings"
                )
        out.write_text("plan.json", json.dumps(mine))

    def references(self) -> None:
        """Evaluate what needs no training: the base, with the preset's noise transport, without any
        and with that of the runs, and the ceiling."""
        base = Source("base", None, None)
        self._evaluate("base", base, ())
        self._evaluate("base-plain-noise", base, PLAIN_NOISE)
        self._evaluate("base-untrained", base, (), [str(OVERRIDES / SETTINGS)])
        clips = f"{self.out.url}/ceiling"
        if not self._has("ceiling") and not self.out.exists("ceiling/videos.jsonl"):
            command = [sys.executable, "-m", "benchmarks.ceiling", "--out", clips]
            command += ["--prompts", PROMPTS, "--pairs", str(self.plan.pairs)]
            with sigterm_interrupts():
                done = subprocess.run(
                    command, cwd=REPOSITORY, capture_output=True, text=True, check=False
                )
            if done.returncode:
                last = (done.stderr.strip() or "no word").splitlines()[-1]
                raise ConfigError(f"the ceiling's clips could not be made: {last}")
        self._evaluate("ceiling", Source("ceiling", None, clips), ())

    def run(self, job: Job, train: Train) -> bool:
        """Train a job to its end and evaluate its averaged weights; False where training failed."""
        if not self._has(job.name):
            url = f"{self.out.url}/runs/{job.name}"
            code = train(self.plan.arguments(job.variant, job.seed, url))
            if code:
                self.say(f"{job.name}: training ended with exit code {code}")
                return False
            source = find_source(url, True)
            reached = source.trained.step if source.trained is not None else 0
            if reached != self.plan.steps:
                self.say(f"{job.name}: {reached} of {self.plan.steps} steps; it is not evaluated")
                return False
            files = settings_files(job.variant)
            self._evaluate(job.name, source, job.variant.overrides, files)
        return True

    def sides(self) -> dict[str, list[Side]]:
        """Every evaluated side by variant or reference, seeds in order. ConfigError where they were
        not measured by the same scorers."""
        found: dict[str, list[Side]] = {}
        scorers: dict[str, str] = {}
        for name, group in self._names():
            if self._has(name):
                text = self.out.read_text(f"evaluations/{name}/evaluation.json")
                evaluation = from_json(text)
                (side,) = evaluation.sides
                scorers = scorers or dict(evaluation.scorers)
                if evaluation.scorers != scorers:
                    raise ConfigError(
                        f"evaluations/{name} was measured by {dict(evaluation.scorers)}, others by "
                        f"{scorers}: they do not compare; remove it, and it is made again"
                    )
                folder = f"evaluations/{name}/videos/a"
                files = sorted(self.out.sizes(folder)) if side.clips else []
                by_stem = {Path(file).stem: file for file in files}
                videos = [by_stem.get(f"{c.prompt_id}_{c.seed}", "") for c in side.clips]
                found.setdefault(group, []).append(replace(side, title=name, videos=videos))
        return found

    def _names(self) -> Iterator[tuple[str, str]]:
        yield from ((name, name) for name in REFERENCES)
        yield from ((job.name, job.variant.name) for job in jobs((), 99))

    def _has(self, name: str) -> bool:
        return self.out.exists(f"evaluations/{name}/evaluation.json")

    def _evaluate(
        self, name: str, source: Source, overrides: Sequence[str], files: Sequence[str] = ()
    ) -> None:
        if self._has(name):
            return
        request = Request(
            sources=[source],
            config=self.plan.measured_by(overrides, files),
            prompts=PROMPTS,
            pairs=self.plan.pairs,
            frames=None,
            vbench=None,
            device="cpu",
        )
        evaluate(request, RunFolder(f"{self.out.url}/evaluations/{name}"), self.say)


def require_own_keys(overrides: Sequence[str]) -> None:
    """ConfigError for an override that would falsify a figure: of what all runs must share or may
    not share, or of a key that a variant sets, where it would have the last word."""
    keys = [override.partition("=")[0] for override in overrides]
    for key in keys:
        for fixed, reason in NOT_FOR_EVERY_RUN.items():
            if key == fixed or key.startswith(f"{fixed}."):
                raise ConfigError(f"{key} is no setting for a reproduction: {reason}")
    for variant in VARIANTS:
        own = [override.partition("=")[0] for override in variant.overrides]
        if variant.file is not None:
            own += flatten_tree(tomllib.loads((OVERRIDES / variant.file).read_text()))
        for key in keys:
            if key in own:
                raise ConfigError(
                    f"{key} is what {variant.name!r} changes; as key=value for every run it would "
                    "undo that ablation"
                )


def settings_files(variant: Variant) -> list[str]:
    """Paths of the override files of a run, in the order in which they apply."""
    names = [SETTINGS] if variant.file is None else [SETTINGS, variant.file]
    return [str(OVERRIDES / name) for name in names]
