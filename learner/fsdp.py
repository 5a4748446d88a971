"""FSDP2 on a one-dimensional mesh: process group, wrapping, gathering, sharded checkpoints.

The same code runs over gloo on CPUs and NCCL on GPUs, on one rank or on many. Only LoRA tensors
are trained; the frozen weights are sharded too, because they are what does not fit.
"""

from __future__ import annotations

import functools
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.futures import Future
from torch.utils.checkpoint import checkpoint

from learner.storage_errors import StoreRefused, first_cause, is_transient

log = logging.getLogger(__name__)

SAVE_ATTEMPTS = 4
"""A sharded save or load that fails on any rank, in a way that waiting may mend, is tried this many
times."""


LOADING_TIME = timedelta(hours=2)
"""A rank that has not loaded its model by then is given up: weights may come from a cold cache or a
slow network file system on one node, and from memory on the next."""


def gpu_index(device: torch.device) -> int:
    """Which of the GPUs that this process sees a device is: "cuda" alone is the first. Ray shows an
    actor only its own."""
    return 0 if device.index is None else device.index


def open_store(rank: int, world_size: int, init_url: str | None) -> dist.Store:
    """The store at which the ranks meet, served by rank 0 from now on: its port stays its own while
    models load, however long that takes on one node or another.

    One rank needs no `init_url`, such as "tcp://10.0.0.1:29500", and opens no port. Raises
    ValueError where the rank does not fit the world or this process has a group already.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank = {rank} is outside the world of {world_size} ranks")
    if dist.is_initialized():
        raise ValueError("this process has a process group already; close the other LearnerRank")
    if world_size == 1:
        return dist.HashStore()
    place = urlsplit(init_url or "")
    if place.scheme == "file" and place.path:
        return dist.FileStore(place.path, world_size)
    if place.scheme != "tcp" or place.hostname is None or place.port is None:
        raise ValueError(
            f"init_url is {init_url!r}; a world of {world_size} ranks needs tcp://HOST:PORT or "
            "file:///PATH"
        )
    return dist.TCPStore(
        place.hostname,
        place.port,
        world_size,
        is_master=rank == 0,
        timeout=LOADING_TIME,
        wait_for_workers=False,
    )


def start_process_group(
    rank: int, world_size: int, store: dist.Store, device: torch.device, timeout_s: float
) -> DeviceMesh:
    """Wait until every rank has come here, join the process group and return its mesh.

    A collective that takes longer than `timeout_s` kills the group, which does not heal: the caller
    recreates every rank.
    """
    if device.type == "cuda":
        torch.cuda.set_device(gpu_index(device))
    # Not by a collective: its time limit is that of a step, and a model may load for longer.
    store.set(f"loaded/{rank}", "")
    store.wait([f"loaded/{other}" for other in range(world_size)], LOADING_TIME)
    dist.init_process_group(
        # Metrics are reduced on the CPU, weights on the GPU.
        backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("ranks", store),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    return init_device_mesh(device.type, (world_size,), mesh_dim_names=("shard",))


def shard_transformer(
    transformer: nn.Module, mesh: DeviceMesh, activation_checkpointing: bool, frozen_whole: bool
) -> tuple[FSDPModule, ...]:
    """Shard a Wan transformer in place: one FSDP unit per block, one for the rest, each gathered
    for every pass. Returns the units, which `training_pass` and `release` ask for.

    With `frozen_whole` the frozen weights stay whole on every rank and the trained ones are a
    single unit, whose whole weights stay from the first forward pass of an update on until
    `training_pass` or `release` lets them go: one gather and one reduction per update.

    Every parameter computes in the dtype it is stored in (frozen weights in the policy's, LoRA in
    float32) and gradients are reduced in float32. A `param_dtype` would round the LoRA weights and
    Wan's float32 modulation to bfloat16 here but not in the rollout, and the ratio would no longer
    be that of one policy (method section 2).
    """
    # Wan returns a view; nothing here changes it in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    blocks = _blocks(transformer)
    if activation_checkpointing:
        checkpoint_blocks(transformer)
    whole = {p for p in transformer.parameters() if frozen_whole and not p.requires_grad}
    units = []
    for module in [transformer] if frozen_whole else [*blocks, transformer]:
        unit = fully_shard(
            module,
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=not frozen_whole,
            ignored_params=whole,
        )
        # Losses are normalised over all ranks, so that gradients are summed, never averaged.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
        units.append(unit)
    # FSDP copies `requires_grad` when it gathers a parameter for the first time. Were that in a
    # pass with the adapter switched off, which freezes it, LoRA would never see a gradient.
    for unit in reversed(units):
        unit.unshard()
        unit.reshard()
    return tuple(units)


def checkpoint_blocks(transformer: nn.Module) -> None:
    """Let every block keep its input alone and recompute the rest in its backward pass."""
    for block in _blocks(transformer):
        _checkpoint_forward(block)


def _blocks(transformer: nn.Module) -> nn.ModuleList:
    blocks = getattr(transformer, "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) == 0:
        raise ValueError(
            f"{type(transformer).__name__} has no `blocks`; FSDP shards a transformer by its blocks"
        )
    return blocks


def _checkpoint_forward(block: nn.Module) -> None:
    """Replacing `forward`, rather than wrapping the module, keeps the parameter names and lets
    FSDP's hooks run outside of the recomputation."""
    forward = block.forward

    @functools.wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    block.forward = recomputed  # type: ignore[method-assign]


