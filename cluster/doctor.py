"""Whether a run can start on a cluster: what its nodes are asked, and what their reports say.

`worldr1 doctor PRESET` prints them; a run on Ray asks for them before it takes a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster.config import LOOPBACK, ConfigError, RunConfig, RunStopped, resolve_model
from cluster.gpus import GPU_TYPES, GpuType
from cluster.layout import Node, PlacementError, assign, describe, layout
from cluster.probe import NodeReport, ProbeRequest
from cluster.storage import absolute_url
from rewards.config import RewardConfig
from rewards.environments import environments_of, located

GB = 1e9
SPARE_DISK = 2 * GB
"""Free bytes that Ray's logs and spilled objects want at the least."""
MAX_SKEW_S = 2.0
"""Clocks farther apart make logs and timeouts lie, and S3 refuses signatures at 15 minutes."""
SLOW_STORE_S = 5.0
FLASH = "flash-attn"
"""What computes `policy.attention = "flash"`; in no extra, since it is compiled for each torch."""
OLDEST_DRIVER = 580
"""First driver branch that runs CUDA 13, for which the wheels are built."""


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What is known of the cluster beside its nodes' own reports."""

    nodes: tuple[Node, ...]
    """What each node has free, as Ray counts it."""
    address: str
    """Of the head; empty: this machine alone."""
    ray: str
    python: str
    """Versions of this process."""
    asked: tuple[tuple[float, float], ...] = ()
    """This process's clock before and after each node was asked for its time, in the order of the
    reports: an answer may take as long as a process takes to start."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the answer."""

    check: str
    ok: bool
    text: str
    advice: str = ""

    def line(self) -> str:
        """As it is printed."""
        mark = "ok  " if self.ok else "FAIL"
        return f"{mark} {self.check:<13}{self.text}" + (
            f"; {self.advice}" if self.advice and not self.ok else ""
        )


class Unfit(RunStopped):
    """A check failed: the run must not start."""

    advice = (
        "mend what the lines above name; `worldr1 doctor PRESET` repeats the checks, and "
        "placement.check_nodes=false starts without them"
    )


def probe_request(config: RunConfig, meeting_point: str = "", sign: str = "") -> ProbeRequest:
    """What `worldr1 doctor` looks for on a node."""
    rewards = located(config.rewards)
    return ProbeRequest(
        resolve_model(config.policy.model),
        absolute_url(config.run),
        environments_of(rewards),
        meeting_point,
        scorer_weights(rewards),
        (FLASH,) if config.policy.attention == "flash" else (),
        sign,
    )


def scorer_weights(rewards: RewardConfig) -> dict[str, str]:
    """Weights that the scorers load, by configuration key."""
    from rewards.lpips import ALEXNET  # with torch, which a look at a preset does without

    found = {}
    if rewards.reconstruction.backend == "da3":
        found["rewards.reconstruction.model"] = rewards.reconstruction.model
    if rewards.perceptual.backend == "lpips":
        found["rewards.perceptual.weights"] = rewards.perceptual.weights or ALEXNET
    if rewards.judge.backend == "vllm":
        found["rewards.judge.model"] = rewards.judge.model
    if rewards.aesthetic.backend == "hpsv3":
        found["rewards.aesthetic.model"] = rewards.aesthetic.model
        found["rewards.aesthetic.base"] = rewards.aesthetic.base
    return found


def diagnose(
    config: RunConfig, reports: Sequence[NodeReport], facts: ClusterFacts
) -> list[Finding]:
    """Every check, in the order in which people mend things."""
    return [
        _versions(reports, facts),
        _token(reports, facts),
        _clocks(reports, facts),
        _layout(config, facts),
        *_gpus(config, reports, facts),
        _environments(config, reports),
        _compilers(config, reports),
        _attention(config, reports),
        _model(config, reports),
        _weights(config, reports),
        _disk(reports),
        _store(config, reports),
        _ports(config, reports),
    ]


def _finding(check: str, problems: Sequence[str], fine: str, advice: str) -> Finding:
    if not problems:
        return Finding(check, True, fine)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Finding(check, False, problems[0] + more, advice)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _versions(reports: Sequence[NodeReport], facts: ClusterFacts) -> Finding:
    problems = [
        f"node {r.node} runs Python {r.python} and ray {r.ray}, this process {facts.python} and "
        f"{facts.ray}"
        for r in reports
        if _minor(r.python) != _minor(facts.python) or r.ray != facts.ray
    ]
    fine = f"Python {_minor(facts.python)} and ray {facts.ray} on {len(reports)} nodes"
    return _finding("versions", problems, fine, "use one image for head and workers")


