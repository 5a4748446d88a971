"""Trained weights by name: a run's newest checkpoint, or a folder that `worldr1 export` wrote.

RUN        config.json, checkpoints/    the weights, or their running average
EXPORT     pytorch_lora_weights.safetensors, training.json    the one that was exported
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.checkpoint import CheckpointStore
from cluster.config import ConfigError, RunConfig, from_tree
from cluster.storage import RunFolder, stored_config

if TYPE_CHECKING:
    from actors.trajectory import LoraWeights

ADAPTER, TRAINING = "pytorch_lora_weights.safetensors", "training.json"
"""Files of an exported folder: weights as diffusers names them, and where they come from."""


@dataclass(frozen=True, slots=True)
class TrainedWeights:
    """Adapter weights and the run that trained them."""

    source: str
    """Path or URL that they were read from."""
    config: RunConfig
    """Of the run."""
    step: int
    """Optimizer steps done."""
    average: bool
    """Whether they are the running average of the weights."""
    weights: LoraWeights
    """Float32 tensors by `actors.lora.lora_parameters`' names."""

    @property
    def run_name(self) -> str:
        """The last part of the run's URL."""
        return self.config.run.rstrip("/").rpartition("/")[2]

    @property
    def title(self) -> str:
        """What they are, for captions and logs."""
        kind = "averaged weights" if self.average else "weights"
        return f"{kind} after {self.step} steps of {self.run_name}"


def with_adapter(config: RunConfig, trained: TrainedWeights | None) -> RunConfig:
    """A configuration that samples weights: `config`, with the adapter as it was trained. Of its
    scale, alpha / rank, the weights themselves say nothing."""
    if trained is None:
        return config
    policy = config.policy.model_copy(update={"lora": trained.config.policy.lora})
    return config.model_copy(update={"policy": policy})


def load_weights(source: str, average: bool | None = None) -> TrainedWeights:
    """Weights of a run or of an exported folder, by path or URL.

    `average` None means: those of a run's running average where it keeps one (`learner.ema_decay`
    above 0); an export holds the one kind that it was made of. ConfigError in one sentence where
    there is none of that kind, or its files are damaged.
    """
    folder = RunFolder(source)
    if folder.exists(ADAPTER):
        return _exported(folder, average)
    if not folder.exists("config.json"):
        raise ConfigError(
            f"{source!r} holds no trained weights; allowed: a run (config.json, checkpoints/) or a "
            f"folder that `worldr1 export` wrote ({ADAPTER})"
        )
    config = stored_config(folder)
    if average is None:
        average = config.learner.ema_decay > 0
    elif average and not config.learner.ema_decay:
        raise ConfigError(
            f"run {source!r} keeps no average of its weights (learner.ema_decay = 0); "
            "only the raw ones can be read"
        )
    return _checkpointed(folder, config, average)


def _checkpointed(folder: RunFolder, config: RunConfig, average: bool) -> TrainedWeights:
    found = CheckpointStore(folder.url).newest_valid()
    if found.checkpoint is None:
        damaged = f"; the newest is damaged: {found.skipped[0].reason}" if found.skipped else ""
        raise ConfigError(f"run {folder.url!r} has no whole checkpoint{damaged}")
    from actors.trajectory import weights_checksum
    from learner.fsdp import read_section
    from learner.lora import to_numpy

    state = found.checkpoint.state
    try:
        tensors = read_section(found.checkpoint.learner_url, "average" if average else "lora")
    except (OSError, KeyError) as error:
        raise ConfigError(
            f"the checkpoint of step {state.step} of {folder.url!r} cannot be read: {error}"
        ) from None
    weights = to_numpy(dict(sorted(tensors.items())))
    if not average and weights_checksum(weights) != state.weights_checksum:
        raise ConfigError(
            f"the checkpoint of step {state.step} of {folder.url!r} holds other weights than its "
            "state.json names"
        )
    return TrainedWeights(folder.url, config, state.step, average, weights)


def _exported(folder: RunFolder, average: bool | None) -> TrainedWeights:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    from actors.trajectory import weights_checksum

    try:
        training = json.loads(folder.read_text(TRAINING))
        config = from_tree(training["config"])
        step, averaged = int(training["step"]), bool(training["average"])
        checksum = str(training["weights_checksum"])
        stored = load(folder.read_bytes(ADAPTER))
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise ConfigError(
            f"{folder.url!r} cannot be read as an export: {type(error).__name__}: {error}"
        ) from None
    if average is not None and average != averaged:
        held = "averaged" if averaged else "raw"
        raise ConfigError(f"the export {folder.url!r} holds the {held} weights alone")
    weights = {name.removeprefix("transformer."): array for name, array in stored.items()}
    weights = dict(sorted(weights.items()))
    if weights_checksum(weights) != checksum:
        raise ConfigError(
            f"the export {folder.url!r} holds other weights in {ADAPTER} than its {TRAINING} names"
        )
    return TrainedWeights(folder.url, config, step, averaged, weights)
