"""The smallest run, really trained in this process, for tests of what is done with its weights."""

from __future__ import annotations

from pathlib import Path

from cluster.config import RunConfig, load
from cluster.runs import in_this_process, run_training
from tests.cluster.conftest import SMALLEST


def train_smallest(folder: Path, *overrides: str) -> RunConfig:
    """Two steps at a rate that moves the weights far, with evaluations before and after."""
    moved = ("steps=2", "eval.prompts=2", "learner.learning_rate=0.02")
    config = load("toy", [*SMALLEST, *moved, *overrides, f"run={folder / 'run'}"])
    run_training(config, in_this_process, say=lambda line: None)
    return config
