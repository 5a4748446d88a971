"""The evaluation as one HTML page: tables with intervals, and the clips side by side."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jinja2

from cluster.evaluation.figures import Figure
from cluster.evaluation.result import ARROWS, FOOTNOTE, Evaluation

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_CLIPS = 24


def page(template: str, **values: Any) -> str:
    """Render a template of this package; whatever comes from outside is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    written = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    css = (TEMPLATES / "evaluation.css").read_text()
    return environment.get_template(template).render(css=css, written=written, **values)


def to_html(evaluation: Evaluation) -> str:
    """The page of an evaluation."""
    return page(
        "evaluation.html.j2",
        evaluation=evaluation,
        chapters=[
            (title, [_row(evaluation, figure) for figure in group])
            for title, group in evaluation.chapters()
        ],
        agreements=[side.agreement() for side in evaluation.sides],
        rows=_clips(evaluation),
        footnote=FOOTNOTE,
    )


def _row(evaluation: Evaluation, figure: Figure) -> dict[str, Any]:
    return {
        "title": figure.title,
        "unit": figure.unit,
        "arrow": ARROWS[figure.better],
        "row": evaluation.row(figure),
    }


def _clips(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The first prompts and seeds, with the video of each side."""
    tables = [
        {
            (clip.prompt_id, clip.seed): (clip, video)
            for clip, video in zip(side.clips, side.videos, strict=bool(side.videos))
        }
        for side in evaluation.sides
    ]
    keys = list(tables[0])[:SHOWN_CLIPS]
    return [
        {
            "prompt": tables[0][key][0].prompt,
            "seed": key[1],
            "cells": [
                {"video": table[key][1], "clip": table[key][0]} if key in table else None
                for table in tables
            ],
        }
        for key in keys
    ]
