"""One learner rank: a plain class, wrapped by whoever spawns it.

Every public method but `describe` and `close` is collective: all ranks call it in the same order,
with the same step and groups and their own share of the trajectories. The learner draws no random
numbers: the same inputs give the same bits.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from actors.config import PolicyConfig, RolloutConfig
from actors.lora import lora_parameters
from actors.policy import Policy
from actors.sde import gaussian_kl, log_prob, schedule_hash, sigma_schedule
from actors.trajectory import (
    LoraWeights,
    Trajectory,
    WeightsVersion,
    require_float32,
    weights_checksum,
)
from learner import fsdp
from learner.account import EMPTY_ACCOUNT, extend_account
from learner.allocator import keep_freed_memory
from learner.batch import (
    MicroBatch,
    RankPlan,
    ScoredGroup,
    advantages,
    flat_keys,
    non_finite_reward,
    trainable_indices,
    update_keys,
)
from learner.config import LearnerConfig
from learner.grpo import SurrogateOutput, summarize_window, surrogate
from learner.lora import average_decay, start_average, to_numpy, update_average
from learner.optimizer import ShardedAdamW
from learner.proof import (
    RatioProof,
    StartupProofError,
    check_metadata,
    judge,
    proof_elements,
    residual_gap,
)
from learner.replay import moments, stored_step
from learner.saving import BackgroundSave, side_group
from learner.schedule import guard_active

__all__ = ["LearnerRank", "RankInfo", "RatioProof", "StartupProofError", "StepReport"]


@dataclass(frozen=True, slots=True)
class RankInfo:
    """What a rank says of itself."""

    rank: int
    world_size: int
    host: str
    pid: int
    device: str
    threads: int
    trained_parameters: int
    """Values of the LoRA tensors, over all ranks."""
    lora_modules: int
    """Modules that the adapter matched."""
    guard: bool
    """Whether GRPO-Guard's ratio is used."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did; equal on every rank but for `seconds`."""

    step: int
    loss: float
    """Mean over members and window steps, over all updates of the batch; NaN if none was tried."""
    metrics: Mapping[str, float]
    """`learner.grpo.summarize_window`, and counts of samples, groups and updates."""
    grad_norm: float
    """Gradient norm before clipping, the largest of the batch's updates."""
    update_skipped: bool
    """Whether any update of the batch was not applied."""
    skip_reason: str
    """One sentence; empty where every update was applied."""
    seconds: float
    applied: tuple[tuple[int, int], ...] = ()
    """(group, member) of every sample whose gradient entered the weights, ascending."""
    advantages: tuple[float, ...] = ()
    """Of every scored member, in the order of (group, member); empty where none was computed."""
    account: str = ""
    """`learner.account.extend_account` over all steps so far."""


