"""3D Gaussians and their rendering, independent of the rasteriser that does it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rewards import rasterizer

Renderer = Literal["torch"]


@dataclass(frozen=True, eq=False)
class Gaussians:
    """N Gaussians in world coordinates (the frame that `w2c` maps from), float32."""

    means: Tensor
    """[N, 3]."""
    scales: Tensor
    """[N, 3] standard deviations along the own axes: linear, not logarithmic."""
    quats: Tensor
    """[N, 4] rotations as wxyz quaternions, of any length > 0."""
    opacities: Tensor
    """[N] in [0, 1]."""
    colors: Tensor
    """[N, 3] RGB; values in [0, 1] stay displayable."""

    def __post_init__(self) -> None:
        count = len(self.means)
        for name, shape in (
            ("means", (count, 3)),
            ("scales", (count, 3)),
            ("quats", (count, 4)),
            ("opacities", (count,)),
            ("colors", (count, 3)),
        ):
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"Gaussians.{name} has shape {found}; allowed: {shape}")

    def __len__(self) -> int:
        return len(self.means)

    def with_colors(self, colors: Tensor) -> Gaussians:
        """The same geometry in other colours [N, 3]."""
        return replace(self, colors=colors)


def render(
    gaussians: Gaussians,
    w2c: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    background: Tensor | None = None,
    renderer: Renderer = "torch",
) -> tuple[Tensor, Tensor, Tensor]:
    """Render F views; gsplat's conventions (OpenCV axes, pixel centres at half integers).

    Args:
        w2c: [F, 4, 4] world-to-camera.
        intrinsics: [F, 3, 3] in pixels of a `height` × `width` image.
        background: [3] colour behind everything; black if None.

    Returns:
        rgb [F, 3, H, W]; alpha [F, 1, H, W] accumulated opacity; depth [F, 1, H, W] expected depth
        along the optical axis, 0 where nothing is seen.
    """
    if renderer != "torch":
        raise ValueError(f"renderer is {renderer!r}; allowed: 'torch'")
    splats = splat(gaussians, w2c, intrinsics, height, width)
    ones = torch.ones_like(gaussians.opacities)[:, None]
    image = rasterizer.composite(splats, torch.cat([gaussians.colors, ones], dim=1))
    rgb, alpha = image[:, :3], image[:, 3:]
    if background is not None:
        rgb = rgb + (1 - alpha) * background.to(rgb)[None, :, None, None]
    depth = rasterizer.composite_pairs(splats, splats.depth[:, None])
    return rgb, alpha, depth / alpha.clamp_min(1e-8)


def splat(
    gaussians: Gaussians, w2c: Tensor, intrinsics: Tensor, height: int, width: int
) -> rasterizer.Splats:
    """Blending weights of every Gaussian in every pixel; rendering is linear in the colours."""
    return rasterizer.rasterize(
        gaussians.means,
        gaussians.scales,
        gaussians.quats,
        gaussians.opacities,
        w2c,
        intrinsics,
        height,
        width,
    )
