"""The planner's arithmetic by hand, its refusals, and presets that are what it says."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import cli
from cluster.config import REPOSITORY, ConfigError, flatten, load, override_names, preset_names
from cluster.costs import UTILISATION, read_utilisation, unit_costs
from cluster.gpus import GPU_TYPES
from cluster.plan import (
    NoSplit,
    configured_workers,
    gpus_taken,
    make_plan,
    split_time,
    with_workers,
)
from cluster.plan_run import measures, pool_to_grow, read_run, run_lines
from cluster.plan_text import plan_lines
from rewards.scoring import affine_to_unit

H200, H100, A100 = (GPU_TYPES[name] for name in ("h200", "h100", "a100-80g"))
PLANNED = [("small", 48, H200), ("large", 96, H200), ("small-8gpu", 8, H100)]


def test_a_rollout_by_hand() -> None:
    """Windows start at 1 to 5 of 16 steps, 3 on average: 3 passes of the prefix, one of the
    window's first step and 8 x 12 make 100 of a clip with two branches of 282.9 TFLOP; 275.4 TFLOP
    to decode each of 8 clips in TF32; 1.4 s of noise."""
    cost = unit_costs(load("small"), H200)["rollout"]
    passes = 100 * 2 * 282.9e12 / (989e12 * 0.4)
    decode = 8 * 275.4e12 / (494.5e12 * 0.4)
    assert cost.seconds == pytest.approx(passes + decode + 1.4, rel=2e-3)
    assert cost.source == "arithmetic"
    assert "100 clip passes" in cost.formula
    own = load("small", ["rollout.shared_prefix=false"])
    assert unit_costs(own, H200)["rollout"].seconds == pytest.approx(
        8 * 16 * 2 * 282.9e12 / (989e12 * 0.4) + decode + 8 * 1.4, rel=2e-3
    )


def test_a_learner_clip_by_hand() -> None:
    """One window step of its own and an eighth of the first, which the group shares, of two
    branches: reference and policy forward, backward (linear layers once, attention twice), and the
    recomputed forward: 4 L + 5 A with L + A = 282.9 TFLOP, 71 % A."""
    cost = unit_costs(load("small"), H200)["learner"]
    linear, attention = 82.2e12, 200.7e12
    expected = 2.25 * (4 * linear + 5 * attention) / (989e12 * 0.4)
    assert cost.seconds == pytest.approx(expected, rel=1e-2)
    kept = load("small", ["learner.activation_checkpointing=false"])
    assert unit_costs(kept, H200)["learner"].seconds == pytest.approx(
        2.25 * (3 * linear + 4 * attention) / (989e12 * 0.4), rel=1e-2
    )
    twice = load("small", ["learner.updates_per_batch=2"])  # each has half of every group
    assert unit_costs(twice, H200)["learner"].seconds == pytest.approx(
        2.5 * (4 * linear + 5 * attention) / (989e12 * 0.4), rel=1e-2
    )
    alone = load("small", ["rollout.shared_prefix=false"])
    assert unit_costs(alone, H200)["learner"].seconds == pytest.approx(
        4 * (4 * linear + 5 * attention) / (989e12 * 0.4), rel=1e-2
    )


def test_synchronous_and_overlapped_steps_by_hand() -> None:
    config = load("small", ["rollout.workers=24", "learner.ranks=16"])
    costs = unit_costs(config, H200)
    workers = configured_workers(config)
    split = split_time(config, workers, costs, 48)
    rollout, learner = 2 * costs["rollout"].seconds, 24 * costs["learner"].seconds
    assert split.main.stages["rollout"] == pytest.approx(rollout)
    assert split.main.stages["learner"] == pytest.approx(learner)
    scores = sum(
        -(-8 // workers[pool]) * costs[pool].seconds
        for pool in ("reconstruction", "judge", "aesthetic")
    )
    slowest = max(split.main.stages[p] for p in ("reconstruction", "judge", "aesthetic"))
    assert split.main.total == pytest.approx(max(rollout + scores, slowest) + learner)
    overlapped = load("small", ["rollout.workers=24", "learner.ranks=16"], ["overlap"])
    quick = split_time(overlapped, workers, costs, 48)
    assert quick.main.total == pytest.approx(max(quick.main.stages.values()))
    assert quick.main.total < 0.65 * split.main.total
    assert 0 < split.utilisation < quick.utilisation <= 1


def test_a_measurement_replaces_the_assumption(tmp_path: Path) -> None:
    file = tmp_path / "gpu_full_size.json"
    rows = [
        {"run": f"1.3B, {what}, NVIDIA H200, native", "mfu_of_data_sheet": share}
        for what, share in (("forward with guidance", 0.5), ("learner step, micro", 0.45))
    ]
    file.write_text(json.dumps({"rows": rows}))
    used = read_utilisation(H200, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", file)
    assert (used.forward, used.learner, used.source) == (0.5, 0.45, "measured")
    config = load("small")
    assert unit_costs(config, H200, file)["learner"].seconds == pytest.approx(
        unit_costs(config, H200)["learner"].seconds * UTILISATION / 0.45
    )
    for gpu, model in ((H100, "1.3B"), (H200, "14B")):
        assert read_utilisation(gpu, model, file).source == "arithmetic"
    file.write_text("{}")
    with pytest.raises(ConfigError, match="is no result of gpu_full_size"):
        read_utilisation(H200, "1.3B", file)


@pytest.mark.parametrize(("preset", "gpus", "gpu"), PLANNED, ids=[p[0] for p in PLANNED])
def test_presets_are_the_planners_splits(preset: str, gpus: int, gpu: Any) -> None:
    config = load(preset)
    plan = make_plan(config, gpu, gpus)
    assert configured_workers(config) == dict(plan.split.workers)
    assert gpus_taken(config, plan.split.workers) <= gpus
    assert all(fit.fits for fit in plan.fits)


@pytest.mark.parametrize(("preset", "gpus", "gpu"), PLANNED, ids=[p[0] for p in PLANNED])
def test_no_neighbour_of_the_split_is_better(preset: str, gpus: int, gpu: Any) -> None:
    """Moving one worker's GPUs from any pool to any other does not shorten a main step."""
    config = load(preset)
    plan = make_plan(config, gpu, gpus)
    workers = dict(plan.split.workers)
    batch = config.rollout.groups_per_step * config.rollout.group_size
    for giver in workers:
        for taker in workers:
            moved = {**workers, giver: workers[giver] - 1, taker: workers[taker] + 1}
            if giver == taker or not moved[giver] or batch % moved["learner"]:
                continue
            if gpus_taken(config, moved) > gpus:
                continue
            changed = with_workers(config, moved)
            other = split_time(changed, moved, unit_costs(changed, gpu), gpus)
            assert other.main.total >= 0.999 * plan.split.main.total, (giver, taker)


