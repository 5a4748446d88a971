"""A rasteriser of 3D Gaussians in plain torch: no loops, no tiles, differentiable, deterministic.

Every Gaussian's ellipse is expanded into (pixel, Gaussian) pairs, row by row; the pairs are sorted
by pixel, front to back, and blended by one cumulative sum. The cost follows the number of pairs.
Conventions, constants and culling are gsplat's (Ye et al., arXiv 2409.06765): EWA projection
with `eps2d` = 0.3, boxes of min(3.33, √(2 ln(255 · opacity))) standard deviations per axis, pairs
below an alpha of 1/255 and beyond a transmittance of 1e-4 dropped.
"""

from __future__ import annotations

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
    """Blending weights of F images, sorted by pixel and front to back within a pixel.

    A pixel's colour is Σ weight · colour[gaussian]; its accumulated alpha is Σ weight.
    """

    pixel: Tensor
    """[P] int64, frame · H · W + row · W + column."""
    gaussian: Tensor
    """[P] int64, index of the Gaussian."""
    weight: Tensor
    """[P] alpha · transmittance."""
    depth: Tensor
    """[P] depth of the Gaussian's centre in that camera."""
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
    first = [torch.full_like(view[0], f * height * width) for f, view in enumerate(views)]
    pixel, gaussian, weight = (torch.cat(parts) for parts in zip(*views, strict=True))
    frame = torch.cat(first)
    seen_at = depth.reshape(-1).index_select(0, frame // (height * width) * len(means) + gaussian)
    return Splats(pixel + frame, gaussian, weight, seen_at, len(w2c), height, width)


def _rasterize_view(
    centres: Tensor,
    depth: Tensor,
    conics: Tensor,
    radii: Tensor,
    opacities: Tensor,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel, Gaussian and weight [P] of one view's pairs, from one row of `project`."""
    gaussian, low, high = _boxes(centres, depth, radii, height, width)
    table = torch.cat([centres, conics, opacities[:, None]], dim=1).index_select(0, gaussian)
    box, v, first, count = _spans(table, low, high)
    # Pairs, span by span; one gather of a packed table is cheaper than one per quantity.
    pair_span = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    u = torch.arange(len(pair_span), device=count.device)
    u = u - (count.cumsum(0) - count - first).index_select(0, pair_span)
    pair_box = box.index_select(0, pair_span)
    x, y, xx, xy, yy, opacity = table.mT.contiguous().index_select(1, pair_box).unbind(0)
    row = v.index_select(0, pair_span)
    du, dv = u.to(x) + 0.5 - x, row.to(x) + 0.5 - y
    exponent = 0.5 * (xx * du * du + yy * dv * dv) + xy * du * dv
    alpha = (opacity * torch.exp(-exponent)).clamp_max(MAX_ALPHA)
    pixel = row * width + u
    order = stable_order(pixel, height * width)
    pixel = pixel.index_select(0, order)
    weight, visible = _blend(pixel, alpha.index_select(0, order))
    kept = pair_box.index_select(0, order.index_select(0, visible))
    return (
        pixel.index_select(0, visible),
        gaussian.index_select(0, kept),
        weight.index_select(0, visible),
    )


def composite(splats: Splats, values: Tensor) -> Tensor:
    """Blend per-Gaussian `values` [N, C] into images [F, C, H, W]."""
    return composite_pairs(splats, values.index_select(0, splats.gaussian))


def composite_pairs(splats: Splats, values: Tensor) -> Tensor:
    """Blend per-pair `values` [P, C] into images [F, C, H, W]."""
    channels = values.shape[1]
    flat = values.new_zeros(splats.frames * splats.height * splats.width, channels)
    flat = flat.index_add(0, splats.pixel, values * splats.weight[:, None])
    return flat.view(splats.frames, splats.height, splats.width, channels).permute(0, 3, 1, 2)


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
    seen = (high > low).all(-1) & (radii > 0).all(-1)
    front_to_back = torch.sort(depth, stable=True).indices
    gaussian = front_to_back[seen[front_to_back]]
    return gaussian, low[gaussian].long(), high[gaussian].long()


@torch.no_grad()
def _spans(table: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows that each Gaussian covers and, in each, the pixels whose alpha reaches 1/255.

    `table` [M, 6] holds centre, conic and opacity. Returns box index, row, first column and number
    of columns, each [S], in the order of the boxes.
    """
    rows = high[:, 1] - low[:, 1]
    box = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), rows)
    row = torch.arange(len(box), device=rows.device)
    row = row - (rows.cumsum(0) - rows - low[:, 1]).index_select(0, box)
    x, y, xx, xy, yy, opacity = table.index_select(0, box).unbind(1)
    dv = row.to(y) + 0.5 - y
    # ½ (xx du² + yy dv²) + xy du dv <= log(255 · opacity), solved for du.
    limit = 2 * torch.log(opacity / MIN_ALPHA)
    root = (xy * xy * dv * dv - xx * (yy * dv * dv - limit)).clamp_min(0).sqrt() / xx
    middle = x - xy * dv / xx - 0.5
    bounds = torch.stack([low[:, 0], high[:, 0] - 1]).index_select(1, box)
    first = (middle - root).ceil().long().maximum(bounds[0])
    count = (middle + root).floor().long().minimum(bounds[1]) - first + 1
    kept = torch.nonzero((count > 0) & (root > 0))[:, 0]
    box, row = box.index_select(0, kept), row.index_select(0, kept)
    return box, row, first.index_select(0, kept), count.index_select(0, kept)


def _blend(pixel: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [P] of pairs sorted by pixel and depth, and the indices of those still visible.

    The transmittance in front of a pair is the exponential of a float64 cumulative sum of
    log(1 - alpha), less its value where the pixel begins.
    """
    if not len(pixel):
        return alpha, pixel
    absorbed = torch.log1p(-alpha.double())
    total = absorbed.cumsum(0)
    before = total - absorbed
    first = torch.ones_like(pixel, dtype=torch.bool)
    first[1:] = pixel[1:] != pixel[:-1]
    start = torch.nonzero(first)[:, 0]
    segment = first.cumsum(0) - 1
    transmittance = torch.exp(before - before[start].index_select(0, segment))
    behind = transmittance * (1 - alpha.double())
    visible = torch.nonzero(behind > MIN_TRANSMITTANCE)[:, 0]
    return (alpha * transmittance).to(alpha.dtype), visible
