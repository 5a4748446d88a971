"""`worldr1 evaluate SOURCE`: figures of a folder of videos or of a model, or of two."""

from __future__ import annotations

import argparse
import shutil
from typing import Any

from cluster.config import ConfigError
from cluster.storage import RunFolder, absolute_url


def add_evaluation_command(commands: Any) -> None:
    """Register the command with the subparsers of `worldr1`."""
    parser = commands.add_parser(
        "evaluate", help="3D consistency, camera, coherence, looks: videos or models, compared"
    )
    parser.add_argument("source", metavar="SOURCE", help="base, a run, an export, a folder of mp4")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. rollout.frames=49")
    parser.add_argument("--against", metavar="SOURCE", help="the other side, compared by pairs")
    parser.add_argument("--prompts", metavar="SET", help="to sample, or to name a folder's videos")
    parser.add_argument(
        "--pairs",
        type=int,
        metavar="N",
        help="that a model is sampled on (default: those of the folder beside it, else 22)",
    )
    parser.add_argument("--frames", type=int, metavar="N", help="only the first N, e.g. 49 or 121")
    parser.add_argument("--weights", choices=("ema", "raw"), help="which of a run's weights")
    parser.add_argument("--preset", metavar="NAME", help="default: that of the run, or toy")
    parser.add_argument("--vbench", metavar="PYTHON", help="of an environment with vbench")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="on Ray: N rollout workers, then the preset's reward workers",
    )
    parser.add_argument("--out", default="evaluation", metavar="DIR", help="default: evaluation")
    parser.set_defaults(command=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    if options.workers is not None and options.workers < 1:
        raise ConfigError(f"--workers {options.workers}; allowed: 1 or more")
    if options.workers is not None and options.device is not None:
        raise ConfigError("--device is of a sampler in this process; --workers samples on Ray")
    for name, value, least in (("pairs", options.pairs, 1), ("frames", options.frames, 3)):
        if value is not None and value < least:
            raise ConfigError(f"--{name} {value}; allowed: {least} or more")
    from cluster.evaluation.sources import config_of, find_source
    from cluster.runs import check_backends

    average = None if options.weights is None else options.weights == "ema"
    names = [options.source] + ([options.against] if options.against else [])
    sources = [find_source(name, average) for name in names]
    if average is not None and all(source.trained is None for source in sources):
        raise ConfigError("--weights chooses among a run's weights; no run is evaluated")
    if options.pairs is not None and all(source.videos is not None for source in sources):
        raise ConfigError("--pairs is of models that are sampled; all videos of a folder are taken")
    config = config_of(sources, options.preset, options.overrides)
    if options.vbench is not None and shutil.which(options.vbench) is None:
        raise ConfigError(
            f"--vbench {options.vbench!r} is no program; allowed: a python that has vbench"
        )
    check_backends(config.rewards)
    out = RunFolder(absolute_url(options.out))
    from cluster.evaluation.request import Request
    from cluster.evaluation.result import to_markdown
    from cluster.evaluation.run import evaluate
    from cluster.generate import default_device

    request = Request(
        sources=sources,
        config=config,
        prompts=options.prompts,
        pairs=options.pairs,
        frames=options.frames,
        vbench=options.vbench,
        device=options.device or default_device(),
        workers=options.workers,
    )
    print(to_markdown(evaluate(request, out, _say)))
    print(f"{out.url}: clips.csv, evaluation.json, evaluation.md, index.html")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)
