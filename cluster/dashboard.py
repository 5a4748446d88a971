"""The Grafana board of a run, from a table of panels: `python -m cluster.dashboard` writes
`cluster/deploy/grafana_dashboard.json`. A test puts every query to a real Prometheus.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.config import REPOSITORY
from cluster.exports import PREFIX, RUN

FILE = REPOSITORY / "cluster/deploy/grafana_dashboard.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
SESSION = 'SessionName=~"$session"'
CHOSEN = f'{SESSION},{RUN}="$run"'
"""Series of the chosen run only, in the chosen Ray session or in all that it went through."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph: its queries with their legends."""

    title: str
    unit: str
    """Grafana's name of a unit."""
    queries: tuple[tuple[str, str], ...]
    """(PromQL with METRIC names in braces, legend)."""
    help: str = ""


def _by(metric: str, label: str) -> tuple[str, str]:
    return f"max by ({label}) ({{{metric}}})", f"{{{{{label}}}}}"


def _one(metric: str, legend: str) -> tuple[str, str]:
    return f"max({{{metric}}})", legend


BOARD: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Reward",
        (
            Panel(
                "Total reward",
                "none",
                (
                    _one("worldr1_reward_mean_points", "mean"),
                    (
                        "max({worldr1_reward_mean_points}) - max({worldr1_reward_std_points})",
                        "mean - std",
                    ),
                    (
                        "max({worldr1_reward_mean_points}) + max({worldr1_reward_std_points})",
                        "mean + std",
                    ),
                ),
                "Main steps have all parts, dynamic steps the general reward alone.",
            ),
            Panel(
                "Reward parts, mean",
                "none",
                (_by("worldr1_reward_part_mean_points", "part"),),
            ),
            Panel(
                "Spread: parts over samples, total within groups",
                "none",
                (
                    _by("worldr1_reward_part_std_points", "part"),
                    _one("worldr1_reward_within_group_std_points", "total within a group"),
                    _one("worldr1_reward_repeat_noise_points", "one video scored again"),
                ),
                "Members of a group are compared with each other: no spread within, no learning, "
                "and little where it is below twice what one video's reward varies by.",
            ),
            Panel(
                "Canary: known-answer clips",
                "none",
                (
                    _by("worldr1_examiner_score_points", "clip"),
                    _one("worldr1_examiner_alarms_count", "alarms"),
                ),
                "The same clips have to keep the same scores; needs rewards.examine_every.",
            ),
        ),
    ),
    (
        "Learner",
        (
            Panel("KL to the reference", "none", (_one("worldr1_learner_kl_nats", "KL"),)),
            Panel(
                "Ratio",
                "none",
                (_one("worldr1_learner_ratio_deviation_max_ratio", "largest |r - 1|"),),
                "On-policy, it is the gap between the arithmetic of rollout and learner.",
            ),
            Panel(
                "Clipped and muted share",
                "percentunit",
                (
                    _one("worldr1_learner_clip_fraction_ratio", "clipped"),
                    _by("worldr1_learner_muted_ratio", "sign"),
                ),
            ),
            Panel(
                "Gradient norm and loss",
                "none",
                (
                    _one("worldr1_learner_grad_norm_ratio", "gradient norm"),
                    _one("worldr1_learner_loss_points", "loss"),
                    _one("worldr1_learner_skipped_updates_count", "update skipped"),
                ),
            ),
        ),
    ),
    (
        "Stages",
        (
            Panel("Step time", "s", (_one("worldr1_step_duration_seconds", "step"),)),
            Panel("Busy", "s", (_by("worldr1_stage_busy_seconds", "stage"),)),
            Panel(
                "Waiting: starved and blocked",
                "s",
                (
                    ("max by (stage) ({worldr1_stage_starved_seconds})", "{{stage}} starved"),
                    ("max by (stage) ({worldr1_stage_blocked_seconds})", "{{stage}} blocked"),
                ),
                "Starved: nothing to do. Blocked: could work, but the buffer holds it back.",
            ),
            Panel("Duration of a call", "s", (_by("worldr1_stage_service_seconds", "stage"),)),
            Panel("Queue", "none", (_by("worldr1_stage_queue_calls", "stage"),)),
            Panel("Pool sizes", "none", (_by("worldr1_pool_size_workers", "stage"),)),
            Panel(
                "Staleness",
                "none",
                (_one("worldr1_samples_age_mean_steps", "mean age of a batch, updates"),),
            ),
            Panel("Steps", "none", (_one("worldr1_done_steps", "steps done"),)),
        ),
    ),
    (
        "Trouble",
        (
            Panel(
                "Scorer failures of a step", "none", (_by("worldr1_scorer_failures_count", "kind"),)
            ),
            Panel(
                "Calls that lost their worker",
                "none",
                (
                    ("max by (stage) ({worldr1_pool_deaths_count})", "{{stage}} died"),
                    ("max by (stage) ({worldr1_pool_timeouts_count})", "{{stage}} silent"),
                ),
            ),
            Panel(
                "Groups of a step, by fate",
                "none",
                (_by("worldr1_groups_last_step_count", "fate"),),
            ),
            Panel(
                "Unscored samples of a step",
                "none",
                (_one("worldr1_samples_unscored_count", "samples"),),
            ),
            Panel(
                "Age of the newest durable checkpoint",
                "s",
                (
                    (
                        "time() - max({worldr1_checkpoint_written_timestamp_seconds})",
                        "seconds",
                    ),
                ),
            ),
            Panel(
                "Steps not yet durable",
                "none",
                (_one("worldr1_checkpoint_age_steps", "steps"),),
                "Training pauses at checkpoint.max_unsaved_steps.",
            ),
        ),
    ),
)


