"""The vocabulary files: scene types with their own slots, and the shapes of sentences.

The format is described in docs/prompts.md. Loading checks it: a slip in a vocabulary file is one
sentence with file and entry, never an odd prompt.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent / "vocabulary"

DOMAIN_FILES = {
    "Natural Landscapes": "landscapes.toml",
    "Urban and Architectural": "urban.toml",
    "Micro and Still Life": "micro.toml",
    "Fantasy and Surrealism": "fantasy.toml",
    "Artistic Styles": "styles.toml",
}
"""Domain -> file of its scene types."""

MOVING_KINDS = (
    "water",
    "crowd",
    "fire",
    "weather",
    "animal",
    "machine",
    "transform",
    "fluid",
)
"""What may move in a dynamic scene."""

LAYERS = ("near", "mid", "far")
FINDS = ("inward", "outward", "aside", "around", "still")
"""Lists of what the camera finds: moving forward, back, to the side, around, not at all."""
_PLAIN = ("places", "open", "brief")

Split = Literal["train", "test", "eval"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One thing at one depth: "a bleached log" + "lies half sunk in gravel", later "the log"."""

    np: str
    vp: str
    ref: str


@dataclass(frozen=True, slots=True)
class Clause:
    """A clause without its full stop; `needs` names words, parted by |, of which the scene must
    already have one."""

    text: str
    needs: str = ""
    kind: str = ""


@dataclass(frozen=True)
class SceneType:
    """A kind of place whose places, layers, materials, light and discoveries fit one another."""

    name: str
    domain: str
    split: Split
    scale: str
    plain: Mapping[str, tuple[str, ...]]
    layers: Mapping[str, tuple[Layer, ...]]
    clauses: Mapping[str, tuple[Clause, ...]]
    """matter, light, moving and the FINDS."""


@lru_cache(maxsize=1)
def scene_types() -> tuple[SceneType, ...]:
    """Every scene type of every domain, in the order of the files."""
    return tuple(
        _scene_type(name, domain, table, file)
        for domain, file in DOMAIN_FILES.items()
        for name, table in _read(file).items()
    )


@lru_cache(maxsize=1)
def sentence_shapes() -> Mapping[str, Any]:
    """The shapes of sentences: nested tables whose leaves are tuples of lines."""
    return {key: _lines_of(value) for key, value in _read("sentences.toml").items()}


@lru_cache(maxsize=8)
def word_list(name: str) -> frozenset[str]:
    """A list of words.toml."""
    return frozenset(_read("words.toml")[name].split())


def _lines_of(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _lines_of(inner) for key, inner in value.items()}
    return lines(value)


def lines(text: str) -> tuple[str, ...]:
    """Non-empty lines without indentation; a shape may end in a blank."""
    return tuple(line.lstrip() for line in text.splitlines() if line.strip())


def _read(file: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / file).read_text(encoding="utf-8"))


def _scene_type(name: str, domain: str, table: Mapping[str, Any], file: str) -> SceneType:
    def entries(key: str) -> tuple[str, ...]:
        if not isinstance(table.get(key), str):
            raise ValueError(f"{file}: [{name}] has no list {key!r}; every scene type needs one")
        return lines(table[key])

    unknown = set(table) - {"split", "scale", *_PLAIN, *LAYERS, *FINDS, "matter", "light", "moving"}
    if unknown:
        raise ValueError(f"{file}: [{name}] has the unknown key {min(unknown)!r}")
    return SceneType(
        name=name,
        domain=domain,
        split=table.get("split", "train"),
        scale=table["scale"],
        plain={key: entries(key) for key in _PLAIN},
        layers={key: tuple(_layer(e, file, name) for e in entries(key)) for key in LAYERS},
        clauses={
            **{key: tuple(_clause(e) for e in entries(key)) for key in ("matter", "light", *FINDS)},
            "moving": tuple(_moving(e, file, name) for e in entries("moving")),
        },
    )


def _layer(entry: str, file: str, name: str) -> Layer:
    parts = [part.strip() for part in entry.split(";")]
    if len(parts) != 3 or not parts[2].startswith("the "):
        raise ValueError(f"{file}: [{name}] entry {entry!r} is not of the form 'np; vp; the ref'")
    return Layer(*parts)


def _clause(entry: str) -> Clause:
    needs, separator, text = entry.partition("> ")
    return Clause(text, needs) if separator else Clause(entry)


def _moving(entry: str, file: str, name: str) -> Clause:
    kind, _, text = entry.partition(": ")
    if kind not in MOVING_KINDS or not text:
        raise ValueError(
            f"{file}: [{name}] entry {entry!r} does not begin with one of {', '.join(MOVING_KINDS)}"
        )
    return Clause(text, kind=kind)


_SINGULAR_IN_S = frozenset({"lens", "canvas", "gas", "chess", "atlas", "iris"})
_PLURAL_WITHOUT_S = frozenset({"geese", "fungi", "tesserae", "people", "scissors", "folk"})


def is_plural(ref: str) -> bool:
    """Whether a reference such as "the pebbles" takes a plural verb.

    Its head is the last word before a preposition ("the wall of points").
    """
    head = re.split(r"[ -]", re.split(r" (?:of|in) ", ref)[0])[-1]
    if head in _PLURAL_WITHOUT_S:
        return True
    return (
        head.endswith("s") and not head.endswith(("ss", "us", "is")) and head not in _SINGULAR_IN_S
    )
