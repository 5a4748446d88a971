"""Prompt sets on disk, and the order in which a run walks through them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from prompts.schema import Prompt

_BUILT_IN = Path(__file__).parent / "data"


def load_prompts(name_or_path: str | Path) -> tuple[Prompt, ...]:
    """The prompts of a built-in set ("toy_train") or of a .jsonl file, one prompt per line.

    A file that cannot be read, or a bad line in it, raises one ValueError that names file and line.
    """
    path = _find(name_or_path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompt file {path} cannot be read: {error}") from error
    prompts: list[Prompt] = []
    line_of_id: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        prompt = _parse(line, path, number)
        if prompt.id in line_of_id:
            first = line_of_id[prompt.id]
            raise ValueError(f"{path}, line {number}: id {prompt.id!r} is that of line {first}")
        line_of_id[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"prompt file {path} holds no prompts; allowed: one or more lines")
    return tuple(prompts)


def prompt_at(seed: int, position: int, prompts: Sequence[Prompt]) -> Prompt:
    """The prompt at `position` (0, 1, ...) of the endless walk that `seed` defines.

    Every run through the set (epoch) visits each prompt once, in an order of its own.
    """
    if not prompts:
        raise ValueError("prompts is empty; allowed: one or more prompts")
    if position < 0:
        raise ValueError(f"position is {position}; allowed: 0 or more")
    epoch, offset = divmod(position, len(prompts))
    return prompts[int(_order(seed, epoch, len(prompts))[offset])]


@lru_cache(maxsize=16)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.intp]:
    """The epoch's order of `count` prompts: the same on every machine."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix == ".jsonl":
        return path
    built_in = _BUILT_IN / f"{name_or_path}.jsonl"
    if not built_in.is_file():
        names = ", ".join(sorted(file.stem for file in _BUILT_IN.glob("*.jsonl")))
        raise ValueError(
            f"prompt set {str(name_or_path)!r} is unknown; allowed: {names}, or a path to a .jsonl"
        )
    return built_in


def _parse(line: str, path: Path, number: int) -> Prompt:
    try:
        return Prompt.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "line"
        raise ValueError(f"{path}, line {number}: {where}: {problem['msg']}") from error
