"""3D Gaussians and their rendering, independent of the rasteriser that does it.

`render` is one function with one set of conventions: gsplat's CUDA rasteriser where the Gaussians
lie on a GPU, the torch rasteriser elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import stat
import sys
import tempfile
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rewards import rasterizer
from rewards.harmonics import TERMS, seen_colors

Renderer = Literal["auto", "torch", "gsplat"]


class RendererMissing(RuntimeError):
    """The rasteriser that was asked for is not installed, or not for this device."""


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
    """[N, 3] RGB (values in [0, 1] stay displayable), or [N, K, 3] spherical harmonics as in
    `rewards/harmonics.py`, K = 1, 4 or 9."""

    def __post_init__(self) -> None:
        count, harmonics = len(self.means), self.colors.ndim == 3
        terms = self.colors.shape[1] if harmonics else 0
        if harmonics and terms not in TERMS:
            raise ValueError(f"Gaussians.colors has {terms} harmonics; allowed: {TERMS}")
        for name, shape in (
            ("means", (count, 3)),
            ("scales", (count, 3)),
            ("quats", (count, 4)),
            ("opacities", (count,)),
            ("colors", (count, terms, 3) if harmonics else (count, 3)),
        ):
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"Gaussians.{name} has shape {found}; allowed: {shape}")

    def __len__(self) -> int:
        return len(self.means)

    def with_colors(self, colors: Tensor) -> Gaussians:
        """The same geometry in other colours [N, 3] or [N, K, 3]."""
        return replace(self, colors=colors)

    def at(self, index: Tensor) -> Gaussians:
        """The Gaussians that a mask [N] or indices [M] select."""
        return Gaussians(*(getattr(self, field.name)[index] for field in fields(self)))


def renderer_of(renderer: Renderer, device: torch.device | str) -> Literal["torch", "gsplat"]:
    """The rasteriser that serves a device: `auto` is gsplat on CUDA and torch elsewhere.

    Raises RendererMissing where gsplat is needed and not installed or has no kernels, or is asked
    for without CUDA.
    """
    cuda = torch.device(device).type == "cuda"
    if renderer == "torch" or (renderer == "auto" and not cuda):
        return "torch"
    if not cuda:
        raise RendererMissing(f"renderer = 'gsplat' rasterises on CUDA only, not on {device!s}")
    try:
        kernels = _gsplat_kernels()
    except RendererMissing:
        raise
    except (ImportError, OSError, RuntimeError) as error:  # the last is torch's, in compiling
        reason = str(error).strip().partition("\n")[0]
        raise RendererMissing(
            f"gsplat cannot be imported or compiled ({reason}); make its environment with "
            "`worldr1 envs build reconstruction`, or set rewards.reconstruction.renderer = 'torch'"
        ) from None
    if kernels is None:
        raise RendererMissing(
            "gsplat has no kernels: it compiles them at its first use and found no nvcc; install "
            "the CUDA toolkit, or set rewards.reconstruction.renderer = 'torch'"
        )
    return "gsplat"


@functools.cache
def _gsplat_kernels() -> object | None:
    """gsplat's kernels, compiled where they are not yet; None where they cannot be.

    One process at a time, and on the node's own disk: gsplat removes what another process, or
    another node with the same home, has begun to compile.
    """
    folder = own_folder(f"worldr1-torch-extensions-{os.getuid()}-{torch.__version__}")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(folder))
    # The environment's own ninja, which is on no PATH where Python was started by its full name.
    here, path = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    if here not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([here, path])
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        from gsplat.cuda._backend import _C

        kernels: object | None = _C
        return kernels


def own_folder(name: str) -> Path:
    """A folder for temporary files that nobody else can write. What lies there is loaded as code:
    RendererMissing where somebody else made it."""
    folder = Path(tempfile.gettempdir()) / name
    with contextlib.suppress(FileExistsError):  # whatever it is, it is looked at
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise RendererMissing(
            f"{folder} is no folder of this user alone, and compiled kernels are loaded from it; "
            "remove it, or set TMPDIR to a folder of your own"
        )
    return folder


def render(
    gaussians: Gaussians,
    w2c: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    background: Tensor | None = None,
    renderer: Renderer = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Render F views; gsplat's conventions (OpenCV axes, pixel centres at half integers).

    Args:
        w2c: [F, 4, 4] world-to-camera.
        intrinsics: [F, 3, 3] in pixels of a `height` × `width` image.
        background: [3] colour behind everything; black if None.

    Returns:
        rgb [F, 3, H, W]; alpha [F, 1, H, W] accumulated opacity; depth [F, 1, H, W] expected depth
        along the optical axis, 0 where nothing is seen. All on the Gaussians' device.
    """
    means = gaussians.means
    w2c, intrinsics = w2c.to(means), intrinsics.to(means)
    rasterise = _by_gsplat if renderer_of(renderer, means.device) == "gsplat" else _by_torch
    # One view at a time: all Gaussians in all views at once would not fit into any memory.
    views = [
        rasterise(gaussians, w2c[f : f + 1], intrinsics[f : f + 1], height, width)
        for f in range(len(w2c))
    ]
    rgb, alpha, depth = (torch.cat(parts) for parts in zip(*views, strict=True))
    if background is not None:
        rgb = rgb + (1 - alpha) * background.to(rgb)[None, :, None, None]
    return rgb, alpha, depth


def _by_torch(
    gaussians: Gaussians, w2c: Tensor, intrinsics: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One view: `w2c` [1, 4, 4]."""
    splats = splat(gaussians, w2c, intrinsics, height, width)
    colors = gaussians.colors
    if colors.ndim == 3:
        colors = seen_colors(colors, gaussians.means, camera_centres(w2c)[0])
    values = torch.cat([colors, torch.ones_like(colors[:, :1]), splats.depth[0, :, None]], dim=1)
    image = rasterizer.composite(splats, values)
    rgb, alpha, depth = image[:, :3], image[:, 3:4], image[:, 4:]
    return rgb, alpha, depth / alpha.clamp_min(1e-8)


def _by_gsplat(
    gaussians: Gaussians, w2c: Tensor, intrinsics: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One view: `w2c` [1, 4, 4]."""
    from gsplat import rasterization

    degree = None if gaussians.colors.ndim == 2 else TERMS.index(gaussians.colors.shape[1])
    image, alpha, _ = rasterization(
        gaussians.means,
        torch.nn.functional.normalize(gaussians.quats, dim=-1),
        gaussians.scales,
        gaussians.opacities,
        gaussians.colors.contiguous(),
        w2c,
        intrinsics,
        width,
        height,
        near_plane=rasterizer.NEAR_PLANE,
        eps2d=rasterizer.EPS2D,
        sh_degree=degree,
        packed=False,  # deterministic
        render_mode="RGB+ED",
    )
    image, alpha = image.permute(0, 3, 1, 2), alpha.permute(0, 3, 1, 2)
    return image[:, :3], alpha, image[:, 3:] * (alpha > 0)


def camera_centres(w2c: Tensor) -> Tensor:
    """Centres [F, 3] in the world of cameras [F, 4, 4]."""
    return -(w2c[:, :3, :3].mT @ w2c[:, :3, 3:])[..., 0]


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