def promql(template: str) -> str:
    """A query with Ray's prefix and the run's selector in place of {metric}."""
    query, rest = "", template
    while "{" in rest:
        before, _, rest = rest.partition("{")
        name, _, rest = rest.partition("}")
        query += f"{before}{PREFIX}{name}{{{CHOSEN}}}"
    return query + rest


def queries() -> Iterator[tuple[str, str]]:
    """(panel's title, PromQL) of every query."""
    for _, panels in BOARD:
        for panel in panels:
            for template, _ in panel.queries:
                yield panel.title, promql(template)


def board() -> dict[str, Any]:
    """The dashboard as Grafana imports and provisions it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, graphs in BOARD:
        panels.append(_row(row, len(panels) + 1, y))
        y += 1
        for index, panel in enumerate(graphs):
            place = {"h": 8, "w": 6, "x": 6 * (index % 4), "y": y + 8 * (index // 4)}
            panels.append(_graph(panel, len(panels) + 1, place))
        y += 8 * -(-len(graphs) // 4)
    return {
        "uid": "worldr1",
        "title": "World-R1",
        "tags": ["ray", "worldr1"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                {
                    "name": "session",
                    "type": "query",
                    "datasource": SOURCE,
                    "query": f"label_values({PREFIX}worldr1_done_steps, SessionName)",
                    "refresh": 2,
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                },
                {
                    "name": "run",
                    "type": "query",
                    "datasource": SOURCE,
                    "query": f"label_values({PREFIX}worldr1_done_steps{{{SESSION}}}, {RUN})",
                    "refresh": 2,
                },
            ]
        },
        "panels": panels,
    }


def _row(title: str, number: int, y: int) -> dict[str, Any]:
    place = {"h": 1, "w": 24, "x": 0, "y": y}
    return {"id": number, "type": "row", "title": title, "gridPos": place, "panels": []}


def _graph(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.help,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "custom": {"spanNulls": True, "lineWidth": 2}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": promql(template),
                "legendFormat": legend,
            }
            for index, (template, legend) in enumerate(panel.queries)
        ],
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(board(), indent=1) + "\n")
    print(FILE)
