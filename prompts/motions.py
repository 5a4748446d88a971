"""The camera-motion vocabulary and the detector that finds it in a prompt (method, section 1)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Motion(StrEnum):
    """The camera motions; the value is the phrase that names it in a prompt.

    The first nine are the paper's (`PRIMITIVES`), the others go beyond it.
    """

    PUSH_IN = "push in"
    PULL_OUT = "pull out"
    MOVE_LEFT = "move left"
    MOVE_RIGHT = "move right"
    ORBIT_LEFT = "orbit left"
    ORBIT_RIGHT = "orbit right"
    PAN_LEFT = "pan left"
    PAN_RIGHT = "pan right"
    FIXED = "fixed"
    TILT_UP = "tilt up"
    TILT_DOWN = "tilt down"
    CRANE_UP = "crane up"
    CRANE_DOWN = "crane down"
    ROLL_LEFT = "roll left"
    ROLL_RIGHT = "roll right"

    @property
    def unit(self) -> Literal["degrees", "depths", ""]:
        """What an amount of this motion is measured in; empty for `fixed`, which has none."""
        if self is Motion.FIXED:
            return ""
        return "degrees" if self.split()[0] in ("orbit", "pan", "tilt", "roll") else "depths"


PRIMITIVES: tuple[Motion, ...] = tuple(Motion)[:9]
"""The paper's nine primitives, the only ones of the toy world."""

COMPOSITES: dict[str, tuple[Motion, ...]] = {
    "pull left": (Motion.MOVE_LEFT, Motion.PULL_OUT, Motion.PAN_LEFT),
    "pull right": (Motion.MOVE_RIGHT, Motion.PULL_OUT, Motion.PAN_RIGHT),
}
"""Phrases that stand for several primitives, one after the other."""

VOCABULARY: dict[str, tuple[Motion, ...]] = {
    **{motion.value: (motion,) for motion in Motion},
    **COMPOSITES,
}
"""Every phrase the detector knows, with the primitives it stands for."""

LARGEST_AMOUNT = {"degrees": 180.0, "depths": 3.0}
"""Bound of a stated amount by its unit: beyond it no clip follows the camera."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One motion of a camera command, such as "pan left by 30 degrees"."""

    motion: Motion
    amount: float | None = None
    """Extent of this segment in `motion.unit`; None: the configured amplitude."""

    def __str__(self) -> str:
        if self.amount is None:
            return self.motion.value
        return f"{self.motion.value} by {self.amount:g} {self.motion.unit}"


def _phrase_pattern(phrase: str) -> str:
    # A prompt may break a line or write a hyphen between the two words of a phrase.
    return r"[\s-]+".join(re.escape(word) for word in phrase.split())


# The look-arounds refuse a phrase that is only part of a longer (or hyphenated) word. A number
# counts as an amount only with its unit: "move left by 3 people" states none. Whatever looks like a
# number is taken, so that one which cannot be read ("1,000") is refused and not passed over.
_DETECTOR = re.compile(
    r"(?<![\w-])(?P<phrase>"
    + "|".join(_phrase_pattern(phrase) for phrase in VOCABULARY)
    + r")(?![\w-])"
    r"(?:(?:\s+(?:\w+ly\s+)?|,\s*(?=by\b))(?:by\s+)?(?:(?:about|around|roughly)\s+)?"
    r"(?P<amount>[-+]?[\d.,]*\d(?:\s*(?:to|or|-|–)\s*\d[\d.,]*)?)[\s-]*"
    r"(?:(?P<degrees>[°º]|deg(?:ree)?s?\b)|(?P<depths>(?:scene[\s-]+)?depths?\b)))?",
    re.IGNORECASE,
)


def detect_segments(text: str) -> tuple[Segment, ...]:
    """The motions that `text` names, in order of appearance; composites are expanded.

    Whole words only and case-insensitive: "push inside" and "Panorama left" name no motion. A
    motion may be followed by its extent, with "by" or without: "by 30 degrees" ("30°") where it
    turns, "by 0.4 scene depths" ("0.4 depths") where it travels. An empty tuple means that the
    prompt asks for no camera path. Linear in the length of the text.

    ValueError for an amount that does not fit its motion.
    """
    found: list[Segment] = []
    for match in _DETECTOR.finditer(text):
        phrase = " ".join(re.split(r"[\s-]+", match["phrase"].lower()))
        motions = VOCABULARY[phrase]
        amount = None
        if match["amount"] is not None:
            unit = "degrees" if match["degrees"] else "depths"
            amount = _amount(phrase, motions, _number(phrase, match["amount"]), unit)
        found.extend(Segment(motion, amount) for motion in motions)
    return tuple(found)


def detect_motions(text: str) -> tuple[Motion, ...]:
    """The motions of `detect_segments`, without their amounts."""
    return tuple(segment.motion for segment in detect_segments(text))


def _number(phrase: str, written: str) -> float:
    try:
        return float(written)
    except ValueError:
        raise ValueError(
            f"{phrase!r} is asked for by {written}; allowed: a plain number such as 30 or 0.4"
        ) from None


def _amount(phrase: str, motions: tuple[Motion, ...], amount: float, unit: str) -> float:
    """The amount, if `phrase` may have it."""
    stated = f"{phrase!r} is asked for by {amount:g} {unit}"
    if len(motions) > 1:
        parts = ", ".join(f"'{motion}'" for motion in motions)
        raise ValueError(f"{stated}; allowed: an amount for each of its parts ({parts})")
    allowed = motions[0].unit
    if unit != allowed:
        what = f"an amount in {allowed}" if allowed else "no amount, since it does not move"
        raise ValueError(f"{stated}; allowed: {what}")
    if not 0 < amount <= LARGEST_AMOUNT[unit] or not math.isfinite(amount):
        raise ValueError(f"{stated}; allowed: above 0, up to {LARGEST_AMOUNT[unit]:g} {unit}")
    return amount
