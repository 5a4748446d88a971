"""What happens at an optimizer step, as pure functions of the step and the run's seed."""

from __future__ import annotations

from typing import Literal

from actors.seeds import keyed_seed
from learner.config import LearnerConfig, ScheduleConfig

Phase = Literal["main", "dynamic"]
"""`main`: all rewards. `dynamic`: prompts of the dynamic subset, the general reward alone."""


def phase_of(step: int, config: ScheduleConfig) -> Phase:
    """Phase of optimizer step `step` (from 0): `main_steps` of main, then `dynamic_steps` of
    dynamic, and round again (periodic decoupled training; method section 4).

    Raises ValueError for a negative step.
    """
    if step < 0:
        raise ValueError(f"step = {step} is negative; steps count from 0")
    place = step % (config.main_steps + config.dynamic_steps)
    return "main" if place < config.main_steps else "dynamic"


def window_start(seed: int, group: int, low: int, stop: int) -> int:
    """First step of a group's stochastic window, uniform on [low, stop).

    Keyed on (run seed, group serial) alone by SHA-256, so that a group that is issued again, on
    any worker, after any restart, trains on the same window (method section 2, Fast). The modulo
    of a 63-bit number is uniform to 1e-16 for any schedule.

    Raises ValueError for an empty range or a negative group.
    """
    if not 0 <= low < stop:
        raise ValueError(f"window range [{low}, {stop}) is empty or negative; need 0 <= low < stop")
    if group < 0:
        raise ValueError(f"group = {group} is negative; group serials count from 0")
    return low + keyed_seed("window start", seed, group) % (stop - low)


def guard_active(config: LearnerConfig, max_staleness: int) -> bool:
    """Whether GRPO-Guard's ratio is used: as configured, or, where `learner.guard` is not set,
    whenever a sample may train a policy that is not the one that drew it (method section 4)."""
    if config.guard is not None:
        return config.guard
    return max_staleness >= 1 or config.updates_per_batch > 1
