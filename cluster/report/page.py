"""`RUN/report/`: one page, its figures, one plotting library and the videos it shows.

    report/index.html   opens from a file, needs nothing from a network
    report/figures.js   the figures' data     report/plotly.min.js   draws them, after first paint
    report/media/       copies of the videos, so that the folder can be taken away

Written from the run's folder alone, during a run and after it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline

from cluster.clocks import format_seconds
from cluster.config import flatten
from cluster.held_out import EvalSample, Gain, paired_gains, video_file
from cluster.kept import ARTIFACTS, REPORT, step_folder
from cluster.report.data import RunData, load_run
from cluster.report.figures import clock_plots, guard_plots, policy_plots, reward_plots
from cluster.report.gold import alarm_texts, gold_plot
from cluster.report.paths3d import camera_figure
from cluster.report.style import PARTS
from cluster.storage import SAMPLES, RunFolder

TEMPLATES = Path(__file__).parent / "templates"
GALLERY_COLUMNS = 6
GALLERY_PROMPTS = 12
FEW_STEPS = 12
"""Runs of no more steps have a tick at each of them."""
FIGURES = {
    "recon": "S_recon",
    "traj": "S_traj",
    "reach": "S_reach",
    "meta": "S_meta",
    "gen": "R_gen",
    "psnr": "PSNR of the re-rendering, dB",
    "content": "content, share of objects found",
    "sharpness": "sharpness, grey levels",
    "motion": "motion, px per frame",
}
"""Names of figures as the table shows them."""
WORSE = -0.05
"""Relative change of a guarded measurement that is worth a look."""


def write_report(url: str) -> str:
    """Write or refresh the report of a run; the path or URL of its page. ConfigError: no run."""
    run, folder = load_run(url), RunFolder(url)
    sections = _sections(run)
    figures = {plot.name: plot.figure for section in sections for plot in section["plots"]}
    if run.done <= FEW_STEPS:
        for name, plot in figures.items():
            if name != "shares":
                plot.update_xaxes(dtick=1)  # no "1, 1, 2, 2" on an axis of whole numbers
    for group in run.groups:
        camera = camera_figure(group)
        if camera is not None:
            figures[f"camera-{group.group}"] = camera
    encoded = ",\n".join(f"{json.dumps(name)}: {fig.to_json()}" for name, fig in figures.items())
    _copy_media(folder, run)
    if not folder.exists(f"{REPORT}/plotly.min.js"):
        folder.write_text(f"{REPORT}/plotly.min.js", plotly.offline.get_plotlyjs())
    folder.write_text(f"{REPORT}/figures.js", f"window.worldr1Figures = {{\n{encoded}\n}};\n")
    folder.write_text(f"{REPORT}/index.html", _render(run, sections, set(figures)))
    return f"{folder.url}/{REPORT}/index.html"


def _sections(run: RunData) -> list[dict[str, Any]]:
    """The chapters that are made of curves."""
    if not run.steps and not run.evals:
        return []
    reward = reward_plots(run)
    chapters: list[dict[str, Any]] = [
        {
            "id": "reward",
            "title": "Reward",
            "lead": "R = S_recon + S_traj + S_meta + λ R_gen. Shaded steps belong to the dynamic "
            "phase, which is paid R_gen alone, on prompts whose things move.",
            "plots": reward,
            "alarms": [],
        },
        {
            "id": "hacking",
            "title": "Is it real?",
            "lead": "A policy can please a proxy by giving something else up: blur is easy to "
            "reconstruct, a still camera never errs, an empty scene is consistent. The proxy "
            "(grey, right axis, main phase only) beside what it could be bought with. The two "
            "axes of a plot span the same percentage of their curve's mean.",
            "alarms": alarm_texts(run),
            "plots": [*gold_plot(run), *guard_plots(run)],
        },
    ]
    if run.steps:
        chapters += [
            {
                "id": "policy",
                "title": "Policy",
                "lead": "How far each update goes, and what the clip lets through.",
                "plots": policy_plots(run),
                "alarms": [],
            },
            {
                "id": "clocks",
                "title": "Clocks and losses",
                "lead": "Where the time goes, and what did not train.",
                "plots": clock_plots(run),
                "alarms": [],
            },
        ]
    return chapters


def _render(run: RunData, sections: Sequence[dict[str, Any]], figures: set[str]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["signed"] = signed
    gains = _gains(run)
    return environment.get_template("report.html.j2").render(
        name=run.url.rstrip("/").rpartition("/")[2],
        url=run.url,
        run=run,
        tiles=_tiles(run, gains),
        facts=_facts(run),
        figures=FIGURES,
        gains=gains,
        worse=_is_worse,
        sections=sections,
        cameras=figures,
        parts=PARTS,
        shown_steps=_by_step(run),
        media=_group_media,
        gallery=_gallery(run),
        aspect=f"{run.config.rollout.width} / {run.config.rollout.height}",
        settings=flatten(run.config),
        written=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        css=(TEMPLATES / "report.css").read_text(),
        script=(TEMPLATES / "report.js").read_text(),
    )


def _gains(run: RunData) -> list[Gain]:
    """Paired gains between the first and the last held-out evaluation."""
    steps = sorted(run.evaluations)
    if len(steps) < 2:
        return []
    before, after = run.evaluations[steps[0]], run.evaluations[steps[-1]]
    return paired_gains(before, after) if before and after else []


def signed(value: float, digits: int) -> str:
    """A change as it is printed: a sign unless it rounds to 0, and a minus as wide as a plus."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def _is_worse(gain: Gain) -> bool:
    return abs(gain.before) > 1e-9 and gain.gain / abs(gain.before) < WORSE


