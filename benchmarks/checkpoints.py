"""Checkpoints on an object store that fails: saved and loaded again and again, never a wrong state.

    python -m benchmarks.checkpoints [--cycles 50] [--errors 0.2] [--seed 0] [--json FILE]

Each cycle saves a state (DCP shards, state.json, manifest) through a proxy that fails a share of
all requests and delays others by 2 s, and loads the newest valid one with fresh clients. In every
fifth cycle the writer is killed between its shards and the manifest; in every fifth another, a byte
of the newest checkpoint's shard is changed in the store: the one before has to be found.

A whole run in such a store, stopped and resumed, is compared with one on disk.

Goals: every load gives the tensors of exactly the state that was durable, and the runs end with the
same weights. Exits 1 when one is missed.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import s3fs
import torch
from torch import Tensor

from benchmarks.driver import SMALL_RUN
from benchmarks.faulty_store import BUCKET, Faults, faulty_s3
from benchmarks.results import Result, machine, write
from cluster.audit import audit_run
from cluster.checkpoint import CheckpointStore, RunState
from cluster.config import REPOSITORY, load
from cluster.runs import in_this_process, run_training
from learner import fsdp
from learner.storage_errors import is_transient

CONFIG = {"seed": 1}
VALUES = 200_000
MAX_REPEATS = 20
"""A save that fails for good is repeated by the run, not by the store; here so often."""


def state_of(step: int) -> dict[str, dict[str, Tensor]]:
    """Tensors that are a function of the step."""
    draw = torch.Generator().manual_seed(step)
    return {"lora": {"a": torch.randn(VALUES, generator=draw), "step": torch.tensor([step])}}


def save_shards(url: str, step: int) -> None:
    """What the learner ranks do."""
    fsdp.save_sharded(CheckpointStore(url).begin(step), dict(state_of(step)))


def killed_between_shards_and_manifest(url: str, step: int) -> None:
    """A process of its own that writes the shards and is gone by SIGKILL."""
    command = [sys.executable, "-m", "benchmarks.checkpoints", "--die-after-shards", url, str(step)]
    done = subprocess.run(command, cwd=REPOSITORY, check=False)
    if done.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the writer ended with {done.returncode}, not by SIGKILL")


def save(url: str, step: int) -> int:
    """Save a step; how often the whole save had to be repeated."""
    for repeats in range(MAX_REPEATS):
        try:
            save_shards(url, step)
            CheckpointStore(url).commit(step, RunState(step=step), CONFIG)
            return repeats
        except Exception as error:
            if not is_transient(error):
                raise
            logging.getLogger(__name__).warning("step %d is saved again: %s", step, error)
    raise RuntimeError(f"step {step} could not be saved {MAX_REPEATS} times in a row")


def load_newest(url: str) -> tuple[int, bool, tuple[str, ...]]:
    """The newest valid step, whether its tensors are right, and why newer ones were skipped."""
    s3fs.S3FileSystem.clear_instance_cache()
    for _ in range(MAX_REPEATS):
        try:
            found = CheckpointStore(url).newest_valid(CONFIG)
            if found.checkpoint is None:
                return 0, True, ()
            step = found.checkpoint.step
            loaded = {"lora": {"a": torch.zeros(VALUES), "step": torch.zeros(1, dtype=torch.int64)}}
            fsdp.load_sharded(found.checkpoint.learner_url, dict(loaded))
            wanted = state_of(step)["lora"]
            right = all(torch.equal(loaded["lora"][name], wanted[name]) for name in wanted)
            return step, right, tuple(skipped.reason for skipped in found.skipped)
        except Exception as error:
            if not is_transient(error):
                raise
    raise RuntimeError(f"nothing could be loaded {MAX_REPEATS} times in a row")


def change_a_byte(url: str, step: int, direct: str) -> None:
    """Damage the newest checkpoint's shard in the store itself."""
    fs = fsspec.filesystem("s3", endpoint_url=direct, skip_instance_cache=True)
    name = f"{url.removeprefix('s3://')}/checkpoints/step_{step:06d}/learner/__0_0.distcp"
    data = bytearray(fs.cat_file(name))
    data[len(data) // 2] ^= 1
    fs.pipe_file(name, bytes(data))


def measure(cycles: int, faults: Faults) -> dict[str, Any]:
    """All cycles; what was found."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    wrong: list[str] = []
    started = time.monotonic()
    with faulty_s3(faults) as (proxy, direct):
        url, durable = f"s3://{BUCKET}/runs/a", 0
        for step in range(1, cycles + 1):
            before = durable
            if step % 5 == 3:
                killed_between_shards_and_manifest(url, step)
                counts["writers killed"] += 1
            else:
                counts["saves repeated"] += save(url, step)
                durable = step
            if step % 5 == 0:
                change_a_byte(url, step, direct)
                counts["newest damaged"] += 1
                durable = before
            found, right, skipped = load_newest(url)
            reasons.update(skipped)
            if found != durable or not right:
                wrong.append(f"step {step}: found {found}, durable {durable}, equal {right}")
            CheckpointStore(url).retain(3)
        requests = dict(proxy.counts)
    return {
        "run": f"{cycles} cycles, {faults.errors:.0%} errors, seed {faults.seed}",
        **counts,
        "skipped": dict(reasons),
        "requests": requests,
        "wrong": wrong,
        "seconds": round(time.monotonic() - started, 1),
    }


def measure_run(faults: Faults) -> dict[str, Any]:
    """A whole run whose folder lies behind the faults, stopped and resumed, beside one on disk."""
    said: list[str] = []

    def train(run: str, steps: int) -> str:
        options = [*SMALL_RUN, f"run={run}", "checkpoint.every=1", "learner.ranks=1"]
        config = load("toy", [*options, f"steps={steps}", "eval.prompts=1"])
        return run_training(config, in_this_process, said.append).weights_checksum

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, faulty_s3(faults) as (proxy, _):
        on_disk = train(f"{folder}/run", 4)
        url = f"s3://{BUCKET}/runs/whole"
        train(url, 2)
        behind_faults = train(url, 4)
        findings = audit_run(url).findings
        requests = dict(proxy.counts)
    return {
        "run": f"a whole run, {faults.errors:.0%} errors, seed {faults.seed}",
        "weights_equal": on_disk == behind_faults,
        "findings": list(findings),
        "requests": requests,
        "repeated": [line for line in said if "failed" in line or "could not" in line],
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> int:
    """Print what was found; 1 where a wrong state was loaded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--errors", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--die-after-shards", nargs=2, metavar=("URL", "STEP"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.die_after_shards:
        url, step = options.die_after_shards
        save_shards(url, int(step))
        os.kill(os.getpid(), signal.SIGKILL)
    faults = Faults(errors=options.errors, seed=options.seed)
    cycles, whole = measure(options.cycles, faults), measure_run(faults)
    for name, value in [*cycles.items(), *whole.items()]:
        print(f"{name:<18}{value}")
    if options.json:
        write(options.json, Result("checkpoints", machine(), [cycles, whole]))
    met = not cycles["wrong"] and whole["weights_equal"] and not whole["findings"]
    print("goals met: 0 wrong states, same weights" if met else "goal missed")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
