"""Toy scenes with known geometry: what is in them, how they move, and how clips go wrong.

A scene is two objects (boxes or balls) on a coloured floor before a pale wall. A consistent clip is
one rigid world filmed along the commanded path; a corrupted one breaks that in one named way, and
gives reinforcement learning something to mend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prompts.camera import camera_path
from prompts.motions import COMPOSITES, PRIMITIVES, Motion
from prompts.schema import Prompt
from toyworld.corruptions import CORRUPTION_WEIGHTS, CORRUPTIONS, corrupted
from toyworld.palette import FLOOR_COLORS, OBJECT_COLORS
from toyworld.raycast import F64, Solid, Stage, Texture, cast, intrinsics

HEIGHT, WIDTH, FRAMES = 64, 96, 9

SHAPES = ("box", "ball")
COMMANDS = (*(motion.value for motion in PRIMITIVES), *COMPOSITES)
FLOOR_Y, WALL_Z = 0.2, 2.2
SLIDE = 0.26
"""How far a moving object slides over a clip, in scene depths."""


@dataclass(frozen=True)
class SceneObject:
    """One object at rest: `x`, `z` on the floor, `radius` (half height), `yaw` in radians."""

    shape: str
    color: str
    x: float
    z: float
    radius: float
    yaw: float
    slides: str | None
    """None, or "left" / "right": the direction in which it really moves over the clip."""
    texture: Texture


@dataclass(frozen=True)
class Scene:
    """Everything of a world but the camera; `objects` are ordered from left to right."""

    objects: tuple[SceneObject, SceneObject]
    floor_color: str
    wall_color: tuple[float, float, float]
    floor_texture: Texture
    wall_texture: Texture
    chaos: int
    """Seed of the corruption's details, so that rendering is a function of the scene."""

    def describe(self) -> str:
        """The scene as the prompts say it: "A red box and a blue ball on a green floor."."""
        left, right = (
            f"a {o.color} {o.shape}" + (f" that slides to the {o.slides}" if o.slides else "")
            for o in self.objects
        )
        return f"A{left[1:]} and {right} on a {self.floor_color} floor."


@dataclass(frozen=True, eq=False)
class Clip:
    """A rendered clip with its ground truth.

    `c2w` are the cameras that filmed it (not the commanded ones, where the corruption is a wrong
    camera or a shake), in the world frame: the first commanded camera's.
    """

    video: NDArray[np.uint8]
    """[F, H, W, 3]."""
    depth: NDArray[np.float32]
    """[F, H, W] along the optical axis, in scene depths."""
    c2w: F64
    """[F, 4, 4]."""
    intrinsics: F64
    """[3, 3] in pixels."""
    prompt: Prompt
    corruption: str
    """"none", or one of `CORRUPTIONS`."""


def command(name: str) -> str:
    """The sentence that asks for a camera motion, for a name out of `COMMANDS`."""
    return f"Camera {name}."


def spelled_out(motions: Sequence[Motion]) -> str:
    """The motions by name, as in "move left, pull out, then pan left"."""
    *others, last = (motion.value for motion in motions)
    return f"{', '.join(others)}, then {last}" if others else last


def random_scene(rng: np.random.Generator, dynamic: bool = False) -> Scene:
    """A random scene; with `dynamic`, one of its two objects slides sideways."""
    floor = str(rng.choice(list(FLOOR_COLORS)))
    names = [name for name in OBJECT_COLORS if name != floor]
    colors = rng.permutation(names)[:2]
    mover = rng.integers(2) if dynamic else -1
    objects = []
    for index in range(2):
        middle = -0.17 if index == 0 else 0.17
        objects.append(
            SceneObject(
                shape=str(rng.choice(SHAPES)),
                color=str(colors[index]),
                x=middle + rng.uniform(-0.04, 0.04),
                z=rng.uniform(1.15, 1.45),
                radius=rng.uniform(0.095, 0.125),
                yaw=rng.uniform(0.35, 1.2),
                slides=str(rng.choice(("left", "right"))) if index == mover else None,
                texture=_texture(rng, (1.0, 2.4), 0.22),
            )
        )
    warm = rng.uniform(-0.05, 0.05)
    return Scene(
        objects=(objects[0], objects[1]),
        floor_color=floor,
        wall_color=(0.64 + warm, 0.63, 0.62 - warm),
        floor_texture=_texture(rng, (6.0, 11.0), 0.55),
        wall_texture=_texture(rng, (5.0, 10.0), 0.55),
        chaos=int(rng.integers(2**31)),
    )


