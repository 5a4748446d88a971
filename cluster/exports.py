"""The figures that a run exports to Prometheus: names with units, help texts, and how a row of
`metrics.jsonl` becomes samples. Pure; `cluster/metrics.py` hands them to Ray's metrics agent, which
puts `ray_` before every name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

PREFIX = "ray_"
"""What Ray's agent puts before every name."""
RUN = "run"
"""Label of every gauge: the run's URL. One cluster, and one Prometheus, may see several runs."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A gauge; the unit is the end of its name."""

    name: str
    help: str
    label: str = ""


Sample = tuple[str, float, str]
"""Name of a metric, value, value of its label."""

METRICS = (
    Metric("worldr1_done_steps", "Optimizer steps done."),
    Metric("worldr1_step_duration_seconds", "Wall time of the last step."),
    Metric("worldr1_reward_mean_points", "Mean total reward of the last step's samples."),
    Metric("worldr1_reward_std_points", "Standard deviation of the total reward over samples."),
    Metric(
        "worldr1_reward_within_group_std_points",
        "Mean standard deviation of the reward between members of a group: what a step learns from",
    ),
    Metric(
        "worldr1_reward_repeat_noise_points",
        "Standard deviation of the reward of one video that is scored again and again.",
    ),
    Metric("worldr1_reward_part_mean_points", "Mean of a reward part.", "part"),
    Metric("worldr1_reward_part_std_points", "Standard deviation of a reward part.", "part"),
    Metric(
        "worldr1_examiner_score_points",
        "Score of a known-answer clip by the run's own reconstruction worker; drift is an alarm.",
        "clip",
    ),
    Metric("worldr1_examiner_alarms_count", "Alarms of the last examination of known clips."),
    Metric("worldr1_learner_kl_nats", "KL to the adapter-free reference, mean over dimensions."),
    Metric("worldr1_learner_ratio_deviation_max_ratio", "Largest |r - 1| of the last update."),
    Metric("worldr1_learner_clip_fraction_ratio", "Share of samples whose surrogate is clipped."),
    Metric(
        "worldr1_learner_muted_ratio", "Share of samples without a gradient, by sign of A.", "sign"
    ),
    Metric("worldr1_learner_loss_points", "Loss of the last update."),
    Metric("worldr1_learner_grad_norm_ratio", "Gradient norm before clipping; the limit is 1."),
    Metric("worldr1_learner_skipped_updates_count", "1 where the last update was not finite."),
    Metric("worldr1_stage_busy_seconds", "Busy time of a stage's workers in the step.", "stage"),
    Metric("worldr1_stage_starved_seconds", "Time without work, per worker.", "stage"),
    Metric("worldr1_stage_blocked_seconds", "Time held back by the buffer, per worker.", "stage"),
    Metric("worldr1_stage_service_seconds", "Mean duration of a call.", "stage"),
    Metric("worldr1_stage_queue_calls", "Mean number of calls that wait for a worker.", "stage"),
    Metric(
        "worldr1_pool_size_workers", "Workers of a pool, those being restarted included.", "stage"
    ),
    Metric(
        "worldr1_pool_deaths_count",
        "Calls of the step whose worker died; of the learner, times that its ranks were replaced.",
        "stage",
    ),
    Metric(
        "worldr1_pool_timeouts_count",
        "Calls of the step that were not answered in time; their worker was restarted.",
        "stage",
    ),
    Metric("worldr1_samples_age_mean_steps", "Mean age of the last batch in updates (staleness)."),
    Metric("worldr1_groups_last_step_count", "Groups of the last step by their fate.", "fate"),
    Metric("worldr1_samples_unscored_count", "Samples of the last step without a score."),
    Metric("worldr1_scorer_failures_count", "Scorer failures of the last step by kind.", "kind"),
    Metric(
        "worldr1_checkpoint_written_timestamp_seconds",
        "Unix time at which the newest durable checkpoint was seen.",
    ),
    Metric("worldr1_checkpoint_age_steps", "Steps since the newest durable checkpoint."),
)
BY_NAME = {metric.name: metric for metric in METRICS}


