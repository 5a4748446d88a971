"""Camera geometry, and the statistics that transported noise must keep (method section 1)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.noise_statistics import flow_correlation, whiteness
from actors.noise_transport import (
    _intrinsics,
    _latent_homographies,
    _transport,
    blend,
    initial_latents,
    initial_latents_batch,
    plane_homographies,
    transport_noise,
)
from prompts.camera import camera_path
from prompts.config import CameraConfig
from prompts.motions import Motion
from prompts.schema import CameraPath

GRID = 4


def _generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def _path(motion: Motion, frames: int) -> CameraPath:
    path = camera_path([motion], frames)
    assert path is not None
    return path


def _steps(motion: Motion, frames: int, rows: int, columns: int) -> Tensor:
    """Homographies between latent frames on a rows x columns grid."""
    K = _intrinsics(1.2, (rows, columns), (rows, columns))
    c2w = torch.from_numpy(_path(motion, frames).c2w.copy())
    return _latent_homographies(c2w, K, 1.0, (frames - 1) // 4 + 1)


def _moved(motion: Motion, frames: int, rows: int, columns: int, channels: int, seeds: int):
    steps = _steps(motion, frames, rows * GRID, columns * GRID)
    return transport_noise(steps, channels, rows, columns, GRID, _generators(seeds))


def _translation(x: float, y: float = 0.0) -> Tensor:
    return torch.tensor([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]], dtype=torch.float64)


def test_homographies_by_hand() -> None:
    """Forward by 0.1 magnifies about the centre by 1/0.9, sideways by 0.1 shifts by f/10."""
    K = _intrinsics(1.2, (480, 832), (60, 104))
    assert K.flatten().tolist() == pytest.approx([124.8, 0, 52, 0, 124.8, 30, 0, 0, 1])
    c2w = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
    c2w[1:, 2, 3] = 0.1
    c2w[2:, 0, 3] = 0.1
    c2w[3, :3, :3] = torch.tensor([[0.8, 0.0, 0.6], [0.0, 1.0, 0.0], [-0.6, 0.0, 0.8]])
    forward, right, turned = plane_homographies(c2w, K, 1.0)

    def apply(H: Tensor, x: float, y: float) -> list[float]:
        u = H @ torch.tensor([x, y, 1.0], dtype=torch.float64)
        return (u[:2] / u[2]).tolist()

    assert apply(forward, 52, 30) == pytest.approx([52, 30])
    assert apply(forward, 62, 39) == pytest.approx([52 + 10 / 0.9, 30 + 9 / 0.9])
    assert apply(right, 62, 39) == pytest.approx([62 - 12.48, 39])
    # A camera that turned right by atan(0.75) sees the old centre at x = -0.6/0.8 · f.
    assert apply(turned, 52, 30) == pytest.approx([52 - 0.75 * 124.8, 30])


def test_composed_homographies_are_the_composed_warp() -> None:
    """One latent transition is the product of its four per-frame ones, the latest on the left."""
    K = _intrinsics(1.2, (60, 104), (60, 104))
    c2w = torch.from_numpy(_path(Motion.ORBIT_LEFT, 9).c2w.copy())
    single = plane_homographies(c2w, K, 1.0)
    expected = single[3] @ single[2] @ single[1] @ single[0]
    assert torch.allclose(_latent_homographies(c2w, K, 1.0, 3)[0], expected, rtol=1e-12)


def test_impossible_paths_are_refused() -> None:
    """Through the plane; or frames that do not divide over the latent frames."""
    c2w = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    c2w[1, 2, 3] = 1.5
    with pytest.raises(ValueError, match="passes through the plane at depth"):
        plane_homographies(c2w, _intrinsics(1.2, (8, 8), (8, 8)), 1.0)
    with pytest.raises(ValueError, match="the camera path has 10 frames"):
        initial_latents(_path(Motion.FIXED, 10), (16, 3, 4, 6), CameraConfig(), 32, 48, 0)


WHITE = (12, 4, 15, 26)
"""Seeds, channels, rows and columns of the whiteness tests: n = 18,720 values."""


def _limits(n: int) -> dict[str, float]:
    """Five standard errors of each moment of n white values; false alarms: 6e-7 each.

    Power: an effect of (5 + 2.33) standard errors is found with probability 99 %. For n = 18,720
    that is a mean of .054, a variance off by .076, a kurtosis off by .26, a correlation of
    neighbours of .056 (counting only backward copies makes up to .18).
    """
    return {
        "mean": 5 / math.sqrt(n),
        "variance": 5 * math.sqrt(2 / n),
        "kurtosis": 5 * math.sqrt(24 / n),
        "neighbours": 5 / math.sqrt(0.93 * n),
    }


def _alarms(noise: Tensor) -> set[str]:
    """Moments of `noise` that are beyond their limits."""
    got, limits = whiteness(noise), _limits(noise.numel())
    gaps = {
        "mean": got.mean,
        "variance": got.std**2 - 1,
        "kurtosis": got.kurtosis - 3,
        "neighbours": max(abs(got.beside), abs(got.below)),
    }
    return {name for name, gap in gaps.items() if abs(gap) > limits[name]}


@pytest.mark.parametrize("motion", list(Motion))
def test_transported_noise_is_white_and_gaussian(motion: Motion) -> None:
    """Last of 21 latent frames of an 81-frame clip, at the power that `_limits` states."""
    seeds, channels, rows, columns = WHITE
    moved = _moved(motion, 81, rows, columns, channels, seeds)
    assert _alarms(moved[:, :, -1]) == set()


def test_the_whiteness_test_has_its_stated_power() -> None:
    """Each fault at its stated size is found in at least 95 of 100 draws; no fault, in none."""
    found = {"none": 0, "mean": 0, "variance": 0, "neighbours": 0}
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        z = torch.randn(*WHITE, generator=generator)
        wide = torch.randn(*WHITE[:-1], WHITE[-1] + 1, generator=generator)
        a = 0.056  # z + a·(its neighbour) has correlation a / (1 + a²)
        mixed = (wide[..., 1:] + a * wide[..., :-1]) / math.hypot(1, a)
        found["none"] += bool(_alarms(z))
        found["mean"] += "mean" in _alarms(z + 0.054)
        found["variance"] += "variance" in _alarms(z * math.sqrt(1.076))
        found["neighbours"] += "neighbours" in _alarms(mixed)
    assert found.pop("none") == 0
    assert min(found.values()) >= 95


@pytest.mark.parametrize("motion", list(Motion))
def test_160_transitions_keep_density_positive_and_noise_finite(motion: Motion) -> None:
    """At the speed of an 81-frame clip, eight times as long; density has mean 1 throughout."""
    steps = _steps(motion, 81, 24, 40).repeat(8, 1, 1)
    assert len(steps) == 160
    for noise, density in _transport(steps, 2, 24, 40, _generators(1)):
        assert float(density.min()) > 0
        assert float(density.mean()) == pytest.approx(1.0, abs=1e-3)
        assert bool(torch.isfinite(noise).all())
    assert float(noise.double().var()) == pytest.approx(1.0, abs=5 * math.sqrt(2 / noise.numel()))


def test_zero_flow_is_the_identity() -> None:
    """`fixed` at degradation 0 and strength 1: every latent frame has the bits of the first."""
    camera = CameraConfig(strength=1.0, degradation=0.0)
    latents = initial_latents(_path(Motion.FIXED, 17), (16, 5, 4, 6), camera, 32, 48, seed=3)
    for frame in range(1, 5):
        assert torch.equal(latents[:, frame], latents[:, 0])


def test_integer_translation_is_an_exact_shift_with_a_fresh_border() -> None:
    """Two latent cells to the right and one down: same bits shifted, new noise uncovered."""
    step = _translation(2 * GRID, 1 * GRID)[None]
    z = transport_noise(step, 8, 20, 30, GRID, _generators(4))
    before, after = z[:, :, 0], z[:, :, 1]
    assert torch.equal(after[..., 1:, 2:], before[..., :-1, :-2])
    border = torch.cat([after[..., :, :2].flatten(), after[..., 0, 2:].flatten()]).double()
    assert float(border.var()) == pytest.approx(1.0, abs=5 * math.sqrt(2 / len(border)))
    stale = (after[..., :, :2] * before[..., :, :2]).double()
    assert abs(float(stale.mean())) < 5 / math.sqrt(stale.numel())


def test_slow_motion_is_not_lost() -> None:
    """Twenty steps of 0.2 fine cells are, by the sub-cell offset, one latent cell of 4.

    Not claimed of the border's cell, which is stretched over what it uncovers.
    """
    steps = _translation(0.2)[None].repeat(20, 1, 1)
    z = transport_noise(steps, 4, 16, 24, GRID, _generators(2))
    first, last = z[:, :, 0], z[:, :, -1]
    assert torch.equal(last[..., 2:], first[..., 1:-1])


def test_split_copies_are_independent_and_remember_their_source() -> None:
    """Magnified twice, a fine cell has 4 copies: each correlates ½ with it, none with another."""
    double = torch.diag(torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64))[None]
    z = transport_noise(double, 64, 16, 16, 1, _generators(8))
    before, after = z[:, :, 0, :8, :8], z[:, :, 1]
    n = before.numel()
    copies = [after[..., i::2, j::2].double() for i in (0, 1) for j in (0, 1)]
    for i, copy in enumerate(copies):
        assert float((copy * before).mean()) == pytest.approx(0.5, abs=5 / math.sqrt(n))
        for other in copies[:i]:
            assert abs(float((copy * other).mean())) < 5 / math.sqrt(n)


@pytest.mark.parametrize(
    ("motion", "following", "whole"),
    [
        (Motion.PUSH_IN, 0.65, 0.53),
        (Motion.ORBIT_LEFT, 0.80, 0.57),
        (Motion.PAN_LEFT, 0.70, 0.59),
        (Motion.MOVE_LEFT, 0.73, 0.70),
    ],
)
def test_correlation_along_the_flow(motion: Motion, following: float, whole: float) -> None:
    """Next latent frame and first to last, at 832 x 480 and 81 frames: the prototype's figures."""
    z = _moved(motion, 81, 60, 104, channels=4, seeds=1)[0]
    steps = _steps(motion, 81, 60, 104)
    measured = [flow_correlation(z, steps, i, i + 1) for i in range(20)]
    assert sum(measured) / 20 == pytest.approx(following, abs=0.03)
    assert flow_correlation(z, steps, 0, 20) == pytest.approx(whole, abs=0.03)


