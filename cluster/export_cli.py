"""`worldr1 export RUN --to DIR`: a run's weights for diffusers, ComfyUI and everyone else."""

from __future__ import annotations

import argparse
from typing import Any

from cluster.storage import RunFolder, absolute_url


def add_export_command(commands: Any) -> None:
    """Register the command with the subparsers of `worldr1`."""
    parser = commands.add_parser(
        "export", help="write a run's LoRA for diffusers and ComfyUI, with a model card"
    )
    parser.add_argument("run", metavar="RUN", help="directory or fsspec URL of the run")
    parser.add_argument("--to", required=True, metavar="DIR", help="directory, or URL by $TMPDIR")
    parser.add_argument(
        "--weights",
        choices=("ema", "raw"),
        help="the running average or the weights themselves (default: the average, if kept)",
    )
    parser.add_argument(
        "--merged", action="store_true", help="also write the whole pipeline, LoRA included"
    )
    parser.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> int:
    from cluster.export import export_run

    average = None if options.weights is None else options.weights == "ema"
    folder = RunFolder(absolute_url(options.to))
    trained = export_run(absolute_url(options.run), folder.url, average, options.merged)
    print(f"{options.to}: {trained.title}")
    names = (name.partition("/") for name in folder.sizes(""))
    for name in sorted({f"{first}{slash}" for first, slash, _ in names}):
        print(f"  {name}")
    return 0
