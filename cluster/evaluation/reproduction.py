"""What `worldr1 reproduce toy` trains, and what its figures have to show. No side effects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.evaluation.result import Side, change
from cluster.evaluation.statistics import Difference, difference, interval

SEEDS = (0, 1, 2)
SETTINGS = "reproduction.toml"
"""File in `cluster.config.OVERRIDES` with the settings of every run; a variant's come after it."""
GAP_GOAL, MAX_FALL = 0.40, 0.05
GUARDS = ("motion", "sharpness", "content")
CAMERA = ("rot_err", "trans_err_rel", "cam_mc_rel", "second.rot_err", "second.cam_mc_rel")


@dataclass(frozen=True, slots=True)
class Variant:
    """A row of the ablation table."""

    name: str
    title: str
    seeds: tuple[int, ...]
    file: str | None = None
    """Override file in `cluster.config.OVERRIDES`."""
    overrides: tuple[str, ...] = ()
    """`key=value` where no file serves every preset."""

    @property
    def shown(self) -> str:
        """What it changes, as a person reads it."""
        return self.file or ", ".join(self.overrides) or "the preset"


VARIANTS = (
    Variant("full", "full method", SEEDS),
    Variant("no_s_traj", "no S_traj", SEEDS, "no_s_traj.toml"),
    Variant("no_general_reward", "no R_gen", SEEDS, "no_general_reward.toml"),
    Variant("no_noise_transport", "no noise transport", SEEDS, "no_noise_transport.toml"),
    Variant("no_decoupling", "no decoupling", SEEDS, "no_decoupling.toml"),
    Variant("no_s_meta", "no S_meta", (0,), "no_s_meta.toml"),
    Variant("no_s_recon", "no S_recon", (0,), "no_s_recon.toml"),
    Variant("no_3d_reward", "no 3D reward", (0,), "no_3d_reward.toml"),
    Variant(
        "third_of_prompts", "1/3 of the prompts", (0,), None, ("prompts.train=toy_train[:21]",)
    ),
    Variant(
        "two_thirds_of_prompts", "2/3 of the prompts", (0,), None, ("prompts.train=toy_train[:43]",)
    ),
)


@dataclass(frozen=True, slots=True)
class Goal:
    """Something that the figures have to show, and whether they do."""

    text: str
    met: bool | None
    """None: the runs that decide it are missing."""


def seed_mean(sides: Sequence[Side], name: str) -> dict[tuple[str, int], float]:
    """A figure by (prompt, noise seed), averaged over the runs' seeds that have it."""
    values: dict[tuple[str, int], list[float]] = {}
    for side in sides:
        for key, value in side.values(name).items():
            values.setdefault(key, []).append(value)
    return {key: float(np.mean(found)) for key, found in values.items()}


def against(first: Sequence[Side], second: Sequence[Side], name: str) -> Difference | None:
    """Paired difference of two variants, each averaged over its runs first."""
    return difference(seed_mean(first, name), seed_mean(second, name))


def of_the_same_seeds(full: Sequence[Side], ablated: Sequence[Side]) -> Sequence[Side]:
    """Runs of the full method with the seeds of an ablation's (titles end in "-seedN"), with which
    they share prompts and noises; all of them where it has none in common."""
    seeds = {side.title.rpartition("-seed")[2] for side in ablated}
    return [side for side in full if side.title.rpartition("-seed")[2] in seeds] or full


def gap_closed(
    base: Sequence[Side], full: Sequence[Side], ceiling: Sequence[Side], name: str
) -> tuple[float, float, float] | None:
    """Share of the gap between base and ceiling that the full method closes, with its 95 % interval
    over prompts (the gap itself is taken as it is); None where a side is missing."""
    low, high, own = (seed_mean(sides, name) for sides in (base, ceiling, full))
    common = sorted(low.keys() & high.keys() & own.keys())
    if not common:
        return None
    gap = float(np.mean([high[key] - low[key] for key in common]))
    if gap <= 0:
        return None
    shares = np.array([own[key] - low[key] for key in common]) / gap
    return float(shares.mean()), *interval(shares, [prompt for prompt, _ in common])


def goals(sides: Mapping[str, Sequence[Side]]) -> list[Goal]:
    """Verdicts on what the reproduction has to show, from the sides by variant (`base`, `ceiling`
    and those of `VARIANTS`)."""
    base, full = sides.get("base", ()), sides.get("full", ())
    closed = gap_closed(base, full, sides.get("ceiling", ()), "psnr")
    found = [
        Goal(
            f"the full method closes at least {GAP_GOAL:.0%} of the gap in re-rendering PSNR"
            + (f": {closed[0]:.0%} [{closed[1]:.0%}, {closed[2]:.0%}]" if closed else ""),
            None if closed is None else closed[0] >= GAP_GOAL,
        )
    ]
    for name, title in (("psnr", "PSNR"), ("s_traj", "S_traj")):
        moved = against(base, full, name)
        text = f"{title} rises outside its 95 % interval"
        shown = _shown(moved) + _each_run(against(base, [run], name) for run in full)
        found.append(Goal(text + shown, None if moved is None else moved.lower > 0))
    for name in GUARDS:
        moved = against(base, full, name)
        fall = None if moved is None or moved.first <= 0 else -moved.mean / moved.first
        text = f"{name} falls by less than {MAX_FALL:.0%}"
        shown = "" if fall is None else f": {-fall:+.1%}"
        found.append(Goal(text + shown, None if fall is None else fall < MAX_FALL))
    plain = sides.get("no_noise_transport", ())
    camera = [against(of_the_same_seeds(full, plain), plain, name) for name in CAMERA]
    known = [moved for moved in camera if moved is not None]
    worse = sum(moved.lower > 0 for moved in known)
    found.append(
        Goal(
            "without noise transport camera errors are larger, most of them outside their intervals"
            + (f": {worse} of {len(known)}" if known else ""),
            None if not known else worse > len(known) / 2,
        )
    )
    for variant, title in (("no_general_reward", "R_gen"), ("no_decoupling", "decoupling")):
        ablated = sides.get(variant, ())
        moved = against(of_the_same_seeds(full, ablated), ablated, "motion")
        text = f"without {title} there is less motion, outside its interval"
        found.append(Goal(text + _shown(moved), None if moved is None else moved.upper < 0))
    return found


def _each_run(moves: Iterable[Difference | None]) -> str:
    """What each training run gave: the interval is over prompts, not over runs."""
    known = [f"{moved.mean:+.3f}" for moved in moves if moved is not None]
    return f"; each run {', '.join(known)}" if len(known) > 1 else ""


def _shown(moved: Difference | None) -> str:
    if moved is None:
        return ""
    return f": {moved.first:.3f} → {moved.second:.3f} ({change(moved, 3)})"