class LearnerRank:
    """Holds one shard of the policy and trains its LoRA tensors by GRPO (method section 4)."""

    def __init__(
        self,
        rank: int,
        policy: PolicyConfig,
        learner: LearnerConfig,
        rollout: RolloutConfig,
        seed: int,
        init_url: str | None,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        """Join the process group, load the policy and shard it; blocks until every one of
        `learner.ranks` is there.

        `init_url`: where the ranks meet, such as "tcp://10.0.0.1:29500"; one rank needs none.
        `learner.guard` unset means: on when `updates_per_batch` > 1; a caller that trains with
        staleness sets it (`learner.schedule.guard_active`). `seed` fixes the elements that the
        startup proof compares.
        """
        fsdp.pin_threads(threads)
        if torch.device(device).type == "cpu":
            keep_freed_memory()
        self._rank, self._world_size, self._seed = rank, learner.ranks, seed
        self._policy_config, self._config, self._rollout = policy, learner, rollout
        self._guard = guard_active(learner, max_staleness=0)
        self._schedule_hash = schedule_hash(sigma_schedule(rollout.sampling_steps, rollout.shift))
        self._device = torch.device(device)
        store = fsdp.open_store(rank, learner.ranks, init_url)
        # Loaded before the ranks meet: a model that cannot be loaded must not leave a group behind.
        self._policy = Policy.load(policy, self._device, with_decoder=False)
        mesh = fsdp.start_process_group(rank, learner.ranks, store, self._device, learner.timeout_s)
        self._save_group = side_group(learner.timeout_s)
        self._saving: BackgroundSave | None = None
        # Saved and restored with the weights, whose history it is.
        self._account = torch.tensor(list(bytes.fromhex(EMPTY_ACCOUNT)), dtype=torch.uint8)
        self._transformer = cast(nn.Module, self._policy.transformer)
        self._units = fsdp.shard_transformer(
            self._transformer, mesh, learner.activation_checkpointing, learner.frozen_whole
        )
        self._lora = lora_parameters(self._transformer)
        self._average = start_average(self._lora)
        self._optimizer = ShardedAdamW(self._lora, learner)

    def describe(self) -> RankInfo:
        """Where this rank runs and what it trains."""
        return RankInfo(
            rank=self._rank,
            world_size=self._world_size,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=str(self._device),
            threads=torch.get_num_threads(),
            trained_parameters=sum(p.numel() for p in self._lora.values()),
            lora_modules=self._policy.lora_modules_matched,
            guard=self._guard,
        )

    def hold(self, weights: LoraWeights) -> str:
        """Take other LoRA weights; the checksum of what is held then. Collective.

        Nothing else changes: it is for proofs, which put back what they found.
        """
        fsdp.scatter(weights, self._lora)
        fsdp.release(self._units)
        return weights_checksum(to_numpy(fsdp.gather(self._lora)))

    @torch.no_grad()
    def prove(self, *trajectories: Trajectory) -> RatioProof:
        """Compare the learner's density with the stored one at every stored step (method
        section 2), alone and in batches of `micro_batch`, as it trains; every rank is given the
        same trajectories, drawn with the current weights.

        Raises StartupProofError, in one sentence that names what differs.
        """
        if not trajectories:
            raise StartupProofError("no trajectory was given to compare; at least one is needed")
        checksum = weights_checksum(to_numpy(fsdp.gather(self._lora)))
        for trajectory in trajectories:
            check_metadata(trajectory, self._policy_config, self._rollout, checksum)
        elements = proof_elements(trajectories[0].states[0].numel(), self._seed).to(self._device)
        samples = self._rollout.groups_per_step * self._rollout.group_size
        share = -(-samples // (self._config.updates_per_batch * self._world_size))
        sizes = sorted({1, min(self._config.micro_batch, share)})
        log_ratios, gaps = [], []
        for trajectory in trajectories:
            for w in range(len(trajectory.means)):
                # Kernels of low precision round by the shape that they are given.
                found = [self._compared(trajectory, w, size, elements) for size in sizes]
                worst = torch.tensor(found, dtype=torch.float64).amax(dim=0)  # NaN stays NaN
                log_ratios.append(float(worst[0]))
                gaps.append(float(worst[1]))
        fsdp.release(self._units)
        return judge(
            log_ratios,
            gaps,
            len(trajectories),
            len(log_ratios),
            self._policy_config,
            self._config.clip_range,
        )

    def _compared(
        self, trajectory: Trajectory, w: int, size: int, elements: Tensor
    ) -> tuple[float, float]:
        """Largest |log r| and residual difference of a stored step, computed `size` times in one
        batch."""
        stored = stored_step(self._policy, [trajectory] * size, w, (1,) * size)
        mean, std = moments(self._policy, self._rollout.kernel, stored)
        new = log_prob(stored.sample, mean, std)
        old_mean = trajectory.means[w][None].to(self._device)
        gap = residual_gap(stored.sample, old_mean, mean, std, elements)
        return float((new - float(trajectory.log_probs[w])).abs().max()), gap

    def step(
        self,
        step: int,
        groups: Sequence[ScoredGroup],
        plan: RankPlan,
        *trajectories: Trajectory,
    ) -> StepReport:
        """Train on one batch: all scored groups, this rank's plan (`plan_batch`) and the
        trajectories that the plan's `samples` names, in that order.

        An update whose rewards, loss or gradient are not finite is skipped, never applied in part.
        Raises ValueError where trajectories and plan do not fit.
        """
        started = time.perf_counter()
        shipped = self._require_shipped(groups, plan, trajectories)
        self._policy.prepare([trajectory.meta.prompt_text for trajectory in trajectories])
        reason = non_finite_reward(groups) or (
            "" if any(plan.updates) else "all rewards of every group are equal: no gradient"
        )
        rows: list[Tensor] = []
        applied: list[tuple[int, int]] = []
        values: tuple[float, ...] = ()
        losses, norms, skipped = [], [], 0
        if not reason:
            values = advantages(groups, self._config.advantage, self._config.advantage_clip)
            for number, update in enumerate(plan.updates):
                if not update:
                    continue
                update_rows = self._backward(update, shipped, values)
                rows.append(update_rows)
                loss, norm, why = self._apply(update_rows)
                losses.append(loss)
                norms.append(norm)
                skipped += bool(why)
                reason = reason or why
                if not why:
                    applied += update_keys(groups, number, len(plan.updates))
        return StepReport(
            step=step,
            loss=math.fsum(losses) / len(losses) if losses else math.nan,
            metrics=self._metrics(rows, groups, skipped if losses else 1),
            grad_norm=max(norms) if norms else math.nan,
            update_skipped=bool(reason),
            skip_reason=reason,
            seconds=time.perf_counter() - started,
            applied=tuple(sorted(applied)),
            advantages=values,
            account=self._extend_account(step, sorted(applied)),
        )

    def account(self) -> str:
        """Hash chain over everything that these weights were trained on."""
        return bytes(self._account.tolist()).hex()

    def receive(self, *objects: object) -> int:
        """Number of the objects, each of which was fetched to this rank's node: a lost one shows
        here, on one rank, rather than inside a step that the others have begun."""
        return len(objects)

    def weights(
        self, step: int, lineage: str, average: bool = False
    ) -> tuple[WeightsVersion, dict[str, np.ndarray]]:
        """The whole LoRA tensors, or their running average, under the version that the caller
        gives them.

        Only rank 0 returns the tensors (the others an empty dict), so that they are shipped once.
        """
        full = to_numpy(fsdp.gather(self._average if average else self._lora))
        version = WeightsVersion(step, lineage, weights_checksum(full))
        return version, full if self._rank == 0 else {}

    def save(self, url: str) -> None:
        """Write this rank's shards of weights, average and optimizer below a directory URL."""
        fsdp.save_sharded(url, dict(self._state()))

    def begin_save(self, url: str) -> None:
        """Start to write what `save` writes, as it is at this moment; training may go on.

        A save whose end nobody has asked for, since another rank's had failed, is seen to its end
        first. Raises OSError where it does not end within the group's timeout.
        """
        if self._saving is not None and not self._saving.join(self._config.timeout_s):
            raise OSError(f"the save before still hangs; {url} has to wait")
        self._saving = BackgroundSave(url, self._state(), self._save_group)

    def saved(self, wait_s: float = 0.0) -> bool:
        """Whether the save that was begun is written, waiting so long for it at most; True where
        none was begun. Raises OSError, once, where it failed."""
        if self._saving is None:
            return True
        self._saving.join(wait_s)
        try:
            finished = self._saving.finished()
        except Exception:
            self._saving = None
            raise
        if finished:
            self._saving = None
        return finished

    def load(self, url: str) -> None:
        """Read what `save` wrote, on any number of ranks. Raises OSError if that fails."""
        fsdp.release(self._units)
        fsdp.load_sharded(url, dict(self._state()))

    def close(self) -> None:
        """Leave the process group; the object is of no use afterwards."""
        fsdp.stop_process_group()

    def _state(self) -> dict[str, dict[str, Any]]:
        """The tensors themselves, by name: saving reads them and loading writes into them."""
        return {
            "lora": {name: parameter.detach() for name, parameter in self._lora.items()},
            "average": dict(self._average),
            "optimizer": self._optimizer.state(),
            "account": {"sha256": self._account},
        }

    def _extend_account(self, step: int, applied: Sequence[tuple[int, int]]) -> str:
        account = extend_account(self.account(), step, applied)
        self._account.copy_(torch.tensor(list(bytes.fromhex(account)), dtype=torch.uint8))
        return account

    def _require_shipped(
        self,
        groups: Sequence[ScoredGroup],
        plan: RankPlan,
        trajectories: Sequence[Trajectory],
    ) -> dict[int, Trajectory]:
        """The trajectories by their position in the flat list, checked one by one."""
        keys = flat_keys(groups)
        if len(trajectories) != len(plan.samples):
            raise ValueError(
                f"rank {self._rank} got {len(trajectories)} trajectories; its plan names "
                f"{len(plan.samples)}"
            )
        shipped = dict(zip(plan.samples, trajectories, strict=True))
        for index, trajectory in shipped.items():
            meta = trajectory.meta
            if index >= len(keys) or (meta.group, meta.member) != keys[index]:
                raise ValueError(
                    f"trajectory {index} is of group {meta.group} member {meta.member}, not of "
                    f"{keys[index] if index < len(keys) else 'any scored group'}: trajectories "
                    "must be sorted by (group, member)"
                )
            require_float32(trajectory)
            if meta.schedule_hash != self._schedule_hash:
                raise ValueError(
                    f"trajectory of group {meta.group} member {meta.member} was drawn on another "
                    "sigma schedule than the learner's"
                )
        return shipped

    def _backward(
        self,
        update: Sequence[MicroBatch],
        shipped: Mapping[int, Trajectory],
        values: Sequence[float],
    ) -> Tensor:
        """Accumulate one update's gradient; per-sample rows [n, 8] of all ranks, float64."""
        window = self._rollout.window_size
        passes = [(micro, w) for micro in update for w in micro.steps]
        rows = []
        for number, (micro, w) in enumerate(passes):
            batch = [shipped[i] for i in micro.indices]
            advantage = torch.tensor([values[i] for i in micro.indices], device=self._device)
            weight = torch.tensor(micro.weights, device=self._device) / window
            last = number == len(passes) - 1
            with fsdp.training_pass(self._units, last, self._config.frozen_whole):
                output = self._surrogate(batch, w, micro.sharing, advantage)
                (output.loss * weight).sum().backward()
            columns = (
                weight, advantage, output.ratio, output.log_ratio, output.muted, output.kl,
                output.loss.detach(), torch.full_like(weight, w),
            )  # fmt: skip
            rows.append(torch.stack([c.double() for c in columns], dim=1).cpu())
        return fsdp.all_gather_rows(torch.cat(rows), self._world_size)

    def _surrogate(
        self, batch: Sequence[Trajectory], w: int, sharing: Sequence[int], advantage: Tensor
    ) -> SurrogateOutput:
        """Loss of window step w of some trajectories, per sample."""
        stored = stored_step(self._policy, batch, w, sharing)
        kernel, beta = self._rollout.kernel, self._config.beta_kl
        reference: Tensor | None = None
        if beta > 0:
            # Before the pass that is differentiated, whose graph must see the adapter's flags as
            # they are in the backward pass.
            with torch.no_grad(), self._policy.adapter_disabled():
                reference = moments(self._policy, kernel, stored).mean
        mean, std = moments(self._policy, kernel, stored)
        old_log_prob = torch.stack([t.log_probs[w] for t in batch]).to(self._device)
        shift = None
        if self._guard:
            old_mean = torch.stack([t.means[w] for t in batch]).to(self._device)
            shift = (mean - old_mean).square().flatten(1).mean(dim=1)
        return surrogate(
            log_prob(stored.sample, mean, std),
            old_log_prob,
            advantage,
            self._config.clip_range,
            kl=None if reference is None else gaussian_kl(mean, reference, std),
            beta_kl=beta,
            guard=self._guard,
            mean_shift=shift,
            std=std.flatten(),
            dt=stored.each(stored.sigma_next - stored.sigma).to(self._device),
        )

    def _apply(self, rows: Tensor) -> tuple[float, float, str]:
        """Clip and apply the accumulated gradient: loss, its norm, and why not, if not."""
        loss = float((rows[:, 0] * rows[:, 6]).sum())
        norm = self._optimizer.gradient_norm()
        reason = ""
        if not math.isfinite(loss):
            reason = f"the loss is {loss}"
        elif not math.isfinite(norm):
            reason = f"the gradient norm is {norm}"
        else:
            self._optimizer.step(norm)
            decay = average_decay(self._optimizer.updates(), self._config.ema_decay)
            update_average(self._average, self._lora, decay)
        self._optimizer.clear()
        return loss, norm, reason

    def _metrics(
        self, rows: Sequence[Tensor], groups: Sequence[ScoredGroup], skipped: int
    ) -> dict[str, float]:
        columns = torch.cat(list(rows)).unbind(dim=1) if rows else None
        summary = {}
        if columns is not None:
            weight, advantage, ratio, log_ratio, muted, kl, _, window_step = columns
            summary = summarize_window(
                window_step, weight, advantage, ratio, log_ratio, muted > 0, kl
            )
        return summary | {
            "groups": float(len(groups)),
            "samples": float(len(trainable_indices(groups))),
            "updates_skipped": float(skipped),
            "adam_damping": self._optimizer.damping(),
        }
