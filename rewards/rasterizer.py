"""A rasteriser of 3D Gaussians in plain torch: no loops, no tiles, differentiable, deterministic.

Every Gaussian's ellipse is expanded into (pixel, Gaussian) pairs, row by row; the pairs are sorted
by pixel, front to back, and blended by one cumulative sum. The cost follows the number of pairs.
Conventions, constants and culling are gsplat's (Ye et al., arXiv 2409.06765): EWA projection
with `eps2d` = 0.3, boxes of min(3.33, √(2 ln(255 · opacity))) standard deviations per axis, pairs
below an alpha of 1/255 and beyond a transmittance of 1e-4 dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

EPS2D = 0.3
NEAR_PLANE = 0.01
MIN_ALPHA, MAX_ALPHA = 1 / 255, 0.999
MIN_TRANSMITTANCE = 1e-4
MAX_EXTENT = 3.33
_RADIX_BITS = 16


@dataclass(frozen=True, eq=False)
class Splats:
    """Blending weights of F images: a sparse matrix [F · H · W, N] in compressed rows.

    A pixel's colour is Σ weight · colour[gaussian]; its accumulated alpha is Σ weight.
    """

    starts: Tensor
    """[F · H · W + 1] int64: pairs starts[p] to starts[p + 1] are those of pixel
    p = (frame · H + row) · W + column, front to back."""
    gaussian: Tensor
    """[P] int64, index of the Gaussian."""
    weight: Tensor
    """[P] alpha · transmittance."""
    depth: Tensor
    """[F, N] depth of the Gaussians' centres in each camera."""
    frames: int
    height: int
    width: int


def rasterize(
    means: Tensor,
    scales: Tensor,
    quats: Tensor,
    opacities: Tensor,
    w2c: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
) -> Splats:
    """Blending weights of N Gaussians (fields of `Gaussians`) seen by F cameras (see `render`)."""
    centres, depth, conics, radii = project(
        means, covariances(scales, quats), opacities, w2c, intrinsics, height, width
    )
    # One view at a time: its pairs stay in the processor's cache, and in bounded memory.
    views = [
        _rasterize_view(centres[f], depth[f], conics[f], radii[f], opacities, height, width)
        for f in range(len(w2c))
    ]
    counts, gaussian, weight = (torch.cat(parts) for parts in zip(*views, strict=True))
    return Splats(_starts(counts), gaussian, weight, depth, len(w2c), height, width)


def _rasterize_view(
    centres: Tensor,
    depth: Tensor,
    conics: Tensor,
    radii: Tensor,
    opacities: Tensor,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of each pixel [H · W], and Gaussian and weight [P] of every pair of one view, from one
    row of `project`."""
    gaussian, low, high = _boxes(centres, depth, radii, height, width)
    spans = _spans(centres[gaussian], conics[gaussian], opacities[gaussian], low, high)
    # Pairs, span by span: `along` counts the pixels of a span from 0.
    span = torch.repeat_interleave(spans.count)
    along = torch.arange(len(span), device=span.device)
    along -= (spans.count.cumsum(0) - spans.count).index_select(0, span)
    du = along + spans.offset.index_select(0, span)
    fall = spans.curvature.index_select(0, span) * (du * du)
    alpha = torch.exp(spans.peak.index_select(0, span) - fall).clamp_max(MAX_ALPHA)
    pixel = along + (spans.row * width + spans.first).index_select(0, span)
    order = stable_order(pixel, height * width)
    counts, weight, visible = _blend(
        torch.bincount(pixel, minlength=height * width), alpha.index_select(0, order)
    )
    box = spans.box.index_select(0, span.index_select(0, order.index_select(0, visible)))
    return counts, gaussian.index_select(0, box), weight


def composite(splats: Splats, values: Tensor) -> Tensor:
    """Blend per-Gaussian `values` [N, C] into images [F, C, H, W]."""
    flat = torch.nn.functional.embedding_bag(
        splats.gaussian,
        values,
        splats.starts,
        mode="sum",
        per_sample_weights=splats.weight,
        include_last_offset=True,
    )
    return flat.view(splats.frames, splats.height, splats.width, -1).permute(0, 3, 1, 2)


def covariances(scales: Tensor, quats: Tensor) -> Tensor:
    """World covariances [N, 3, 3] of linear scales [N, 3] and wxyz quaternions [N, 4]."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rotation = torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ],
        dim=-1,
    ).view(-1, 3, 3)  # fmt: skip
    axes = rotation * scales[:, None, :]
    return axes @ axes.mT


