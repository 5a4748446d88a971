"""A vLLM server of a judge worker's own: started, health-checked, restarted, ended with it.

It listens on loopback only and asks for a key that nobody but the worker knows. A guard
(`judge_guard.py`) sees to it that it does not outlive the worker.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rewards.checks import WorkerBroken
from rewards.config import JudgeConfig
from rewards.environments import python_of
from rewards.guarded_process import GuardedProcess

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
BEFORE = "server.before.log"
"""Output of the server before the newest."""
MAX_FAILED_STARTS = 3
"""A server that ended this many times in a row before it was healthy is given up."""
MAX_SILENT_CHECKS = 3
"""A server that missed this many health checks in a row is killed."""
CHECK_TIMEOUT_S = 10.0
START_POLL_S = 0.5
RESTART_PAUSE_S = 1.0
END_WAIT_S = 20.0
SECRET_NAME = re.compile(
    r"SECRET|PASSWORD|CREDENTIAL|CONNECTION_STRING|TOKEN|_KEY$|_KEY_", re.IGNORECASE
)
HUB_TOKENS = ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN")
"""What fetches the judge's weights."""


class ServerLost(WorkerBroken):
    """The server does not come up (again)."""


@dataclass(frozen=True)
class Served:
    """A healthy server."""

    root: str
    """URL without /v1."""
    key: str
    generation: int
    """Counts the starts: a call that fails in one generation is repeated in the next."""


def serve_command(config: JudgeConfig, port: int, device: str) -> list[str]:
    """What starts the server, in the judge's environment."""
    command = [
        *(python_of(config.env), "-m", "vllm.entrypoints.openai.api_server"),
        *("--host", LOOPBACK, "--port", str(port)),
        *("--model", config.model, "--served-model-name", config.model),
        *("--tensor-parallel-size", str(config.tensor_parallel)),
        *("--max-model-len", str(config.max_tokens), "--max-num-seqs", str(config.calls_at_once)),
        *("--limit-mm-per-prompt", json.dumps({"image": config.image_limit, "video": 0})),
        *("--dtype", config.dtype, "--seed", "0"),
        *("--disable-uvicorn-access-log", "--disable-log-stats"),
    ]
    if device == "cpu":
        return [*command, "--enforce-eager"]
    command += ["--gpu-memory-utilization", f"{config.gpu_share:g}"]
    if config.cache_bytes is not None:
        command += ["--kv-cache-memory-bytes", str(config.cache_bytes)]
    return command


