"""The standing examiner: every known-answer clip, and the order in which they must come.

`examine` scores the clips, `faults` says which relations do not hold. `worldr1 rewards check`
demands all of them; a run repeats the examination every `rewards.examine_every` steps, so that a
scorer that drifts or breaks shows before what was trained on it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prompts.schema import Prompt
from rewards import spoilt
from rewards.checks import BROKEN
from rewards.known_answer import Canary, canaries

if TYPE_CHECKING:
    from rewards.worker import ReconstructionWorker

U8 = NDArray[np.uint8]
Rows = Mapping[str, Mapping[str, float]]
"""Clip ("push.morph") → recon, traj and, where something was rendered, psnr; an empty mapping where
it could not be scored."""

WRONG_REQUESTS = {
    "orbit left": "orbit right",
    "push in": "move left",
    "pull out": "push in",
    "move right": "move left",
    "pan left": "pan right",
}
MIN_PSNR_DB, MIN_TRAJ = 27.0, 0.95
"""Of the consistent clips."""
MARGINS = {
    "flickering": 0.15,
    "moving_object": 0.02,
    "warped_1px": 0.1,
    "warped_2px": 0.25,
    "morph": 0.02,
    "changing_objects": 0.15,
    "independent_frames": 0.5,
    "noise": 0.5,
    "shuffled": 0.25,
    "frozen": 0.5,
    "flat_grey": 1.0,
    "wrong_request": 0.4,
}
"""By how much S_recon + S_traj of a consistent clip exceeds that of each version."""
LADDERS = (
    ("consistent", "warped_1px", "warped_2px"),
    ("consistent", "moving_object", "changing_objects", "independent_frames"),
    ("consistent", "morph", "changing_objects", "noise"),
)
"""S_recon falls along each of these; noise and unrelated frames have no order of their own."""
SPOILERS: Mapping[str, Callable[[U8], U8]] = {
    "flickering": spoilt.flickering,
    "warped_1px": partial(spoilt.warped, pixels=1.0),
    "warped_2px": partial(spoilt.warped, pixels=2.0),
    "noise": spoilt.noise,
    "shuffled": spoilt.shuffled,
    "frozen": spoilt.frozen,
    "flat_grey": spoilt.flat_grey,
}
"""Versions that are computed from a canary's consistent clip."""
DRIFT = 0.02
"""Change of a known clip's part since the first examination that counts as drift."""


@dataclass(frozen=True, eq=False)
class KnownClip:
    """A clip whose place in the order is known."""

    name: str
    video: U8
    prompt: Prompt


def number_of_clips() -> int:
    """Of `known_clips`, without making them."""
    filmed = [len(canary.versions) for canary in canaries()]
    return sum(1 if count == 1 else count + len(SPOILERS) + 1 for count in filmed)


def known_clips() -> Iterator[KnownClip]:
    """All clips; the first and every spoilt one for the canaries that have filmed versions."""
    for canary in canaries():
        yield KnownClip(f"{canary.name}.consistent", canary.video, canary.prompt)
        if len(canary.versions) > 1:
            yield from _spoilt(canary)


def _spoilt(canary: Canary) -> Iterator[KnownClip]:
    video, prompt = canary.video, canary.prompt
    versions = {name: clip for name, clip in canary.versions.items() if name != "consistent"}
    versions |= {name: spoil(video) for name, spoil in SPOILERS.items()}
    for name, clip in versions.items():
        yield KnownClip(f"{canary.name}.{name}", clip, prompt)
    right = next(words for words in WRONG_REQUESTS if words in prompt.text)
    wrong = prompt.text.replace(right, WRONG_REQUESTS[right])
    yield KnownClip(
        f"{canary.name}.wrong_request", video, Prompt.from_text(f"{prompt.id}-wrong", wrong)
    )


def examine(worker: ReconstructionWorker) -> dict[str, dict[str, float]]:
    """Score every known clip; what cannot be scored has no numbers."""
    rows: dict[str, dict[str, float]] = {}
    for clip in known_clips():
        try:
            score, _, _ = worker.assess(clip.video, clip.prompt, False)
        except BROKEN:  # of the worker, which the pool replaces
            raise
        except Exception:  # a failure, never a number
            rows[clip.name] = {}
            continue
        shown = {name: score.raw[name] for name in ("psnr",) if name in score.raw}
        rows[clip.name] = {**score.parts, **shown}
    return rows


def faults(rows: Rows) -> list[str]:
    """One sentence for every relation that does not hold; empty for a scorer fit to train."""
    found = []
    for name, row in rows.items():
        canary, _, version = name.partition(".")
        if version == "consistent":
            found += _consistent_faults(name, row)
        elif row:
            found += _margin_faults(rows, canary, version)
    for canary in {name.partition(".")[0] for name in rows}:
        for ladder in LADDERS:
            steps = [(v, rows[f"{canary}.{v}"]) for v in ladder if f"{canary}.{v}" in rows]
            known = [(v, row["recon"]) for v, row in steps if row]
            for (better, high), (worse, low) in pairwise(known):
                if not high > low:
                    found.append(
                        f"{canary}: S_recon of {better} ({high:.3f}) is not above {worse} "
                        f"({low:.3f})"
                    )
    return sorted(found)


def _consistent_faults(name: str, row: Mapping[str, float]) -> list[str]:
    if not row:
        return [f"{name} cannot be scored"]
    found = []
    psnr = row.get("psnr", math.nan)
    if not psnr >= MIN_PSNR_DB:
        found.append(f"{name}: {psnr:.1f} dB; at least {MIN_PSNR_DB:g} are needed")
    if not row["traj"] >= MIN_TRAJ:
        found.append(f"{name}: S_traj {row['traj']:.3f}; at least {MIN_TRAJ:g} is needed")
    return found


def _margin_faults(rows: Rows, canary: str, version: str) -> list[str]:
    top, row = rows.get(f"{canary}.consistent"), rows[f"{canary}.{version}"]
    if not top:
        return []
    if version == "flat_grey" and (row["recon"], row["traj"]) != (0.0, 0.0):
        return [f"{canary}.flat_grey scores {row['recon']:.3f} + {row['traj']:.3f}; it must be 0"]
    best, own = top["recon"] + top["traj"], row["recon"] + row["traj"]
    if best >= own + MARGINS[version]:
        return []
    return [
        f"{canary}: S_recon + S_traj of consistent ({best:.3f}) is not {MARGINS[version]:g} above "
        f"{version} ({own:.3f})"
    ]


def drift(first: Rows, now: Rows) -> list[str]:
    """One sentence for every known clip whose parts changed by more than `DRIFT` since `first`."""
    found = []
    for name in sorted(first.keys() & now.keys()):
        for part in ("recon", "traj"):
            before, after = first[name].get(part, math.nan), now[name].get(part, math.nan)
            both_failed = math.isnan(before) and math.isnan(after)
            if not (both_failed or abs(after - before) <= DRIFT):
                found.append(f"{name}: {part} was {before:.3f} and is {after:.3f}")
    return found
