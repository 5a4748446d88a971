"""The rasteriser: hand-computed pixels, order, parity with a per-pixel loop, gradients."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from rewards.gaussians import Gaussians, render, splat
from rewards.rasterizer import stable_order
from tests.rewards.reference_rasterizer import project_one, render_pixel

HEIGHT, WIDTH = 12, 16
K = torch.tensor([[[20.0, 0.0, 8.0], [0.0, 20.0, 6.0], [0.0, 0.0, 1.0]]])


def one(
    mean: tuple[float, float, float],
    color: tuple[float, float, float],
    opacity: float,
    scale: float = 0.1,
) -> Gaussians:
    return Gaussians(
        torch.tensor([mean]),
        torch.full((1, 3), scale),
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        torch.tensor([opacity]),
        torch.tensor([color]),
    )


def joined(*parts: Gaussians) -> Gaussians:
    names = ("means", "scales", "quats", "opacities", "colors")
    return Gaussians(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def cloud(seed: int, count: int = 40) -> Gaussians:
    g = torch.Generator().manual_seed(seed)
    means = torch.rand(count, 3, generator=g) * torch.tensor([1.6, 1.2, 2.0])
    return Gaussians(
        means - torch.tensor([0.8, 0.6, -1.0]),
        0.02 + 0.15 * torch.rand(count, 3, generator=g),
        torch.randn(count, 4, generator=g),
        0.05 + 0.94 * torch.rand(count, generator=g),
        torch.rand(count, 3, generator=g),
    )


def test_a_single_gaussian_has_the_hand_computed_alpha_and_colour() -> None:
    """At depth 2 with scale 0.1 and f = 20 the image covariance is (20 · 0.1 / 2)² + 0.3 = 1.3."""
    gaussian = one((0.0, 0.0, 2.0), (0.2, 0.5, 0.9), opacity=0.8)
    rgb, alpha, depth = render(gaussian, torch.eye(4)[None], K, HEIGHT, WIDTH)
    # The centre (8, 6) lies half a pixel from the centres of pixel (8, 6) along both axes.
    expected = 0.8 * math.exp(-0.5 * (0.25 + 0.25) / 1.3)
    assert alpha[0, 0, 6, 8].item() == pytest.approx(expected, abs=1e-6)
    assert alpha[0, 0, 5, 7].item() == pytest.approx(expected, abs=1e-6)
    wanted = [0.2 * expected, 0.5 * expected, 0.9 * expected]
    assert rgb[0, :, 6, 8].tolist() == pytest.approx(wanted, abs=1e-6)
    assert depth[0, 0, 6, 8].item() == pytest.approx(2.0, abs=1e-5)
    further = 0.8 * math.exp(-0.5 * (2.5**2 + 0.25) / 1.3)
    assert alpha[0, 0, 6, 10].item() == pytest.approx(further, abs=1e-6)
    assert alpha[0, 0, 0, 0].item() == 0.0


def test_the_nearer_gaussian_hides_the_farther_whatever_their_order() -> None:
    near = one((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), opacity=0.6)
    far = one((0.0, 0.0, 2.0), (0.0, 1.0, 0.0), opacity=0.6)
    images = [
        render(g, torch.eye(4)[None], K, HEIGHT, WIDTH)[0]
        for g in (joined(near, far), joined(far, near))
    ]
    assert torch.equal(images[0], images[1])
    red = 0.6 * math.exp(-0.5 * 0.5 / 4.3)
    green = (1 - red) * 0.6 * math.exp(-0.5 * 0.5 / 1.3)
    assert images[0][0, :, 6, 8].tolist() == pytest.approx([red, green, 0.0], abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_a_loop_over_pixels_and_gaussians(seed: int) -> None:
    gaussians = cloud(seed)
    w2c = torch.eye(4).repeat(2, 1, 1)
    w2c[1, 0, 3], w2c[1, 2, 3] = 0.1, 0.2
    rgb, alpha, _ = render(gaussians, w2c, K.repeat(2, 1, 1), HEIGHT, WIDTH)
    for frame in range(2):
        seen = []
        for index in range(len(gaussians)):
            z, centre, covariance = project_one(
                gaussians.means[index].double().numpy(),
                gaussians.scales[index].double().numpy(),
                gaussians.quats[index].double().numpy(),
                w2c[frame].double().numpy(),
                K[0].double().numpy(),
                (HEIGHT, WIDTH),
            )
            opacity, color = gaussians.opacities[index].item(), gaussians.colors[index].numpy()
            seen.append((z, centre, covariance, opacity, color.astype(np.float64)))
        for v in range(HEIGHT):
            for u in range(WIDTH):
                color, opaque = render_pixel(u, v, seen)
                assert rgb[frame, :, v, u].numpy() == pytest.approx(color, abs=2e-4)
                assert alpha[frame, 0, v, u].item() == pytest.approx(opaque, abs=2e-4)


def test_a_background_shows_through_what_is_not_covered() -> None:
    gaussian = one((0.0, 0.0, 2.0), (0.0, 0.0, 0.0), opacity=0.8)
    background = torch.tensor([0.3, 0.6, 0.9])
    rgb, alpha, _ = render(gaussian, torch.eye(4)[None], K, HEIGHT, WIDTH, background)
    assert torch.allclose(rgb[0], (1 - alpha[0]) * background[:, None, None])


def test_gaussians_behind_the_camera_and_an_empty_view_render_black() -> None:
    gaussian = one((0.0, 0.0, -2.0), (1.0, 1.0, 1.0), opacity=0.9)
    rgb, alpha, depth = render(gaussian, torch.eye(4)[None], K, HEIGHT, WIDTH)
    assert rgb.abs().max() == alpha.abs().max() == depth.abs().max() == 0


def test_weights_reproduce_the_rendering_and_sum_to_alpha() -> None:
    """Rendering is linear in the colours: doubling them doubles the image."""
    gaussians = cloud(5)
    w2c = torch.eye(4)[None]
    rgb, alpha, _ = render(gaussians, w2c, K, HEIGHT, WIDTH)
    twice = render(gaussians.with_colors(gaussians.colors * 2), w2c, K, HEIGHT, WIDTH)[0]
    assert torch.allclose(twice, 2 * rgb, atol=1e-6)
    splats = splat(gaussians, w2c, K, HEIGHT, WIDTH)
    total = [splats.weight[a:b].sum() for a, b in pairwise(splats.starts.tolist())]
    assert torch.allclose(torch.stack(total).view(HEIGHT, WIDTH), alpha[0, 0], atol=1e-6)
    assert splats.starts[-1] == len(splats.weight) == len(splats.gaussian)


def test_the_same_input_gives_the_same_bits() -> None:
    w2c = torch.eye(4)[None]
    first, second = (render(cloud(1), w2c, K, HEIGHT, WIDTH)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_gradients_agree_with_finite_differences() -> None:
    """In position, opacity and colour, away from the culling limits, in float64."""
    base = one((0.05, -0.02, 2.0), (0.2, 0.5, 0.9), opacity=0.8)
    other = one((-0.05, 0.06, 1.5), (0.7, 0.1, 0.3), opacity=0.5)
    fields = [
        getattr(joined(base, other), n).double()
        for n in ("means", "scales", "quats", "opacities", "colors")
    ]
    for index in (0, 1, 3, 4):

        def value(x: torch.Tensor, index: int = index) -> torch.Tensor:
            parts = [*fields[:index], x, *fields[index + 1 :]]
            rgb = render(Gaussians(*parts), torch.eye(4)[None], K, HEIGHT, WIDTH)[0]
            return rgb[0, :, 5:8, 7:10].sum()

        x = fields[index].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(x), x)
        assert torch.isfinite(gradient).all()
        flat = gradient.reshape(-1)
        for k in range(flat.numel()):
            step = torch.zeros_like(flat)
            step[k] = 1e-6
            step = step.view_as(x)
            numeric = (value(x.detach() + step) - value(x.detach() - step)) / 2e-6
            assert flat[k].item() == pytest.approx(numeric.item(), abs=1e-4)


@pytest.mark.parametrize("bound", [1, 7, 2**16, 2**16 + 1, 2**33])
def test_the_radix_order_is_stable(bound: int) -> None:
    keys = torch.randint(0, min(bound, 2**34), (500,), generator=torch.Generator().manual_seed(0))
    keys[::7] = keys[0]
    expected = torch.sort(keys, stable=True).indices
    assert torch.equal(stable_order(keys, bound), expected)


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"Gaussians.quats has shape \(1, 3\); allowed: \(1, 4\)"):
        Gaussians(
            torch.zeros(1, 3), torch.ones(1, 3), torch.zeros(1, 3), torch.ones(1), torch.ones(1, 3)
        )