def serve_environment(key: str, device: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """The server's environment: of the run's credentials the hub's alone, no telemetry."""
    kept = {
        name: value
        for name, value in inherited.items()
        if name in HUB_TOKENS or not SECRET_NAME.search(name)
    }
    kept |= {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    # Where its processes meet each other, which nothing guards.
    kept |= {"VLLM_HOST_IP": LOOPBACK}
    # The worker's import path is core's business: the environment has packages of its own.
    kept.pop("PYTHONPATH", None)
    if device == "cpu":
        # Compiling would let the first request wait for a quarter of a minute.
        kept |= {"TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    return kept


class JudgeServer:
    """Keeps one server up. Its methods may be called from many threads."""

    def __init__(self, config: JudgeConfig, device: str) -> None:
        """Start at once, without waiting."""
        self._config, self._device = config, device
        self._folder = Path(tempfile.mkdtemp(prefix="worldr1-judge-"))
        self.log = self._folder / "server.log"
        """Output of the newest server."""
        self._state = threading.Condition()
        self._served: Served | None = None
        self._lost = ""
        self._suspected = threading.Event()
        self._closing = threading.Event()
        self._process: GuardedProcess | None = None
        self.starts = 0
        self.pid = 0
        """Of the newest server's main process."""
        self._thread = threading.Thread(target=self._keep_up, daemon=True)
        self._thread.start()

    def wait(self, limit_s: float) -> Served:
        """The healthy server, waited for. Raises ServerLost where it is given up, TimeoutError."""
        with self._state:
            self._state.wait_for(lambda: self._served or self._lost, limit_s)
            if self._lost:
                raise ServerLost(self._lost)
            if self._served is None:
                raise TimeoutError(f"the judge's server was not healthy within {limit_s:.0f} s")
            return self._served

    def died_since(self, served: Served) -> bool:
        """Whether a server is gone; asks it where that is not known yet."""
        with self._state:
            if self._served != served:
                return True
        process = self._process
        running = process is not None and process.status() is None
        if running and _answers(served, "/health"):
            return False
        self.replace(served)
        return True

    def replace(self, served: Served) -> None:
        """End a server and start another one."""
        with self._state:
            # Another call may have found out before, and the next server may be up.
            if self._served == served:
                self._served = None
                self._suspected.set()

    def close(self) -> None:
        """End the server."""
        self._closing.set()
        self._suspected.set()
        self._thread.join(30)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _keep_up(self) -> None:
        try:
            self._keep_server()
        except Exception as error:  # a full disk, a log that was tidied away: nobody else ends it
            with contextlib.suppress(Exception):
                self._end()
            with self._state:
                self._served = None
                self._lost = f"the judge's server is not kept up: {type(error).__name__} {error}"
                self._state.notify_all()

    def _keep_server(self) -> None:
        failed = 0
        while not self._closing.is_set() and failed < MAX_FAILED_STARTS:
            self._suspected.clear()
            served, reason = self._start()
            if served is None:
                failed += 1
                self._end()
                self._closing.wait(RESTART_PAUSE_S)
                continue
            failed = 0
            with self._state:
                self._served = served
                self._state.notify_all()
            self._watch(served)
            with self._state:
                self._served = None
            if not self._closing.is_set():
                words = self._last_words(self._process.status() if self._process else None)
                log.warning("the judge's server (start %d) is replaced: %s", self.starts, words)
            self._end()
        if failed:
            with self._state:
                self._lost = f"the judge's server does not start: {reason}"
                self._state.notify_all()

    def _start(self) -> tuple[Served | None, str]:
        """A healthy server, or None and why there is none."""
        port, key = _free_port(), secrets.token_urlsafe(24)
        self.starts += 1
        if self.log.exists():
            self.log.replace(self.log.with_name(BEFORE))
        served = Served(f"http://{LOOPBACK}:{port}", key, self.starts)
        process = GuardedProcess(
            serve_command(self._config, port, self._device),
            self.log,
            serve_environment(key, self._device, os.environ),
        )
        self._process, self.pid = process, process.pid
        deadline = time.monotonic() + self._config.start_timeout_s
        while not self._closing.wait(START_POLL_S):
            status = process.status()
            if status is not None:
                return None, self._last_words(status)
            # With its key, which another server that happened to take the port does not know.
            if _answers(served, "/health") and _answers(served, "/v1/models"):
                return served, ""
            if time.monotonic() > deadline:
                return None, f"not healthy within {self._config.start_timeout_s:g} s"
        return None, "closed"

    def _watch(self, served: Served) -> None:
        """Return when the server is dead, silent or not wanted any more."""
        silent = 0
        while silent < MAX_SILENT_CHECKS:
            self._suspected.wait(self._config.health_interval_s)
            process = self._process
            if self._suspected.is_set() or process is None or process.status() is not None:
                return
            silent = 0 if _answers(served, "/health") else silent + 1

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end(END_WAIT_S)

    def _last_words(self, status: int | None) -> str:
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError as error:
            lines = [f"its log cannot be read: {error.strerror}"]
        errors = [line for line in lines if re.search(r"\b\w*(Error|Exception)\b", line)]
        said = (errors or lines or [""])[-1].strip()[-300:]
        end = "it does not answer" if status is None else f"it ended with status {status}"
        return f"{end}: {said}"


def _answers(served: Served, path: str) -> bool:
    # The environment's proxies know nothing of this machine's loopback.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    headers = {"Authorization": f"Bearer {served.key}"}
    request = urllib.request.Request(served.root + path, headers=headers)
    try:
        with direct.open(request, timeout=CHECK_TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