def test_refusals_say_what_to_change() -> None:
    with pytest.raises(NoSplit, match=r"'rollout' needs .* GB .* change: rollout.max_batch=\d"):
        make_plan(load("large", ["rollout.max_batch=8"]), A100, 96)
    with pytest.raises(NoSplit, match=r"1 GPUs are too few: \d+ are needed at least"):
        make_plan(load("large"), H200, 1)
    with pytest.raises(NoSplit, match=r"no number of learner ranks fits a100-80g"):
        make_plan(load("large", ["learner.micro_batch=8"]), A100, 96)


def test_explained_numbers_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(load("small"), H200, 48)
    text = "\n".join(plan_lines(plan, price=2.5, explain=True))
    groups = plan.config.rollout.groups_per_step
    rounds = -(-groups // plan.split.workers["rollout"])
    assert f"= {rounds} rounds x {plan.costs['rollout'].seconds:,.1f} s" in text
    hours = 100 * plan.split.mean_s * 48 / 3600
    assert f"{hours:,.0f} GPU hours, {2.5 * hours:,.0f} at 2.5 a GPU hour" in text
    assert "all seconds are arithmetic" in text
    for key in ("rollout.workers=", "learner.ranks=", "rewards.judge.min_workers="):
        assert key in text
    assert cli.main(["plan", "small", "--gpus", "1"]) == 1
    assert "does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "small"], "needs --gpus"),
        (["plan", "--gpus", "8"], "needs either a preset or --from"),
        (["plan", "small", "--gpus", "0"], "--gpus = 0 is not allowed"),
        (["plan", "small", "--gpus", "8", "--gpus-per-node", "99"], "--gpus-per-node = 99"),
        (["plan", "toy", "--gpus", "8"], "take no GPU"),
        (["plan", "small", "--gpus", "8", "policy.model=a/b"], "the size of policy.model"),
        (["plan", "--from", "/nowhere"], "is no folder of a run"),
    ],
)
def test_bad_questions_are_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.strip().splitlines()) == 1


