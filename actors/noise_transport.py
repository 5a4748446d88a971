"""Camera path → homographies → transported noise → initial latents (method section 1).

Implicit camera conditioning: the initial noise of a clip moves as the requested camera would move
the image of a plane, by the discrete noise transport of Go-with-the-Flow with a density and a
sub-cell offset per cell. Frames of reference: OpenCV cameras (x right, y down, z forward), `c2w`
[F, 4, 4] in scene depths; grid coordinates put the centre of cell i at i + 0.5. Geometry is
float64, noise float32. Everything is drawn and moved on the CPU unless told otherwise, so that a
(prompt, seed) gives the same noise on every machine and noise is never shipped, only its seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.seeds import keyed_generator
from prompts.config import CameraConfig
from prompts.schema import CameraPath

_SMALLEST_DENSITY = 1e-4
"""Densities are clipped here from below: a cell that was split for ever keeps a weight."""


def initial_latents(
    path: CameraPath | None,
    shape: tuple[int, int, int, int],
    camera: CameraConfig,
    height: int,
    width: int,
    seed: int,
) -> Tensor:
    """Initial latents of one clip, float32 [16, F', h, w]; see `initial_latents_batch`."""
    return initial_latents_batch(path, shape, camera, height, width, [seed])[0]


def initial_latents_batch(
    path: CameraPath | None,
    shape: tuple[int, int, int, int],
    camera: CameraConfig,
    height: int,
    width: int,
    seeds: Sequence[int],
) -> Tensor:
    """Initial latents of one clip per seed along the same path: float32 [B, *shape], on the CPU.

    `shape` is [C, F', h, w]; `path` has the video's F frames, of which latent frame i is frame
    i·(F - 1)/(F' - 1); `height`, `width` are the video's in pixels. Without a path (or at
    strength 0) the result is the plain Gaussian noise of the seed. A clip's bits do not depend on
    the other seeds of the call.
    """
    independent = torch.stack([_draw("independent", seed, shape) for seed in seeds])
    if path is None or camera.strength == 0:
        return independent
    channels, frames, rows, columns = shape
    fine = (frames, rows * camera.transport_grid, columns * camera.transport_grid)
    c2w = torch.from_numpy(path.c2w.copy())
    steps = latent_homographies(c2w, camera, (height, width), fine)
    moved = transport_noise(
        steps,
        channels,
        rows,
        columns,
        camera.transport_grid,
        [keyed_generator("transport", seed) for seed in seeds],
    )
    fresh = torch.stack([_draw("degradation", seed, shape) for seed in seeds])
    return blend(independent, blend(moved, fresh, camera.degradation), camera.strength)


def blend(noise: Tensor, other: Tensor, weight: float) -> Tensor:
    """((1 - w)·noise + w·other) / √((1 - w)² + w²): unit variance if both are independent."""
    return ((1 - weight) * noise + weight * other) / math.hypot(1 - weight, weight)


def latent_homographies(
    c2w: Tensor, camera: CameraConfig, video: tuple[int, int], grid: tuple[int, int, int]
) -> Tensor:
    """Homographies [F' - 1, 3, 3] from each latent frame to the next, float64, in grid cells.

    `c2w` is float64 [F, 4, 4], `video` (height, width) in pixels, `grid` (F', rows, columns).
    """
    frames, rows, columns = grid
    K = _intrinsics(camera.focal, video, (rows, columns))
    return _latent_homographies(c2w, K, camera.depth, frames)


def plane_homographies(c2w: Tensor, K: Tensor, depth: float) -> Tensor:
    """Homographies [F - 1, 3, 3] of consecutive cameras, u' ~ K (R + t nᵀ / depth) K⁻¹ u.

    `c2w` [F, 4, 4] and `K` [3, 3], float64; R, t take camera i's coordinates to camera i + 1's;
    the plane is fronto-parallel (n = z) at `depth` in front of camera i: it is re-anchored every
    frame. ValueError if a camera passes through its plane.
    """
    motion = torch.linalg.solve(c2w[1:], c2w[:-1])
    plane = motion[:, :3, :3].clone()
    plane[:, :, 2] += motion[:, :3, 3] / depth
    if bool((torch.linalg.det(plane) <= 0).any()):
        raise ValueError(
            f"between two frames the camera path passes through the plane at depth {depth}; "
            "allowed: smaller steps per frame"
        )
    return K @ plane @ torch.linalg.inv(K)


def transport_noise(
    homographies: Tensor,
    channels: int,
    rows: int,
    columns: int,
    grid: int,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Noise that moves along `homographies`: float32 [B, C, T + 1, rows, columns].

    `homographies` is float64 [T, 3, 3] on the fine grid, which is `grid` times finer than
    rows × columns; one generator per clip (on the homographies' device). Each frame is brought
    down by Σωz / √(Σω²) over the fine cells of a cell.
    """
    fine_rows, fine_columns = rows * grid, columns * grid
    frames = _transport(homographies, channels, fine_rows, fine_columns, generators)
    coarse = [
        _downsample(noise, density, rows, columns, grid) for noise, density in frames
    ]  # each [rows · columns, B, C]
    stacked = torch.stack(coarse).permute(2, 3, 0, 1)
    return stacked.reshape(len(generators), channels, -1, rows, columns).contiguous()


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the noise of one transition goes; indices are of the N cells of the fine grid."""

    forward_source: Tensor
    """[M] cells whose forward target lies inside the grid."""
    forward_target: Tensor
    """[M] the cell that each of them reaches; several may share one."""
    backward_source: Tensor
    """[K] cells that an unreached target finds by looking back; repeats allowed."""
    backward_target: Tensor
    """[K] those targets; disjoint from `forward_target`."""
    copies: Tensor
    """[N] uses k of each cell, forward and backward together, float64 (0: it leaves)."""


def _transport(
    homographies: Tensor,
    channels: int,
    rows: int,
    columns: int,
    generators: Sequence[torch.Generator],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Per frame: noise float32 [N, B, C] and density float64 [N], on the fine grid."""
    cells, device = rows * columns, homographies.device

    def draw() -> Tensor:
        # Always for all cells: a cell that rounds to the other side on another machine then
        # changes itself alone and not every draw after it.
        size = (cells, channels)
        drawn = [torch.randn(size, generator=g, device=device) for g in generators]
        return torch.stack(drawn, dim=1)

    noise = draw()
    density = torch.ones(cells, dtype=torch.float64, device=device)
    offset = torch.zeros(cells, 2, dtype=torch.float64, device=device)
    yield noise, density
    for homography in homographies:
        plan, residual = _plan(homography, offset, rows, columns)
        noise, density, offset = _move(plan, residual, noise, density, draw(), draw())
        yield noise, density


def _plan(homography: Tensor, offset: Tensor, rows: int, columns: int) -> tuple[_Plan, Tensor]:
    """Sources and targets of a transition, and the forward residuals [M, 2] within ±0.5."""
    cells, device = rows * columns, homography.device
    y, x = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64, device=device),
        torch.arange(columns, dtype=torch.float64, device=device),
        indexing="ij",
    )
    centres = torch.stack([x.reshape(-1), y.reshape(-1)], dim=1) + 0.5
    target, residual = _nearest_cell(homography, centres + offset, rows, columns)
    forward_source = torch.nonzero(target >= 0)[:, 0]
    forward_target = target[forward_source]

    reached = torch.zeros(cells, dtype=torch.bool, device=device)
    reached[forward_target] = True
    looked_up, _ = _nearest_cell(torch.linalg.inv(homography), centres, rows, columns)
    backward_target = torch.nonzero(~reached & (looked_up >= 0))[:, 0]
    backward_source = looked_up[backward_target]

    uses = torch.cat([forward_source, backward_source])
    copies = torch.bincount(uses, minlength=cells).to(torch.float64)
    plan = _Plan(forward_source, forward_target, backward_source, backward_target, copies)
    return plan, residual[forward_source]


def _move(
    plan: _Plan,
    residual: Tensor,
    noise: Tensor,
    density: Tensor,
    fresh_source: Tensor,
    fresh_target: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise [N, B, C], density [N] and offset [N, 2] after a transition (method 1, steps 2-4)."""
    forward, backward = plan.forward_source, plan.backward_source
    # The k copies of a cell: z/√k plus noise whose mean over the copies is zero, which makes them
    # independent and of unit variance. A single copy is the cell itself.
    copies = plan.copies.clamp(min=1)
    mean = _sum_by(_ranks(backward), backward, fresh_target[plan.backward_target], len(noise))
    mean[forward] += fresh_source[forward]
    mean /= _column(copies.float())
    scaled = noise / _column(copies.sqrt().float())
    weight = density / copies

    values = scaled[forward] + (fresh_source[forward] - mean[forward])
    w = weight[forward]
    ranks = _ranks(plan.forward_target)
    columns = torch.cat([w[:, None], w.square()[:, None], residual * w[:, None]], dim=1)
    total, squares, drift = _sum_by(ranks, plan.forward_target, columns, len(noise)).split(
        [1, 1, 2], dim=1
    )
    # Weights relative to the target's norm: a single source has weight 1 and keeps its bits.
    relative = (w / squares[plan.forward_target, 0].sqrt()).float()
    moved = _sum_by(ranks, plan.forward_target, values * _column(relative), len(noise))

    reached = total[:, 0] > 0
    new_noise = torch.where(_column(reached), moved, fresh_target)
    new_density = torch.where(reached, total[:, 0], 1.0)
    new_offset = torch.where(reached[:, None], drift / total, 0.0)
    new_noise[plan.backward_target] = scaled[backward] + (
        fresh_target[plan.backward_target] - mean[backward]
    )
    new_density[plan.backward_target] = weight[backward]
    new_density = (new_density / new_density.mean()).clamp(min=_SMALLEST_DENSITY)
    return new_noise, new_density, new_offset


def _nearest_cell(
    homography: Tensor, points: Tensor, rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    """Cell [N] in which each mapped point [N, 2] lies, -1 outside; its offset from the centre."""
    mapped = points @ homography[:, :2].T + homography[:, 2]
    in_front = mapped[:, 2] > 1e-9
    position = mapped[:, :2] / torch.where(in_front, mapped[:, 2], 1.0)[:, None]
    size = torch.tensor([columns, rows], dtype=torch.float64, device=points.device)
    inside = in_front & ((position >= 0) & (position < size)).all(dim=1)
    position = torch.where(inside[:, None], position, 0.0)
    cell = position.floor()
    index = cell[:, 1].long() * columns + cell[:, 0].long()
    return torch.where(inside, index, -1), position - cell - 0.5


def _ranks(index: Tensor) -> list[Tensor]:
    """Positions in `index` [M] of every value's first appearance, second appearance, and so on."""
    if not len(index):
        return []
    ordered, order = torch.sort(index, stable=True)
    counts = torch.bincount(index)
    first = torch.cumsum(counts, dim=0) - counts
    rank = torch.arange(len(index), device=index.device) - first[ordered]
    return [order[rank == r] for r in range(int(counts.max()))]


def _sum_by(ranks: list[Tensor], index: Tensor, values: Tensor, size: int) -> Tensor:
    """Sums [size, ...] of the `values` [M, ...] of equal `index` [M], in order of appearance.

    An `index_add_` whose result is the same on every device: the r-th values of all indices
    (`ranks` of `index`) are added together, r after r, and never two to one cell at once.
    """
    result = values.new_zeros(size, *values.shape[1:])
    for chosen in ranks:
        result[index[chosen]] += values[chosen]
    return result


def _downsample(noise: Tensor, density: Tensor, rows: int, columns: int, grid: int) -> Tensor:
    """Σωz / √(Σω²) over grid × grid cells: fine [N, B, C] → [rows·columns, B, C]."""
    weight = density.reshape(rows, grid, columns, grid)
    norm = weight.square().sum(dim=(1, 3), keepdim=True).sqrt()
    relative = (weight / norm).float()[..., None, None]
    blocks = noise.reshape(rows, grid, columns, grid, *noise.shape[1:])
    return (blocks * relative).sum(dim=(1, 3)).reshape(rows * columns, *noise.shape[1:])


def _intrinsics(focal: float, video: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """K [3, 3] in grid cells of a camera with `focal` video widths; sizes are (rows, columns)."""
    (height, width), (rows, columns) = video, grid
    f = focal * width
    return torch.tensor(
        [
            [f * columns / width, 0.0, columns / 2],
            [0.0, f * rows / height, rows / 2],
            [0.0, 0.0, 1.0],
        ],
        dtype=torch.float64,
    )


def _latent_homographies(c2w: Tensor, K: Tensor, depth: float, latent_frames: int) -> Tensor:
    """Homographies [F' - 1, 3, 3] between latent frames: products of the per-frame ones."""
    transitions = latent_frames - 1
    if transitions == 0:
        return c2w.new_zeros(0, 3, 3)
    stride, remainder = divmod(len(c2w) - 1, transitions)
    if remainder or not stride:
        raise ValueError(
            f"the camera path has {len(c2w)} frames; allowed for {latent_frames} latent frames: "
            f"k x {transitions} + 1"
        )
    steps = plane_homographies(c2w, K, depth).reshape(transitions, stride, 3, 3)
    product = steps[:, 0]
    for i in range(1, stride):
        product = steps[:, i] @ product
    return product


def _draw(stream: str, seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=keyed_generator(stream, seed))


def _column(vector: Tensor) -> Tensor:
    return vector[:, None, None]
