"""RayJob manifests as jobs: what is read, and one sentence for what cannot be."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from cluster import cli
from cluster.config import ConfigError
from cluster.job_file import read_job_file

ROOT = Path(__file__).parents[2]
GOOD = """
kind: Secret
---
kind: RayJob
spec:
  entrypoint: worldr1 train toy
  backoffLimit: 2
  jobId: first
  metadata: {owner: me, number: 3}
  entrypointNumCpus: 0.5
  entrypointResources: '{"special": 1}'
  runtimeEnvYAML: |
    env_vars: {A: "1"}
"""


def written(folder: Path, text: str) -> str:
    path = folder / "job.yaml"
    path.write_text(text)
    return str(path)


def test_everything_that_the_jobs_api_takes_is_read(tmp_path: Path) -> None:
    job = read_job_file(written(tmp_path, GOOD))
    assert job.entrypoint == "worldr1 train toy"
    assert (job.retries, job.job_id, job.cpus, job.gpus) == (2, "first", 0.5, None)
    assert job.metadata == {"owner": "me", "number": "3"}
    assert job.resources == {"special": 1}
    assert job.runtime_env == {"env_vars": {"A": "1"}}
    longer = job.extended(["steps=2", "run=a b"], "/code")
    assert longer.entrypoint == "worldr1 train toy steps=2 'run=a b'"
    assert longer.runtime_env == {"env_vars": {"A": "1"}, "working_dir": "/code"}
    assert job.extended([], None) == job


@pytest.mark.parametrize("style", ["|", ">", "|+"])
def test_a_command_in_a_block_takes_what_is_added(tmp_path: Path, style: str) -> None:
    """YAML ends a block with a newline, after which a shell begins another command."""
    block = f"entrypoint: {style}\n    worldr1 train toy\n\n"
    job = read_job_file(written(tmp_path, GOOD.replace("entrypoint: worldr1 train toy", block)))
    assert job.extended(["steps=3"], None).entrypoint == "worldr1 train toy steps=3"
    lines = "entrypoint: |\n    cd code\n    worldr1 train toy\n"
    job = read_job_file(written(tmp_path, GOOD.replace("entrypoint: worldr1 train toy", lines)))
    assert job.extended([], None).entrypoint == "cd code\nworldr1 train toy"
    with pytest.raises(ConfigError, match=r"several lines.*'steps=3' belongs into the file"):
        job.extended(["steps=3"], None)


def test_the_smoke_of_the_docs_trains_in_a_folder_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What `submit` appends has the last word over the --run of the manifest's command."""
    text = (ROOT / "docs/cluster.md").read_text()
    (line,) = re.findall(r"worldr1 submit ray_job.yaml [^\n]*\\\n +(steps=2 [^\n]*)", text)
    job = read_job_file(str(ROOT / "ray_job.yaml"))
    program, *arguments = shlex.split(job.extended(shlex.split(line), None).entrypoint)
    assert program == "worldr1"
    assert cli.main([*arguments, "--print-config"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert config["run"].endswith("/runs/smoke")
    assert (config["steps"], config["eval"]["prompts"]) == (2, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is not valid YAML"),
        ("kind: RayCluster", "has 0 documents of kind RayJob"),
        (GOOD + "---\n" + GOOD, "has 2 documents"),
        ("kind: RayJob", "spec is missing"),
        ("kind: RayJob\nspec: {backoffLimit: 1}", "spec.entrypoint = None is not allowed: text"),
        ("kind: RayJob\nspec: {entrypoint: 5}", "spec.entrypoint = 5"),
        ("kind: RayJob\nspec: {entrypoint: ' '}", "spec.entrypoint = ' ' is not allowed: text"),
        ("kind: RayJob\nspec: {entrypoint: a, backoffLimit: 1000}", "0 to 100"),
        ("kind: RayJob\nspec: {entrypoint: a, runtimeEnvYAML: 'a: ['}", "runtimeEnvYAML is not"),
        ("kind: RayJob\nspec: {entrypoint: a, runtimeEnvYAML: 'a'}", "runtimeEnvYAML is no map"),
        ("kind: RayJob\nspec: {entrypoint: a, entrypointResources: '{'}", "Resources is not"),
        ("kind: RayJob\nspec: {entrypoint: a, metadata: [b]}", "spec.metadata"),
        ("!!python/object/apply:os.system [true]", "is not valid YAML"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_job_file(written(tmp_path, text))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_commands_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    good = written(tmp_path, GOOD)
    for arguments, words in (
        (["submit", good], "needs --address"),
        (["submit", "/nowhere.yaml", "--address", "http://127.0.0.1:9"], "cannot be read"),
        (["submit", good, "--address", "http://127.0.0.1:9", "--first-wait", "-1"], "--first-wait"),
    ):
        assert cli.main(arguments) == 2
        assert words in capsys.readouterr().err
