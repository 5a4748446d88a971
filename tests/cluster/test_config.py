"""Bad input gets one sentence naming field, value and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import (
    ConfigError,
    RunConfig,
    fingerprint,
    flatten,
    for_one_process,
    from_tree,
    load,
    preset_names,
    resolve_model,
)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_resolves_and_survives_a_round_trip(name: str) -> None:
    config = load(name)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_overrides_win_over_files_and_files_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "over.toml"
    file.write_text("seed = 5\n[learner]\nlearning_rate = 0.25\nbeta_kl = 0.5\n")
    config = load("toy", ["learner.beta_kl=0.125", "run=somewhere"], [str(file)])
    assert (config.seed, config.learner.learning_rate, config.learner.beta_kl) == (5, 0.25, 0.125)
    assert config.run == "somewhere"
    assert config.rollout == load("toy").rollout


@pytest.mark.parametrize(
    ("preset", "overrides", "words"),
    [
        ("tiyo", [], ["preset", "tiyo", "toy"]),
        ("toy", ["rollout.frame=9"], ["rollout.frame", "did you mean", "rollout.frames"]),
        ("toy", ["rollout.frames=nine"], ["rollout.frames", "nine", "integer"]),
        ("toy", ["rollout.frames=10"], ["rollout.frames", "10", "4 k + 1"]),
        ("toy", ["rollout.height=72"], ["rollout.height", "72", "multiple of 16"]),
        ("toy", ["rollout.width=100"], ["rollout.width", "100", "multiple of 16"]),
        ("toy", ["rollout.window_high=9"], ["rollout.window_high", "9", "at most 8"]),
        ("toy", ["rollout.window_low=5"], ["rollout.window_high", "rollout.window_low", "5"]),
        (
            "toy",
            ["rollout.group_size=1"],
            ["rollout.group_size", "1", "greater than or equal to 2"],
        ),
        ("toy", ["learner.ranks=3"], ["learner.ranks", "3", "32"]),
        (
            "toy",
            ["rollout.kernel=cps", "rollout.noise_level=1.5"],
            ["rollout.noise_level", "1.5", "up to 1"],
        ),
        (
            "toy",
            ["learner.ranks=2", "learner.gpus_per_rank=0.5"],
            ["learner.gpus_per_rank", "0.5", "0 or 1"],
        ),
        ("toy", ["learner.updates_per_batch=5"], ["learner.updates_per_batch", "5", "16"]),
        ("toy", ["rewards.min_group_size=9"], ["rewards.min_group_size", "9", "8"]),
        ("toy", ["learner.learning_rate=nan"], ["learner.learning_rate", "nan"]),
        ("toy", ["max_staleness=-1"], ["max_staleness", "-1", "0"]),
        ("toy", ["seed"], ["seed", "key=value"]),
        ("toy", ["policy=3"], ["policy", "3"]),
        ("missing.toml", [], ["missing.toml", "cannot be read"]),
    ],
)
def test_bad_input_is_one_sentence(preset: str, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(preset, overrides)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


def test_none_is_a_choice_where_it_is_listed_and_unsets_other_keys() -> None:
    config = load("toy", ["metrics.tracker=none", "placement.strategy=none", "learner.guard=none"])
    assert (config.metrics.tracker, config.placement.strategy) == ("none", "none")
    assert config.learner.guard is None


def test_torn_toml_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "torn.toml"
    file.write_text("[rollout\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(str(file))


def test_fingerprint_leaves_out_what_a_resume_may_change() -> None:
    config = load("toy")
    moved = load(
        "toy",
        ["run=elsewhere", "steps=99", "learner.ranks=1", "checkpoint.every=2", "eval.prompts=2"],
    )
    assert fingerprint(moved) == fingerprint(config)
    mended = ["rollout.max_batch=4", "learner.micro_batch=2", "rewards.timeout_s=99"]
    assert fingerprint(load("toy", mended)) == fingerprint(config)  # after an out of memory
    slower = load("toy", ["learner.learning_rate=0.0"])
    assert fingerprint(slower) == fingerprint(config)  # after it diverged
    changed = load("toy", ["learner.clip_range=0.5", "rollout.group_size=4"])
    differing = {k for k, v in fingerprint(changed).items() if fingerprint(config)[k] != v}
    assert differing == {"learner.clip_range", "rollout.group_size"}


def test_one_process_changes_counts_alone() -> None:
    config = load("toy")
    assert for_one_process(config).learner.ranks == 1
    assert fingerprint(for_one_process(config)) == fingerprint(config)


def test_one_process_has_one_python_environment() -> None:
    """A judge's server is a process of its own; the frame scorer is not."""
    assert for_one_process(load("toy", ["rewards.judge.env=judge"])).rewards.judge.env == "judge"
    with pytest.raises(ConfigError, match=r"rewards\.aesthetic\.env = 'there' is not allowed"):
        for_one_process(load("toy", ["rewards.aesthetic.env=there"]))


def test_flatten_names_every_leaf_once() -> None:
    flat = flatten(load("toy"))
    assert flat["rollout.frames"] == 9
    assert flat["policy.lora.rank"] == 8
    assert from_tree({"steps": 3}).steps == 3


def test_model_is_a_directory_or_a_hub_id(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    assert resolve_model("Wan-AI/Wan2.1-T2V-1.3B-Diffusers").startswith("Wan-AI/")
    with pytest.raises(ConfigError, match="neither a directory nor a hub id"):
        resolve_model("no such place/at all/here")
