"""The run's configuration: preset TOML -> override files -> `key=value`, one frozen tree.

Imports neither torch nor ray, so that a typing error is answered in a fraction of a second.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from actors.config import PolicyConfig, RolloutConfig
from cluster.sections import (
    CheckpointConfig,
    EvalConfig,
    MetricsConfig,
    PlacementConfig,
    RecordConfig,
    SupervisionConfig,
)
from learner.config import LearnerConfig, ScheduleConfig
from prompts.config import CameraConfig, PromptsConfig
from rewards.config import RewardConfig

REPOSITORY = Path(__file__).resolve().parent.parent
PRESETS = Path(__file__).resolve().parent / "presets"
OVERRIDES = PRESETS / "overrides"

LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
"""Where a Ray of this machine listens: Ray replaces 127.0.0.1 by the machine's outward address,
and leaves the rest of 127/8 alone."""

INTERRUPTED = 130
"""What shells report of a command that Ctrl-C ended."""

LOG_ROTATION = {"RAY_ROTATION_MAX_BYTES": str(64 << 20), "RAY_ROTATION_BACKUP_COUNT": "3"}
"""Environment of a Ray that is started here: its logs are rotated, and so many old ones kept."""

_FREE_TO_CHANGE = (
    "run",
    "steps",
    "checkpoint.",
    "record.",
    "eval.",
    "metrics.",
    "placement.",
    "supervision.",
    "rewards.artifacts.",
    "rewards.examine_every",
    "rewards.repeat_every",
    # Where, how and in what portions the same is computed; on a GPU the last bits are others then.
    "policy.text_encoder",
    "policy.cached_prompts",
    "policy.attention",
    "policy.compile",
    "policy.batched_guidance",
    "policy.vae_channels_last",
    "rollout.max_batch",
    "rollout.decode_batch",
    "learner.micro_batch",
    "learner.activation_checkpointing",
    "learner.replicate_frozen",
    "rewards.aesthetic.batch",
    # What a person turns down when a run diverges.
    "learner.learning_rate",
    # How long a scorer may take, how often it is asked, and where its server is.
    "learner.timeout_s",
    "rewards.timeout_s",
    "rewards.max_attempts",
    "rewards.judge.url",
    "rewards.judge.key_variable",
    "rewards.judge.concurrency",
    "rewards.judge.request_timeout_s",
    "rewards.judge.start_timeout_s",
    "rewards.judge.health_interval_s",
    "rewards.judge.tensor_parallel",
    "rewards.judge.gpu_memory",
    "rewards.judge.cache_gb",
)
_WORKERS = re.compile(r"\.(workers|ranks|min_workers|max_workers|cpus\w*|gpus\w*|env)$")


class ConfigError(ValueError):
    """A configuration that cannot run; its text is one sentence meant for the user."""


class RunStopped(RuntimeError):
    """A run that cannot go on, for a reason it understands; its text is meant for the user."""

    advice = "start the same command again: it goes on from the newest checkpoint"
    """What a person can do about it, in one clause."""


class RunConfig(BaseModel):
    """Everything a run is made of; `config.json` of a run holds exactly this."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str = Field(default="runs/latest", min_length=1)
    """Directory or fsspec URL of the run."""
    steps: int = Field(default=200, ge=0, le=10**9)
    """Optimizer steps."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Keys every random choice of the run."""
    max_staleness: int = Field(default=0, ge=0, le=64)
    """Versions that a rollout may lag behind; 0 is synchronous and deterministic."""
    threads: int = Field(default=1, ge=1, le=256)
    """CPU threads of every worker process; part of what decides a run's bits on a CPU."""
    policy: PolicyConfig = PolicyConfig()
    """The video model."""
    rollout: RolloutConfig = RolloutConfig()
    """Clips, sampler, batch."""
    camera: CameraConfig = CameraConfig()
    """Camera paths and noise transport."""
    rewards: RewardConfig = RewardConfig()
    """Scorers and their weights."""
    learner: LearnerConfig = LearnerConfig()
    """GRPO and its ranks."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Main and dynamic phases."""
    prompts: PromptsConfig = PromptsConfig()
    """Prompt sets."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Durability."""
    record: RecordConfig = RecordConfig()
    """Recordings of whole steps."""
    eval: EvalConfig = EvalConfig()
    """Held-out evaluation."""
    metrics: MetricsConfig = MetricsConfig()
    """Figures for machines."""
    placement: PlacementConfig = PlacementConfig()
    """Nodes."""
    supervision: SupervisionConfig = SupervisionConfig()
    """Deaths and elasticity."""

    @model_validator(mode="after")
    def _across(self) -> RunConfig:
        batch = self.rollout.groups_per_step * self.rollout.group_size
        if batch % self.learner.ranks:
            raise ValueError(
                f"learner.ranks = {self.learner.ranks} does not divide the batch of "
                f"rollout.groups_per_step x rollout.group_size = {batch} samples"
            )
        if batch % (self.learner.ranks * self.learner.updates_per_batch):
            raise ValueError(
                f"learner.updates_per_batch = {self.learner.updates_per_batch} does not divide "
                f"the {batch // self.learner.ranks} samples of each rank"
            )
        if self.rewards.min_group_size > self.rollout.group_size:
            raise ValueError(
                f"rewards.min_group_size = {self.rewards.min_group_size} is larger than "
                f"rollout.group_size = {self.rollout.group_size}; no group could ever train"
            )
        return self


