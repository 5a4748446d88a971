"""AdamW on one rank's shards of the trained tensors.

DTensor dispatches every operation in Python, about fifty microseconds each; AdamW makes a dozen for
each of some hundred LoRA tensors. It is elementwise, so that each rank can run it on its plain
local tensors instead, with the same bits. The sharded tensors share their memory and stay what
is saved, loaded and gathered.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from learner.config import LearnerConfig
from learner.fsdp import all_gather_rows, local

FINAL_SHARE = 0.1
"""Share of the learning rate that is left after `decay_after` + `decay_updates`."""


def learning_rate_after(updates: int, config: LearnerConfig) -> float:
    """Step size of the update that follows `updates` applied ones."""
    if not config.decay_updates:
        return config.learning_rate
    progress = min(max(updates - config.decay_after, 0) / config.decay_updates, 1.0)
    return config.learning_rate * (1.0 - (1.0 - FINAL_SHARE) * progress)


class ShardedAdamW:
    """AdamW over tensors that may be sharded; their gradients are read from `.grad`."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: LearnerConfig) -> None:
        self._parameters = dict(parameters)
        self._config = config
        self._shards = {
            name: nn.Parameter(local(parameter.detach())) for name, parameter in parameters.items()
        }
        shards_at: dict[float, list[nn.Parameter]] = {}
        for name, shard in self._shards.items():
            share = config.lora_a_share if ".lora_A." in name else 1.0
            shards_at.setdefault(share, []).append(shard)
        self._adamw = torch.optim.AdamW(
            [
                {"params": shards, "share": share, "lr": config.learning_rate * share}
                for share, shards in shards_at.items()
            ],
            betas=config.betas,
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
        )
        # Present from the start, so that a checkpoint of step 0 has the same layout.
        self._state = {
            name: {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter.detach()),
                "exp_avg_sq": torch.zeros_like(parameter.detach()),
            }
            for name, parameter in parameters.items()
        }
        for name, shard in self._shards.items():
            self._adamw.state[shard] = {k: local(v) for k, v in self._state[name].items()}

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Step and both moments of every tensor, sharded like it: the tensors themselves, which
        loading may write into."""
        return {name: dict(moments) for name, moments in self._state.items()}

    @torch.no_grad()
    def gradient_norm(self) -> float:
        """Norm of the whole gradient, over all tensors and ranks. Collective."""
        norm = torch.nn.utils.get_total_norm([gradient for _, gradient in self._gradients()])
        # In float64 the square and its root give back one rank's norm exactly.
        norms = all_gather_rows(norm.cpu().double().reshape(1, 1), self._config.ranks)
        return float(norms.square().sum().sqrt())

    @torch.no_grad()
    def step(self, norm: float) -> None:
        """Clip the gradient, whose norm is given, and apply it."""
        scale = min(1.0, self._config.max_grad_norm / (norm + 1e-6))
        for name, gradient in self._gradients():
            self._shards[name].grad = gradient.mul_(scale)
        if self._config.decay_updates:
            rate = learning_rate_after(self.updates(), self._config)
            for group in self._adamw.param_groups:
                group["lr"] = rate * group["share"]
        self._adamw.step()

    def updates(self) -> int:
        """Updates applied so far: AdamW counts them, and a checkpoint holds its count."""
        return max(int(moments["step"]) for moments in self._state.values())

    @torch.no_grad()
    def damping(self) -> float:
        """Mean over the elements that have a gradient of epsilon / (root of the second moment +
        epsilon), by which AdamW's epsilon shortens their steps: 0 as long as gradients are much
        larger, near 1 where they are so small that nothing moves. Collective.

        log p is a mean over a clip's latents, so that gradients fall with its size.
        """
        corrected = 1.0 - self._config.betas[1] ** self.updates()
        damped, count, epsilon = 0.0, 0, self._config.adam_epsilon
        for name, shard in self._shards.items():
            if ".lora_A." in name and not self._config.lora_a_share:
                continue
            moment = self._adamw.state[shard]["exp_avg_sq"]
            root = (moment[moment > 0] / corrected).sqrt_().double()
            damped += float((epsilon / (root + epsilon)).sum())
            count += len(root)
        sums = torch.tensor([[damped, float(count)]], dtype=torch.float64)
        total = all_gather_rows(sums, self._config.ranks).sum(dim=0)
        return float(total[0] / total[1]) if total[1] else 0.0

    def clear(self) -> None:
        """Drop the gradients."""
        for parameter in (*self._parameters.values(), *self._shards.values()):
            parameter.grad = None

    def _gradients(self) -> list[tuple[str, Tensor]]:
        """This rank's shards of the gradients that there are, by name."""
        return [
            (name, local(parameter.grad))
            for name, parameter in self._parameters.items()
            if parameter.grad is not None
        ]
