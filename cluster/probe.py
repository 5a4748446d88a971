"""What a node is: looked at by a function that runs there, on any Python with fsspec.

Producer of `NodeReport`: every node of the cluster (`cluster.handles`), or this machine. Consumer:
`cluster.doctor.diagnose`. Nothing here judges; what could not be learnt says why.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rewards.environments import Family, first_problem
from rewards.weights import is_hub_id

TIMEOUT_S = 10.0
NONE = "none"
"""Version of a package that is not there."""


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """What to look for."""

    model: str
    """Directory or hub id of the policy."""
    run: str
    """URL of the run, for a round trip to its store; empty: none."""
    environments: Mapping[Family, str] = field(default_factory=dict)
    """Folder of the Python environment by reward family."""
    meeting_point: str = ""
    """host:port that the node must be able to reach; empty: none."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Other weights by configuration key: a path, a hub id or a file's URL."""
    packages: tuple[str, ...] = ()
    """Distributions that this Python must have."""
    sign: str = ""
    """File in the run's folder that the coordinator wrote, and that the node must see; empty:
    none."""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What was found on one node."""

    node: str
    """Its address, as people know it."""
    python: str
    ray: str
    time: float
    """Unix time when the report was made."""
    gpus: tuple[tuple[str, int], ...] = ()
    """Name and bytes of memory of each GPU that the driver shows."""
    driver: str = ""
    """Version of the NVIDIA driver, or empty."""
    driver_problem: str = ""
    model_problem: str = ""
    weights_problems: Mapping[str, str] = field(default_factory=dict)
    """By configuration key."""
    disk_free: int = 0
    """Bytes free where temporary files go."""
    cache_free: int = 0
    """Bytes free where downloaded weights go."""
    one_disk: bool = False
    """Whether both go to the same file system."""
    to_fetch: int = 0
    """Bytes of weights that are still to be downloaded, of the policy and of the scorers; what the
    servers did not say counts as 0."""
    store_problem: str = ""
    store_s: float = 0.0
    """Seconds of a write, read and removal in the run's folder."""
    environment_problems: Mapping[str, str] = field(default_factory=dict)
    packages_missing: tuple[str, ...] = ()
    port_problem: str = ""
    compilers_missing: tuple[str, ...] = ()
    """Of what gsplat compiles its kernels with at its first use."""
    auth_mode: str = ""
    """RAY_AUTH_MODE of its processes."""


def probe(request: ProbeRequest) -> NodeReport:
    """Look at the node that this runs on."""
    gpus, driver, driver_problem = probe_gpus()
    store_problem, store_s = probe_store(request.run, request.sign) if request.run else ("", 0.0)
    policy, scorers = probe_model(request.model), probe_weights(request.weights)
    return NodeReport(
        node=socket.gethostname(),
        python=platform.python_version(),
        ray=_version("ray"),
        gpus=gpus,
        driver=driver,
        driver_problem=driver_problem,
        model_problem=policy.problem,
        weights_problems={key: w.problem for key, w in scorers.items() if w.problem},
        disk_free=shutil.disk_usage(tempfile.gettempdir()).free,
        cache_free=shutil.disk_usage(_above(_cache())).free,
        one_disk=os.stat(tempfile.gettempdir()).st_dev == os.stat(_above(_cache())).st_dev,
        to_fetch=policy.to_fetch + sum(weights.to_fetch for weights in scorers.values()),
        store_problem=store_problem,
        store_s=store_s,
        environment_problems=probe_environments(request.environments),
        packages_missing=tuple(p for p in request.packages if _version(p) == NONE),
        port_problem=probe_port(request.meeting_point) if request.meeting_point else "",
        compilers_missing=missing_compilers(),
        auth_mode=os.environ.get("RAY_AUTH_MODE", ""),
        time=time.time(),
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return NONE


def _caches() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))