def preset_names() -> tuple[str, ...]:
    """Names that `load` takes besides paths of TOML files."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.toml")))


def override_names() -> tuple[str, ...]:
    """Named override files that `--config` takes besides paths of TOML files."""
    return tuple(sorted(path.stem for path in OVERRIDES.glob("*.toml")))


def thread_environment(threads: int) -> dict[str, str]:
    """Variables, to be set before any import, that pin a process's maths libraries to threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def load(
    preset: str,
    overrides: Sequence[str] = (),
    files: Sequence[str] = (),
    run: str | None = None,
) -> RunConfig:
    """Resolve a preset name or TOML path, then named or own override files, then `--run`, then
    `key=value`: `worldr1 submit` appends those to commands that have a `--run`.

    Raises ConfigError with one sentence that names the field, the value and what is allowed.
    """
    tree = _read_toml(_toml_path("preset", preset, PRESETS, preset_names()))
    for file in files:
        _merge(tree, _read_toml(_toml_path("--config", file, OVERRIDES, override_names())))
    first = [] if run is None else [f"run={json.dumps(run)}"]
    return _overridden(tree, [*first, *overrides])


def overridden(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """A configuration under further `key=value`. ConfigError."""
    return _overridden(json.loads(config.model_dump_json()), overrides)


def with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """`config` with `key=value` over it; ConfigError as in `load`."""
    tree = json.loads(config.model_dump_json())
    for override in overrides:
        _merge(tree, _nest(*_parse_override(override)))
    return from_tree(tree)


def from_tree(tree: Mapping[str, Any]) -> RunConfig:
    """Validate a nested mapping, such as a run's `config.json`; ConfigError on the first fault."""
    try:
        # As JSON, where strict types still let an array be a tuple; TOML's dates become text.
        text = json.dumps(dict(tree), default=str)
        return RunConfig.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ConfigError(_sentence(error.errors()[0])) from None
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"the configuration cannot be read: {error}") from None


def to_json(config: RunConfig) -> str:
    """The resolved configuration as it is written to `RUN/config.json`."""
    return config.model_dump_json(indent=2)


