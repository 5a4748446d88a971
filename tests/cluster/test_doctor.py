"""Every check of the doctor failing: by reports of nodes, and by real probes of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import s3fs

from cluster import cli, probe
from cluster.config import load
from cluster.doctor import (
    ClusterFacts,
    Finding,
    Unfit,
    diagnose,
    gpu_type_of,
    require_fit,
    scorer_weights,
)
from cluster.layout import Node
from cluster.probe import NodeReport, ProbeRequest
from rewards.lpips import ALEXNET

H200 = ("NVIDIA H200", 150_700_000_000)
NODES = 6
CONFIG = load("small", ["run=s3://bucket/run"])


def report(index: int = 0, **changes: Any) -> NodeReport:
    fine = NodeReport(
        node=f"node-{index}",
        python="3.11.9",
        ray="2.60.0",
        time=1000.0 + index,
        gpus=(H200,) * 8,
        driver="580.95.05",
        disk_free=500_000_000_000,
        cache_free=500_000_000_000,
        to_fetch=17_500_000_000,
        store_s=0.2,
        auth_mode="token",
    )
    return replace(fine, **changes)


def facts(**changes: Any) -> ClusterFacts:
    nodes = tuple(Node(f"node-{index}", 96, 8, "H200") for index in range(NODES))
    clocks = tuple((999.9 + index, 1000.1 + index) for index in range(NODES))
    return replace(ClusterFacts(nodes, "10.0.0.1:6379", "2.60.0", "3.11.7", clocks), **changes)


def findings(changed: NodeReport | None = None, **of_facts: Any) -> dict[str, Finding]:
    """A fine cluster of which the last node reports otherwise."""
    reports = [report(index) for index in range(NODES)]
    if changed is not None:
        reports[-1] = changed
    return {f.check: f for f in diagnose(CONFIG, reports, facts(**of_facts))}


@contextlib.contextmanager
def answering_server() -> Iterator[str]:
    """A hub that knows every model, in two shards and a format that is not read."""
    files = {"model-1.safetensors": 4_000, "model-2.safetensors": 500, "model.bin": 4_500}
    listed = [{"rfilename": name, "size": size} for name, size in files.items()]

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sizes = self.path.endswith("?blobs=true")
            self.send_response(200 if sizes else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"siblings": listed}).encode())

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "233")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def last(**changes: Any) -> NodeReport:
    return report(NODES - 1, **changes)


def test_a_fine_cluster_has_no_finding() -> None:
    found = findings()
    assert len(found) == 15
    assert [f.line() for f in found.values() if not f.ok] == []
    require_fit(list(found.values()))


@pytest.mark.parametrize(
    ("check", "changed", "words"),
    [
        ("versions", last(ray="2.59.0"), "node node-5 runs Python 3.11.9 and ray 2.59.0"),
        ("versions", last(python="3.12.1"), "runs Python 3.12.1"),
        ("token", last(auth_mode=""), "RAY_AUTH_MODE = unset"),
        ("clocks", last(time=1035.0), "is +29.9 s off at least"),
        ("clocks", last(time=1000.0), "is -4.9 s off at least"),
        ("GPUs", last(driver_problem="there is no nvidia-smi", gpus=()), "but there is no nvidia"),
        ("GPUs", last(gpus=(H200,) * 7), "Ray counts 8 GPUs on node node-5, its driver 7"),
        ("driver", last(driver="550.54.15"), "has driver 550.54.15; CUDA 13 needs 580"),
        ("memory", last(gpus=(("Tesla T4", 15_800_000_000),) * 8), "a rollout worker needs 23.4"),
        ("environments", last(environment_problems={"judge": "no ray"}), "judge: no ray"),
        ("model", last(model_problem="x is no model directory here"), "no model directory"),
        (
            "weights",
            last(weights_problems={"rewards.judge.model": "it is not here"}),
            "judge.model: it",
        ),
        ("disk", last(disk_free=1_000_000_000), "1.0 GB free for temporary files, 2.0 GB are"),
        ("disk", last(cache_free=3_000_000_000), "3.0 GB free for downloads, 17.5 GB are needed"),
        ("store", last(store_problem="PermissionError: Access Denied"), "Access Denied"),
        ("store", last(store_s=8.0), "took 8.0 s"),
        ("compilers", last(compilers_missing=("nvcc",)), "node node-5 has no nvcc"),
        ("attention", last(packages_missing=("flash-attn",)), "node node-5 has no flash-attn"),
        ("ports", last(port_problem="10.0.0.1:4000 is not reached: timed out"), "timed out"),
    ],
)
def test_each_check_fails_on_the_node_that_is_at_fault(
    check: str, changed: NodeReport, words: str
) -> None:
    found = findings(changed)
    assert [name for name, f in found.items() if not f.ok] == [check]
    assert words in found[check].line()
    assert found[check].line().startswith("FAIL")
    assert found[check].advice
    with pytest.raises(Unfit, match=f"1 of 15 checks .*\n.*{check}"):
        require_fit(list(found.values()))


def test_the_layout_and_no_gpu_at_all() -> None:
    short = findings(nodes=facts().nodes[:-2])["layout"]
    assert not short.ok
    assert "GPUs" in short.text
    assert "worldr1 plan" in short.advice
    bare = [replace(report(i), gpus=(), driver_problem="there is no nvidia-smi") for i in (0, 1)]
    found = {f.check: f for f in diagnose(CONFIG, bare, facts(nodes=(), asked=facts().asked[:2]))}
    assert "no node shows a GPU; node-0: there is no nvidia-smi" in found["GPUs"].text


def test_each_pool_is_compared_with_the_gpus_that_it_may_get() -> None:
    """An L40S holds no rollout of four clips by Wan2.1-14B at once, but all reward workers."""
    l40s = ("NVIDIA L40S", 48_300_000_000)
    reports = [*map(report, range(12)), report(12, gpus=(l40s,) * 8)]
    nodes = tuple(Node(r.node, 96, 8, "L40S" if r.gpus[0] == l40s else "H200") for r in reports)
    mixed = facts(nodes=nodes, asked=tuple((r.time, r.time) for r in reports))

    def memory(*overrides: str) -> Finding:
        config = load("large", ["run=s3://bucket/run", "rollout.max_batch=4", *overrides])
        return next(f for f in diagnose(config, reports, mixed) if f.check == "memory")

    assert "a rollout worker needs 65.4 GB, a NVIDIA L40S gives it 42.5 GB" in memory().text
    kinds = "placement.rollout_gpu=H200", "placement.learner_gpu=H200"
    named = memory(*kinds, "placement.reward_gpu=L40S")
    assert (named.ok, named.text) == (True, "every pool fits a NVIDIA H200 or a NVIDIA L40S")
    assert not memory("placement.rollout_gpu=L40S", "placement.learner_gpu=H200").ok


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA L40S", None),
    ],
)
def test_a_type_is_a_word_of_the_drivers_name(name: str, known: str | None) -> None:
    gpu = gpu_type_of(name)
    assert (gpu.name if gpu else None) == known


def test_loopback_needs_no_token() -> None:
    assert findings(last(auth_mode=""), address="127.0.0.2:6379")["token"].ok


def test_a_slow_answer_is_no_skew() -> None:
    """A process that took 8 s to start read its clock somewhere in between."""
    slow = tuple((1000.0, 1008.0) for _ in range(NODES))
    found = {
        f.check: f
        for f in diagnose(CONFIG, [report(i, time=1007.0) for i in range(NODES)], facts(asked=slow))
    }
    assert found["clocks"].ok


def test_a_model_of_unknown_size_is_not_refused_for_it() -> None:
    config = load("small", ["run=s3://bucket/run", "policy.model=owner/fine-tuned"])
    reports = [report(index) for index in range(NODES)]
    found = {f.check: f for f in diagnose(config, reports, facts())}
    assert found["memory"].ok
    assert "not compared: the size of policy.model 'owner/fine-tuned'" in found["memory"].line()


def test_downloads_need_room() -> None:
    assert findings(last(cache_free=0, to_fetch=0))["disk"].ok
    enough = findings(last(cache_free=18_000_000_000))["disk"]
    assert enough.ok
    assert "500 GB free, 18 GB to be fetched" in enough.line()
    assert not findings(last(cache_free=18_000_000_000, one_disk=True))["disk"].ok
    assert findings(last(cache_free=0, gpus=()))["disk"].ok, "a head without GPUs loads none"


def test_gpus_are_read_from_the_drivers_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probe.probe_gpus() == ((), "", "there is no nvidia-smi")
    script = f"#!{sys.executable}\nprint('NVIDIA H200, 143771, 580.95.05')"
    program.write_text(script)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert probe.probe_gpus() == ((("NVIDIA H200", 143771 * 2**20),), "580.95.05", "")
    program.write_text(f"#!{sys.executable}\nraise SystemExit('driver/library mismatch')")
    assert probe.probe_gpus()[2].startswith("nvidia-smi failed:")


def test_models_here_in_the_cache_and_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe.probe_model(str(Path("toyworld/model").absolute())) == probe.Weights()
    assert "no model directory" in probe.probe_model(str(tmp_path)).problem
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "forbids to fetch it" in probe.probe_model("owner/name").problem
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "is not reached" in probe.probe_model("owner/name").problem
    (tmp_path / "hub/models--owner--name/snapshots/abc").mkdir(parents=True)
    assert probe.probe_model("owner/name") == probe.Weights()


def test_caches_lie_where_their_libraries_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "huggingface/hub/models--owner--name/snapshots/abc").mkdir(parents=True)
    (tmp_path / "torch/hub/checkpoints").mkdir(parents=True)
    (tmp_path / "torch/hub/checkpoints/alexnet.pth").write_bytes(b"")
    assert probe.probe_weights({"a": "owner/name"}) == {"a": probe.Weights()}
    assert probe._in_torch_home("http://127.0.0.1:9/alexnet.pth") == probe.Weights()


def test_weights_of_scorers_by_folder_hub_and_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wanted = scorer_weights(CONFIG.rewards)
    assert wanted == {
        "rewards.reconstruction.model": "depth-anything/DA3-GIANT",
        "rewards.perceptual.weights": ALEXNET,
        "rewards.judge.model": "Qwen/Qwen3-VL-8B-Instruct",
        "rewards.aesthetic.model": "MizzenAI/HPSv3",
        "rewards.aesthetic.base": "Qwen/Qwen2-VL-7B-Instruct",
    }
    assert scorer_weights(load("toy").rewards) == {}
    for name in ("depth-anything--DA3-GIANT", "MizzenAI--HPSv3"):
        (tmp_path / f"hf/hub/models--{name}/snapshots/abc").mkdir(parents=True)
    checkpoints = tmp_path / "torch/hub/checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / ALEXNET.rpartition("/")[2]).write_bytes(b"")
    missing = {"rewards.judge.model", "rewards.aesthetic.base"}
    assert {k for k, w in probe.probe_weights(wanted).items() if w.problem} == missing
    assert probe.probe_weights({"a": str(tmp_path), "b": "/none", "c": "none"}) == {
        "a": probe.Weights(),
        "b": probe.Weights("/none is not here"),
        "c": probe.Weights("none is not here"),
    }


def test_weights_that_have_to_be_fetched_need_a_cache_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume that belongs to another user: the hub answers, and every loader would fail."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with answering_server() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        assert probe.probe_model("owner/name") == probe.Weights(to_fetch=4_500)
        assert probe._in_torch_home(f"{url}/alexnet.pth") == probe.Weights(to_fetch=233)

        def refuse(**_: Any) -> Any:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
        cache = tmp_path / "hf/hub"
        said = f"downloads go to {cache}, which cannot be written: Permission denied"
        assert probe.probe_model("owner/name").problem == said
        assert probe.probe_weights({"k": "owner/other"})["k"].problem == said
        checkpoints = tmp_path / "torch/hub/checkpoints"
        assert (
            f"downloads go to {checkpoints}" in probe._in_torch_home(f"{url}/alexnet.pth").problem
        )
    nowhere = probe._in_torch_home("http://127.0.0.1:9/alexnet.pth").problem
    assert nowhere.startswith(
        f"{checkpoints / 'alexnet.pth'} is not there, and http://127.0.0.1:9/"
    )
    (tmp_path / "hf/hub/models--owner--name/snapshots/abc").mkdir(parents=True)
    assert probe.probe_model("owner/name") == probe.Weights()


@pytest.mark.slow
def test_stores(tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, seconds = probe.probe_store(f"{s3_bucket}/run")
    assert problem == ""
    assert seconds > 0
    assert probe.probe_store(str(tmp_path / "run"))[0] == ""
    # Another node's folder of the same name has not what the coordinator wrote.
    (tmp_path / "run/.doctor-1").write_bytes(b"coordinator")
    assert probe.probe_store(str(tmp_path / "run"), ".doctor-1")[0] == ""
    assert "is another folder here" in probe.probe_store(str(tmp_path / "other"), ".doctor-1")[0]
    assert [file.name for file in (tmp_path / "run").iterdir()] == [".doctor-1"]
    # A bucket that is not there is not made.
    assert probe.probe_store("s3://mistyped/run")[0] != ""
    assert s3fs.S3FileSystem().ls("") == ["bucket"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    assert "NoCredentialsError" in probe.probe_store(f"{s3_bucket}/other")[0]
    (tmp_path / "file").write_text("")
    assert probe.probe_store(str(tmp_path / "file/run"))[0]
    assert "ftpx" in probe.probe_store("ftpx://host/run")[0]


def test_environments(tmp_path: Path) -> None:
    found = probe.probe_environments({"judge": str(tmp_path / "none"), "aesthetic": str(tmp_path)})
    assert set(found) == {"judge", "aesthetic"}
    assert "worldr1 envs build judge" in found["judge"]


def test_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert probe.probe_port(f"127.0.0.1:{server.getsockname()[1]}") == ""
    assert "is not reached" in probe.probe_port("127.0.0.1:9")


def test_a_whole_report_of_this_machine(tmp_path: Path) -> None:
    model = str(Path("toyworld/model").absolute())
    found = probe.probe(ProbeRequest(model, str(tmp_path / "run")))
    assert found.node == socket.gethostname()
    assert found.disk_free > 0
    assert (found.model_problem, found.store_problem, found.port_problem) == ("", "", "")


def test_the_command_says_ok_or_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert cli.main(["doctor", "toy", "--run", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.endswith("ready to start\n")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert cli.main(["doctor", "small", "--run", str(tmp_path / "run")]) == 1
    out = capsys.readouterr().out
    assert "FAIL model" in out
    assert "FAIL GPUs" in out
    assert out.splitlines()[-1].endswith("checks failed")
