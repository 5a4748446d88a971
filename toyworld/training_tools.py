"""What the two training stages share: a wall-clock schedule, a short log, resumable states."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch


class Clock:
    """Progress through a wall-clock budget; survives restarts by carrying the seconds spent."""

    def __init__(self, budget_s: float, spent_s: float = 0.0) -> None:
        self.budget_s = budget_s
        self._start = time.monotonic() - spent_s

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._start

    @property
    def progress(self) -> float:
        """Fraction of the budget spent, 0 to 1."""
        return min(self.spent_s / self.budget_s, 1.0)


class TrainingLog:
    """A short text log: one line per entry, appended to a file and printed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def write(self, stage: str, clock: Clock, step: int, **values: float) -> None:
        numbers = " ".join(f"{name}={value:.4g}" for name, value in values.items())
        line = f"{stage} t={clock.spent_s:.0f}s step={step} {numbers}"
        print(line, flush=True)
        with self._path.open("a") as file:
            file.write(line + "\n")


def rate_factor(step: int, progress: float, warmup_steps: int = 100) -> float:
    """Linear warm-up by steps, then a cosine by wall-clock progress down to 1 % of the peak."""
    warm = min((step + 1) / warmup_steps, 1.0)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def adamw(parameters: Iterable[torch.nn.Parameter], peak_rate: float) -> torch.optim.Optimizer:
    """AdamW without weight decay on vectors (gains, biases)."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [{**group, "peak_rate": peak_rate} for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)


def muon(matrices: Iterable[torch.nn.Parameter], peak_rate: float) -> torch.optim.Optimizer:
    """Muon (orthogonalised momentum) for the matrices inside a transformer's blocks."""
    group = {"params": list(matrices), "peak_rate": peak_rate}
    return torch.optim.Muon(
        [group], lr=0.0, weight_decay=0.01, ns_steps=4, adjust_lr_fn="match_rms_adamw"
    )


def update(optimizers: Sequence[torch.optim.Optimizer], loss: torch.Tensor, factor: float) -> None:
    """One step of every optimizer at `factor` times its peak rates, gradient norm clipped to 1."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
    for group in groups:
        group["lr"] = factor * group["peak_rate"]
    for optimizer in optimizers:
        optimizer.step()


def save_state(path: Path, **state: Any) -> None:
    """Write a training state so that a crash midway leaves the previous one intact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """The state saved at `path`, or None if there is none."""
    return torch.load(path, weights_only=True) if path.exists() else None
