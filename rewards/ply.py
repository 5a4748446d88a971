"""Gaussians as a .ply file in the layout of the original 3DGS code, which the common viewers open.

Binary little endian, one `vertex` element: x y z, nx ny nz (zeros), f_dc_0..2, f_rest_* (the other
harmonics, channel by channel), opacity as a logit, scale_0..2 as logarithms, rot_0..3 as wxyz.
"""

from __future__ import annotations

import numpy as np
import torch

from rewards.gaussians import Gaussians
from rewards.harmonics import DC


def encode_ply(gaussians: Gaussians) -> bytes:
    """The file's bytes."""
    colors = gaussians.colors.detach().float().cpu()
    if colors.ndim == 2:
        colors = ((colors - 0.5) / DC)[:, None]
    rest = colors[:, 1:].mT.flatten(1)
    opacity = gaussians.opacities.detach().float().cpu().clamp(1e-4, 1 - 1e-4)
    means, scales, quats = (
        x.detach().float().cpu() for x in (gaussians.means, gaussians.scales, gaussians.quats)
    )
    columns = [
        means,
        torch.zeros_like(means),
        colors[:, 0],
        rest,
        torch.logit(opacity)[:, None],
        scales.clamp_min(1e-12).log(),
        torch.nn.functional.normalize(quats, dim=-1),
    ]
    names = ["x", "y", "z", "nx", "ny", "nz", *_numbered("f_dc", 3)]
    names += [*_numbered("f_rest", rest.shape[1]), "opacity"]
    names += [*_numbered("scale", 3), *_numbered("rot", 4)]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(gaussians)}"]
    header += [f"property float {name}" for name in names]
    table = torch.cat(columns, dim=1).numpy().astype("<f4")
    return "\n".join([*header, "end_header", ""]).encode() + np.ascontiguousarray(table).tobytes()


def most_visible(gaussians: Gaussians, limit: int) -> Gaussians:
    """At most `limit` Gaussians: those of the largest opacity times cross-section, in their
    order."""
    if len(gaussians) <= limit:
        return gaussians
    largest = gaussians.scales.sort(dim=1).values[:, 1:].prod(dim=1)
    chosen = torch.topk(gaussians.opacities * largest, limit).indices
    return gaussians.at(chosen.sort().values)


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}_{index}" for index in range(count)]
