"""The renderer against references: gsplat's torch functions, dense compositing, finite differences.

`test_gsplat_cuda_agrees` needs a GPU (mark `gpu`); everything else runs on a CPU.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
import torch
from gsplat.cuda._torch_impl import _fully_fused_projection, _spherical_harmonics

from rewards import gaussians
from rewards.gaussians import Gaussians, RendererMissing, own_folder, render, renderer_of
from rewards.harmonics import basis, seen_colors
from rewards.rasterizer import (
    MAX_ALPHA,
    MIN_ALPHA,
    MIN_TRANSMITTANCE,
    covariances,
    project,
)

HEIGHT, WIDTH = 48, 64
FOCAL = 1.2 * WIDTH
K = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64)


def cloud(count: int, seed: int = 0, terms: int = 0) -> Gaussians:
    """Gaussians in and around the view, float64."""
    g = torch.Generator().manual_seed(seed)
    kind = {"generator": g, "dtype": torch.float64}
    means = torch.rand(count, 3, **kind) * torch.tensor([2.0, 1.6, 2.5], dtype=torch.float64)
    shape = (count, 3) if terms == 0 else (count, terms, 3)
    return Gaussians(
        means - torch.tensor([1.0, 0.8, -0.8], dtype=torch.float64),
        0.005 + 0.06 * torch.rand(count, 3, **kind),
        torch.randn(count, 4, **kind),
        0.02 + 0.97 * torch.rand(count, **kind),
        torch.rand(*shape, **kind) - (0.5 if terms else 0.0),
    )


def cameras(count: int) -> torch.Tensor:
    """A small orbit, w2c."""
    w2c = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    for index in range(count):
        angle = math.radians(-8 + 16 * index / max(count - 1, 1))
        w2c[index, 0, 0] = w2c[index, 2, 2] = math.cos(angle)
        w2c[index, 0, 2], w2c[index, 2, 0] = math.sin(angle), -math.sin(angle)
        w2c[index, :3, 3] = torch.tensor([0.1 * angle, -0.02 * index, 0.05 * index])
    return w2c


def test_projection_agrees_with_gsplats_torch_functions() -> None:
    """Centres, depths and conics of 5,000 Gaussians in 3 views, float32: to 1e-5 of their size."""
    gaussians = cloud(5000)
    means, scales, quats = (x.float() for x in (gaussians.means, gaussians.scales, gaussians.quats))
    covariance = covariances(scales, quats)
    w2c, intrinsics = cameras(3).float(), K.float().repeat(3, 1, 1)
    centres, depth, conics, radii = project(
        means, covariance, gaussians.opacities.float(), w2c, intrinsics, HEIGHT, WIDTH
    )
    their_radii, their_centres, their_depth, their_conics, _ = _fully_fused_projection(
        means, covariance, w2c, intrinsics, WIDTH, HEIGHT
    )
    seen = (their_radii > 0).all(-1)
    assert seen.sum() > 5000
    for ours, theirs, size in (
        (centres, their_centres, WIDTH),
        (depth, their_depth, 1.0),
        (conics, their_conics, their_conics.abs().max().item()),
    ):
        assert ((ours - theirs)[seen].abs().max() / size).item() <= 1e-5
    # Theirs is the fixed bound of 3.33 standard deviations; ours is tighter for faint Gaussians.
    assert (radii[seen] <= their_radii[seen]).all()


@pytest.mark.parametrize("terms", [1, 4, 9])
def test_harmonics_agree_with_gsplat(terms: int) -> None:
    directions = torch.nn.functional.normalize(torch.randn(500, 3, dtype=torch.float64), dim=-1)
    coefficients = torch.randn(500, terms, 3, dtype=torch.float64)
    degree = {1: 0, 4: 1, 9: 2}[terms]
    theirs = _spherical_harmonics(degree, directions, coefficients)
    ours = torch.einsum("nk,nkc->nc", basis(directions, terms), coefficients)
    assert (ours - theirs).abs().max().item() <= 1e-6


def dense(gaussians: Gaussians, w2c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every Gaussian in every pixel [H, W, N], blended one after the other: colour and alpha."""
    centres, depth, conics, radii = (
        x[0]
        for x in project(
            gaussians.means,
            covariances(gaussians.scales, gaussians.quats),
            gaussians.opacities,
            w2c[None],
            K[None],
            HEIGHT,
            WIDTH,
        )
    )
    v, u = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    low, high = (centres - radii).floor(), (centres + radii).ceil()
    du = u[..., None] + 0.5 - centres[:, 0]
    dv = v[..., None] + 0.5 - centres[:, 1]
    xx, xy, yy = conics.unbind(-1)
    alpha = gaussians.opacities * torch.exp(-0.5 * (xx * du**2 + yy * dv**2) - xy * du * dv)
    alpha = alpha.clamp_max(MAX_ALPHA)
    inside = (u[..., None] >= low[:, 0]) & (u[..., None] < high[:, 0])
    inside &= (v[..., None] >= low[:, 1]) & (v[..., None] < high[:, 1]) & (radii > 0).all(-1)
    alpha = torch.where(inside & (alpha >= MIN_ALPHA), alpha, 0.0)
    colors = gaussians.colors
    if colors.ndim == 3:
        colors = seen_colors(colors, gaussians.means, -(w2c[:3, :3].T @ w2c[:3, 3]))
    color = torch.zeros(HEIGHT, WIDTH, 3, dtype=torch.float64)
    transmittance = torch.ones(HEIGHT, WIDTH, dtype=torch.float64)
    open_ = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    for index in torch.sort(depth, stable=True).indices:
        here = alpha[..., index]
        open_ &= transmittance * (1 - here) > MIN_TRANSMITTANCE
        weight = torch.where(open_, here * transmittance, 0.0)
        color += weight[..., None] * colors[index]
        transmittance = torch.where(open_, transmittance * (1 - here), transmittance)
    return color, 1 - transmittance


