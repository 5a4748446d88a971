"""A vectorised ray-caster for the toy world: a floor, a back wall and a few boxes and balls.

Geometry is exact, shading and texture are attached to the surfaces, so a consistent clip is
photometrically consistent under its own depth and poses. Frames of reference: the world is the
first commanded camera's frame in OpenCV axes (x right, y down, z forward), lengths in scene depths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

SUPERSAMPLING = 2
"""Rays per pixel side; their colours are averaged, which antialiases the silhouettes."""
FOCAL = 1.2
"""Focal length in image widths, as the camera conditioning assumes."""
LIGHT = np.array([-0.48, -0.72, -0.5], dtype=np.float32)
"""Direction towards the light (above, to the left and in front): boxes show three tones."""


@dataclass(frozen=True)
class Texture:
    """A low-frequency pattern: `waves` [K, 3] rad per length, `phases` [K], `amplitude` overall."""

    waves: F32
    phases: F32
    amplitude: float

    def __call__(self, points: F32) -> F32:
        """Relative brightness [...] around 0 at `points` [..., 3] in the surface's own frame."""
        waves = np.sin(points @ self.waves.T + self.phases)
        # A product with a constant vector: several times faster than a mean over a short axis.
        return waves @ np.full(len(self.phases), self.amplitude / len(self.phases), np.float32)


@dataclass(frozen=True)
class Solid:
    """A box or a ball over F frames; the box stands upright, turned by `yaw` rad about y."""

    is_ball: bool
    centre: F32
    """[F, 3], world frame."""
    radius: F32
    """[F]: the ball's radius, or half of the box's height."""
    yaw: float
    color: F32
    """[F, 3] RGB in [0, 1]."""
    texture: Texture


@dataclass(frozen=True)
class Stage:
    """All that is rendered, F frames long; floor and wall are the planes y = floor_y, z = wall_z"""

    c2w: F64
    """[F, 4, 4] of the cameras that actually film."""
    floor_y: float
    wall_z: float
    floor_color: F32
    """[F, 3]."""
    wall_color: F32
    """[F, 3]."""
    floor_texture: Texture
    wall_texture: Texture
    solids: tuple[Solid, ...]
    ray_warp: F32 | None
    """None, or [F, 4] (amplitude in image widths, phase, waves per width and height) of an image
    distortion that no camera could make."""


def intrinsics(height: int, width: int) -> F64:
    """Pinhole intrinsics [3, 3] in pixels: f = 1.2 · width, principal point at the centre."""
    focal = FOCAL * width
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])


def cast(stage: Stage, height: int, width: int) -> tuple[NDArray[np.uint8], F32]:
    """Film the stage: video uint8 [F, H, W, 3], and depth along the optical axis [F, H, W].

    The depth of a pixel is that of the nearest surface among its rays.
    """
    origins = stage.c2w[:, :3, 3].astype(np.float32)
    rays = _rays(stage, height, width)
    depth, label = _first_hits(stage, origins, rays)
    rgb = _shade(stage, origins, rays, depth, label)
    mean = np.mean(_corners(rgb, height, width), axis=0)
    video = np.clip(mean * 255 + 0.5, 0, 255).astype(np.uint8)
    return video, np.min(_corners(depth, height, width), axis=0)


def _corners(values: F32, height: int, width: int) -> F32:
    """Per-ray values [F, rays, ...] as [rays per pixel, F, H, W, ...]."""
    s, rest = SUPERSAMPLING, values.shape[2:]
    grid = values.reshape(len(values), height, s, width, s, *rest)
    return np.stack([grid[:, :, row, :, column] for row in range(s) for column in range(s)])


def _rays(stage: Stage, height: int, width: int) -> tuple[F32, F32, F32]:
    """World directions x, y, z, each [F, rays], whose camera-frame z is 1: t is the depth."""
    s = SUPERSAMPLING
    x = ((np.arange(width * s) + 0.5) / s - width / 2) / (FOCAL * width)
    y = ((np.arange(height * s) + 0.5) / s - height / 2) / (FOCAL * width)
    grid_x = np.broadcast_to(x, (height * s, width * s)).astype(np.float32).ravel()[None]
    grid_y = np.broadcast_to(y[:, None], (height * s, width * s)).astype(np.float32).ravel()[None]
    if stage.ray_warp is not None:
        amplitude, phase, across, down = (stage.ray_warp[:, k, None] for k in range(4))
        bend_x = amplitude * np.sin(2 * np.pi * down * grid_y + phase)
        bend_y = amplitude * np.sin(2 * np.pi * across * grid_x + 1.7 * phase)
        grid_x, grid_y = grid_x + bend_x, grid_y + bend_y
    turn = stage.c2w[:, :3, :3].astype(np.float32)
    dx, dy, dz = (
        turn[:, k, 0, None] * grid_x + turn[:, k, 1, None] * grid_y + turn[:, k, 2, None]
        for k in range(3)
    )
    return dx, dy, dz