def test_it_answers_in_two_seconds_without_torch() -> None:
    program = (
        "import sys; from cluster.cli import main;"
        "main(['plan', 'large', '--gpus', '96', '--explain']);"
        "print(sorted({'torch', 'ray', 'numpy', 'diffusers'} & set(sys.modules)))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.stdout.splitlines()[-1] == "[]"
    assert after.ru_utime - before.ru_utime < 2.0


# -- from a run's own clocks ---------------------------------------------------------------------


def clocked_run(folder: Path, max_staleness: int) -> str:
    """A run of 3 main steps: rollouts 40 s of work on 2 workers, learner 10 s, rewards little."""
    config = json.loads(load("small", [f"max_staleness={max_staleness}"]).model_dump_json())
    config["rollout"]["workers"] = 2
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))

    def clock(busy: float, calls: int, service: float) -> dict[str, Any]:
        return {
            "busy_s": busy, "starved_s": 30 - busy, "blocked_s": 0.0, "queued_s": 0.0,
            "calls": calls, "service_s": service,
        }  # fmt: skip

    stages = {
        "rollout": clock(20.0, 8, 5.0),
        "reconstruction": clock(6.0, 24, 0.25),
        "judge": clock(8.0, 320, 0.2),  # 64 request-seconds on a worker of 8 at once
        "aesthetic": clock(1.0, 10, 0.1),
        "learner": clock(10.0, 1, 10.0),
    }
    row = {"kind": "step", "phase": "main", "seconds": {"step": 30.0}, "stages": stages}
    lines = [json.dumps(row | {"step": step}) for step in range(3)]
    lines.append(json.dumps({"kind": "evaluation", "step": 3}))
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return str(folder)


def test_a_runs_clocks_name_the_pool_to_grow(tmp_path: Path) -> None:
    config, rows = read_run(clocked_run(tmp_path / "run", max_staleness=1))
    found = measures(config, rows)
    assert found["rollout"].workers == pytest.approx(2.0)
    assert found["rollout"].work_s == pytest.approx(40.0)
    assert found["learner"].work_s == pytest.approx(10.0 * config.learner.ranks)
    assert config.rewards.judge.calls_at_once == 8
    assert (found["judge"].workers, found["judge"].work_s) == (pytest.approx(1), pytest.approx(8))
    pool, reason = pool_to_grow(config, found)
    assert pool == "rollout"
    assert "20.0 s of every step" in reason
    lines = list(run_lines(config, rows))
    assert lines[0].startswith("3 main steps")
    assert lines[-1].startswith("grow rollout")
    # In step, a third rollout worker takes 20 - 40 / 3 off, one more rank next to nothing.
    synchronous, rows = read_run(clocked_run(tmp_path / "sync", max_staleness=0))
    pool, reason = pool_to_grow(synchronous, measures(synchronous, rows))
    assert (pool, "6.7 s" in reason) == ("rollout", True)