def _cache() -> Path:
    """Where downloaded weights go."""
    home = Path(os.environ.get("HF_HOME", _caches() / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub"))


def _above(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _cached(model: str) -> bool:
    folder = _cache() / f"models--{model.replace('/', '--')}"
    return any(folder.glob("snapshots/*")) and not any(folder.glob("blobs/*.incomplete"))


def probe_gpus() -> tuple[tuple[tuple[str, int], ...], str, str]:
    """GPUs, driver version, and why there is none. By the driver's own program, without torch."""
    command = [
        "nvidia-smi",
        "--query-gpu=name,memory.total,driver_version",
        "--format=csv,noheader",
    ]
    try:
        answer = subprocess.run(
            [*command[:-1], "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        ).stdout
    except FileNotFoundError:
        return (), "", "there is no nvidia-smi"
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stdout", "") or getattr(error, "stderr", "") or str(error)
        return (), "", f"nvidia-smi failed: {' '.join(str(said).split())[:120]}"
    rows = [line.split(", ") for line in answer.strip().splitlines()]
    gpus = tuple((name, int(mebibytes) * 2**20) for name, mebibytes, _ in rows)
    return gpus, rows[0][2] if rows else "", "" if rows else "the driver shows no GPU"


class Weights(NamedTuple):
    """Whether weights can be had on a node."""

    problem: str = ""
    """Why not; empty where they can."""
    to_fetch: int = 0
    """Bytes that are still to be downloaded."""


def probe_model(model: str) -> Weights:
    """The policy's weights: a directory or a hub id."""
    if os.path.isabs(model) or model.startswith("."):
        there = (Path(model) / "transformer" / "config.json").is_file()
        return Weights("" if there else f"{model} is no model directory here")
    return _on_hub(model)


def probe_weights(wanted: Mapping[str, str]) -> dict[str, Weights]:
    """Other weights, by their configuration key."""
    return {key: _weights(value) for key, value in wanted.items()}


def _weights(value: str) -> Weights:
    if value.startswith("https://"):
        return _in_torch_home(value)
    if Path(value).expanduser().exists():
        return Weights()
    return _on_hub(value) if is_hub_id(value) else Weights(f"{value} is not here")


def _on_hub(model: str) -> Weights:
    cache = _cache()
    if _cached(model):
        return Weights()
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return Weights(
            f"{model} is not in the cache {cache}, and HF_HUB_OFFLINE = 1 forbids to fetch it"
        )
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        asked = urllib.request.Request(f"{endpoint}/api/models/{model}?blobs=true")
        if token := os.environ.get("HF_TOKEN"):
            asked.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as answer:
            files = json.load(answer).get("siblings", [])
    except urllib.error.HTTPError as error:
        return Weights(f"{endpoint} answers {error.code} for {model}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Weights(
            f"{model} is not in the cache {cache}, and {endpoint} is not reached: {reason}"
        )
    # Nothing else is read from a hub.
    sizes = [f.get("size") or 0 for f in files if f.get("rfilename", "").endswith(".safetensors")]
    return Weights(_write_problem(cache), sum(sizes))


def _in_torch_home(url: str) -> Weights:
    """A file that torch.hub fetches."""
    home = Path(os.environ.get("TORCH_HOME", _caches() / "torch"))
    file = home / "hub/checkpoints" / url.rpartition("/")[2]
    if file.is_file():
        return Weights()
    try:
        asked = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            return Weights(_write_problem(file.parent), size)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Weights(f"{file} is not there, and {url} is not reached: {reason}")


def _write_problem(folder: Path) -> str:
    """Why nothing can be written into a folder that may have to be made; by writing, since a
    volume's mode says little of what its server allows."""
    try:
        with tempfile.TemporaryFile(dir=_above(folder)):
            return ""
    except OSError as error:
        return f"downloads go to {folder}, which cannot be written: {error.strerror}"


def probe_store(run: str, sign: str = "") -> tuple[str, float]:
    """Look for the coordinator's `sign` in the run's folder; write, read and remove a probe there:
    what went wrong, and the seconds."""
    from cluster.config import ConfigError
    from cluster.storage import RunFolder

    started = time.perf_counter()
    name = f".doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        folder = RunFolder(run)
        if sign and not folder.exists(sign):
            return f"{run} is another folder here: what the coordinator wrote is not in it", 0.0
        folder.write_bytes(name, b"probe")
        if folder.read_bytes(name) != b"probe":
            return f"{run} gives back other bytes than were written", 0.0
        folder.fs.rm(folder.path(name))
    except ConfigError as error:
        return str(error), 0.0
    except Exception as error:  # every store has its own exception types
        text = str(error).splitlines()[0] if str(error) else "no reason given"
        return f"{type(error).__name__}: {text[:200]}", 0.0
    return "", time.perf_counter() - started


def probe_environments(wanted: Mapping[Family, str]) -> dict[str, str]:
    """What is wrong with the Python environment of each reward family that has one: a worker in one
    that cannot import Ray hangs without a word."""
    return {
        family: problem
        for family, folder in wanted.items()
        if (problem := first_problem({family: folder}))
    }


def missing_compilers() -> tuple[str, ...]:
    """Programs of the CUDA toolkit and around it that are not found here."""
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc"
    found = {"nvcc": shutil.which("nvcc") or cuda.is_file(), "g++": shutil.which("g++")}
    return tuple(name for name, there in found.items() if not there)


def probe_port(meeting_point: str) -> str:
    """Whether a TCP connection to another node opens."""
    host, _, port = meeting_point.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S):
            return ""
    except (OSError, ValueError) as error:
        return f"{meeting_point} is not reached: {error}"
