"""The toy world's colours, RGB in [0, 1] before light and texture."""

from __future__ import annotations

OBJECT_COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.13, 0.12),
    "green": (0.12, 0.72, 0.20),
    "blue": (0.14, 0.27, 0.92),
    "yellow": (0.95, 0.84, 0.12),
    "purple": (0.66, 0.18, 0.80),
    "cyan": (0.12, 0.82, 0.86),
}
FLOOR_COLORS: dict[str, tuple[float, float, float]] = {
    "green": (0.25, 0.46, 0.25),
    "blue": (0.27, 0.36, 0.58),
    "brown": (0.48, 0.34, 0.23),
    "gray": (0.45, 0.45, 0.46),
}
