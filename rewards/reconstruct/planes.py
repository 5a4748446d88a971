"""Piecewise planar surfaces as prior knowledge: inverse depth is affine over the image of a plane.

Second differences of the inverse depth along rows and columns of a grid of points are pulled to 0,
less where the colour changes, and hardly any more where they are large all the same (Cauchy): there
one surface ends and another begins. Without it every point's depth is its own, and errors of depth
and of camera explain each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve_banded, cholesky_banded

F64 = NDArray[np.float64]


class PlanePrior:
    """Cost ½ Σ weight bend² log(1 + (d / bend)²) / (1 + colour steps) of second differences d."""

    def __init__(
        self, colors: F64, shape: tuple[int, int], weight: float, bend: float, edge: float
    ) -> None:
        """`colors` [rows · columns, 3] in grey levels of a grid of `shape`; `bend` is the second
        difference, and `edge` the colour step, from which on a plane may end."""
        count, bands = len(colors), min(shape)
        index = np.arange(count).reshape(shape)
        grid = colors.reshape(*shape, 3)
        across = 1 / (1 + np.square(np.diff(grid, axis=1)).sum(axis=2) / edge**2)
        down = 1 / (1 + np.square(np.diff(grid, axis=0)).sum(axis=2) / edge**2)
        rows = np.stack([index[:, :-2], index[:, 1:-1], index[:, 2:]]).reshape(3, -1)
        columns = np.stack([index[:-2], index[1:-1], index[2:]]).reshape(3, -1)
        self._triples = np.concatenate([rows, columns], axis=1)
        bonds = (across[:, :-1] * across[:, 1:], down[:-1] * down[1:])
        self._weight = weight * np.concatenate([bond.ravel() for bond in bonds])
        self._bend = bend
        # Numbered along the shorter side, points of a triple lie at most two of its lengths apart.
        order = index.ravel() if shape[1] <= shape[0] else index.T.ravel()
        self._order, self._rank = order, np.argsort(order)
        a, b, c = self._rank[self._triples]
        self._bands, self._count = 2 * bands + 1, count
        self._slots = np.concatenate(
            [(q - p) * count + p for p, q in ((a, a), (b, b), (c, c), (a, b), (b, c), (a, c))]
        )

    def cost(self, log_inverse_depth: F64) -> float:
        """What the surfaces [P] cost."""
        _, bent = self._bent(log_inverse_depth)
        squared = np.square(bent / self._bend)
        return float(0.5 * self._bend**2 * (self._weight @ np.log1p(squared)))

    def normal_equations(self, log_inverse_depth: F64) -> tuple[F64, F64]:
        """Hessian as lower bands, for `solve`, and gradient [P] by the log inverse depths."""
        jacobian, bent = self._bent(log_inverse_depth)
        weight = self._weight / (1 + np.square(bent / self._bend))
        a, b, c = jacobian
        products = (a * a, b * b, c * c, a * b, b * c, a * c)
        values = np.concatenate([weight * product for product in products])
        hessian = np.bincount(self._slots, values, self._bands * self._count)
        slope = weight * bent * jacobian
        gradient = np.bincount(self._triples.ravel(), slope.ravel(), self._count)
        bands = hessian.astype(np.float64).reshape(self._bands, self._count)
        return bands, gradient.astype(np.float64)

    def solve(self, hessian: F64, diagonal: F64, right: F64) -> F64:
        """(hessian + diagonal)⁻¹ right, for `right` [P, K] and a positive `diagonal` [P]."""
        bands = hessian.copy()
        bands[0] += diagonal[self._order]
        factor = cholesky_banded(bands, overwrite_ab=True, lower=True, check_finite=False)
        solved = cho_solve_banded((factor, True), right[self._order], check_finite=False)
        return np.asarray(solved[self._rank], np.float64)

    def _bent(self, log_inverse_depth: F64) -> tuple[F64, F64]:
        """Derivatives [3, K] of the second differences of the inverse depth, and these [K]."""
        inverse_depth = np.exp(log_inverse_depth)[self._triples]
        jacobian = inverse_depth * np.array([[1.0], [-2.0], [1.0]])
        return jacobian, jacobian.sum(axis=0)
