"""Figures for Prometheus: names, units, help, and what a step's row becomes. Without Ray."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest

from cluster import dashboard
from cluster.exports import METRICS, PREFIX, samples

UNITS = ("_seconds", "_points", "_ratio", "_nats", "_steps", "_count", "_calls", "_workers")


def row(**changes: Any) -> dict[str, Any]:
    clock = {
        "busy_s": 3.0, "starved_s": 1.0, "blocked_s": 0.0, "queued_s": 8.0, "calls": 4,
        "service_s": 0.75, "deaths": 1, "timeouts": 2,
    }  # fmt: skip
    return {
        "kind": "step",
        "step": 6,
        "seconds": {"step": 4.0},
        "reward": {"mean": 3.1, "std": 0.2, "n": 8, "within_group_std": 0.1},
        "parts": {"recon": {"mean": 0.8, "std": 0.05, "n": 8}},
        "learner": {"kl": 2e-5, "ratio_max_dev": 1e-6, "muted_positive": 0.25},
        "loss": -0.1,
        "grad_norm": math.nan,
        "update_skipped": True,
        "stages": {"rollout": clock},
        "workers": {"rollout": 2.0},
        "durable_step": 4,
        "age": {"mean": 0.5},
        "groups": {"trained": 4, "stale": 1},
        "failed_members": 3,
        "failures": {"judge: no digit": 2, "judge: TimeoutError": 1},
        **changes,
    }


def test_every_metric_has_a_unit_and_a_help_text() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"worldr1_[a-z_]+", metric.name)
        assert metric.name.endswith(UNITS), metric.name
        assert len(metric.help) > 12
        assert metric.help.rstrip(".") + "." or metric.label


def test_a_step_becomes_samples() -> None:
    found = {(name, label): value for name, value, label in samples(row())}
    assert found["worldr1_done_steps", ""] == 7
    assert found["worldr1_reward_part_mean_points", "recon"] == 0.8
    assert found["worldr1_stage_queue_calls", "rollout"] == 2.0
    assert found["worldr1_pool_size_workers", "rollout"] == 2.0
    assert found["worldr1_pool_deaths_count", "rollout"] == 1
    assert found["worldr1_pool_timeouts_count", "rollout"] == 2
    assert found["worldr1_scorer_failures_count", "judge"] == 3
    assert found["worldr1_scorer_failures_count", "aesthetic"] == 0
    assert found["worldr1_groups_last_step_count", "stale"] == 1
    assert found["worldr1_learner_muted_ratio", "positive"] == 0.25
    assert found["worldr1_learner_skipped_updates_count", ""] == 1
    assert found["worldr1_checkpoint_age_steps", ""] == 3
    assert ("worldr1_learner_grad_norm_ratio", "") not in found, "NaN is no sample"
    assert not list(samples({"kind": "evaluation", "step": 0}))
    exam = {"kind": "examiner", "step": 5, "scores": {"frozen": {"recon": 0.9}}, "alarms": ["x"]}
    assert {n: v for n, v, _ in samples(exam)} == {
        "worldr1_examiner_alarms_count": 1.0,
        "worldr1_examiner_score_points": 0.9,
    }


def test_samples_and_board_name_known_metrics_alone() -> None:
    known = {metric.name for metric in METRICS}
    exam = {"kind": "examiner", "step": 5, "scores": {"frozen": {"recon": 0.9}}, "alarms": []}
    again = {"kind": "repeat", "step": 5, "noise": 0.01}
    given = {name for each in (row(), exam, again) for name, _, _ in samples(each)}
    given |= {"worldr1_checkpoint_written_timestamp_seconds", "worldr1_learner_clip_fraction_ratio"}
    assert given | {"worldr1_learner_grad_norm_ratio"} == known
    drawn = {
        name.removeprefix(PREFIX)
        for _, query in dashboard.queries()
        for name in re.findall(rf"{PREFIX}worldr1_\w+", query)
    }
    assert drawn == known


def test_the_committed_board_is_what_the_table_makes() -> None:
    board = json.loads(dashboard.FILE.read_text())
    assert board == dashboard.board(), "run: python -m cluster.dashboard"
    graphs = [panel for panel in board["panels"] if panel["type"] == "timeseries"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places)
    assert [t["expr"] for g in graphs for t in g["targets"]] == [q for _, q in dashboard.queries()]
    titles = " ".join(panel["title"] for panel in graphs).lower()
    for asked in [
        "parts",
        "spread",
        "canary",
        "kl",
        "ratio",
        "busy",
        "queue",
        "staleness",
        "pool",
        "failures",
        "checkpoint",
    ]:
        assert asked in titles, asked


@pytest.mark.parametrize(
    ("template", "query"),
    [
        (
            "max({worldr1_a_ratio})",
            'max(ray_worldr1_a_ratio{SessionName=~"$session",run="$run"})',
        ),
        ("time()", "time()"),
    ],
)
def test_queries_select_the_run(template: str, query: str) -> None:
    assert dashboard.promql(template) == query