def test_defaults_multiply_the_correlation_as_stated() -> None:
    """`fixed` at strength 0.35, degradation 0.35: frames correlate 0.174 = (0.881·0.474)²."""
    seeds = list(range(40))
    path = _path(Motion.FIXED, 9)
    z = initial_latents_batch(path, (16, 3, 8, 12), CameraConfig(), 64, 96, seeds).double()
    n = z[:, :, 0].numel()
    assert float((z[:, :, 0] * z[:, :, 2]).mean()) == pytest.approx(0.174, abs=5 / math.sqrt(n))
    assert float(z.var()) == pytest.approx(1.0, abs=0.02)


def test_blend_keeps_unit_variance_and_its_ends() -> None:
    a, b = torch.tensor([2.0]), torch.tensor([4.0])
    assert blend(a, b, 0.0).tolist() == [2.0]
    assert blend(a, b, 1.0).tolist() == [4.0]
    assert float(blend(a, b, 0.35)) == pytest.approx((0.65 * 2 + 0.35 * 4) / math.hypot(0.65, 0.35))


def test_same_seed_same_bits_alone_or_in_a_batch() -> None:
    """A clip's noise depends on its seed alone; other seeds give other noise."""
    path, shape, camera = _path(Motion.PUSH_IN, 9), (16, 3, 4, 6), CameraConfig()
    batch = initial_latents_batch(path, shape, camera, 32, 48, [5, 6, 7])
    alone = initial_latents(path, shape, camera, 32, 48, 6)
    assert torch.equal(batch[1], alone)
    assert alone.dtype == torch.float32
    assert alone.shape == shape
    assert abs(float((batch[0] * batch[2]).mean())) < 5 / math.sqrt(batch[0].numel())