def _tiles(run: RunData, gains: Sequence[Gain]) -> list[dict[str, str]]:
    """The figures at the top of the page."""
    trained = sum(row["groups"]["trained"] for row in run.steps)
    seconds = sum(row["seconds"]["step"] for row in run.steps)
    tiles = [
        {
            "label": "optimizer steps",
            "value": f"{run.done} / {run.config.steps}",
            "note": "finished" if run.finished else "running, or stopped",
        },
        {
            "label": "samples trained on",
            "value": f"{trained * run.config.rollout.group_size:,}",
            "note": f"{trained:,} groups of {run.config.rollout.group_size}",
        },
        {
            "label": "time in steps",
            "value": format_seconds(seconds),
            "note": f"{seconds / max(len(run.steps), 1):.1f} s a step",
        },
    ]
    if gains:
        gain = gains[0]
        tiles.insert(
            0,
            {
                "label": "held-out reward",
                "value": f"{gain.before:.3f} → {gain.after:.3f}",
                "note": signed(gain.gain, 3) + f" (95 % bound {signed(gain.lower, 3)})",
            },
        )
    if run.steps:
        kl = run.steps[-1]["learner"].get("kl", 0.0)
        tiles.append({"label": "KL", "value": f"{kl:.2e}", "note": "to the untrained policy"})
    return tiles


def _facts(run: RunData) -> list[str]:
    """What was trained on what, in a line."""
    rollout, learner = run.config.rollout, run.config.learner
    schedule = run.config.schedule
    last = learner.decay_after + learner.decay_updates
    falls = (
        f", falling from update {learner.decay_after} to {last}" if learner.decay_updates else ""
    )
    return [
        run.config.policy.model,
        f"{rollout.frames} frames of {rollout.height} × {rollout.width}",
        f"{rollout.groups_per_step} groups of {rollout.group_size} a step",
        f"LoRA rank {run.config.policy.lora.rank}, learning rate {learner.learning_rate:g}{falls}",
        f"{schedule.main_steps} main and {schedule.dynamic_steps} dynamic steps in turn",
        f"seed {run.config.seed}",
    ]


def _by_step(run: RunData) -> list[dict[str, Any]]:
    """Kept groups by step, best advantage first; the middle of the list is where one looks last."""
    steps: dict[int, dict[str, Any]] = {}
    for group in run.groups:
        entry = steps.setdefault(
            group.step, {"step": group.step + 1, "phase": group.phase, "groups": []}
        )
        ranked = sorted(
            group.members, key=lambda m: (m.advantage is None, -(m.advantage or 0.0), m.member)
        )
        entry["groups"].append({"group": group, "members": ranked})
    return [steps[step] for step in sorted(steps)]


def _gallery(run: RunData) -> dict[str, Any]:
    """The same held-out pairs at some evaluations, the averaged weights at the last one."""
    steps = sorted(run.evaluations)
    if len(steps) > GALLERY_COLUMNS:
        last = len(steps) - 1
        picks = {round(i * last / (GALLERY_COLUMNS - 1)) for i in range(GALLERY_COLUMNS)}
        steps = [steps[i] for i in sorted(picks)]
    columns = [(step, False) for step in steps]
    columns += [(step, True) for step in sorted(run.ema_evaluations)[-1:]]
    scored = [
        {
            (s.prompt_id, s.seed): s
            for s in (run.ema_evaluations if average else run.evaluations)[step]
        }
        for step, average in columns
    ]
    pairs = list(scored[0])[:GALLERY_PROMPTS] if scored else []
    rows = [
        {
            "prompt": scored[0][pair].prompt,
            "cells": [
                _cell(step, average, table.get(pair), scored[0][pair])
                for (step, average), table in zip(columns, scored, strict=True)
            ],
        }
        for pair in pairs
    ]
    titles = [f"{step}, averaged" if average else f"{step} steps" for step, average in columns]
    return {"columns": titles, "rows": rows}


def _cell(
    step: int, average: bool, sample: EvalSample | None, first: EvalSample
) -> dict[str, Any] | None:
    if sample is None:
        return None
    return {
        "video": f"media/{video_file(step, sample.prompt_id, sample.seed, average)}",
        "sample": sample,
        "gain": sample.total - first.total if step or average else None,
    }


def _group_media(step: int, file: str) -> str:
    return f"media/{step_folder(step)}/{file}"


def _copy_media(folder: RunFolder, run: RunData) -> None:
    """Bring the shown files into the report's folder; those of equal size are there already."""
    wanted = {
        f"{step_folder(group.step)}/{file}"
        for group in run.groups
        for member in group.members
        for file in (
            *(member.video, member.rerender, member.meta_view),
            *(member.depth, member.overlay, member.splats),
        )
        if file is not None
    }
    wanted |= {
        cell["video"].removeprefix("media/")
        for row in _gallery(run)["rows"]
        for cell in row["cells"]
        if cell is not None
    }
    sources = folder.sizes(ARTIFACTS) | folder.sizes(SAMPLES)
    there: Mapping[str, int] = folder.sizes(f"{REPORT}/media")
    for name in sorted(wanted & sources.keys()):
        target = f"{REPORT}/media/{name}"
        if there.get(target) != sources[name]:
            folder.write_bytes(target, folder.read_bytes(name))
