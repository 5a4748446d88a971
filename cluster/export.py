"""From a run to files that other programs load: adapter, merged pipeline, model card.

DIR/pytorch_lora_weights.safetensors   diffusers
DIR/comfyui_lora.safetensors           ComfyUI
DIR/pipeline/                          everything merged, on demand
DIR/README.md, DIR/training.json       model card; configuration, step, hashes
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from actors.trajectory import weights_checksum
from cluster.config import ConfigError, RunConfig, resolve_model
from cluster.held_out import Gain, load_evaluation, paired_gains
from cluster.storage import SAMPLES, RunFolder, has_evaluation, scores_file
from cluster.weights import ADAPTER, TRAINING, TrainedWeights, load_weights
from prompts.dataset import load_prompts

COMFY, PIPELINE, CARD = "comfyui_lora.safetensors", "pipeline", "README.md"
TEMPLATES = Path(__file__).parent / "templates"
LICENCES = {
    "toyworld/model": {"id": "mit", "text": "MIT, trained in this project"},
    "Wan-AI/Wan2.1": {"id": "apache-2.0", "text": "Apache-2.0"},
}
"""Licence of a base model by the beginning of its name."""
UNKNOWN_LICENCE = {"id": "other", "text": "not known to this program; see its own card"}


def export_run(source: str, to: Path, average: bool | None, merged: bool) -> TrainedWeights:
    """Write a run's newest weights below `to`; what was written.

    ConfigError in one sentence where there are none, or `to` holds something else.
    """
    trained = load_weights(source, average)
    _require_free(to)
    from actors.policy import DTYPES
    from learner.export import save_comfy, save_merged
    from learner.lora import save_adapter

    # An export that was there is none any more until this one is whole.
    (to / TRAINING).unlink(missing_ok=True)
    shutil.rmtree(to / PIPELINE, ignore_errors=True)
    config = trained.config
    lora = config.policy.lora
    save_adapter(trained.weights, lora, to)
    save_comfy(trained.weights, lora, to / COMFY)
    if merged:
        model = resolve_model(config.policy.model)
        save_merged(model, DTYPES[config.policy.dtype], trained.weights, lora, to / PIPELINE)
    data = {split: data_hash(config.prompts.sources[split]) for split in ("train", "dynamic")}
    training = {
        "step": trained.step,
        "average": trained.average,
        "weights_checksum": weights_checksum(trained.weights),
        "prompts": data,
        # Where the run lies on this machine is nobody's business.
        "config": json.loads(config.model_dump_json()) | {"run": trained.run_name},
    }
    (to / CARD).write_text(model_card(trained, data, merged), encoding="utf-8")
    # Last: a folder with this file is whole.
    (to / TRAINING).write_text(json.dumps(training, indent=1), encoding="utf-8")
    return trained


def data_hash(source: str) -> dict[str, Any]:
    """What a prompt source holds: its name, its number of prompts, the SHA-256 of their lines.

    The hash is None where the source cannot be read any more: weights outlive files.
    """
    try:
        prompts = load_prompts(source)
    except (ValueError, OSError):
        return {"source": source, "prompts": None, "sha256": None}
    lines = "".join(f"{p.model_dump_json(by_alias=True)}\n" for p in prompts)
    return {
        "source": source,
        "prompts": len(prompts),
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }


def model_card(trained: TrainedWeights, data: Mapping[str, Any], merged: bool) -> str:
    """The card in Markdown, with the front matter that model hubs read."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    config = trained.config
    model = config.policy.model
    licence = next((v for k, v in LICENCES.items() if model.startswith(k)), UNKNOWN_LICENCE)
    gains, evaluated = _measured(trained)
    return environment.get_template("model_card.md.j2").render(
        name=f"World-R1 LoRA, {trained.run_name}",
        config=config,
        trained=trained,
        kind="running average of the weights" if trained.average else "weights",
        checksum=weights_checksum(trained.weights),
        hub_id=model if not model.startswith("toyworld") and not Path(model).exists() else None,
        licence=licence,
        merged=merged,
        data=data,
        gains=gains,
        evaluated=evaluated,
        embedded=_embedded(config),
    )


def _embedded(config: RunConfig) -> list[str]:
    """The scorers of a run that are weight-free."""
    rewards = config.rewards
    scorers = {
        "reconstruction": rewards.reconstruction.backend,
        "judge": rewards.judge.backend,
        "aesthetic": rewards.aesthetic.backend,
    }
    return [name for name, backend in scorers.items() if backend in ("embedded", "photometric")]


def _measured(trained: TrainedWeights) -> tuple[Sequence[Gain], int]:
    """Paired gains of the newest evaluation of such weights up to their step, and its step."""
    folder = RunFolder(trained.source)
    name = scores_file(0, trained.average).rpartition("/")[2]
    found = (int(n.split("/")[-2].removeprefix("step_")) for n in folder.find(SAMPLES, name))
    steps = sorted((step for step in found if 0 < step <= trained.step), reverse=True)
    if not steps or not has_evaluation(folder, 0):
        return [], 0
    before = load_evaluation(folder, 0)
    after = load_evaluation(folder, steps[0], trained.average)
    return (paired_gains(before, after) if before and after else []), steps[0]


def _require_free(to: Path) -> None:
    """ConfigError unless the folder is new, empty, or an earlier export."""
    try:
        to.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in to.iterdir()}
    except OSError as error:
        raise ConfigError(f"--to {to} cannot be written: {error.strerror}") from None
    if names and TRAINING not in names and ADAPTER not in names:
        raise ConfigError(f"--to {to} holds other files; allowed: a new folder, or an export")
