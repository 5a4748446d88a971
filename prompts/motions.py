"""The camera-motion vocabulary and the detector that finds it in a prompt (method, section 1)."""

from __future__ import annotations

import re
from enum import StrEnum


class Motion(StrEnum):
    """The nine primitive camera motions; the value is the phrase that names it in a prompt."""

    PUSH_IN = "push in"
    PULL_OUT = "pull out"
    MOVE_LEFT = "move left"
    MOVE_RIGHT = "move right"
    ORBIT_LEFT = "orbit left"
    ORBIT_RIGHT = "orbit right"
    PAN_LEFT = "pan left"
    PAN_RIGHT = "pan right"
    FIXED = "fixed"


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


def _phrase_pattern(phrase: str) -> str:
    # A prompt may break a line or write a hyphen between the two words of a phrase.
    return r"[\s-]+".join(re.escape(word) for word in phrase.split())


# The look-arounds refuse a phrase that is only part of a longer (or hyphenated) word.
_DETECTOR = re.compile(
    r"(?<![\w-])(?:" + "|".join(_phrase_pattern(phrase) for phrase in VOCABULARY) + r")(?![\w-])",
    re.IGNORECASE,
)


def detect_motions(text: str) -> tuple[Motion, ...]:
    """The primitive motions that `text` names, in order of appearance; composites are expanded.

    Whole words only and case-insensitive: "push inside" and "Panorama left" name no motion. An
    empty tuple means that the prompt asks for no camera path.
    """
    found: list[Motion] = []
    for match in _DETECTOR.finditer(text):
        phrase = " ".join(re.split(r"[\s-]+", match.group().lower()))
        found.extend(VOCABULARY[phrase])
    return tuple(found)