def test_no_path_or_no_strength_is_the_plain_noise_of_the_seed() -> None:
    shape = (16, 3, 4, 6)
    plain = initial_latents(None, shape, CameraConfig(), 32, 48, 9)
    path = _path(Motion.PAN_LEFT, 9)
    assert torch.equal(plain, initial_latents(path, shape, CameraConfig(strength=0), 32, 48, 9))
    assert not torch.equal(plain, initial_latents(path, shape, CameraConfig(), 32, 48, 9))


def test_a_turn_behind_the_camera_is_all_fresh_noise() -> None:
    """Half a turn between latent frames leaves no correspondence, and no NaN."""
    c2w = np.tile(np.eye(4), (5, 1, 1))
    for frame in range(5):
        angle = math.pi * frame / 4
        c2w[frame, 0, [0, 2]] = math.cos(angle), math.sin(angle)
        c2w[frame, 2, [0, 2]] = -math.sin(angle), math.cos(angle)
    camera = CameraConfig(strength=1.0, degradation=0.0)
    z = initial_latents(CameraPath(c2w), (16, 2, 8, 12), camera, 64, 96, 1).double()
    assert bool(torch.isfinite(z).all())
    assert abs(float((z[:, 0] * z[:, 1]).mean())) < 5 / math.sqrt(z[:, 0].numel())
