"""Where a reward's gradient leads besides: `python -m benchmarks.coupling [--groups 60]`.

`benchmarks.pressure` correlates figures inside groups; most of that is particular to a group's
noise and teaches nothing. What is learned is the part of the gradient that groups have in common.
Here the policy gradient of each part of the reward is multiplied with that of what nobody is paid
for, over pairs of *different* groups, so that noise drops out: a negative product says that a step
along the reward's gradient lowers the other figure. In standard errors, from the same gradients
under random signs; a figure with itself is the z of `benchmarks.signal` but for the scale:
gradients are divided by the square root of each parameter's spread, as AdamW steps, and every
figure is normalised in its group, the advantage too. Ten minutes on one core.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from actors.seeds import keyed_generator
from benchmarks.pressure import BESIDES, ROTATION_ERROR, figures, group_options
from benchmarks.results import Result, machine, write
from benchmarks.signal import collect, flipped_spread
from cluster.config import RunConfig, for_one_process, load
from cluster.pools import SampleScores
from learner.grpo import group_advantages
from rewards.scoring import PARTS

FLIPS = 400


def coupling(first: Tensor, second: Tensor, seed: int = 0) -> float:
    """Sum of the products of different groups' gradients float [N, P] and [N, P], N >= 2, in
    standard errors."""
    products = (first @ second.T).double()
    off = products - torch.diag(products.diagonal())
    return float(off.sum() / flipped_spread(off, keyed_generator("coupling", seed), FLIPS))


def gradients_of(samples: Tensor, values: Sequence[Sequence[float]], clip: float) -> Tensor:
    """Policy gradient [N, P] of a figure whose values are [N, G], from sample gradients
    [N, G, P]."""
    weight = torch.stack([group_advantages(torch.tensor(v).double(), clip) for v in values])
    return torch.einsum("ng,ngp->np", weight.float(), samples)


def rows(
    samples: Tensor, scored: Sequence[list[SampleScores]], config: RunConfig, name: str
) -> list[dict[str, Any]]:
    """A row for each part and for the advantage."""
    scaled = samples / samples.flatten(0, 1).std(dim=0).clamp_min(1e-12).sqrt()
    groups = [figures(scores, config) for scores in scored]
    parts = [part for part in PARTS if all(part in group for group in groups)]
    besides = [b for b in (*BESIDES, ROTATION_ERROR) if all(b in group for group in groups)]
    found = {
        figure: gradients_of(
            scaled, [group[figure] for group in groups], config.learner.advantage_clip
        )
        for figure in (*parts, "advantage", *besides)
    }
    return [
        {"run": f"{name}, {paid}", "groups": len(groups)}
        | {other: round(coupling(found[paid], found[other]), 1) for other in (*parts, *besides)}
        for paid in (*parts, "advantage")
    ]


def main() -> int:
    """Measure, print, write the JSON."""
    options = group_options(__doc__, 60)
    config = for_one_process(load("toy", options.overrides, options.config))
    samples, scored, _ = asyncio.run(collect(config, options.groups))
    found = rows(samples, scored, config, options.name)
    columns = [column for column in found[0] if column not in ("run", "groups")]
    print(f"{'':<32}" + "".join(f"{column[:9]:>10}" for column in columns))
    for row in found:
        print(f"{row['run']:<32}" + "".join(f"{row[column]:>+10.1f}" for column in columns))
    if options.json:
        write(options.json, Result("coupling", machine(), found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
