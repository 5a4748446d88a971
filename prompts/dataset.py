"""Prompt sets by name, file, URL or mixture, and the order in which a run walks through them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from prompts.prompt_files import SUFFIXES, read_prompt_file
from prompts.schema import Prompt

_BUILT_IN = Path(__file__).parent / "data"
_PART = re.compile(r"(?:(?P<weight>[\d.]+)\s*\*\s*)?(?P<source>.+?)(?:\[:(?P<first>\d+)\])?")

BLOCK = 1000
"""Positions over which a mixture's weights are met exactly; weights are resolved to 1/1000."""


@dataclass(frozen=True)
class PromptMixture(Sequence[Prompt]):
    """Several sets and how often each is drawn from; as a sequence, one set after another.

    A walk through it (`prompt_at`) takes `counts[i]` of every BLOCK positions from part i and walks
    each part as if it were alone.
    """

    parts: tuple[tuple[Prompt, ...], ...]
    counts: tuple[int, ...]
    """Positions of each part in a block; their sum is BLOCK."""

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prompt, ...]: ...
    def __getitem__(self, index: int | slice) -> Prompt | tuple[Prompt, ...]:
        return tuple(self)[index]

    def __iter__(self) -> Iterator[Prompt]:
        return (prompt for part in self.parts for prompt in part)


def load_prompts(source: str | Path) -> tuple[Prompt, ...] | PromptMixture:
    """The prompts that `source` names: a set, a file, a URL, the first N of one, or a mixture.

    "train", "mine.txt", "https://host/mine.jsonl", "train[:1000]" (the file's own first prompts, so
    that smaller subsets nest in larger ones), "0.7*train[:1000] + 0.3*mine.jsonl". Whatever is
    wrong raises one ValueError that names file and line.
    """
    parts = [_parse_part(part, str(source)) for part in re.split(r"\s\+\s", str(source).strip())]
    counts = _block_counts([weight for *_, weight in parts], str(source))
    loaded = tuple(_load_part(name, first) for name, first, _ in parts)
    if len(loaded) == 1:
        return loaded[0]
    _require_distinct_ids(loaded, str(source))
    return PromptMixture(loaded, counts)


def prompt_at(seed: int, position: int, prompts: Sequence[Prompt]) -> Prompt:
    """The prompt at `position` (0, 1, ...) of the endless walk that `seed` defines.

    Every run through a set (epoch) visits each prompt once, in an order of its own. The position is
    the whole state of the walk: it can be continued anywhere, by any number of workers.
    """
    if position < 0:
        raise ValueError(f"position is {position}; allowed: 0 or more")
    if isinstance(prompts, PromptMixture):
        part, inner = _place_in_mixture(seed, position, prompts.counts)
        return prompt_at(seed, inner, prompts.parts[part])
    if not prompts:
        raise ValueError("prompts is empty; allowed: one or more prompts")
    epoch, offset = divmod(position, len(prompts))
    return prompts[int(_order(seed, epoch, len(prompts))[offset])]


@lru_cache(maxsize=16)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.intp]:
    """The epoch's order of `count` prompts: the same on every machine."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def _place_in_mixture(seed: int, position: int, counts: tuple[int, ...]) -> tuple[int, int]:
    """Part that `position` draws from, and how many earlier positions drew from it."""
    block, offset = divmod(position, BLOCK)
    part, rank = _block(seed, block, counts)
    chosen = int(part[offset])
    return chosen, block * counts[chosen] + int(rank[offset])


@lru_cache(maxsize=16)
def _block(
    seed: int, block: int, counts: tuple[int, ...]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """For each position of a block: its part, and its rank among the block's draws of that part."""
    part = np.repeat(np.arange(len(counts)), counts)
    part = np.random.default_rng((seed, block, len(counts))).permutation(part)
    rank = np.zeros(BLOCK, dtype=np.intp)
    for i, count in enumerate(counts):
        rank[part == i] = np.arange(count)
    return part, rank


def _parse_part(text: str, whole: str) -> tuple[str, int | None, float]:
    """(source, first N or None, weight) of one part of a mixture."""
    match = _PART.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"prompt source {whole!r} has an empty part; allowed: 0.7*NAME + 0.3*FILE")
    weight = match["weight"]
    if weight is not None and weight.count(".") > 1:
        raise ValueError(f"prompt source {whole!r}: weight {weight!r} is no number")
    first = None if match["first"] is None else int(match["first"])
    return match["source"], first, float(weight or 1)


def _load_part(source: str, first: int | None) -> tuple[Prompt, ...]:
    path = _find(source)
    found = read_prompt_file(path)
    if found.problems:
        others = len(found.problems) - 1
        more = f" (and {others} more: `worldr1 prompts check {path}` lists them)" if others else ""
        raise ValueError(f"{found.problems[0]}{more}")
    if first is None:
        return found.prompts
    if not 1 <= first <= len(found.prompts):
        raise ValueError(
            f"prompt source {source!r} has {len(found.prompts)} prompts; [:{first}] is not one "
            f"of its subsets (1 to {len(found.prompts)})"
        )
    return found.prompts[:first]


def _find(source: str) -> str:
    """Path or URL of a source."""
    if source.partition("?")[0].endswith(SUFFIXES) or "://" in source:
        return source
    built_in = _BUILT_IN / f"{source}.jsonl"
    if not built_in.is_file():
        names = ", ".join(sorted(file.stem for file in _BUILT_IN.glob("*.jsonl")))
        raise ValueError(
            f"prompt set {source!r} is unknown; allowed: {names}, "
            "or the path or URL of a .jsonl or .txt"
        )
    return str(built_in)


def _block_counts(weights: Sequence[float], whole: str) -> tuple[int, ...]:
    """Positions of a block for each weight: largest remainders, so that they sum to BLOCK."""
    total = sum(weights)
    shares = [weight / total * BLOCK if total else 0.0 for weight in weights]
    if min(shares) < 1:
        raise ValueError(
            f"prompt source {whole!r}: every weight must be at least 1/{BLOCK} of their sum"
        )
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    for i in by_remainder[: BLOCK - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


def _require_distinct_ids(parts: Sequence[tuple[Prompt, ...]], whole: str) -> None:
    """An id names one prompt in a run's records, whichever part it came from."""
    seen: dict[str, Prompt] = {}
    for part in parts:
        for prompt in part:
            if seen.setdefault(prompt.id, prompt) != prompt:
                raise ValueError(
                    f"prompt source {whole!r}: id {prompt.id!r} names two different prompts"
                )


def without_camera(prompts: Sequence[Prompt]) -> list[str]:
    """A sentence where prompts ask for no camera path, which a person may not have meant: only the
    phrases of `prompts.motions.VOCABULARY` do."""
    silent = [p for p in prompts if not p.motions and p.c2w is None]
    if not silent:
        return []
    return [
        f"{len(silent)} of {len(prompts)} name no camera motion (first: {silent[0].text[:60]!r}): "
        "plain noise and no S_traj for them; `worldr1 camera` with such a text lists what does"
    ]
