"""An evaluation of one or two models: everything measured, and what follows from it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.evaluation.figures import GROUPS, VBENCH, Figure, figure_of
from cluster.evaluation.measure import ClipFigures
from cluster.evaluation.statistics import (
    Difference,
    Estimate,
    difference,
    estimate,
    rank_agreement,
)


@dataclass(frozen=True)
class Side:
    """The clips of one model."""

    title: str
    """What made them, as a person reads it."""
    clips: Sequence[ClipFigures]
    videos: Sequence[str] = ()
    """File of each clip, relative to the evaluation's folder; empty where none was kept."""

    def values(self, name: str) -> dict[tuple[str, int], float]:
        """A figure of every clip that has it, by (prompt id, seed)."""
        return {(c.prompt_id, c.seed): c.figures[name] for c in self.clips if name in c.figures}

    def estimate(self, name: str) -> Estimate | None:
        """Mean of a figure; None where no clip has it."""
        values = self.values(name)
        if not values:
            return None
        return estimate(list(values.values()), [prompt for prompt, _ in values])

    def failures(self) -> dict[str, int]:
        """Clips on which each scorer failed."""
        names = sorted({name for clip in self.clips for name in clip.failures})
        return {name: sum(name in clip.failures for clip in self.clips) for name in names}

    def agreement(self) -> float | None:
        """Spearman's correlation of proxy and gold over the clips that the proxy has scored."""
        scored = [clip.figures for clip in self.clips if "proxy" in clip.figures]
        return rank_agreement([f["proxy"] for f in scored], [f.get("gold") for f in scored])


@dataclass(frozen=True)
class Evaluation:
    """One model, or two on the same prompts and seeds."""

    sides: Sequence[Side]
    scorers: Mapping[str, str]
    notes: Sequence[str] = field(default_factory=tuple)
    """What a reader has to know, e.g. which figures were not asked for."""

    def chapters(self) -> list[tuple[str, list[Figure]]]:
        """Figures that at least one clip has, by chapter."""
        present = {name for side in self.sides for clip in side.clips for name in clip.figures}
        chapters = [
            (title, [f for f in group if f.name in present]) for title, group in GROUPS.items()
        ]
        bench = [figure_of(name) for name in sorted(present) if name.startswith(VBENCH)]
        return [(title, group) for title, group in [*chapters, ("VBench", bench)] if group]

    def compare(self, name: str) -> Difference | None:
        """Paired difference of a figure, second side minus first."""
        if len(self.sides) < 2:
            return None
        return difference(self.sides[0].values(name), self.sides[1].values(name))

    def row(self, figure: Figure) -> Row:
        """A figure as tables show it."""
        cells = [
            spread(side.estimate(figure.name), figure.digits, len(side.clips))
            for side in self.sides
        ]
        found = self.compare(figure.name)
        if found is None:
            return Row(cells, change(None, 0), "", "")
        first, second = ({(c.prompt_id, c.seed) for c in side.clips} for side in self.sides)
        verdict = note = found.verdict(figure.better)
        if found.pairs < len(first & second):
            note = f"{verdict} over the {found.pairs} pairs that both have".strip()
        return Row(cells, change(found, figure.digits), verdict, note)


@dataclass(frozen=True, slots=True)
class Row:
    """What a table says of a figure."""

    cells: Sequence[str]
    """Each side's mean and interval."""
    change: str
    verdict: str
    """As `Difference.verdict`."""
    note: str
    """The verdict, and how many pairs it is about where some are lacking."""


def to_csv(evaluation: Evaluation) -> str:
    """One row a clip; an empty cell is a figure that could not be measured."""
    names = [figure.name for _, group in evaluation.chapters() for figure in group]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["model", "prompt_id", "seed", "prompt", *names, "failures"])
    for side in evaluation.sides:
        for clip in side.clips:
            cells = [clip.figures.get(name, "") for name in names]
            reasons = "; ".join(f"{who}: {why}" for who, why in clip.failures.items())
            writer.writerow([side.title, clip.prompt_id, clip.seed, clip.prompt, *cells, reasons])
    return buffer.getvalue()


