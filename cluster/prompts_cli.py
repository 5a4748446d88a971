"""`worldr1 prompts`: generate, check, measure and extend the text dataset."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from cluster.config import ConfigError


def add_prompts_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command group."""
    group = commands.add_parser("prompts", help="generate, check, measure, extend prompt sets")
    actions = group.add_subparsers(required=True, metavar="ACTION")
    generate = actions.add_parser("generate", help="write the text dataset from its grammar")
    generate.add_argument("--seed", type=_seed, default=0)
    generate.add_argument("--out", type=Path, required=True, metavar="DIR")
    generate.set_defaults(command=_generate)
    check = actions.add_parser("check", help="name every problem with file and line; exit 1 if any")
    check.add_argument("files", nargs="+", metavar="FILE", help=".jsonl or .txt, local or by URL")
    check.set_defaults(command=_check)
    stats = actions.add_parser("stats", help="balance, diversity, lengths, repetition")
    stats.add_argument("files", nargs="+", metavar="FILE")
    stats.set_defaults(command=_stats)
    enhance = actions.add_parser(
        "enhance", help="rewrite prompts as enhanced ones through an OpenAI-compatible endpoint"
    )
    enhance.add_argument("source", metavar="SOURCE", help="prompt set, file or URL to start from")
    enhance.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="a .jsonl; resumed"
    )
    enhance.add_argument("--url", required=True, help="base URL, such as http://127.0.0.1:8000/v1")
    enhance.add_argument("--model", required=True, help="model name that the endpoint serves")
    enhance.add_argument("--key-variable", default="OPENAI_API_KEY", metavar="NAME")
    enhance.add_argument("--attempts", type=int, default=4, help="tries per prompt")
    enhance.add_argument("--budget-tokens", type=int, default=1_000_000)
    enhance.add_argument("--concurrency", type=int, default=4)
    enhance.add_argument("--timeout-s", type=float, default=60.0)
    enhance.add_argument("--seed", type=_seed, default=0)
    enhance.set_defaults(command=_enhance)


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative; allowed: 0 or more")
    return value


def _generate(options: argparse.Namespace) -> int:
    from prompts.generator import write_sets

    started = time.perf_counter()
    try:
        sizes = write_sets(options.out, options.seed)
    except OSError as error:
        raise ConfigError(f"--out {str(options.out)!r} cannot be written: {error}") from None
    held = ", ".join(f"{name}.jsonl {size}" for name, size in sizes.items())
    print(f"{options.out}: {held} ({time.perf_counter() - started:.1f} s)")
    return 0


def _check(options: argparse.Namespace) -> int:
    from prompts.dataset import without_camera
    from prompts.prompt_files import read_prompt_file
    from prompts.quality import check_quality, text_dataset

    files = [read_prompt_file(path) for path in options.files]
    problems = [problem for file in files for problem in file.problems] + check_quality(files)
    for problem in problems:
        print(problem)
    prompts = sum(len(file.prompts) for file in files)
    gated = len(text_dataset(files))
    verdict = f"{len(problems)} problems" if problems else "ok"
    for file in files:
        for line in without_camera(file.prompts):
            print(f"{file.file}: {line}")
    print(f"{len(files)} files, {prompts} prompts, {gated} of them gated for quality: {verdict}")
    return 1 if problems else 0


def _stats(options: argparse.Namespace) -> int:
    from prompts.prompt_files import read_prompt_file
    from prompts.statistics import statistics_lines

    files = [read_prompt_file(path) for path in options.files]
    for file in files:
        if file.problems:
            raise ConfigError(str(file.problems[0]))
    for line in statistics_lines(files):
        print(line)
    return 0


def _enhance(options: argparse.Namespace) -> int:
    from prompts.dataset import load_prompts
    from prompts.enhance import EndpointConfig, EndpointRefused, enhance_prompts

    try:
        prompts = load_prompts(options.source)
        config = EndpointConfig(
            url=options.url,
            model=options.model,
            key_variable=options.key_variable,
            attempts=options.attempts,
            budget_tokens=options.budget_tokens,
            concurrency=options.concurrency,
            timeout_s=options.timeout_s,
            seed=options.seed,
        )
        tally = asyncio.run(enhance_prompts(prompts, options.out, config))
    except (ValueError, OSError, EndpointRefused) as error:
        raise ConfigError(" ".join(str(error).split())) from None
    print(tally)
    if tally.failed or tally.left:
        print("run the same command again to go on", file=sys.stderr)
        return 1
    return 0
