"""`worldr1 generate --prompt TEXT`: videos of the untrained model, a run's, or an export's."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.camera_cli import camera_words
from cluster.config import ConfigError, RunConfig, load, with_overrides
from cluster.storage import RunFolder, absolute_url

if TYPE_CHECKING:
    from cluster.weights import TrainedWeights
    from prompts.schema import Prompt


SHOWN = 20
"""Prompts whose understood camera is printed."""


def add_generate_command(commands: Any) -> None:
    """Register the command with the subparsers of `worldr1`."""
    parser = commands.add_parser("generate", help="sample videos, with or without a trained LoRA")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. rollout.frames=17")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="repeatable")
    parser.add_argument("--prompts", metavar="SOURCE", help="a prompt set, e.g. toy_test[:8]")
    parser.add_argument("--lora", metavar="DIR", help="a run, or what `worldr1 export` wrote")
    parser.add_argument(
        "--weights",
        choices=("ema", "raw", "none"),
        help="which of a run's weights; none: the untrained policy under the run's settings",
    )
    parser.add_argument("--preset", metavar="NAME", help="default: that of the LoRA, or toy")
    parser.add_argument("--camera", type=Path, metavar="JSON", help="c2w matrices instead of words")
    parser.add_argument("--seed", type=int, default=0, help="of the first sample of each prompt")
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="videos per prompt")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is one"
    )
    parser.add_argument("--out", default="generated", metavar="DIR", help="default: generated")
    parser.set_defaults(command=_generate)


def _generate(options: argparse.Namespace) -> int:
    if options.seed < 0 or options.samples < 1:
        raise ConfigError(
            f"--seed {options.seed} --samples {options.samples}; allowed: 0 or more, 1 or more"
        )
    trained = _trained(options)
    config = _config(options, trained)
    prompts = _prompts(options, config)
    samples = [
        (prompt, options.seed + number) for prompt in prompts for number in range(options.samples)
    ]
    folder = RunFolder(absolute_url(options.out))
    folder.require_writable()
    for prompt in prompts[:SHOWN]:
        print(f"{prompt.id}: {camera_words(prompt)}", flush=True)
    if len(prompts) > SHOWN:
        print(f"and {len(prompts) - SHOWN} more prompts", flush=True)
    from rich.console import Console
    from rich.progress import Progress

    from cluster.generate import SHEET, default_device, generate, load_policy, network_passes

    weights = None if options.weights == "none" else trained
    policy = load_policy(config, weights, options.device or default_device())
    title = weights.title if weights else f"{config.policy.model}, untrained"
    print(f"{len(samples)} videos of {len(prompts)} prompts: {title}", flush=True)
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("denoising", total=network_passes(config, len(samples)))
        generate(policy, config, samples, folder, title, lambda: progress.advance(task))
    print(f"{folder.url}: {len(samples)} videos, videos.jsonl, {SHEET}")
    return 0


def _trained(options: argparse.Namespace) -> TrainedWeights | None:
    if options.lora is None:
        if options.weights is not None:
            raise ConfigError("--weights chooses among a run's weights; it needs --lora RUN")
        return None
    from cluster.weights import load_weights

    average = {"ema": True, "raw": False}.get(options.weights)
    return load_weights(absolute_url(options.lora), average)


WITHOUT_EFFECT = {
    "seed": "--seed keys the noise",
    "rollout.sampling_steps": "rollout.eval_sampling_steps is how many steps a video takes",
}


def _config(options: argparse.Namespace, trained: TrainedWeights | None) -> RunConfig:
    """The preset where one is named, else the configuration that the LoRA was trained under.
    ConfigError for a key that changes nothing here."""
    for key in (override.partition("=")[0] for override in options.overrides):
        why = WITHOUT_EFFECT.get(key)
        if trained is not None and key.startswith("policy.lora."):
            why = "an adapter is applied as it was trained"
        if why:
            raise ConfigError(f"{key} changes no video: {why}")
    if trained is None or options.preset is not None:
        return load(options.preset or "toy", options.overrides)
    return with_overrides(trained.config, options.overrides)


def _prompts(options: argparse.Namespace, config: RunConfig) -> list[Prompt]:
    from cluster.camera_cli import text_prompt, with_camera
    from prompts.dataset import load_prompts

    asked = [text_prompt(f"prompt-{i + 1}", text) for i, text in enumerate(options.prompt)]
    if options.prompts is not None:
        try:
            asked += load_prompts(options.prompts)
        except (ValueError, OSError) as error:
            raise ConfigError(f"--prompts {options.prompts!r} cannot be used: {error}") from None
    if not asked:
        raise ConfigError('nothing to generate; give --prompt "TEXT" or --prompts SOURCE')
    twice = [id for id, count in Counter(prompt.id for prompt in asked).items() if count > 1]
    if twice:
        raise ConfigError(f"two prompts have the id {twice[0]!r}, which names their files")
    return [with_camera(config, prompt, options.camera) for prompt in asked]