def samples(row: Mapping[str, Any]) -> Iterator[Sample]:
    """Samples of a row; rows of other kinds than steps, examinations and repetitions have none.
    Values that are not finite are left out: Prometheus would draw them as gaps anyway."""
    if row["kind"] == "step":
        found = _step(row)
    elif row["kind"] == "examiner":
        found = _examiner(row)
    elif row["kind"] == "repeat":
        found = iter([("worldr1_reward_repeat_noise_points", row["noise"], "")])
    else:
        return
    for name, value, label in found:
        if value is not None and math.isfinite(value):
            yield name, float(value), label


def _step(row: Mapping[str, Any]) -> Iterator[Sample]:
    yield "worldr1_done_steps", row["step"] + 1, ""
    yield "worldr1_step_duration_seconds", row["seconds"]["step"], ""
    reward = row["reward"]
    yield "worldr1_reward_mean_points", reward["mean"], ""
    yield "worldr1_reward_std_points", reward["std"], ""
    yield "worldr1_reward_within_group_std_points", reward["within_group_std"], ""
    for part, value in row["parts"].items():
        yield "worldr1_reward_part_mean_points", value["mean"], part
        yield "worldr1_reward_part_std_points", value["std"], part
    yield from _learner(row)
    for stage, clock in row["stages"].items():
        interval = clock["busy_s"] + clock["starved_s"] + clock["blocked_s"]
        for state in ("busy", "starved", "blocked", "service"):
            yield f"worldr1_stage_{state}_seconds", clock[f"{state}_s"], stage
        queue = clock["queued_s"] / interval if interval > 0 else 0.0
        yield "worldr1_stage_queue_calls", queue, stage
        yield "worldr1_pool_deaths_count", clock["deaths"], stage
        yield "worldr1_pool_timeouts_count", clock["timeouts"], stage
    for stage, workers in row.get("workers", {}).items():
        yield "worldr1_pool_size_workers", workers, stage
    yield "worldr1_samples_age_mean_steps", row["age"].get("mean", 0.0), ""
    for fate, count in row["groups"].items():
        yield "worldr1_groups_last_step_count", count, fate
    yield "worldr1_samples_unscored_count", row["failed_members"], ""
    for kind, count in _failures_by_kind(row["failures"]).items():
        yield "worldr1_scorer_failures_count", count, kind
    if "durable_step" in row:
        yield "worldr1_checkpoint_age_steps", row["step"] + 1 - row["durable_step"], ""


def _learner(row: Mapping[str, Any]) -> Iterator[Sample]:
    learner = row["learner"]
    names = {
        "kl": "worldr1_learner_kl_nats",
        "ratio_max_dev": "worldr1_learner_ratio_deviation_max_ratio",
        "clip_fraction": "worldr1_learner_clip_fraction_ratio",
    }
    for key, name in names.items():
        if key in learner:
            yield name, learner[key], ""
    for sign in ("positive", "negative"):
        if f"muted_{sign}" in learner:
            yield "worldr1_learner_muted_ratio", learner[f"muted_{sign}"], sign
    yield "worldr1_learner_loss_points", row["loss"], ""
    yield "worldr1_learner_grad_norm_ratio", row["grad_norm"], ""
    yield "worldr1_learner_skipped_updates_count", float(row["update_skipped"]), ""


def _failures_by_kind(failures: Mapping[str, int]) -> dict[str, int]:
    """Failures per kind of scorer, zeros included: a series that never was cannot be drawn."""
    kinds = dict.fromkeys(("reconstruction", "judge", "aesthetic"), 0)
    for reason, count in failures.items():
        kind = reason.split(":", 1)[0]
        kinds[kind] = kinds.get(kind, 0) + count
    return kinds


def _examiner(row: Mapping[str, Any]) -> Iterator[Sample]:
    yield "worldr1_examiner_alarms_count", len(row["alarms"]), ""
    for clip, scores in row["scores"].items():
        if "recon" in scores:
            yield "worldr1_examiner_score_points", scores["recon"], clip
