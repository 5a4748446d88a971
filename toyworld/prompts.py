"""Writes the shipped toy prompt sets: `python -m toyworld.prompts`.

No scene (what the objects are and what they stand on) occurs in two of the sets. `toy_test` is what
a run looks at while it trains; `toy_eval` is for figures that are reported: large enough that an
interval over prompts is narrow, and looked at by nothing that chooses settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from prompts.motions import COMPOSITES, PRIMITIVES, Motion
from prompts.schema import Prompt
from toyworld.scenes import COMMANDS, command, random_scene, spelled_out

SIZES = {"toy_test": 22, "toy_train": 64, "toy_dynamic": 16, "toy_eval": 264}
"""Prompts of each set, in the order in which they are drawn."""


def build_sets(seed: int = 2026) -> dict[str, tuple[Prompt, ...]]:
    """The sets by name; a pure function of the seed."""
    rng = np.random.default_rng(seed)
    used: set[str] = set()
    sets = {}
    for name, size in SIZES.items():
        commands = _commands(name)
        dynamic = name == "toy_dynamic"
        sets[name] = tuple(
            _prompt(f"{name.replace('_', '-')}-{i:03d}", next(commands), rng, dynamic, used, seed)
            for i in range(size)
        )
    return sets


def write_sets(folder: Path, seed: int = 2026) -> None:
    """Write each set as `folder`/NAME.jsonl."""
    for name, prompts in build_sets(seed).items():
        lines = [prompt.model_dump_json(by_alias=True) + "\n" for prompt in prompts]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _commands(name: str) -> Iterator[str]:
    """Camera commands in turn; half of the dynamic prompts keep the camera fixed."""
    moving = [c for c in COMMANDS if c != Motion.FIXED.value]
    if name == "toy_dynamic":
        cycle = [c for other in moving for c in (Motion.FIXED.value, other)]
    else:
        cycle = [*COMMANDS, spelled_out(COMPOSITES["pull left"])]
    while True:
        yield from cycle


def _prompt(
    id: str, camera: str, rng: np.random.Generator, dynamic: bool, used: set[str], seed: int
) -> Prompt:
    """A prompt with a scene that no earlier prompt has."""
    scene = random_scene(rng, dynamic).describe()
    while scene in used:
        scene = random_scene(rng, dynamic).describe()
    used.add(scene)
    single = camera in {motion.value for motion in PRIMITIVES}
    return Prompt.from_text(
        id,
        f"{command(camera)} {scene}",
        taxonomy="single" if single else "composite",
        domain="toyworld",
        is_dynamic=dynamic,
        source="toyworld.prompts",
        seed=seed,
    )


def main() -> None:
    """Write the sets into the prompts package."""
    parser = argparse.ArgumentParser(description="Write the shipped toy prompt sets.")
    parser.add_argument("--out", type=Path, default=Path("prompts/data"))
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args()
    write_sets(options.out, options.seed)


if __name__ == "__main__":
    main()
