"""From a run to files that other programs load: adapter, merged pipeline, model card.

DIR/pytorch_lora_weights.safetensors   diffusers
DIR/comfyui_lora.safetensors           ComfyUI
DIR/pipeline/                          everything merged, on demand
DIR/README.md, DIR/training.json       model card; configuration, step, hashes
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from actors.trajectory import weights_checksum
from cluster.config import HUB_ID, REPOSITORY, ConfigError, RunConfig, resolve_model
from cluster.held_out import Gain, load_evaluation, paired_gains
from cluster.storage import SAMPLES, RunFolder, has_evaluation, scores_file
from cluster.weights import TRAINING, TrainedWeights, load_weights
from prompts.dataset import load_prompts

COMFY, PIPELINE, CARD = "comfyui_lora.safetensors", "pipeline", "README.md"
PARTIAL = ".export-"
"""Beginning of the name of a folder that is being written."""
TEMPLATES = Path(__file__).parent / "templates"
LICENCES = {
    "toyworld/model": {"id": "mit", "text": "MIT, trained in this project"},
    "Wan-AI/Wan2.1": {"id": "apache-2.0", "text": "Apache-2.0"},
}
"""Licence of a base model by the beginning of its name."""
UNKNOWN_LICENCE = {"id": "other", "text": "not known to this program; see its own card"}


def export_run(source: str, to: str, average: bool | None, merged: bool) -> TrainedWeights:
    """Write a run's newest weights below `to`, a path or URL; what was written.

    ConfigError in one sentence where there are none, `to` holds something else, or the model to
    merge with cannot be read; an export that was there is then left as it was.
    """
    trained, folder = load_weights(source, average), RunFolder(to)
    _require_free(folder)
    beside = Path(folder.root) if folder.is_local else None  # moved, not copied, where that can be
    try:
        if beside is not None:
            beside.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=beside))
    except OSError as error:
        raise ConfigError(f"--to {to} cannot be written: {error.strerror}") from None
    try:
        _write(trained, place, merged)
        _deliver(place, folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return trained


def _write(trained: TrainedWeights, place: Path, merged: bool) -> None:
    """All files of an export."""
    from actors.policy import DTYPES
    from learner.export import save_comfy, save_merged
    from learner.lora import save_adapter

    config = trained.config
    lora = config.policy.lora
    save_adapter(trained.weights, lora, place)
    save_comfy(trained.weights, lora, place / COMFY)
    if merged:
        model = resolve_model(config.policy.model)
        dtype = DTYPES[config.policy.dtype]
        try:
            save_merged(model, dtype, trained.weights, lora, place / PIPELINE)
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigError(f"--merged: {model!r} cannot be read or written: {reason}") from None
    data = {split: data_hash(config.prompts.sources[split]) for split in ("train", "dynamic")}
    training = {
        "step": trained.step,
        "average": trained.average,
        "weights_checksum": weights_checksum(trained.weights),
        "prompts": data,
        # Where the run lies on this machine is nobody's business.
        "config": json.loads(config.model_dump_json()) | {"run": trained.run_name},
    }
    (place / CARD).write_text(model_card(trained, data, merged), encoding="utf-8")
    (place / TRAINING).write_text(json.dumps(training, indent=1), encoding="utf-8")


def _deliver(place: Path, folder: RunFolder) -> None:
    """Move what was written to where it belongs, over an earlier export."""
    files = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    # First what only an export has, so that a folder is known as one from then on; last what says
    # that it is whole.
    files.sort(key=lambda name: {COMFY: -1, TRAINING: 1}.get(name, 0))
    for name in (TRAINING, PIPELINE):
        folder.remove(name)
    for name in files:
        if folder.is_local:
            target = Path(folder.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            (place / name).replace(target)
        else:
            folder.fs.put_file(str(place / name), folder.path(name))


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
        hub_id=model if is_hub_id(model) else None,
        licence=licence,
        merged=merged,
        data=data,
        gains=gains,
        evaluated=evaluated,
        embedded=_embedded(config),
    )


def is_hub_id(model: str) -> bool:
    """Whether a model's name is a hub's, not that of a directory here or elsewhere."""
    there = Path(model).exists() or (REPOSITORY / model).exists()
    return not there and re.fullmatch(HUB_ID, model) is not None


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


def _require_free(folder: RunFolder) -> None:
    """ConfigError unless the folder is new, empty, or an earlier export."""
    try:
        folder.require_writable()
    except ConfigError as error:
        raise ConfigError(str(error).replace("run =", "--to", 1)) from None
    names = {name.partition("/")[0] for name in folder.sizes("")}
    others = {name for name in names if not name.startswith(PARTIAL)}  # left by one that was killed
    if others and not others & {TRAINING, COMFY}:
        raise ConfigError(
            f"--to {folder.url} holds other files; allowed: a new folder, or an export"
        )
