"""A RayJob manifest submitted to a local head with token authentication, watched by Prometheus.

BOARD_PICTURE=FILE BOARD_STEPS=N draws the board's queries as in docs/cluster.md.

One job: the shipped manifest with another command, `small-8gpu` on the toy model, two real steps.
The worker split, submission, retries and every query of the board are the real ones.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import REPOSITORY, load
from cluster.dashboard import queries
from cluster.demo import ray_head
from cluster.exports import METRICS, PREFIX
from tests.cluster.prometheus import chosen, draw_board, help_texts, prometheus, query_range

pytestmark = pytest.mark.cluster
Head = tuple[str, dict[str, str]]
TOY = REPOSITORY / "tests/cluster/toy_on_cpu.toml"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as found:
        yield found


def manifest(folder: Path, entrypoint: str, retries: int) -> Path:
    """The shipped file with another command."""
    documents = list(yaml.safe_load_all((REPOSITORY / "ray_job.yaml").read_text()))
    job = next(d for d in documents if d["kind"] == "RayJob")
    job["spec"] |= {"entrypoint": entrypoint, "backoffLimit": retries}
    path = folder / "ray_job.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return path


def submit(
    file: Path, address: str, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.cli", "submit", str(file), "--address", address]
    return subprocess.run(
        [*command, *arguments],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


@pytest.mark.skipif(
    shutil.which("prometheus") is None and not os.environ.get("REQUIRE_PROMETHEUS"),
    reason="no prometheus program",
)
def test_small_8gpu_on_the_toy_model_submitted_and_watched(head: Head, tmp_path: Path) -> None:
    address, environment = head
    run = tmp_path / "run"
    picture, count = os.environ.get("BOARD_PICTURE"), int(os.environ.get("BOARD_STEPS", "2"))
    command = f"worldr1 train small-8gpu --config {TOY} --run {run}"
    file = manifest(tmp_path, command, retries=0)
    targets = Path(environment["RAY_AUTH_TOKEN_PATH"]).parent / "ray"
    started = time.time()
    with prometheus(tmp_path, targets / "prom_metrics_service_discovery.json") as url:
        seldom = ["rewards.examine_every=4"] if picture else []
        done = submit(file, address, environment, f"steps={count}", *seldom)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [row for row in rows if row["kind"] == "step"]
        assert [row["step"] for row in steps] == [*range(count)]
        preset = load("small-8gpu")
        assert steps[-1]["workers"]["rollout"] == preset.rollout.workers
        assert steps[-1]["workers"]["learner"] == preset.learner.ranks
        check_every_query(url, str(run), started, time.time())
        if picture:
            draw_board(url, str(run), started, time.time(), Path(picture))


def check_every_query(url: str, run: str, started: float, ended: float) -> None:
    """Each one has data that are finite, and of this run alone; help texts arrive."""
    empty = []
    for title, query in queries():
        series = query_range(url, chosen(query, run), started, ended)
        if not any(value != "NaN" for each in series for _, value in each["values"]):
            empty.append((title, query))
        other = query_range(url, chosen(query, f"{run}-2"), started, ended)
        assert other == []
    assert empty == []
    (steps,) = query_range(url, f"{PREFIX}worldr1_done_steps", started, ended)
    times = [float(moment) for moment, _ in steps["values"]]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) <= 10, "a figure is exported between steps too"
    texts = help_texts(url)
    for metric in METRICS:
        assert texts[PREFIX + metric.name] == metric.help


def test_failed_job_is_started_again_and_a_bad_one_is_not(head: Head, tmp_path: Path) -> None:
    address, environment = head
    marker = tmp_path / "marker"
    flaky = f"test -e {marker} || (touch {marker}; echo first; exit 3)"
    done = submit(
        manifest(tmp_path, f"bash -c '{flaky}'", 2), address, environment, "--first-wait", "1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed with exit code 3; attempt 2 of 3" in done.stdout
    bad = submit(manifest(tmp_path, "worldr1 train smal", 2), address, environment)
    assert bad.returncode == 2
    assert "preset = 'smal' is unknown" in bad.stdout
    assert bad.stdout.count("submitted") == 1


def test_without_the_token_nothing_is_submitted(head: Head, tmp_path: Path) -> None:
    address, environment = head
    wrong: dict[str, Any] = {k: v for k, v in environment.items() if "RAY_AUTH_TOKEN" not in k}
    file = manifest(tmp_path, "true", 0)
    refused = submit(file, address, wrong | {"RAY_AUTH_TOKEN": "0" * 64})
    assert refused.returncode == 2
    assert "its token was refused" in refused.stderr
    nobody = submit(file, "http://127.0.0.1:9", environment)
    assert nobody.returncode == 2
    assert len(nobody.stderr.strip().splitlines()) == 1