@contextmanager
def training_pass(units: Sequence[FSDPModule], last: bool, frozen_whole: bool) -> Iterator[None]:
    """One of an update's forward and backward passes. Only the `last` reduces gradients over the
    ranks; before it they pile up locally (LoRA gradients are small). With `frozen_whole` only
    the last lets go of the gathered weights, which the update makes stale."""

    def switch(reduces: bool, lets_go: bool) -> None:
        for unit in units:
            # Not down the module tree, which is walked anew for each unit and switch.
            unit.set_requires_gradient_sync(reduces, recurse=False)
            unit.set_reshard_after_backward(lets_go, recurse=False)

    switch(last, last or not frozen_whole)
    try:
        yield
    finally:
        switch(True, True)


def release(units: Sequence[FSDPModule]) -> None:
    """Let go of every gathered weight: a forward pass without a backward pass keeps them (under
    `frozen_whole`), and weights that are loaded afterwards would not be seen."""
    for unit in units:
        unit.reshard()


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole float32 tensors on the CPU, on every rank. Collective: every rank must call it."""
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor)
        .detach()
        .to("cpu", torch.float32, copy=True)
        for name, tensor in tensors.items()
    }


@torch.no_grad()
def scatter(whole: Mapping[str, np.ndarray], tensors: Mapping[str, Tensor]) -> None:
    """The counterpart of `gather`: copy whole tensors into those that may be sharded. Collective.

    ValueError unless the names are the same.
    """
    if whole.keys() != tensors.keys():
        raise ValueError(f"tensors {sorted(whole.keys() ^ tensors.keys())[:3]} are not in both")
    for name, tensor in tensors.items():
        shard = local(tensor)
        full = torch.from_numpy(np.array(whole[name])).to(shard.device)
        if isinstance(tensor, DTensor):
            full = local(distribute_tensor(full, tensor.device_mesh, tensor.placements))
        shard.copy_(full)


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor that may be sharded: an elementwise operation on it costs a
    fraction of the same operation on the sharded tensor, which is dispatched in Python."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def all_gather_rows(rows: Tensor, world_size: int) -> Tensor:
    """[n, k] on the CPU from every rank, whose n may differ, concatenated in rank order."""
    if world_size == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size)]
    dist.all_gather(counts, torch.tensor([len(rows)]))
    longest = max(int(count) for count in counts)
    padded = nn.functional.pad(rows, (0, 0, 0, longest - len(rows))).contiguous()
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


class _ShardWriter(FsspecWriter):  # type: ignore[misc]  # torch does not type it
    """Fails by the store's own error, which says whether waiting may help."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            raise first_cause(error) from None


def save_sharded(
    url: str, state: dict[str, object], group: dist.ProcessGroup | None = None
) -> None:
    """Write a (nested) state of sharded tensors to a directory on any fsspec URL; collective over
    `group` (the default group where it is None).

    Retried with backoff where waiting may help; then raises OSError naming the ranks that failed.
    """
    # A remote object is durable when its upload is complete; only local files need an fsync.
    local = "://" not in url or url.startswith(("file://", "local://"))

    def save() -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected an existing checkpoint")
            dcp.save(
                state,
                storage_writer=_ShardWriter(url, sync_files=local),
                process_group=group,
            )

    _with_retries(f"saving {url}", save)


def load_sharded(url: str, state: dict[str, object]) -> None:
    """Fill a (nested) state of sharded tensors, in place, from `save_sharded`'s directory, written
    by any number of ranks; collective. Raises OSError where it cannot be read."""
    _with_retries(f"loading {url}", lambda: dcp.load(state, storage_reader=FsspecReader(url)))


def read_section(url: str, section: str) -> dict[str, Tensor]:
    """Whole CPU tensors of one section ("lora", "average") of `save_sharded`'s directory, by name,
    read by this process alone: it needs no process group, and as many ranks may have written.

    Raises OSError where it cannot be read, KeyError where there is no such section.
    """
    prefix, state = f"{section}.", dict[str, Tensor]()

    def read() -> None:
        reader = FsspecReader(url)
        for name, stored in reader.read_metadata().state_dict_metadata.items():
            if name.startswith(prefix) and isinstance(stored, TensorStorageMetadata):
                state[name] = torch.empty(stored.size, dtype=stored.properties.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(state, storage_reader=reader, no_dist=True)

    _with_retries(f"reading {url}", read)
    if not state:
        raise KeyError(f"{url} has no section {section!r}")
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _with_retries(what: str, call: Callable[[], object]) -> None:
    for attempt in range(1, SAVE_ATTEMPTS + 1):
        try:
            call()
            return
        except CheckpointException as error:
            reasons = {rank: str(wrapped[0]) for rank, wrapped in error.failures.items()}
            transient = all(is_transient(wrapped[0]) for wrapped in error.failures.values())
            # Every rank sees the same failures, so that all of them retry or none does.
            if not transient:
                raise StoreRefused(f"{what} failed on ranks {reasons}") from error
            if attempt == SAVE_ATTEMPTS:
                raise OSError(f"{what} failed on ranks {reasons}") from error
            log.warning("%s failed on ranks %s; attempt %d", what, reasons, attempt)
            time.sleep(0.5 * 2**attempt)


def pin_threads(threads: int | None) -> None:
    """Fix torch's intra-op threads: matrix products differ in the last bit across thread counts."""
    if threads is not None:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


def stop_process_group() -> None:
    """Leave the process group; a second call does nothing."""
    if dist.is_initialized():
        dist.destroy_process_group()
