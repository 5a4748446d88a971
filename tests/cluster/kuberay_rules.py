"""Field rules of KubeRay's RayJob (ray.io/v1, as of KubeRay 1.6) as JSON Schema.

From the types in ray-operator/apis/ray/v1 of the KubeRay project: names, types, enumerations and
what is required. Pod templates are Kubernetes' own and are checked by `kubernetes-validate`. The
operator's further rules, which no schema holds, are functions.
"""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string"}
FLAG = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
ANY = {"type": "object"}
LIST = {"type": "array"}


def _object(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


AUTOSCALER = _object(
    resources=ANY,
    image=TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    securityContext=ANY,
    idleTimeoutSeconds=COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    version={"enum": ["v1", "v2"]},
    env=LIST,
    envFrom=LIST,
    volumeMounts=LIST,
    command=LIST,
    args=LIST,
)
HEAD = _object(
    ("template",),
    template=ANY,
    headService=ANY,
    enableIngress=FLAG,
    ingressOptions=ANY,
    resources=TEXTS,
    labels=TEXTS,
    rayStartParams=TEXTS,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]},
)
WORKERS = _object(
    ("groupName", "minReplicas", "maxReplicas", "template"),
    suspend=FLAG,
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=COUNT,
    priority={"type": "integer"},
    resources=TEXTS,
    labels=TEXTS,
    rayStartParams=TEXTS,
    template=ANY,
    scaleStrategy=_object(workersToDelete={"type": "array", "items": TEXT}),
    numOfHosts={"type": "integer", "minimum": 1},
)
CLUSTER = _object(
    ("headGroupSpec",),
    upgradeStrategy=_object(type={"enum": ["Recreate", "None"]}),
    authOptions=_object(
        enableK8sTokenAuth=FLAG, secretName=TEXT, mode={"enum": ["disabled", "token"]}
    ),
    suspend=FLAG,
    managedBy=TEXT,
    autoscalerOptions=AUTOSCALER,
    headServiceAnnotations=TEXTS,
    enableInTreeAutoscaling=FLAG,
    gcsFaultToleranceOptions=ANY,
    networkPolicy=ANY,
    headGroupSpec=HEAD,
    rayVersion=TEXT,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
JOB = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_object(
        ("name",),
        name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47},
        namespace=TEXT,
        labels=TEXTS,
        annotations=TEXTS,
    ),
    spec=_object(
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        backoffLimit=COUNT,
        rayClusterSpec=CLUSTER,
        submitterPodTemplate=ANY,
        metadata=TEXTS,
        clusterSelector=TEXTS,
        submitterConfig=_object(backoffLimit=COUNT),
        managedBy=TEXT,
        deletionStrategy=ANY,
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        jobId=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        entrypointResources=TEXT,
        entrypointNumCpus={"type": "number", "minimum": 0},
        entrypointNumGpus={"type": "number", "minimum": 0},
        ttlSecondsAfterFinished=COUNT,
        shutdownAfterJobFinishes=FLAG,
        suspend=FLAG,
    ),
)


def operator_findings(job: dict[str, Any]) -> list[str]:
    """What the operator refuses although the schema allows it."""
    spec, found = job["spec"], []
    cluster = spec.get("rayClusterSpec")
    if (cluster is None) == ("clusterSelector" not in spec):
        found.append("exactly one of rayClusterSpec and clusterSelector")
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        found.append("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
    if cluster is None:
        return found
    groups = cluster.get("workerGroupSpecs", [])
    if len({group["groupName"] for group in groups}) != len(groups):
        found.append("group names are unique")
    for group in groups:
        low, high = group["minReplicas"], group["maxReplicas"]
        if not low <= group.get("replicas", low) <= high:
            found.append(f"{group['groupName']}: minReplicas <= replicas <= maxReplicas")
    version = tuple(int(part) for part in cluster.get("rayVersion", "0.0").split(".")[:2])
    if cluster.get("authOptions", {}).get("mode") == "token" and version < (2, 52):
        found.append("token authentication needs rayVersion 2.52 or newer")
    return found