@pytest.mark.parametrize("terms", [0, 9])
def test_it_agrees_with_dense_compositing(terms: int) -> None:
    """400 Gaussians, float64: colours and alpha to 1e-6."""
    gaussians, w2c = cloud(400, terms=terms), cameras(2)
    rgb, alpha, _ = render(gaussians, w2c, K.repeat(2, 1, 1), HEIGHT, WIDTH)
    for index in range(2):
        color, opaque = dense(gaussians, w2c[index])
        assert opaque.max() > 0.9
        assert (rgb[index].permute(1, 2, 0) - color).abs().max().item() <= 1e-6
        assert (alpha[index, 0] - opaque).abs().max().item() <= 1e-6


@pytest.mark.slow
def test_gradients_agree_with_finite_differences_in_all_inputs() -> None:
    """torch.autograd.gradcheck in float64: means, scales, quaternions, opacities, harmonics."""
    base = cloud(6, seed=3, terms=4)
    means = base.means * 0.15 + torch.tensor([0.0, 0.0, 1.2], dtype=torch.float64)
    inputs = [means, base.scales + 0.05, base.quats, 0.3 + 0.4 * base.opacities, base.colors]
    inputs = [x.clone().requires_grad_() for x in inputs]
    small = K.clone()
    small[0, 2], small[1, 2] = 8.0, 6.0

    def image(*fields: torch.Tensor) -> torch.Tensor:
        rgb, alpha, depth = render(
            Gaussians(*fields), torch.eye(4)[None].double(), small[None], 12, 16
        )
        # Away from the border of every ellipse, where culling is a step.
        return torch.cat([rgb, alpha, depth * 0.1], dim=1)[..., 4:8, 5:11]

    assert torch.autograd.gradcheck(image, inputs, eps=1e-6, atol=1e-5, rtol=1e-4)


def test_the_renderer_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaussians, "_gsplat_kernels", lambda: "compiled")
    assert renderer_of("auto", "cpu") == "torch"
    assert renderer_of("torch", "cuda") == "torch"
    assert renderer_of("auto", "cuda") == "gsplat"
    with pytest.raises(RendererMissing, match="on CUDA only, not on cpu"):
        renderer_of("gsplat", "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("terms", [0, 9])
def test_gsplat_cuda_agrees(terms: int) -> None:
    """20,000 Gaussians, float32: mean absolute pixel difference to the torch rasteriser ≤ 1e-3."""
    double = cloud(20_000, terms=terms)
    fields = (double.means, double.scales, double.quats, double.opacities, double.colors)
    cpu = Gaussians(*(x.float() for x in fields))
    cuda = Gaussians(*(x.float().cuda() for x in fields))
    w2c, intrinsics = cameras(2).float(), K.float().repeat(2, 1, 1)
    ours = render(cpu, w2c, intrinsics, HEIGHT, WIDTH)
    theirs = render(cuda, w2c, intrinsics, HEIGHT, WIDTH)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b.cpu()).abs().mean().item() <= 1e-3


def test_compiled_kernels_lie_where_nobody_else_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = own_folder("kernels")
    assert folder == tmp_path / "kernels"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert own_folder("kernels") == folder
    folder.chmod(0o777)
    with pytest.raises(RendererMissing, match="no folder of this user alone"):
        own_folder("kernels")
    (tmp_path / "file").touch()
    with pytest.raises(RendererMissing, match="no folder of this user alone"):
        own_folder("file")
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RendererMissing, match="no folder of this user alone"):
        own_folder("link")