def to_json(evaluation: Evaluation) -> str:
    """Everything: clips, estimates, comparisons, failures, agreement."""
    names = [figure.name for _, group in evaluation.chapters() for figure in group]
    tree: dict[str, Any] = {
        "scorers": dict(evaluation.scorers),
        "notes": list(evaluation.notes),
        "sides": [
            {
                "title": side.title,
                "failures": side.failures(),
                "spearman_proxy_gold": side.agreement(),
                "estimates": {n: _known(e) for n in names if (e := side.estimate(n)) is not None},
                "clips": [
                    {
                        **asdict(clip),
                        "figures": dict(clip.figures),
                        "failures": dict(clip.failures),
                    }
                    for clip in side.clips
                ],
            }
            for side in evaluation.sides
        ],
    }
    if len(evaluation.sides) == 2:
        tree["differences"] = {
            n: _known(d) | {"verdict": d.verdict(figure_of(n).better)}
            for n in names
            if (d := evaluation.compare(n)) is not None
        }
    return json.dumps(tree, indent=1)


def _known(found: Estimate | Difference) -> dict[str, Any]:
    """As JSON has it: an interval without end is null."""
    return {
        name: value if not isinstance(value, float) or math.isfinite(value) else None
        for name, value in asdict(found).items()
    }


def from_json(text: str) -> Evaluation:
    """Read back what `to_json` wrote; whatever is derived is derived again."""
    tree = json.loads(text)
    sides = [
        Side(side["title"], [ClipFigures(**clip) for clip in side["clips"]])
        for side in tree["sides"]
    ]
    return Evaluation(sides, tree["scorers"], tree["notes"])


def spread(found: Estimate | None, digits: int, clips: int) -> str:
    """ "27.63 [26.90, 28.31]", with " (15 of 20)" where some of the clips have no such figure, or a
    dash."""
    if found is None:
        return "–"
    ends = f" [{found.lower:.{digits}f}, {found.upper:.{digits}f}]"
    measured = f" ({found.clips} of {clips})" if found.clips < clips else ""
    return f"{found.mean:.{digits}f}{ends if math.isfinite(found.lower) else ''}{measured}"


def change(found: Difference | None, digits: int) -> str:
    """ "+0.42 [+0.11, +0.73]", or a dash."""
    if found is None:
        return "–"
    ends = f" [{found.lower:+.{digits}f}, {found.upper:+.{digits}f}]"
    shown = f"{found.mean:+.{digits}f}{ends if math.isfinite(found.lower) else ''}"
    return shown.replace("-", "−")


FOOTNOTE = (
    "Means over the clips that have the figure (how many, where some lack it), with 95 % bootstrap "
    "intervals over prompts; differences are over the prompts and seeds that both sides have."
)
ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}


def to_markdown(evaluation: Evaluation) -> str:
    """A table a chapter, with intervals, failures and agreement."""
    sides = evaluation.sides
    lines = ["# Evaluation", ""]
    lines += [f"- {name}: {scorer}" for name, scorer in evaluation.scorers.items()]
    lines += [f"- {note}" for note in evaluation.notes]
    for side in sides:
        failed = ", ".join(f"{who} {n}" for who, n in side.failures().items()) or "none"
        lines.append(f"- {side.title}: {len(side.clips)} clips; failures: {failed}")
        if (rho := side.agreement()) is not None:
            lines.append(f"- {side.title}: Spearman of proxy and gold over clips {rho:.2f}")
    heads = [side.title for side in sides] + (["difference", ""] if len(sides) == 2 else [])
    for title, group in evaluation.chapters():
        lines += ["", f"## {title}", "", "| | " + " | ".join(heads) + " |"]
        lines.append("|---|" + "---|" * len(heads))
        for figure in group:
            unit = f" ({figure.unit})" if figure.unit else ""
            row = evaluation.row(figure)
            cells = [*row.cells, row.change, row.note] if len(sides) == 2 else row.cells
            name = f"{figure.title}{unit} {ARROWS[figure.better]}".strip()
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", FOOTNOTE, ""]
    return "\n".join(lines)
