"""Settings of the camera conditioning and of the prompt sets; imports neither torch nor ray."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Amplitudes(BaseModel):
    """How far each camera motion goes over a whole single-motion clip.

    Lengths are in scene depths (the assumed plane is at depth 1). Push, move, pan and orbit are the
    release's values. Of those that the paper does not have, crane goes through the same share of a
    480 x 832 picture's height as move through its width, and tilt turns so far that one sideways or
    to the wrong side is worth no more than 0.45 of S_traj.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    push: float = Field(0.6, ge=0, le=100)
    """Distance travelled by `push in` (forwards) and `pull out` (backwards)."""
    move: float = Field(0.22, ge=0, le=100)
    """Distance travelled sideways by `move left` and `move right`."""
    pan_deg: float = Field(14.0, ge=0, lt=180)
    """Angle turned about the vertical axis by `pan left` and `pan right`."""
    orbit_deg: float = Field(24.0, ge=0, lt=180)
    """Arc walked around the orbit's centre by `orbit left` and `orbit right`."""
    orbit_radius: float = Field(0.6, gt=0, le=100)
    """Distance of the orbit's centre in front of the camera."""
    crane: float = Field(0.13, ge=0, le=100)
    """Distance travelled by `crane up` and `crane down`."""
    tilt_deg: float = Field(12.0, ge=0, lt=180)
    """Angle turned about the horizontal axis by `tilt up` and `tilt down`."""
    roll_deg: float = Field(20.0, ge=0, lt=180)
    """Angle turned about the viewing axis by `roll left` and `roll right`."""


class CameraConfig(BaseModel):
    """Camera conditioning by noise transport (World-R1, the section on implicit conditioning)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strength: float = Field(0.35, ge=0, le=1)
    """Weight of the transported noise against independent noise, variance-preserving."""
    degradation: float = Field(0.35, ge=0, le=1)
    """Weight of the fresh noise mixed into the transported noise, variance-preserving."""
    focal: float = Field(1.2, gt=0, le=100)
    """Focal length of the assumed pinhole camera, in image widths."""
    depth: float = Field(1.0, gt=0, le=1000)
    """Depth of the assumed fronto-parallel plane in front of the current camera."""
    transport_grid: int = Field(4, ge=1, le=64)
    """Transport cells per latent cell side: the noise is moved on a grid that much finer."""
    amplitudes: Amplitudes = Amplitudes()
    """Extent of each motion over a single-motion clip."""


class PromptsConfig(BaseModel):
    """Which prompts are trained on.

    Each field names a built-in set ("train"), a .jsonl or .txt file or the URL of one, cut to its
    first prompts by "train[:1000]"; several are mixed as "0.7*train + 0.3*mine.jsonl".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: str = "toy_train"
    """Prompts of the main phase (all rewards)."""
    dynamic: str = "toy_dynamic"
    """Prompts of the dynamic phase (moving objects; the general reward alone)."""
    test: str = "toy_test"
    """Held-out prompts of evaluations."""

    @property
    def sources(self) -> dict[str, str]:
        """What each split is read from."""
        return {"train": self.train, "dynamic": self.dynamic, "test": self.test}