def _token(reports: Sequence[NodeReport], facts: ClusterFacts) -> Finding:
    host = facts.address.removeprefix("ray://").rpartition(":")[0]
    if not facts.address or host in (LOOPBACK, "127.0.0.1", "localhost"):
        return Finding("token", True, "this machine's own Ray listens on loopback")
    problems = [
        f"node {r.node} has RAY_AUTH_MODE = {r.auth_mode or 'unset'}"
        for r in reports
        if r.auth_mode != "token"
    ]
    return _finding(
        "token",
        problems,
        "every node asks for the cluster's token",
        "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN in every process that starts or joins the "
        "cluster: whoever reaches an open one can run code on it",
    )


def _clocks(reports: Sequence[NodeReport], facts: ClusterFacts) -> Finding:
    skews = [
        min(r.time - before, 0.0) + max(r.time - after, 0.0)
        for r, (before, after) in zip(reports, facts.asked, strict=True)
    ]
    problems = [
        f"the clock of node {r.node} is {skew:+.1f} s off at least"
        for r, skew in zip(reports, skews, strict=True)
        if abs(skew) > MAX_SKEW_S
    ]
    most = max((abs(skew) for skew in skews), default=0.0)
    return _finding("clocks", problems, f"within {most:.1f} s", "start NTP on the nodes")


def _layout(config: RunConfig, facts: ClusterFacts) -> Finding:
    try:
        shares = assign(layout(config), facts.nodes)
    except PlacementError as error:
        return Finding(
            "layout",
            False,
            str(error),
            "`worldr1 plan PRESET --gpus N` gives a split for the GPUs that are there",
        )
    return Finding("layout", True, "; ".join(describe(shares)))


def gpu_type_of(name: str) -> GpuType | None:
    """The type whose name is a word of the driver's name of the device: a GH200 is no H200."""
    words = re.split(r"\W+", name)
    return next((gpu for gpu in GPU_TYPES.values() if gpu.ray_name in words), None)


def _gpus(
    config: RunConfig, reports: Sequence[NodeReport], facts: ClusterFacts
) -> Iterator[Finding]:
    wanted = sum(shape.workers * shape.gpus for shape in layout(config))
    if not wanted:
        yield Finding("GPUs", True, "none needed")
        return
    expected = {node.name: node.gpus for node in facts.nodes}
    problems = []
    if not any(r.gpus for r in reports):
        problems.append(f"no node shows a GPU; {reports[0].node}: {reports[0].driver_problem}")
    for r in reports:
        there = expected.get(r.node, 0.0)
        if there and r.driver_problem:
            problems.append(f"Ray counts {there:g} GPUs on node {r.node}, but {r.driver_problem}")
        elif there > len(r.gpus):
            problems.append(f"Ray counts {there:g} GPUs on node {r.node}, its driver {len(r.gpus)}")
    shown = sorted({name for r in reports for name, _ in r.gpus})
    yield _finding(
        "GPUs", problems, f"{', '.join(shown)}", "reinstall the driver, or restart the node's Ray"
    )
    old = [
        f"node {r.node} has driver {r.driver}"
        for r in reports
        if r.driver and int(r.driver.split(".")[0]) < OLDEST_DRIVER
    ]
    newest = ", ".join(sorted({r.driver for r in reports if r.driver}))
    yield _finding(
        "driver", old, newest, f"CUDA 13 needs {OLDEST_DRIVER} or newer: update the driver"
    )
    yield _memory(config, reports, facts)


def _memory(config: RunConfig, reports: Sequence[NodeReport], facts: ClusterFacts) -> Finding:
    """Whether a worker of each pool fits the smallest GPU that it may get, as far as the model's
    size is known."""
    from cluster.costs import model_shape
    from cluster.plan import pool_fits

    kinds = {node.name: node.gpu_type for node in facts.nodes}
    sizes = [(memory, name, kinds.get(r.node, "")) for r in reports for name, memory in r.gpus]
    if not sizes:
        return Finding("memory", True, "no GPU to compare with")
    try:
        shape = model_shape(config)
    except ConfigError as error:
        return Finding("memory", True, f"not compared: {error}")
    problems, compared = [], set[str]()
    for pool in layout(config):
        allowed = [size for size in sizes if pool.gpu_type in ("", size[2])]
        if not pool.gpus or not allowed:  # GPUs of a type that is not there fail the layout
            continue
        memory, name, _ = min(allowed)
        compared.add(name)
        known = gpu_type_of(name)
        gpu = GpuType(name, name, memory, known.bf16 if known else 1.0)
        problems += [
            f"a {fit.pool} worker needs {fit.needed / GB:.1f} GB, a {name} gives it "
            f"{fit.available / GB:.1f} GB"
            for fit in pool_fits(config, gpu, shape)
            if fit.pool == pool.name and not fit.fits
        ]
    return _finding(
        "memory",
        problems,
        f"every pool fits a {' or a '.join(sorted(compared))}" if compared else "not compared",
        "`worldr1 plan` says what to change",
    )


