"""Colours that depend on the viewing direction: real spherical harmonics, in gsplat's order.

Coefficients [N, K, 3] with K = (degree + 1)²; the colour seen along a unit direction d (from the
camera to the Gaussian) is ½ + Σ_k Y_k(d) · coefficient_k, held at 0 from below (Kerbl et al. 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

TERMS = (1, 4, 9)
"""Numbers of coefficients that are understood: degrees 0, 1 and 2."""
DC = 0.28209479177387814
"""Y_0: a plain colour c is the single coefficient (c - ½) / DC."""


def basis(directions: Tensor, terms: int) -> Tensor:
    """Values [..., terms] of the first harmonics along unit `directions` [..., 3]."""
    if terms not in TERMS:
        raise ValueError(f"{terms} spherical harmonics given; allowed: {TERMS}")
    x, y, z = directions.unbind(-1)
    values = [torch.full_like(x, DC)]
    if terms > 1:
        first = 0.4886025119029199
        values += [-first * y, first * z, -first * x]
    if terms > 4:
        values += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (3 * z * z - 1),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (x * x - y * y),
        ]
    return torch.stack(values, dim=-1)


def seen_colors(coefficients: Tensor, means: Tensor, centre: Tensor) -> Tensor:
    """RGB [N, 3] of Gaussians at `means` [N, 3] seen from a camera at `centre` [3]."""
    directions = torch.nn.functional.normalize(means - centre, dim=-1)
    weights = basis(directions, coefficients.shape[1])
    return (torch.einsum("nk,nkc->nc", weights, coefficients) + 0.5).clamp_min(0.0)
