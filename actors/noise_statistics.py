"""What noise must keep while it is transported: whiteness, and correlation along the flow.

Measures of `actors.noise_transport`'s invariants (method section 1), for tests, benchmarks and
`worldr1 camera`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Whiteness:
    """Sample moments of noise over all its values."""

    mean: float
    std: float
    kurtosis: float
    beside: float
    """Correlation of horizontal neighbours."""
    below: float
    """Correlation of vertical neighbours."""


def whiteness(noise: Tensor) -> Whiteness:
    """Moments of `noise` [..., rows, columns]; 0, 1, 3, 0, 0 for white Gaussian noise."""
    z = noise.double()
    variance = float(z.var())
    return Whiteness(
        mean=float(z.mean()),
        std=variance**0.5,
        kurtosis=float((z**4).mean()) / variance**2,
        beside=float((z[..., 1:] * z[..., :-1]).mean()) / variance,
        below=float((z[..., 1:, :] * z[..., :-1, :]).mean()) / variance,
    )


def flow_correlation(noise: Tensor, steps: Tensor, first: int, last: int) -> float:
    """Correlation of frame `first` with frame `last` where the composed flow takes it.

    `noise` is [C, F', h, w], `steps` float64 [F' - 1, 3, 3] the homographies between its frames on
    the same grid. A destination lies between four cells; their bilinear mean is taken at unit
    variance. Cells that leave the picture do not count.
    """
    rows, columns = noise.shape[2:]
    composed = torch.eye(3, dtype=torch.float64)
    for step in steps[first:last]:
        composed = step @ composed
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    points = torch.stack([x + 0.5, y + 0.5, torch.ones_like(x)], dim=-1).double() @ composed.T
    place = points[..., :2] / points[..., 2:] - 0.5
    cell = place.floor().long()
    limit = torch.tensor([columns - 1, rows - 1])
    inside = ((cell >= 0) & (cell < limit)).all(dim=-1)
    (cx, cy), (fx, fy) = cell[inside].T, (place - cell)[inside].T
    total, squares = torch.zeros(1), torch.zeros(1)
    for dx in (0, 1):
        for dy in (0, 1):
            weight = (fx if dx else 1 - fx) * (fy if dy else 1 - fy)
            total = total + weight * noise[:, last, cy + dy, cx + dx]
            squares = squares + weight**2
    return float((noise[:, first][:, inside] * total / squares.sqrt()).mean())
