"""The messages that leave this package: a prompt, and the camera path that its motions ask for."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from prompts.motions import Motion, detect_motions

Poses = tuple[tuple[tuple[float, ...], ...], ...]
"""Camera-to-world matrices [F, 4, 4] as they stand in a prompt file."""

MAX_WORDS = 400
"""Longest prompt, in words between spaces: about the 512 tokens that Wan's text encoder reads. It
does not see what is beyond `policy.max_prompt_tokens`."""
MAX_ID = 100
FILE_NAME = re.compile(rf"\w[\w.-]{{0,{MAX_ID - 1}}}", re.ASCII)


def _names_files(value: str) -> str:
    if not FILE_NAME.fullmatch(value):
        raise ValueError(
            f"is {value[:80]!r}, and names files; allowed: letters, digits and _, within it - and "
            f". as well, at most {MAX_ID}"
        )
    return value


PromptId = Annotated[str, AfterValidator(_names_files)]
"""Part of the names of files, in folders and in stores."""


def id_of(text: str) -> str:
    """A text that a file was named by, as the beginning of ids."""
    return re.sub(r"[^\w.-]", "_", text, flags=re.ASCII)[: MAX_ID // 2].lstrip(".-") or "prompts"


class Prompt(BaseModel):
    """One line of a prompt set; produced by `prompts.dataset`, consumed by the rollout workers.

    Example: `Prompt.from_text("toy-0001", "Camera push in. A red box on a green floor.")`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    id: PromptId
    """Unique within its set; names the prompt in the ledger."""
    text: str = Field(alias="prompt", min_length=1)
    """What the text encoder reads."""
    motions: tuple[Motion, ...]
    """Camera motions in order; always what `detect_motions` finds in `text`."""
    taxonomy: str = "unspecified"
    """Class of the camera command, for stratified reports (see `prompts.taxonomy`)."""
    domain: str = "unspecified"
    """Kind of scene (for example "Natural Landscapes" or "toyworld")."""
    is_dynamic: bool = False
    """Whether things in the scene are meant to move: such prompts serve the dynamic phase."""
    source: str = "unspecified"
    """Where the text comes from: "grammar/canyon" is the scene type `canyon` of the generator."""
    seed: int = Field(0, ge=0)
    """Seed of the generator that wrote the text, or 0."""
    c2w: Poses | None = Field(None, exclude_if=lambda value: value is None)
    """A hand-given camera path [F, 4, 4] in place of the one that the motions name; one camera per
    frame of the rollout. `prompts.camera.read_path` reads one from a JSON file."""

    @field_validator("text")
    @classmethod
    def _is_plain_text(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is blank; allowed: text with at least one word")
        controls = [c for c in value if unicodedata.category(c) == "Cc"]
        if controls:
            raise ValueError(f"holds the control character {controls[0]!r}; allowed: plain text")
        if len(value.split()) > MAX_WORDS:
            raise ValueError(f"has {len(value.split())} words; allowed: at most {MAX_WORDS}")
        return value

    @field_validator("c2w")
    @classmethod
    def _c2w_is_rigid(cls, value: Poses | None) -> Poses | None:
        if value is not None:
            require_rigid(value)
        return value

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


def require_rigid(c2w: object) -> NDArray[np.float64]:
    """`c2w` as a fresh float64 [F, 4, 4]; ValueError, naming the camera, unless it is a path.

    Allowed are finite rigid motions with F >= 1: last row 0 0 0 1, and a rotation (orthonormal to
    1e-4, so that decimals rounded to five digits pass, with determinant +1).
    """
    try:
        poses = np.array(c2w, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("c2w is no array of numbers; allowed: F matrices of 4 x 4") from None
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or not len(poses):
        raise ValueError(f"c2w has shape {poses.shape}; allowed: [F, 4, 4] with F >= 1")
    for frame, pose in enumerate(poses):
        R = pose[:3, :3]
        if not np.isfinite(pose).all():
            raise ValueError(f"c2w of camera {frame} holds NaN or infinity; allowed: finite")
        if np.abs(pose[3] - (0, 0, 0, 1)).max() > 1e-9:
            raise ValueError(f"c2w of camera {frame} ends in {pose[3].tolist()}; allowed: 0 0 0 1")
        if np.abs(R.T @ R - np.eye(3)).max() > 1e-4 or np.linalg.det(R) < 0:
            raise ValueError(
                f"c2w of camera {frame} is not rigid; allowed: a rotation without scale, shear or "
                "mirror image"
            )
    return poses
