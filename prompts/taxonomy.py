"""Classes of camera commands, after WorldScore: does the camera keep to what frame one shows?"""

from __future__ import annotations

from collections.abc import Sequence

from prompts.motions import Motion

TAXONOMIES = ("intra-scene", "inter-scene", "composite", "static")
"""intra-scene: the camera stays with what the first frame shows (push in, orbits); inter-scene: it
brings in what lay outside it; composite: several motions in turn; static: the camera is fixed."""

_INTRA = (Motion.PUSH_IN, Motion.ORBIT_LEFT, Motion.ORBIT_RIGHT)
_ROLLS = (Motion.ROLL_LEFT, Motion.ROLL_RIGHT)
_INTER = (
    Motion.PULL_OUT,
    Motion.MOVE_LEFT,
    Motion.MOVE_RIGHT,
    Motion.PAN_LEFT,
    Motion.PAN_RIGHT,
)

COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "intra-scene": tuple((motion.value,) for motion in _INTRA),
    "inter-scene": tuple((motion.value,) for motion in _INTER),
    "composite": (
        ("pull left",),
        ("pull right",),
        ("push in", "orbit left"),
        ("push in", "orbit right"),
        ("push in", "pan left"),
        ("push in", "pan right"),
        ("move left", "push in"),
        ("move right", "push in"),
        ("pan left", "push in"),
        ("pan right", "push in"),
        ("orbit left", "pull out"),
        ("orbit right", "pull out"),
        ("pull out", "pan left"),
        ("pull out", "pan right"),
        ("move left", "pull out", "pan left"),
        ("move right", "pull out", "pan right"),
        ("push in", "orbit left", "pull out"),
        ("push in", "orbit right", "pull out"),
    ),
    "static": ((Motion.FIXED.value,),),
}
"""Commands of each class that the shipped dataset uses, as motion phrases in order; they are the
paper's (tilts, cranes and rolls go beyond it)."""


def taxonomy_of(motions: Sequence[Motion]) -> str:
    """The class of a prompt's motions, or "unspecified" where it names none."""
    if not motions:
        return "unspecified"
    if len(motions) > 1:
        return "composite"
    if motions[0] is Motion.FIXED:
        return "static"
    return "intra-scene" if motions[0] in (*_INTRA, *_ROLLS) else "inter-scene"
