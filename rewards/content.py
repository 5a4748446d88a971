"""What a prompt says is in the picture, by its colours, and how much of it a picture shows."""

from __future__ import annotations

import re
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Paint:
    """A colour by name: hue in degrees (None for the greys), saturation and value in [0, 1]."""

    hue_deg: float | None
    saturation: float
    value: float


PALETTE: dict[str, Paint] = {
    "red": Paint(0, 0.87, 0.9),
    "orange": Paint(28, 0.9, 0.95),
    "brown": Paint(27, 0.52, 0.45),
    "gold": Paint(45, 0.8, 0.85),
    "golden": Paint(45, 0.8, 0.85),
    "yellow": Paint(54, 0.87, 0.95),
    "green": Paint(125, 0.8, 0.6),
    "teal": Paint(175, 0.8, 0.6),
    "cyan": Paint(183, 0.86, 0.85),
    "turquoise": Paint(175, 0.7, 0.85),
    "blue": Paint(228, 0.8, 0.8),
    "purple": Paint(285, 0.77, 0.8),
    "violet": Paint(275, 0.7, 0.8),
    "magenta": Paint(305, 0.8, 0.85),
    "pink": Paint(335, 0.45, 0.95),
    "white": Paint(None, 0.0, 0.95),
    "silver": Paint(None, 0.0, 0.72),
    "gray": Paint(None, 0.0, 0.47),
    "grey": Paint(None, 0.0, 0.47),
    "black": Paint(None, 0.0, 0.06),
}
SURFACES = frozenset(
    [
        "background",
        "beach",
        "ceiling",
        "desert",
        "field",
        "floor",
        "grass",
        "ground",
        "meadow",
        "ocean",
        "road",
        "sand",
        "sea",
        "sky",
        "snow",
        "street",
        "wall",
        "water",
    ]
)
HUE_WIDTH_DEG = 13.0
"""Standard deviation of the hues that still count as a colour; shading hardly changes a hue."""
VALUE_WIDTH = 0.18
FADED, VIVID = 0.4, 0.9
"""Shares of a colour's saturation at which a pixel begins to count, and counts fully."""
FAINT = 0.08
"""Membership up to which a pixel counts as another colour: a wide brown floor is no red box."""
MUTED = 0.6
"""Surfaces are painted duller than objects: their saturation counts from this share on."""
OBJECT_SHARE, SURFACE_SHARE = 0.012, 0.08
"""Shares of the picture at which an object or a surface counts by 63 %; three times that is full,
so that growing an object beyond a sensible size earns nothing."""

_PHRASE = re.compile(r"\b(" + "|".join(PALETTE) + r")\s+([a-z]+)", re.IGNORECASE)


@dataclass(frozen=True)
class NamedColor:
    """A thing that a prompt names with its colour: "a red box"."""

    color: str
    noun: str

    @property
    def is_surface(self) -> bool:
        """Whether it is a wide thing such as a floor, rather than an object."""
        return self.noun in SURFACES


def named_colors(text: str) -> tuple[NamedColor, ...]:
    """Colour and noun pairs of a prompt, in order: a colour word right before another word."""
    return tuple(NamedColor(match[1].lower(), match[2].lower()) for match in _PHRASE.finditer(text))


def color_shares(image: F32, things: tuple[NamedColor, ...]) -> F32:
    """Soft share [T] of the picture [H, W, 3] in [0, 1] that has the colour of each thing.

    A pixel counts by how near its hue is and by how saturated it is against the palette's colour,
    so that fading lowers the share long before the object is gone.
    """
    hsv = cv2.cvtColor(np.ascontiguousarray(image, dtype=np.float32), cv2.COLOR_RGB2HSV)
    return np.array(
        [_membership(np.asarray(hsv, np.float32), thing).mean() for thing in things], np.float32
    )


def presence(shares: F32, things: tuple[NamedColor, ...]) -> F32:
    """Saturating presence [T] in [0, 1) of things that fill `shares` [T] of the picture."""
    sizes = [SURFACE_SHARE if thing.is_surface else OBJECT_SHARE for thing in things]
    return (1 - np.exp(-shares / np.array(sizes, np.float32))).astype(np.float32)


def content(image: F32, things: tuple[NamedColor, ...]) -> float:
    """Mean presence of the named things in a picture [H, W, 3]; 1 where the prompt names none."""
    if not things:
        return 1.0
    return float(presence(color_shares(image, things), things).mean())


def _membership(hsv: F32, thing: NamedColor) -> F32:
    """How much each pixel [H, W] has a thing's colour, in [0, 1]; `hsv` as OpenCV has it."""
    paint = PALETTE[thing.color]
    hue, saturation, value = hsv[..., 0], hsv[..., 1], hsv[..., 2]
    if paint.hue_deg is None:
        grey = np.exp(-0.5 * (saturation / 0.12) ** 2)
        return grey * np.exp(-0.5 * ((value - paint.value) / VALUE_WIDTH) ** 2)
    turn = np.abs(hue - paint.hue_deg)
    turn = np.minimum(turn, 360 - turn) / HUE_WIDTH_DEG
    full = paint.saturation * (MUTED if thing.is_surface else 1.0)
    vivid = np.clip((saturation - FADED * full) / ((VIVID - FADED) * full), 0, 1)
    lit = np.clip(value / 0.2, 0, 1)
    near = np.exp(-0.5 * turn**2) * vivid * vivid * lit
    return np.maximum(near - FAINT, 0) / (1 - FAINT)