def _first_hits(
    stage: Stage, origins: F32, rays: tuple[F32, F32, F32]
) -> tuple[F32, NDArray[np.uint8]]:
    """Depth [F, rays] of the first surface and its label: 0 wall, 1 floor, 2 + k solid k."""
    _, dy, dz = rays
    wall = (stage.wall_z - origins[:, 2, None]) / np.maximum(dz, 1e-3)
    depth: F32 = wall.astype(np.float32, copy=False)
    label: NDArray[np.uint8] = np.zeros(depth.shape, np.uint8)
    floor = (stage.floor_y - origins[:, 1, None]) / np.maximum(dy, 1e-6)
    below = floor < depth
    depth = np.where(below, floor, depth)
    label[below] = 1
    for index, solid in enumerate(stage.solids):
        hit = (_ball_depth if solid.is_ball else _box_depth)(solid, origins, rays)
        nearer = hit < depth
        depth = np.where(nearer, hit, depth)
        label[nearer] = 2 + index
    return depth, label


def _ball_depth(ball: Solid, origins: F32, rays: tuple[F32, F32, F32]) -> F32:
    """Depth [F, rays] of the ball's front, infinity where it is missed."""
    dx, dy, dz = rays
    offset = (origins - ball.centre)[:, :, None]
    a = dx * dx + dy * dy + dz * dz
    b = dx * offset[:, 0] + dy * offset[:, 1] + dz * offset[:, 2]
    c = (offset**2).sum(axis=1) - ball.radius[:, None] ** 2
    inside = b * b - a * c
    front = (-b - np.sqrt(np.maximum(inside, 0))) / a
    return np.where((inside > 0) & (front > 0), front, np.float32(np.inf))


def _box_depth(box: Solid, origins: F32, rays: tuple[F32, F32, F32]) -> F32:
    """Depth [F, rays] of the box's front, infinity where it is missed (slab method)."""
    dx, dy, dz = rays
    cos, sin = np.float32(np.cos(box.yaw)), np.float32(np.sin(box.yaw))
    ox, oy, oz = (origins - box.centre).T[:, :, None]
    local = (
        (cos * ox - sin * oz, cos * dx - sin * dz),
        (oy, dy),
        (sin * ox + cos * oz, sin * dx + cos * dz),
    )
    enter, leave = np.float32(0), np.float32(np.inf)
    for axis, (start, direction) in enumerate(local):
        inverse = 1 / np.where(np.abs(direction) < 1e-6, np.float32(1e-6), direction)
        half = box_half_extent(box.radius, axis)[:, None]
        middle, reach = -start * inverse, half * np.abs(inverse)
        enter = np.maximum(enter, middle - reach)
        leave = np.minimum(leave, middle + reach)
    return np.where(enter < leave, enter, np.float32(np.inf))


def box_half_extent(radius: F32, axis: int) -> F32:
    """Half of a box's size along its own axis 0 (x), 1 (y, the height) or 2 (z)."""
    return radius if axis == 1 else radius * np.float32(0.85)


def _shade(
    stage: Stage, origins: F32, rays: tuple[F32, F32, F32], depth: F32, label: NDArray[np.uint8]
) -> F32:
    """Colours [F, rays, 3] in [0, 1]: base colour × texture × light (and shadows on the floor)."""
    hits = np.stack([rays[k] * depth + origins[:, k, None] for k in range(3)], axis=-1)
    # Floor and wall fill the picture: shading them everywhere is faster than gathering pixels.
    on_floor = label == 1
    tone = np.where(on_floor, _floor_tone(stage, hits), 1 + stage.wall_texture(hits))
    rgb: F32 = np.where(on_floor[..., None], stage.floor_color[:, None], stage.wall_color[:, None])
    rgb *= tone[..., None]
    for index, solid in enumerate(stage.solids):
        frame, ray = np.nonzero(label == 2 + index)
        rgb[frame, ray] = _solid_color(solid, hits[frame, ray], frame)
    return rgb


def _floor_tone(stage: Stage, hits: F32) -> F32:
    """Brightness [F, rays] of the floor at points [F, rays, 3]: texture and contact shadows."""
    # Far floor is seen at a grazing angle: its pattern fades before it would alias.
    fade = np.clip((stage.wall_z - hits[..., 2]) / 1.2, 0.15, 1)
    tone = 1 + fade * stage.floor_texture(hits)
    for solid in stage.solids:
        dx, dz = (hits[..., axis] - solid.centre[:, axis, None] for axis in (0, 2))
        reach = (1.3 * solid.radius[:, None]) ** 2
        tone *= 1 - 0.45 * np.exp(-(dx * dx + dz * dz) / reach)
    return tone.astype(np.float32, copy=False)


def _solid_color(solid: Solid, hits: F32, frame: NDArray[np.intp]) -> F32:
    """Colours [N, 3] of points on a solid; its texture moves and grows with it."""
    local = (hits - solid.centre[frame]) / solid.radius[frame, None]
    if solid.is_ball:
        facing = local @ LIGHT
    else:
        cos, sin = np.float32(np.cos(solid.yaw)), np.float32(np.sin(solid.yaw))
        axes = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]], np.float32)
        own = local @ axes.T / np.array([0.85, 1, 0.85], np.float32)
        side = np.abs(own).argmax(axis=1)
        sign = np.sign(np.take_along_axis(own, side[:, None], axis=1)[:, 0])
        facing = sign * (axes @ LIGHT)[side]
    tone = (0.5 + 0.55 * np.maximum(facing, 0)) * (1 + solid.texture(local))
    shaded: F32 = (solid.color[frame] * tone[:, None]).astype(np.float32, copy=False)
    return shaded