def render_clip(
    scene: Scene,
    motions: Sequence[Motion],
    corruption: str = "none",
    frames: int = FRAMES,
    height: int = HEIGHT,
    width: int = WIDTH,
    camera_text: str | None = None,
) -> Clip:
    """Film `scene` along the path of `motions`, spoilt by `corruption`.

    `camera_text` is the command in the prompt; by default it names the motions one by one.
    """
    if corruption != "none" and corruption not in CORRUPTIONS:
        raise ValueError(f"corruption is {corruption!r}; allowed: none, {', '.join(CORRUPTIONS)}")
    path = camera_path(motions, frames)
    if path is None:
        raise ValueError("motions is empty; allowed: one or more camera motions")
    text = camera_text or command(spelled_out(motions))
    prompt = Prompt.from_text(
        "toy-clip",
        f"{text} {scene.describe()}",
        domain="toyworld",
        is_dynamic=any(o.slides is not None for o in scene.objects),
        source="toyworld",
    )
    stage = _stage(scene, path.c2w)
    if corruption != "none":
        stage = corrupted(stage, corruption, tuple(motions), scene.chaos)
    video, depth = cast(stage, height, width)
    return Clip(video, depth, stage.c2w, intrinsics(height, width), prompt, corruption)


def sample_clip(
    rng: np.random.Generator,
    corruption_share: float = 0.38,
    dynamic_share: float = 0.12,
    composite_share: float = 0.12,
) -> Clip:
    """A random clip of the pretraining distribution.

    Dynamic clips are never corrupted: what moves in them is what their prompt says.
    """
    dynamic = bool(rng.random() < dynamic_share)
    composite = rng.random() < composite_share
    name = str(rng.choice(list(COMPOSITES) if composite else [m.value for m in PRIMITIVES]))
    if dynamic and rng.random() < 0.4:
        name = Motion.FIXED.value
    corrupted = not dynamic and rng.random() < corruption_share
    kind = str(rng.choice(CORRUPTIONS, p=CORRUPTION_WEIGHTS)) if corrupted else "none"
    motions = COMPOSITES.get(name) or (Motion(name),)
    scene = random_scene(rng, dynamic)
    text = spelled_out(motions) if rng.random() < 0.5 else name
    return render_clip(scene, motions, kind, camera_text=command(text))


def _texture(rng: np.random.Generator, frequency: tuple[float, float], amplitude: float) -> Texture:
    """Three random waves with wave numbers within `frequency` (rad per length)."""
    directions = rng.normal(size=(3, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    waves = directions * rng.uniform(*frequency, size=(3, 1))
    phases = rng.uniform(0, 2 * np.pi, 3)
    return Texture(waves.astype(np.float32), phases.astype(np.float32), amplitude)


def _stage(scene: Scene, c2w: F64) -> Stage:
    """The consistent clip of a scene, before any corruption."""
    frames = len(c2w)

    def still(values: Sequence[float]) -> NDArray[np.float32]:
        return np.tile(np.asarray(values, np.float32), (frames, 1))

    solids = []
    for index, o in enumerate(scene.objects):
        centre = still((o.x, FLOOR_Y - o.radius, o.z))
        if o.slides is not None:
            outward = -0.05 if index == 0 else 0.05
            way = SLIDE * (np.linspace(0, 1, frames) - 0.5) if frames > 1 else np.zeros(1)
            centre[:, 0] += outward + (way if o.slides == "right" else -way)
        radius = np.full(frames, o.radius, np.float32)
        color = still(OBJECT_COLORS[o.color])
        solids.append(Solid(o.shape == "ball", centre, radius, o.yaw, color, o.texture))
    return Stage(
        c2w=c2w,
        floor_y=FLOOR_Y,
        wall_z=WALL_Z,
        floor_color=still(FLOOR_COLORS[scene.floor_color]),
        wall_color=still(scene.wall_color),
        floor_texture=scene.floor_texture,
        wall_texture=scene.wall_texture,
        solids=tuple(solids),
        ray_warp=None,
    )