def project(
    means: Tensor,
    covariance: Tensor,
    opacities: Tensor,
    w2c: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """EWA projection of N Gaussians into F cameras.

    Returns:
        centres [F, N, 2] px; depth [F, N]; conics [F, N, 3], the inverse 2D covariance as
        (xx, xy, yy); radii [F, N, 2] px, half sizes of the bounding boxes, 0 where culled.
    """
    w2c, intrinsics = w2c.to(means), intrinsics.to(means)
    rotation = w2c[:, :3, :3]
    points = means @ rotation.mT + w2c[:, None, :3, 3]
    x, y, z = points.unbind(-1)
    fx, fy = intrinsics[:, 0, 0, None], intrinsics[:, 1, 1, None]
    cx, cy = intrinsics[:, 0, 2, None], intrinsics[:, 1, 2, None]
    in_front = z > NEAR_PLANE
    z_safe = torch.where(in_front, z, torch.ones_like(z))
    slope_x, slope_y = x / z_safe, y / z_safe
    # Far outside the image the linearised projection explodes: it is held at 1.3 × the view.
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    held_x = slope_x.maximum(-(cx / fx + margin_x)).minimum((width - cx) / fx + margin_x)
    held_y = slope_y.maximum(-(cy / fy + margin_y)).minimum((height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    J_x = torch.stack([fx / z_safe, zero, -fx * held_x / z_safe], dim=-1)
    J_y = torch.stack([zero, fy / z_safe, -fy * held_y / z_safe], dim=-1)
    row_x, row_y = J_x @ rotation, J_y @ rotation
    blurred_x = torch.einsum("fni,nij->fnj", row_x, covariance)
    xx = (blurred_x * row_x).sum(-1) + EPS2D
    xy = (blurred_x * row_y).sum(-1)
    yy = torch.einsum("fni,nij,fnj->fn", row_y, covariance, row_y) + EPS2D
    determinant = xx * yy - xy * xy
    conics = torch.stack([yy, -xy, xx], dim=-1) / determinant[..., None]
    centres = torch.stack([fx * slope_x + cx, fy * slope_y + cy], dim=-1)
    extent = torch.sqrt(2 * torch.log((255 * opacities).clamp_min(1.0))).clamp_max(MAX_EXTENT)
    radii = extent[None, :, None] * torch.sqrt(torch.stack([xx, yy], dim=-1))
    visible = in_front & (determinant > 0) & (opacities >= MIN_ALPHA)
    return centres, z, conics, radii.ceil() * visible[..., None]


def stable_order(keys: Tensor, bound: int) -> Tensor:
    """Permutation that sorts int64 `keys` in [0, bound) and keeps equal keys in their order."""
    if keys.device.type != "cpu":
        return torch.sort(keys, stable=True).indices
    # numpy sorts 16-bit keys by radix, several times faster than torch's stable sort.
    values, order = keys.numpy(), None
    for shift in range(0, max(int(bound - 1).bit_length(), 1), _RADIX_BITS):
        digit = (values if order is None else values[order]) >> shift
        step = np.argsort(digit.astype(np.uint16), kind="stable")
        order = step if order is None else order[step]
    return torch.from_numpy(order)


@torch.no_grad()
def _boxes(
    centres: Tensor, depth: Tensor, radii: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Visible Gaussians [M] front to back, and their pixel boxes [M, 2]: low, exclusive high."""
    limit = centres.new_tensor([width, height])
    low = (centres - radii).floor().clamp_min(0).minimum(limit)
    high = (centres + radii).ceil().clamp_min(0).minimum(limit)
    seen = torch.nonzero((high > low).all(-1) & (radii > 0).all(-1))[:, 0]
    gaussian = seen.index_select(0, torch.sort(depth.index_select(0, seen), stable=True).indices)
    return gaussian, low.index_select(0, gaussian).long(), high.index_select(0, gaussian).long()


@dataclass(frozen=True, eq=False)
class _Spans:
    """Rows [S] of the boxes, in their order. In `count` pixels from column `first`, alpha is
    exp(peak - curvature · (k + offset)²) at pixel first + k, and at least 1/255."""

    box: Tensor
    row: Tensor
    first: Tensor
    count: Tensor
    offset: Tensor
    curvature: Tensor
    peak: Tensor


def _spans(centres: Tensor, conics: Tensor, opacities: Tensor, low: Tensor, high: Tensor) -> _Spans:
    """The rows that the M boxes of `_boxes` cover, and what lies above an alpha of 1/255 in each.

    Along a row the exponent is a parabola, ½ xx (u - middle)² + ½ (yy - xy² / xx) dv².
    """
    rows = high[:, 1] - low[:, 1]
    box = torch.repeat_interleave(rows)
    row = torch.arange(len(box), device=rows.device)
    row -= (rows.cumsum(0) - rows - low[:, 1]).index_select(0, box)
    xx, xy, yy = conics.unbind(-1)
    shapes = torch.stack(
        [*centres.unbind(-1), xy / xx, 0.5 * xx, 0.5 * (yy - xy * xy / xx), torch.log(opacities)]
    )
    x, y, slope, curvature, steepness, top = shapes.index_select(1, box).unbind(0)
    dv = row + 0.5 - y
    middle, peak = x - slope * dv - 0.5, top - steepness * (dv * dv)
    with torch.no_grad():
        above = peak - math.log(MIN_ALPHA)
        reach = torch.where(above > 0, (above.clamp_min(0) / curvature).sqrt(), -1.0)
        edges = torch.stack([low[:, 0], high[:, 0] - 1]).index_select(1, box)
        first = (middle - reach).ceil().long().maximum(edges[0])
        last = (middle + reach).floor().long().minimum(edges[1])
    count = (last - first + 1).clamp_min(0)
    return _Spans(box, row, first, count, first - middle, curvature, peak)


def _starts(counts: Tensor) -> Tensor:
    """[n + 1] where each of n runs of the given lengths begins, and where the last one ends."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def _blend(counts: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Visible pairs of each pixel, their weights, and their indices among the P pairs, which are
    sorted by pixel and depth; `counts` [pixels] of them lie in each pixel.

    The transmittance in front of a pair is the exponential of a float64 cumulative sum of
    log(1 - alpha), less its value where the pixel begins.
    """
    starts = _starts(counts)
    after = torch.log1p(-alpha).cumsum(0, dtype=torch.float64)
    before = torch.nn.functional.pad(after, (1, 0))
    begun = torch.repeat_interleave(before.index_select(0, starts[:-1]), counts)
    visible = torch.nonzero(after - begun > math.log(MIN_TRANSMITTANCE))[:, 0]
    transmittance = torch.exp((before[:-1] - begun).to(alpha.dtype))
    weight = (alpha * transmittance).index_select(0, visible)
    return torch.searchsorted(visible, starts).diff(), weight, visible
