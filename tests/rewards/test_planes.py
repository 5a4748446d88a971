"""The prior of piecewise planes against brute force: gradient, Hessian, solution, meaning."""

from __future__ import annotations

import numpy as np
import pytest

from rewards.reconstruct.planes import PlanePrior

SHAPES = [(5, 7), (7, 5), (4, 4)]


def prior(shape: tuple[int, int], seed: int = 0, bend: float = 0.02) -> PlanePrior:
    colors = np.random.default_rng(seed).uniform(0, 255, (shape[0] * shape[1], 3))
    return PlanePrior(colors, shape, weight=3.0, bend=bend, edge=60.0)


def depths(shape: tuple[int, int], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, shape[0] * shape[1])


def plane(shape: tuple[int, int]) -> np.ndarray:
    """Log inverse depths of one plane: the inverse depth is affine over the picture."""
    v, u = np.mgrid[: shape[0], : shape[1]]
    return np.log(0.5 + 0.03 * u + 0.05 * v).ravel()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_is_that_of_the_cost(shape: tuple[int, int]) -> None:
    planes, x, step = prior(shape), depths(shape), 1e-6
    _, gradient = planes.normal_equations(x)
    found = [
        (planes.cost(x + step * e) - planes.cost(x - step * e)) / (2 * step) for e in np.eye(x.size)
    ]
    np.testing.assert_allclose(gradient, found, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_banded_solution_is_the_dense_one(shape: tuple[int, int]) -> None:
    """Near a plane the Hessian is that of the cost, which is then quadratic."""
    planes, x, step = prior(shape, bend=1e3), plane(shape), 1e-5
    eye = step * np.eye(x.size)
    dense = np.stack(
        [(planes.normal_equations(x + e)[1] - planes.normal_equations(x - e)[1]) for e in eye]
    ) / (2 * step)
    rng = np.random.default_rng(2)
    diagonal, right = rng.uniform(0.1, 1, x.size), rng.normal(size=(x.size, 4))
    solved = planes.solve(planes.normal_equations(x)[0], diagonal, right)
    expected = np.linalg.solve(dense + np.diag(diagonal), right)
    np.testing.assert_allclose(solved, expected, rtol=1e-5, atol=1e-7)


def test_a_plane_costs_nothing_and_a_step_at_an_edge_of_colour_less_than_within_a_surface() -> None:
    shape = (6, 8)
    _, u = np.mgrid[:6, :8]
    step = np.where(u < 4, 0.0, 0.3).ravel()
    painted = np.where(u < 4, 10.0, 240.0).ravel()[:, None].repeat(3, axis=1)
    plain = np.full((48, 3), 128.0)
    at_edge, within = (
        PlanePrior(colors, shape, weight=1.0, bend=0.02, edge=20.0) for colors in (painted, plain)
    )
    assert within.cost(plane(shape)) < 1e-20
    # Both second differences across the step of each row meet a colour step of 230 in one of their
    # two bonds.
    bond = 1 / (1 + 3 * 230**2 / 20**2)
    assert at_edge.cost(step) == pytest.approx(bond * within.cost(step), rel=1e-9)


def test_large_bends_cost_hardly_more() -> None:
    """Cauchy: ten times the step costs log(2501) / log(26) times as much, not a hundred."""
    shape = (6, 8)
    _, u = np.mgrid[:6, :8]
    planes = PlanePrior(np.full((48, 3), 128.0), shape, weight=1.0, bend=0.02, edge=20.0)
    small, large = (planes.cost(np.log1p(np.where(u < 4, 0.0, s)).ravel()) for s in (0.1, 1.0))
    assert small == pytest.approx(0.5 * 0.02**2 * 2 * 6 * np.log1p(25), rel=1e-9)
    assert large / small == pytest.approx(np.log1p(2500) / np.log1p(25), rel=1e-9)