def test_a_run_is_split_by_its_own_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = clocked_run(tmp_path / "run", max_staleness=1)
    assert cli.main(["plan", "--from", run, "--gpus", "16", "--explain"]) == 0
    out = capsys.readouterr().out
    assert "grow rollout" in out
    assert "by the run's clocks" in out
    assert "all seconds are arithmetic" not in out
    (tmp_path / "run/metrics.jsonl").write_text("")
    assert cli.main(["plan", "--from", run]) == 2
    assert "no finished main step" in capsys.readouterr().err


# -- presets and override files ------------------------------------------------------------------


def test_presets_have_the_papers_numbers() -> None:
    assert {"toy", "small", "large", "small-8gpu"} <= set(preset_names())
    small, large, one_node = (load(name) for name in ("small", "large", "small-8gpu"))
    for config in (small, large, one_node):
        rollout = config.rollout
        assert (rollout.width, rollout.height, rollout.frames) == (832, 480, 81)
        assert rollout.group_size == 8
        assert (config.policy.lora.rank, config.policy.lora.alpha) == (32, 64.0)
        assert config.policy.lora.targets == ("to_q", "to_k", "to_v", "to_out.0")
        assert (config.learner.learning_rate, config.learner.beta_kl) == (1e-4, 0.004)
        assert (config.learner.clip_range, config.learner.advantage_clip) == (1e-4, 5.0)
        assert (config.learner.betas, config.learner.weight_decay) == ((0.9, 0.999), 1e-4)
        assert (config.learner.max_grad_norm, config.learner.updates_per_batch) == (1.0, 1)
        assert (rollout.kernel, rollout.resolved_noise_level, rollout.shift) == ("sde", 0.7, 3.0)
        reconstruction, aesthetic = config.rewards.reconstruction, config.rewards.aesthetic
        assert (reconstruction.azimuth_deg, reconstruction.elevation_deg) == (20.0, 10.0)
        assert aesthetic.frames == 8
        # HPSv3's raw scale is about -2 to 12.
        ends = [affine_to_unit(raw, aesthetic.offset, aesthetic.scale) for raw in (-2.0, 12.0)]
        assert ends == [-1.0, 1.0]
        assert (config.schedule.main_steps, config.schedule.dynamic_steps) == (100, 50)
        assert config.max_staleness == 0
        assert config.policy.guidance_scale == 5.0
    assert small.rollout.groups_per_step == large.rollout.groups_per_step == 48
    assert (small.camera.strength, large.camera.strength) == (0.35, 0.40)
    assert "1.3B" in small.policy.model
    assert "14B" in large.policy.model


ABLATIONS = {
    "no_s_meta": {"rewards.weights.meta"},
    "no_s_recon": {"rewards.weights.recon"},
    "no_s_traj": {"rewards.weights.traj"},
    "no_3d_reward": {"rewards.weights.meta", "rewards.weights.recon", "rewards.weights.traj"},
    "no_general_reward": {"rewards.weights.gen", "schedule.dynamic_steps"},
    "no_noise_transport": {"camera.strength"},
    "no_decoupling": {"schedule.dynamic_steps"},
    "prompts_1k": {"prompts.train"},
    "prompts_2k": {"prompts.train"},
    "prompts_3k": {"prompts.train"},
    "overlap": {"max_staleness"},
}


@pytest.mark.parametrize("name", sorted(ABLATIONS))
def test_an_override_changes_its_own_keys_alone(name: str) -> None:
    plain, changed = flatten(load("small")), flatten(load("small", files=[name]))
    assert {key for key in plain if plain[key] != changed[key]} == ABLATIONS[name]


def test_every_override_is_known_and_a_wrong_name_is_one_sentence() -> None:
    assert set(override_names()) == {*ABLATIONS, "release", "reproduction"}
    release = load("small", files=["release"])
    assert (release.rollout.sampling_steps, release.learner.clip_range) == (50, 1e-3)
    with pytest.raises(ConfigError, match="--config = 'no_meta' is unknown; allowed are no_3d"):
        load("small", files=["no_meta"])
