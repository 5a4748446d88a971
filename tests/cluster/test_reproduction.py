"""The reproduction's plan and verdicts by hand; every ablation is a configuration that loads."""

from __future__ import annotations

from pathlib import Path

import pytest

import cluster
from cluster.config import flatten, load
from cluster.evaluation.measure import ClipFigures
from cluster.evaluation.paper import ABLATIONS
from cluster.evaluation.reproduction import OVERRIDES, VARIANTS, gap_closed, goals, seed_mean
from cluster.evaluation.result import Side


def side(**figures: float) -> Side:
    """Four prompts whose figures differ a little."""
    clips = [
        ClipFigures(f"p{i}", "A box.", i, {k: v + 0.01 * i for k, v in figures.items()})
        for i in range(4)
    ]
    return Side("", clips)


def test_every_variant_loads_and_changes_what_it_says() -> None:
    plain = flatten(load("toy"))
    folder = Path(cluster.__path__[0]) / OVERRIDES
    changed = {}
    for variant in VARIANTS:
        files = [] if variant.file is None else [str(folder / variant.file)]
        keys = flatten(load("toy", variant.overrides, files))
        changed[variant.name] = {key for key, value in keys.items() if value != plain[key]}
    assert changed.pop("full") == set()
    assert changed["no_s_traj"] == {"rewards.weights.traj"}
    assert changed["no_noise_transport"] == {"camera.strength"}
    assert changed["no_decoupling"] == {"schedule.dynamic_steps"}
    assert all(changed.values())
    assert len({frozenset(keys) for keys in changed.values()}) == len(changed) - 1  # prompts twice
    assert {variant.name for variant in VARIANTS} == set(ABLATIONS)


def test_figures_are_averaged_over_runs_before_they_are_paired() -> None:
    values = seed_mean([side(psnr=20.0), side(psnr=22.0)], "psnr")
    assert values["p0", 0] == pytest.approx(21.0)
    assert values["p3", 3] == pytest.approx(21.03)


def test_share_of_the_gap_by_hand() -> None:
    closed = gap_closed([side(psnr=20.0)], [side(psnr=23.0)], [side(psnr=26.0)], "psnr")
    assert closed == pytest.approx((0.5, 0.5, 0.5))
    assert gap_closed([side(psnr=20.0)], [side(psnr=23.0)], [], "psnr") is None
    assert gap_closed([side(psnr=20.0)], [side(psnr=23.0)], [side(psnr=19.0)], "psnr") is None


def test_verdicts() -> None:
    guards = {"motion": 2.0, "sharpness": 4.0, "content": 0.9}
    camera = {"rot_err": 1.0, "second.rot_err": 1.0, "cam_mc_abs": 3.0}
    sides = {
        "base": [side(psnr=20.0, s_traj=0.6, **guards)],
        "ceiling": [side(psnr=26.0, s_traj=0.9, **guards)],
        "full": [side(psnr=23.0, s_traj=0.7, **(guards | {"motion": 1.8}), **camera)],
        "no_noise_transport": [side(**(camera | {"rot_err": 2.0, "cam_mc_abs": 4.0}))],
        "no_decoupling": [side(motion=1.9)],
    }
    verdicts = {goal.text.split(":")[0]: goal.met for goal in goals(sides)}
    assert verdicts["the full method closes at least 40% of the gap in re-rendering PSNR"] is True
    assert verdicts["S_traj rises outside its 95 % interval"] is True
    assert verdicts["motion falls by less than 5%"] is False
    assert verdicts["sharpness falls by less than 5%"] is True
    assert verdicts["without noise transport camera errors are larger"] is True
    assert verdicts["without R_gen there is less motion"] is None
    assert verdicts["without decoupling there is less motion"] is False


def test_nothing_is_shown_before_anything_has_run() -> None:
    assert {goal.met for goal in goals({})} == {None}
