"""A KubeRay `RayJob` manifest as a job for any Ray cluster: what to run, in which environment."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cluster.config import ConfigError

MAX_RETRIES = 100


@dataclass(frozen=True, slots=True)
class JobFile:
    """What Ray's Jobs API takes of a manifest; the cluster that it describes is KubeRay's."""

    entrypoint: str
    runtime_env: dict[str, Any]
    metadata: dict[str, str]
    retries: int
    """`spec.backoffLimit`: times that the command is started again after a failure."""
    job_id: str | None = None
    cpus: float | None = None
    gpus: float | None = None
    resources: dict[str, float] | None = None

    def extended(self, arguments: Sequence[str], working_dir: str | None) -> JobFile:
        """The same job with arguments added to its command, and a folder to upload."""
        if arguments and "\n" in self.entrypoint:
            raise ConfigError(
                "spec.entrypoint has several lines, to which nothing can be added: "
                f"{arguments[0]!r} belongs into the file"
            )
        command = f"{self.entrypoint} {shlex.join(arguments)}" if arguments else self.entrypoint
        environment = dict(self.runtime_env)
        if working_dir is not None:
            environment["working_dir"] = working_dir
        return replace(self, entrypoint=command, runtime_env=environment)


def read_job_file(path: str) -> JobFile:
    """The one RayJob of a YAML file of any number of documents. ConfigError in one sentence."""
    try:
        documents = list(yaml.safe_load_all(Path(path).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"job file {path!r} cannot be read: {reason}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"job file {path!r} is not valid YAML: {_one_line(error)}") from None
    jobs = [d for d in documents if isinstance(d, dict) and d.get("kind") == "RayJob"]
    if len(jobs) != 1:
        raise ConfigError(
            f"job file {path!r} has {len(jobs)} documents of kind RayJob; it must have exactly one"
        )
    spec = jobs[0].get("spec")
    if not isinstance(spec, dict):
        raise ConfigError(f"job file {path!r}: spec is missing or no mapping")
    return JobFile(
        # A block scalar ends with a newline, after which a shell would begin another command.
        entrypoint=_get(path, spec, "entrypoint", str, required=True).strip(),
        runtime_env=_runtime_env(path, spec),
        metadata={k: str(v) for k, v in (_get(path, spec, "metadata", dict) or {}).items()},
        retries=_retries(path, spec),
        job_id=_get(path, spec, "jobId", str),
        cpus=_get(path, spec, "entrypointNumCpus", (int, float)),
        gpus=_get(path, spec, "entrypointNumGpus", (int, float)),
        resources=_resources(path, spec),
    )


def _get(path: str, spec: dict[str, Any], key: str, kind: Any, required: bool = False) -> Any:
    value = spec.get(key)
    empty = value is None or (isinstance(value, str) and not value.strip())
    if (empty and required) or (not empty and not isinstance(value, kind)):
        names = {str: "text", dict: "a mapping", int: "a whole number"}.get(kind, "a number")
        raise ConfigError(f"job file {path!r}: spec.{key} = {value!r} is not allowed: {names}")
    return None if empty else value


def _retries(path: str, spec: dict[str, Any]) -> int:
    retries = _get(path, spec, "backoffLimit", int) or 0
    if not 0 <= retries <= MAX_RETRIES:
        raise ConfigError(
            f"job file {path!r}: spec.backoffLimit = {retries} is not allowed: 0 to {MAX_RETRIES}"
        )
    return int(retries)


def _runtime_env(path: str, spec: dict[str, Any]) -> dict[str, Any]:
    return _mapping(path, spec, "runtimeEnvYAML") or {}


def _resources(path: str, spec: dict[str, Any]) -> dict[str, float] | None:
    """`entrypointResources` is JSON in a string, of which YAML is a superset."""
    return _mapping(path, spec, "entrypointResources")


def _mapping(path: str, spec: dict[str, Any], key: str) -> dict[str, Any] | None:
    """The mapping that a string holds as YAML."""
    text = _get(path, spec, key, str)
    try:
        found = yaml.safe_load(text) if text else None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            f"job file {path!r}: spec.{key} is not valid YAML: {_one_line(error)}"
        ) from None
    if found is not None and not isinstance(found, dict):
        raise ConfigError(f"job file {path!r}: spec.{key} is no mapping")
    return found


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
