"""The messages that leave this package: a prompt, and the camera path that its motions ask for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from prompts.motions import Motion, detect_motions


class Prompt(BaseModel):
    """One line of a prompt set; produced by `prompts.dataset`, consumed by the rollout workers.

    Example: `Prompt.from_text("toy-0001", "Camera push in. A red box on a green floor.")`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    id: str = Field(min_length=1)
    """Unique within its set; names the prompt in the ledger."""
    text: str = Field(alias="prompt", min_length=1)
    """What the text encoder reads."""
    motions: tuple[Motion, ...]
    """Camera motions in order; always what `detect_motions` finds in `text`."""
    taxonomy: str = "unspecified"
    """Class of the camera command, for stratified reports (for example "single", "composite")."""
    domain: str = "unspecified"
    """Kind of scene (for example "toyworld")."""
    is_dynamic: bool = False
    """Whether things in the scene are meant to move: such prompts serve the dynamic phase."""
    source: str = "unspecified"
    """Where the text comes from."""
    seed: int = Field(0, ge=0)
    """Seed of the generator that wrote the text, or 0."""

    @model_validator(mode="after")
    def _motions_are_the_detected_ones(self) -> Prompt:
        detected = detect_motions(self.text)
        if self.motions != detected:
            raise ValueError(
                f"motions of prompt {self.id!r} are {[m.value for m in self.motions]}, but its "
                f"text names {[m.value for m in detected]}: they must be equal"
            )
        return self

    @classmethod
    def from_text(cls, id: str, text: str, **fields: str | int | bool) -> Prompt:
        """A prompt whose motions are detected in `text`; `fields` set the remaining fields."""
        return cls.model_validate(
            {"id": id, "text": text, "motions": detect_motions(text), **fields}
        )


@dataclass(frozen=True, eq=False)
class CameraPath:
    """A requested camera path: `c2w` is float64 [F, 4, 4], read-only.

    Camera-to-world matrices in OpenCV axes (x right, y down, z forward); the world is the first
    camera's frame, so `c2w[0]` is the identity; lengths in scene depths.
    """

    c2w: NDArray[np.float64]

    def __post_init__(self) -> None:
        c2w = np.array(self.c2w, dtype=np.float64)
        if c2w.ndim != 3 or c2w.shape[1:] != (4, 4) or not len(c2w):
            raise ValueError(f"c2w has shape {c2w.shape}; allowed: [F, 4, 4] with F >= 1")
        if not np.isfinite(c2w).all():
            raise ValueError("c2w holds NaN or infinity; allowed: finite numbers")
        c2w.setflags(write=False)
        object.__setattr__(self, "c2w", c2w)

    def __len__(self) -> int:
        return len(self.c2w)
