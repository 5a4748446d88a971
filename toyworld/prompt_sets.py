"""Writes the toy world's prompt sets: `python -m toyworld.prompt_sets` (deterministic)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from prompts.dataset import BUILT_IN
from prompts.motions import COMPOSITES
from prompts.schema import Prompt
from toyworld.scenes import COMMANDS, command, random_scene

SIZES = {"toy_test": 18, "toy_train": 72, "toy_dynamic": 18}
"""Prompts of each set: a multiple of nine, so that every primitive motion occurs equally often."""
SEED = 2026


def build_sets() -> dict[str, tuple[Prompt, ...]]:
    """All three sets; no scene of one occurs in another."""
    rng = np.random.default_rng(SEED)
    seen: set[str] = set()
    return {name: _build(name, size, rng, seen) for name, size in SIZES.items()}


def _build(
    name: str, size: int, rng: np.random.Generator, seen: set[str]
) -> tuple[Prompt, ...]:
    dynamic = name == "toy_dynamic"
    scenes = _fresh_scenes(rng, seen, dynamic)
    primitives = [motion for motion in COMMANDS if motion not in COMPOSITES]
    motions = [primitives[i % len(primitives)] for i in range(size)]
    if not dynamic:
        motions[: len(COMPOSITES)] = list(COMPOSITES)
    return tuple(
        Prompt.from_text(
            f"{name.replace('_', '-')}-{index:03d}",
            f"{command(motion)} {next(scenes)}",
            taxonomy="composite" if motion in COMPOSITES else "single",
            domain="toyworld",
            is_dynamic=dynamic,
            source="toyworld",
            seed=SEED,
        )
        for index, motion in enumerate(motions)
    )


def _fresh_scenes(rng: np.random.Generator, seen: set[str], dynamic: bool) -> Iterator[str]:
    while True:
        text = random_scene(rng, dynamic).describe()
        if text not in seen:
            seen.add(text)
            yield text


def write_sets(folder: Path = BUILT_IN) -> Sequence[Path]:
    """Write every set as JSON lines; the paths."""
    paths = []
    for name, prompts in build_sets().items():
        path = folder / f"{name}.jsonl"
        path.write_text(
            "".join(p.model_dump_json(by_alias=True) + "\n" for p in prompts), encoding="utf-8"
        )
        paths.append(path)
    return paths


if __name__ == "__main__":
    for written in write_sets():
        print(written)
