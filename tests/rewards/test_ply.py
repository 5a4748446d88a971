""".ply files of Gaussians: the layout that viewers read, against gsplat's own exporter."""

from __future__ import annotations

import numpy as np
import torch
from gsplat.exporter import splat2ply_bytes

from rewards.gaussians import Gaussians
from rewards.harmonics import DC
from rewards.ply import encode_ply, most_visible


def some(terms: int, count: int = 7) -> Gaussians:
    g = torch.Generator().manual_seed(0)
    shape = (count, 3) if terms == 0 else (count, terms, 3)
    return Gaussians(
        torch.randn(count, 3, generator=g),
        0.01 + torch.rand(count, 3, generator=g),
        torch.randn(count, 4, generator=g),
        0.1 + 0.8 * torch.rand(count, generator=g),
        torch.rand(*shape, generator=g),
    )


def read(data: bytes) -> dict[str, np.ndarray]:
    """Columns of a binary .ply by name."""
    head, body = data.split(b"end_header\n", 1)
    lines = head.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    count = int(next(line for line in lines if line.startswith("element vertex")).split()[2])
    table = np.frombuffer(body, "<f4").reshape(count, len(names))
    return {name: table[:, index] for index, name in enumerate(names)}


def test_every_column_of_gsplats_exporter_is_there_and_equal() -> None:
    for terms in (4, 9):
        splats = some(terms)
        theirs = splat2ply_bytes(
            splats.means,
            splats.scales.log(),
            torch.nn.functional.normalize(splats.quats, dim=-1),
            torch.logit(splats.opacities),
            splats.colors[:, 0],
            splats.colors[:, 1:].permute(0, 2, 1).flatten(1),
        )
        ours, expected = read(encode_ply(splats)), read(theirs)
        assert set(ours) == set(expected) | {"nx", "ny", "nz"}
        for name, column in expected.items():
            np.testing.assert_allclose(ours[name], column, atol=1e-6, err_msg=name)


def test_plain_colours_become_the_constant_harmonic() -> None:
    splats = some(0)
    columns = read(encode_ply(splats))
    assert "f_rest_0" not in columns
    shown = np.stack([columns[f"f_dc_{i}"] for i in range(3)], axis=1) * DC + 0.5
    np.testing.assert_allclose(shown, splats.colors.numpy(), atol=1e-6)
    assert not columns["nx"].any()


def test_the_most_visible_gaussians_stay_in_their_order() -> None:
    splats = some(0, count=100)
    kept = most_visible(splats, 10)
    assert len(kept) == 10
    sizes = splats.opacities * splats.scales.sort(dim=1).values[:, 1:].prod(dim=1)
    wanted = torch.topk(sizes, 10).indices.sort().values
    assert torch.equal(kept.means, splats.means[wanted])
    assert most_visible(splats, 100) is splats
