"""What is deployed: the RayJob by KubeRay's rules, pods by Kubernetes', the Dockerfile by hadolint.

Not covered: a real Kubernetes cluster, and building the image.
"""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.config import REPOSITORY, load
from cluster.gpus import GPU_TYPES
from cluster.job_file import read_job_file
from cluster.layout import Node, assign, layout
from rewards.environments import FAMILIES, RECIPES, fingerprint
from tests.cluster.kuberay_rules import JOB, operator_findings

DEPLOY = REPOSITORY / "cluster/deploy"
KUBERNETES = "1.32"


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((REPOSITORY / "ray_job.yaml").read_text()))


@pytest.fixture(scope="module")
def job(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return next(d for d in documents if d["kind"] == "RayJob")


def templates(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [
        cluster["headGroupSpec"]["template"],
        *(group["template"] for group in cluster["workerGroupSpecs"]),
    ]


def test_the_job_obeys_kuberays_rules(job: dict[str, Any]) -> None:
    jsonschema.validate(job, JOB)
    assert operator_findings(job) == []
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.backoffLimit", "5"),
        ("spec.backOffLimit", 5),
        ("spec.submissionMode", "Kubernetes"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("spec.rayClusterSpec.autoscalerOptions.upscalingMode", "Fast"),
        ("spec.rayClusterSpec.authOptions.mode", "tokens"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.minReplica", 1),
        ("spec.rayClusterSpec.workerGroupSpecs.0.maxReplicas", None),
    ],
)
def test_the_rules_refuse_what_kuberay_refuses(job: dict[str, Any], path: str, value: Any) -> None:
    wrong = copy.deepcopy(job)
    *parents, last = path.split(".")
    place: Any = wrong
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, JOB)


def test_the_operators_own_rules(job: dict[str, Any]) -> None:
    wrong = copy.deepcopy(job)
    wrong["spec"]["shutdownAfterJobFinishes"] = False
    wrong["spec"]["rayClusterSpec"]["rayVersion"] = "2.40.0"
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = 99
    assert len(operator_findings(wrong)) == 3


def test_pods_and_claims_obey_kubernetes(
    documents: list[dict[str, Any]], job: dict[str, Any]
) -> None:
    import kubernetes_validate

    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]}
        for template in templates(job)
    ]
    claims = [d for d in documents if d["kind"] != "RayJob"]
    assert [claim["kind"] for claim in claims] == ["PersistentVolumeClaim"]
    for document in [*pods, *claims]:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    pods[0]["spec"]["containers"][0]["imagePullPolice"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pods[0], KUBERNETES, strict=True)


def test_every_pod_has_probes_secrets_cache_and_time_to_leave(job: dict[str, Any]) -> None:
    for template in templates(job):
        spec, (container,) = template["spec"], template["spec"]["containers"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert "healthz" in container[probe]["exec"]["command"][2]
        assert {"secretRef": {"name": "worldr1-object-store"}} in container["envFrom"]
        assert {m["mountPath"] for m in container["volumeMounts"]} == {"/models", "/dev/shm"}
        assert spec["terminationGracePeriodSeconds"] >= 60
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert not any(re.search("KEY|SECRET|TOKEN", e["name"]) for e in container["env"])


def test_the_groups_hold_the_preset(job: dict[str, Any]) -> None:
    """The least number of pods holds the run's layout, and a node less does not."""
    nodes = []
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        nodes += [
            Node(
                f"{group['groupName']}-{index}",
                float(limits["cpu"]),
                float(limits["nvidia.com/gpu"]),
                GPU_TYPES["h200"].ray_name,
            )
            for index in range(group["minReplicas"])
        ]
    assert sum(node.gpus for node in nodes) == 48
    shares = assign(layout(load("small")), nodes)
    assert len(shares) == len(nodes)
    with pytest.raises(Exception, match="the cluster has 40 free"):
        assign(layout(load("small")), nodes[:-1])


def test_the_same_file_is_a_job_for_any_cluster(job: dict[str, Any]) -> None:
    found = read_job_file(str(REPOSITORY / "ray_job.yaml"))
    assert found.entrypoint.startswith("worldr1 train small --run s3://")
    assert found.retries == job["spec"]["backoffLimit"] == 5
    # A run of days outlives connections of the pod that follows its log.
    assert job["spec"]["submitterConfig"]["backoffLimit"] == 10
    variables = found.runtime_env["env_vars"]
    assert set(variables) == {
        "HF_HOME", "TORCH_HOME", "MALLOC_ARENA_MAX", "WORLDR1_ENVS", "RAY_JOB_STOP_WAIT_TIME_S",
    }  # fmt: skip
    bare = yaml.safe_load((DEPLOY / "runtime_env.yaml").read_text())
    assert bare == found.runtime_env


def test_dockerfile_is_linted_and_builds_four_environments() -> None:
    tool = Path(sys.executable).parent / "hadolint"
    linted = subprocess.run(
        [str(tool), "--failure-threshold", "style", str(DEPLOY / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr
    text = (DEPLOY / "Dockerfile").read_text()
    for family in ("judge", "reconstruction", "aesthetic"):
        assert re.search(rf"worldr1 envs build {family}\b", text), family
    assert f"python:{sys.version_info.major}.{sys.version_info.minor}" in text
    assert re.search(r"^USER [1-9]\d*$", text, re.M)


def test_the_image_makes_the_environments_from_what_it_has_copied_by_then(tmp_path: Path) -> None:
    """Not from the whole repository, whose every change would install vLLM again."""
    text = (DEPLOY / "Dockerfile").read_text()
    found = re.search(r'^RUN python -c "(from rewards.*?)"$', text, re.M | re.S)
    assert found is not None
    for line in re.findall(r"^COPY (rewards.*)$", text[: found.start()], re.M):
        *sources, target = line.split()
        for source in sources:
            there = REPOSITORY / source
            if there.is_dir():
                shutil.copytree(there, tmp_path / target)
            else:
                (tmp_path / target).mkdir(exist_ok=True)
                shutil.copy(there, tmp_path / target)
    imported, _, use = found[1].replace("\\\n", "").partition(";")
    assert "[build(family, False, root() / family, print) for family in FAMILIES]" in use
    shown = f"{imported}; from rewards.environments import RECIPES, fingerprint; "
    shown += "print(*[fingerprint(RECIPES[family, False]) for family in FAMILIES])"
    done = subprocess.run(
        [sys.executable, "-c", shown], cwd=tmp_path, env={}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [fingerprint(RECIPES[family, False]) for family in FAMILIES]


def test_hadolint_finds_a_fault(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN cd /tmp && pip install torch\n")
    tool = Path(sys.executable).parent / "hadolint"
    assert subprocess.run([str(tool), str(bad)], capture_output=True, check=False).returncode == 1