def _environments(config: RunConfig, reports: Sequence[NodeReport]) -> Finding:
    problems = [
        f"node {r.node}, {family}: {problem}"
        for r in reports
        for family, problem in r.environment_problems.items()
    ]
    return _finding(
        "environments", problems, "every reward pool's Python is there", "`worldr1 envs build NAME`"
    )


def _compilers(config: RunConfig, reports: Sequence[NodeReport]) -> Finding:
    """gsplat compiles its kernels for the GPU at hand when a reward worker first renders."""
    reconstruction = config.rewards.reconstruction
    if reconstruction.renderer == "torch" or not reconstruction.gpus:
        return Finding("compilers", True, "nothing is compiled")
    problems = [
        f"node {r.node} has no {' and no '.join(r.compilers_missing)}"
        for r in reports
        if r.gpus and r.compilers_missing
    ]
    return _finding(
        "compilers",
        problems,
        "nvcc and g++ on every node with GPUs",
        "install the CUDA 13 toolkit and g++ (the image has them), set CUDA_HOME; or "
        "rewards.reconstruction.renderer=torch, which is slower",
    )


def _attention(config: RunConfig, reports: Sequence[NodeReport]) -> Finding:
    problems = [
        f"node {r.node} has no {' and no '.join(r.packages_missing)}"
        for r in reports
        if r.gpus and r.packages_missing
    ]
    return _finding(
        "attention",
        problems,
        f"{config.policy.attention} is there",
        f"install {FLASH} beside torch on every node, or policy.attention=native",
    )


def _model(config: RunConfig, reports: Sequence[NodeReport]) -> Finding:
    problems = [f"node {r.node}: {r.model_problem}" for r in reports if r.model_problem]
    return _finding(
        "model",
        problems,
        f"{config.policy.model} can be read on every node",
        "put the weights on a volume that all nodes mount, or set HF_HOME to a shared cache",
    )


def _weights(config: RunConfig, reports: Sequence[NodeReport]) -> Finding:
    problems = [
        f"node {r.node}, {key}: {problem}"
        for r in reports
        for key, problem in r.weights_problems.items()
    ]
    wanted = len(scorer_weights(config.rewards))
    return _finding(
        "weights",
        problems,
        f"{wanted} of scorers can be had on every node" if wanted else "the scorers need none",
        "put them on a volume that all nodes mount and may write, and set HF_HOME and TORCH_HOME "
        "to it; or name a folder that is there",
    )


def _disk(reports: Sequence[NodeReport]) -> Finding:
    problems = []
    on_gpus = any(r.gpus for r in reports)
    most = 0
    for r in reports:
        fetched = r.to_fetch if r.gpus or not on_gpus else 0  # a head without GPUs loads none
        most = max(most, fetched)
        shared = SPARE_DISK if r.one_disk and fetched else 0.0
        for what, free, enough in (
            ("temporary files", r.disk_free, SPARE_DISK),
            ("downloads", r.cache_free, fetched + shared),
        ):
            if free < enough:
                problems.append(
                    f"node {r.node} has {free / GB:.1f} GB free for {what}, {enough / GB:.1f} GB "
                    "are needed"
                )
    least = min((r.disk_free for r in reports), default=0)
    fine = f"{least / GB:.0f} GB free" + (f", {most / GB:.0f} GB to be fetched" if most else "")
    return _finding("disk", problems, fine, "free some, or move TMPDIR or HF_HOME")


def _store(config: RunConfig, reports: Sequence[NodeReport]) -> Finding:
    problems = [f"node {r.node}: {r.store_problem}" for r in reports if r.store_problem]
    problems += [
        f"node {r.node}: a round trip of a few bytes took {r.store_s:.1f} s"
        for r in reports
        if r.store_s > SLOW_STORE_S
    ]
    slowest = max((r.store_s for r in reports), default=0.0)
    fine = f"{config.run}: written, read and removed in {slowest:.2f} s at most"
    return _finding(
        "store",
        problems,
        f"{fine}" + (", the same folder on every node" if len(reports) > 1 else ""),
        "check the URL (a path must be one folder on all nodes), the credentials in the "
        "environment of every node, and their permissions (put, get, list, delete)",
    )


def _ports(config: RunConfig, reports: Sequence[NodeReport]) -> Finding:
    problems = [f"node {r.node}: {r.port_problem}" for r in reports if r.port_problem]
    return _finding(
        "ports",
        problems,
        "every node reaches the others" if len(reports) > 1 else "one node",
        "open TCP between the nodes (learner ranks meet on free ports, NCCL and gloo too)",
    )


def require_fit(findings: Sequence[Finding]) -> None:
    """Unfit with every failed check; nothing where all are ok."""
    failed = [finding for finding in findings if not finding.ok]
    if failed:
        raise Unfit(
            f"{len(failed)} of {len(findings)} checks of the cluster failed:\n"
            + "\n".join(finding.line() for finding in failed)
        )