def flatten(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> JSON value of every leaf."""
    return flatten_tree(json.loads(config.model_dump_json()))


def flatten_tree(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping to {"policy.lora.rank": 32, ...}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten_tree(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def fingerprint(config: RunConfig) -> dict[str, Any]:
    """The leaves that a resumed run may not change: everything that decides what is computed.

    Where the run is stored, its length, checkpointing, evaluation, metrics, supervision, number,
    size and environment of workers, what fits a computation into memory and time (sizes of passes,
    time limits), and the learning rate may differ between the first start and a resume.
    """
    return {key: value for key, value in flatten(config).items() if decides_results(key)}


def decides_results(key: str) -> bool:
    """Whether a resumed run may not change a leaf of the configuration."""
    return not key.startswith(_FREE_TO_CHANGE) and not _WORKERS.search(key)


def for_one_process(config: RunConfig) -> RunConfig:
    """The configuration with one worker of each kind, which is all that one process holds.

    Raises ConfigError for a scorer in an environment of its own; a judge's server is a process of
    its own anyway.
    """
    for family in ("reconstruction", "aesthetic"):
        environment = config.rewards.pools[family].env
        if environment:
            raise ConfigError(
                f"rewards.{family}.env = {environment!r} is not allowed with --local: one process "
                "has one Python environment; start without --local"
            )
    return config.model_copy(
        update={
            "learner": config.learner.model_copy(update={"ranks": 1, "gpus_per_rank": 0.0}),
            "rollout": config.rollout.model_copy(update={"workers": 1, "gpus_per_worker": 0.0}),
        }
    )


HUB_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
"""Of a model: owner/name."""


def resolve_model(model: str) -> str:
    """Where `policy.model` lies: a local directory, one inside this repository, or a hub id."""
    if Path(model).is_dir():
        return str(Path(model).resolve())
    if (REPOSITORY / model).is_dir():
        return str(REPOSITORY / model)
    if re.fullmatch(HUB_ID, model):
        return model
    raise ConfigError(
        f"policy.model = {model!r} is neither a directory nor a hub id of the form owner/name"
    )


def _toml_path(what: str, name: str, folder: Path, known: Sequence[str]) -> Path:
    """The file of a shipped name, or a path that ends in .toml."""
    if name.endswith(".toml"):
        return Path(name)
    if name not in known:
        raise ConfigError(
            f"{what} = {name!r} is unknown; allowed are {', '.join(known)} "
            "or the path of a .toml file"
        )
    return folder / f"{name}.toml"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"config file {str(path)!r} cannot be read: {reason}") from None
    except (ValueError, RecursionError) as error:  # numbers of 5,000 digits, 2,000 brackets
        raise ConfigError(f"config file {str(path)!r} is not valid TOML: {error}") from None


def _parse_override(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", key):
        raise ConfigError(f"override {text!r} is not of the form key=value, e.g. rollout.frames=9")
    # "none" unsets a key, unless it is the name of one of the key's choices.
    return key, value if value in _choices(key) else _parse_value(value)


def _choices(key: str) -> tuple[Any, ...]:
    """What a key's type lists by name; empty for other types and unknown keys."""
    annotation: Any = RunConfig
    for part in key.split("."):
        field = getattr(annotation, "model_fields", {}).get(part)
        annotation = field.annotation if field else None
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
    except (ValueError, RecursionError):
        return {"none": None, "null": None}.get(text.lower(), text)


def _overridden(tree: dict[str, Any], overrides: Sequence[str]) -> RunConfig:
    for override in overrides:
        key, value = _parse_override(override)
        _merge(tree, _nest(key, value))
    return from_tree(tree)


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _known_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        yield key
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_keys(field.annotation, f"{key}.")


def _sentence(error: ErrorDetails) -> str:
    """One readable sentence for pydantic's first complaint."""
    key = ".".join(str(part) for part in error["loc"] if not isinstance(part, int))
    shown = _shorten(error["input"])
    if error["type"] == "extra_forbidden":
        return f"key {key!r} is unknown{_suggestion(key, _known_keys())}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    message = error["msg"].removeprefix("Input should be ").rstrip(".")
    return f"{key} = {shown} is not allowed: it must be {message}"


def _suggestion(key: str, known: Iterable[str]) -> str:
    keys = list(known)
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    if not close:
        tail = key.rpartition(".")[2]
        close = [other for other in keys if other.rpartition(".")[2] == tail][:1]
    if close:
        return f"; did you mean {close[0]!r}?"
    top = ", ".join(RunConfig.model_fields)
    return f"; the top-level keys are {top}"


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
