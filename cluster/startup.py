"""Proofs before the first update: a run whose parts disagree does not start.

Each proof prints one line; the first that fails raises `StartupProofError` with one sentence.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from actors.sde import schedule_hash, sigma_schedule, step_moments
from actors.trajectory import LoraWeights, RolloutRequest, WeightsVersion, weights_checksum
from actors.worker import WorkerInfo
from cluster.config import RunConfig, RunStopped
from cluster.lost import MAX_LOSSES, ObjectGone
from cluster.pools import DeliveryError, Learner, Published, Rollouts, Workers
from learner.rank import RankInfo, RatioProof, StartupProofError
from prompts.schema import Prompt
from rewards.known_answer import KnownAnswerError

PROOF_GROUP = 2**62
"""Serial number of the group that the ratio proofs look at; never trained on."""


class RunRefused(RunStopped):
    """A startup proof failed: the run must not start."""

    advice = "mend what the proof names, then start the same command again"


async def prove_run(
    config: RunConfig,
    workers: Workers,
    prompts: Mapping[str, Sequence[Prompt]],
    weights: Published,
    say: Callable[[str], None],
) -> None:
    """Run every start-up proof (method section 2). RunRefused, from what the first fault raised."""
    try:
        await _prove(config, workers, prompts, weights, say)
    except (StartupProofError, KnownAnswerError, DeliveryError) as fault:
        raise RunRefused(f"the run does not start: {fault}") from fault


async def _prove(
    config: RunConfig,
    workers: Workers,
    prompts: Mapping[str, Sequence[Prompt]],
    weights: Published,
    say: Callable[[str], None],
) -> None:
    rollouts, learner = workers.rollouts, workers.learner
    infos = await rollouts.describe()
    ranks = await learner.describe()
    say("proof  policy      " + prove_policy(config, infos, ranks))
    held: LoraWeights = await rollouts.pool.fetch(weights.weights)
    marked = probe_weights(held, weights.version)
    # By reference, as everything large: Ray keeps a copy of an argument for every call of it.
    probe = replace(marked, weights=await rollouts.pool.store(marked.weights))
    say("proof  delivery    " + await prove_delivery(rollouts, weights, probe))
    request = RolloutRequest(
        group=PROOF_GROUP,
        prompt=prompts["train"][0],
        members=config.rollout.group_size,
        seed=config.seed,
        window_start=_strictest_start(config),
    )
    await _hold(learner, probe)
    ratio = await prove_ratio(rollouts, learner, request, probe)
    await _hold(learner, weights)
    say(
        f"proof  ratio       ok: |log r| {ratio.log_ratio_max:.1e} <= {ratio.log_ratio_limit:.0e}, "
        f"residual {ratio.residual_max:.1e} <= {ratio.residual_limit:.0e} over {ratio.steps} steps"
    )
    for line in await prove_rewards(workers):
        say("proof  rewards     " + line)


def _strictest_start(config: RunConfig) -> int:
    """The window start with the least noise, by which every difference of means is divided. A drawn
    one would let a run start or not by its seed."""
    rollout = config.rollout
    sigmas = sigma_schedule(rollout.sampling_steps, rollout.shift)
    nothing = torch.zeros(1, 1, 1, 1, 1)

    def noise(step: int) -> float:
        now, then = sigmas[step], sigmas[step + 1]
        level = rollout.resolved_noise_level
        return float(
            step_moments(rollout.kernel, nothing, nothing, now, then, sigmas[1], level).std
        )

    return min(range(rollout.window_low, rollout.window_stop), key=noise)


async def _hold(learner: Learner, weights: Published) -> None:
    found = await learner.hold(weights.weights)
    if found != weights.version.checksum:
        raise StartupProofError(
            f"the learner's ranks hold weights {found[:12]} after they were given "
            f"{weights.version.checksum[:12]}"
        )


async def prove_ratio(
    rollouts: Rollouts, learner: Learner, request: RolloutRequest, weights: Published
) -> RatioProof:
    """Learner and rollout compute the same density of two of a group's trajectories, which are
    rolled out again where they are lost with their node.

    `weights` are held by the ranks. An untrained adapter does nothing, so that only other weights
    show whether both sides apply it alike.
    """
    for loss in range(1, MAX_LOSSES + 1):
        rollout = await rollouts.rollout(request, weights)
        try:
            return await learner.prove(rollout.trajectories[:2])
        except ObjectGone:
            if loss == MAX_LOSSES:
                raise
    raise AssertionError("unreachable")


def prove_policy(config: RunConfig, infos: Sequence[WorkerInfo], ranks: Sequence[RankInfo]) -> str:
    """Every process has the same schedule and the same, non-empty adapter."""
    expected = schedule_hash(sigma_schedule(config.rollout.sampling_steps, config.rollout.shift))
    for info in infos:
        if info.schedule_hash != expected:
            raise StartupProofError(
                f"rollout worker {info.name} samples on the schedule {info.schedule_hash[:12]}, "
                f"the configuration asks for {expected[:12]}"
            )
    adapters = {(info.lora_modules_matched, info.trainable_parameters) for info in infos}
    adapters |= {(rank.lora_modules, rank.trained_parameters) for rank in ranks}
    if len(adapters) != 1:
        raise StartupProofError(
            "the adapters of the processes differ in (modules, parameters): "
            f"{sorted(adapters)}; all of them must load the same model and policy.lora"
        )
    modules, parameters = adapters.pop()
    if modules < 1 or parameters < 1:
        raise StartupProofError(
            f"policy.lora.targets = {list(config.policy.lora.targets)} matched {modules} modules "
            f"with {parameters} parameters; nothing would be trained"
        )
    return (
        f"ok: {modules} LoRA modules with {parameters:,} parameters on {len(infos)} rollout "
        f"workers and {len(ranks)} learner ranks, schedule {expected[:12]}"
    )


async def prove_delivery(rollouts: Rollouts, weights: Published, probe: Published) -> str:
    """Every rollout worker really loads what it is sent.

    `probe`, which differs from the current weights, is delivered first: a worker that ignores
    weights holds the same initial adapter as everybody else and would pass otherwise.
    """
    await rollouts.deliver(probe)
    count = await rollouts.deliver(weights)
    return f"ok: {count} rollout workers hold weights {weights.version.checksum[:12]}"


def probe_weights(weights: LoraWeights, version: WeightsVersion) -> Published:
    """Weights unlike `weights`, under a version of their own."""
    rng = np.random.default_rng(0)
    probe = {
        name: (array + rng.normal(0, 0.01, array.shape)).astype(np.float32)
        for name, array in sorted(weights.items())
    }
    marked = replace(version, lineage="probe", checksum=weights_checksum(probe))
    return Published(marked, probe)


async def prove_rewards(workers: Workers) -> list[str]:
    """Scorers answer known clips as they must, on every reward worker."""
    pools = workers.rewards.pools
    # A scorer may take as long to start as a rollout worker may take over a group.
    limit_s = workers.rollouts.timeout_s
    answers = await asyncio.gather(
        *(
            pool.call_all("known_answers", [()] * pool.size, limit_s=limit_s)
            for pool in pools.values()
        )
    )
    lines = []
    for (kind, pool), rows in zip(pools.items(), answers, strict=True):
        first = rows[0]
        if any(not math.isfinite(value) for row in rows for value in row.values()):
            raise StartupProofError(f"{kind} scores a known-answer clip as {first}: not finite")
        shown = ", ".join(f"{name} {value:.2f}" for name, value in first.items())
        lines.append(f"ok: {kind} x {pool.size}: {shown}")
    return lines
