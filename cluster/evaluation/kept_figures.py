"""Figures of clips that were measured before: a file a clip, good for the same clip and scorers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from cluster.clips import Clip
from cluster.evaluation.measure import ClipFigures
from cluster.storage import RunFolder

DEFINITIONS = 1
"""Of the figures that no scorer computes; another number where one of them changes."""


class KeptFigures:
    """OUT/figures/LETTER/NAME.json, each with a digest of all that decides it."""

    def __init__(self, out: RunFolder, letter: str, measured_by: list[Any]) -> None:
        """`measured_by`: scorers and settings, as JSON has them."""
        self.folder = RunFolder(f"{out.url}/figures/{letter}")
        self._measured_by = json.dumps([DEFINITIONS, *measured_by], sort_keys=True)
        self._there = set(self.folder.sizes(""))

    def read(self, clip: Clip, data: bytes) -> ClipFigures | None:
        """What an earlier start measured in this clip, whose file is `data`."""
        name = _name(clip)
        if name not in self._there:
            return None
        try:
            tree = json.loads(self.folder.read_text(name))
            same = tree["digest"] == self._digest(clip, data)
            return ClipFigures(**tree["clip"]) if same else None
        except (ValueError, KeyError, TypeError):  # torn, or of another version
            return None

    def write(self, clip: Clip, data: bytes, found: ClipFigures) -> None:
        """Keep it. What failed for want of a scorer, which may be back by then, is not kept; a clip
        without texture has a score."""
        lost = "reconstruction" in found.failures and "s_recon" not in found.figures
        if lost or found.failures.keys() & {"judge", "aesthetic", "memory"}:
            return
        tree = {"digest": self._digest(clip, data), "clip": asdict(found)}
        self.folder.write_text(_name(clip), json.dumps(tree, indent=1))

    def _digest(self, clip: Clip, data: bytes) -> str:
        digest = hashlib.sha256(data)
        digest.update(clip.model_dump_json().encode())
        digest.update(self._measured_by.encode())
        return digest.hexdigest()


def _name(clip: Clip) -> str:
    return f"{clip.file.removesuffix('.mp4')}.json"
