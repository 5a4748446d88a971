"""From a scene type and a camera command to sentences: choices, agreement, the shapes of a prompt.

Every choice takes the entry that was used least so far, so that a large vocabulary is used evenly;
`Writer` counts. Entries may hold alternatives in braces: "a {bleached|grey} log".
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from prompts.generator_words import (
    LAYERS,
    Clause,
    Layer,
    SceneType,
    is_plural,
    sentence_shapes,
    word_list,
)
from prompts.motions import COMPOSITES

Entry = TypeVar("Entry", str, Layer, Clause)

_ALTERNATIVES = re.compile(r"\{([^{}]*\|[^{}]*)\}")
_AGREEING = re.compile(r"\{(near|mid|far):([^/{}]+)/([^{}]+)\}")
_VOWEL_SOUND = re.compile(r"(?!one\b|uni|use|eur|ewe)[aeiou]|hour|honest|heir|x-ray", re.IGNORECASE)
_FIND_OF = {
    "push in": "inward",
    "pull out": "outward",
    "move": "aside",
    "pan": "aside",
    "orbit": "around",
    "fixed": "still",
}


class NoChoice(Exception):
    """No entry fits what the prompt holds so far; the prompt is begun again."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a prompt shows: a place and three layers of depth."""

    type: SceneType
    place: str
    layers: Mapping[str, Layer]

    @property
    def words(self) -> str:
        """Place and layers, for the `needs` of clauses."""
        return " ".join((self.place, *(f"{x.np} {x.ref}" for x in self.layers.values())))

    @property
    def centre(self) -> str:
        """What an orbit circles: the middle layer."""
        return f"{self.layers['mid'].np} {self.layers['mid'].ref}"


class Writer:
    """Writes prompts; the only state is how often each entry was used, and the random source."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.used: Counter[str] = Counter()
        self._taken: list[str] = []

    def begin(self) -> None:
        """Start a prompt: what an abandoned one took is given back."""
        self.used.subtract(self._taken)
        self._taken.clear()

    def keep(self) -> None:
        """The prompt is part of the set: its entries count as used."""
        self._taken.clear()

    def choose(
        self, name: str, entries: Sequence[Entry], fits: Callable[[Entry], bool] = lambda _: True
    ) -> Entry:
        """The fitting entry that was used least; ties are broken by the random source."""
        fitting = [(i, entry) for i, entry in enumerate(entries) if fits(entry)]
        if not fitting:
            raise NoChoice(name)
        fewest = min(self.used[f"{name}/{i}"] for i, _ in fitting)
        # One use more than the fewest still counts as little used: it lets entries combine freely.
        index, entry = self.rng.choice(
            [(i, e) for i, e in fitting if self.used[f"{name}/{i}"] <= fewest + 1]
        )
        key = f"{name}/{index}"
        self.used[key] += 1
        self._taken.append(key)
        return entry

    def spell(self, text: str) -> str:
        """Alternatives in braces chosen, least used first."""

        def pick(match: re.Match[str]) -> str:
            return self.choose(match.group(), match.group(1).split("|"))

        return _ALTERNATIVES.sub(pick, text)

    def scene(self, type: SceneType, *, singular_mid: bool) -> Scene:
        """A place with three layers that share no word with one another or with the place."""
        place = self.spell(self.choose(f"{type.name}.places", type.plain["places"]))
        layers: dict[str, Layer] = {}
        for name in LAYERS:
            # Bound as defaults: the test runs inside this turn of the loop.
            def fits(
                layer: Layer, name: str = name, taken: str = self._seen(place, layers)
            ) -> bool:
                if name == "mid" and singular_mid and is_plural(layer.ref):
                    return False
                return not _content(layer.np + " " + layer.ref) & _content(taken)

            layer = self.choose(f"{type.name}.{name}", type.layers[name], fits)
            layers[name] = Layer(self.spell(layer.np), self.spell(layer.vp), layer.ref)
        return Scene(type, place, layers)

    def clause(self, scene: Scene, key: str, kinds: Sequence[str] = ()) -> str:
        """An entry of one of the scene type's clause lists, without its full stop."""

        seen = scene.centre if key == "around" else scene.words

        def fits(clause: Clause) -> bool:
            needed = any(word in seen for word in clause.needs.split("|"))
            return needed and (not kinds or clause.kind in kinds)

        chosen = self.choose(f"{scene.type.name}.{key}", scene.type.clauses[key], fits)
        return self.spell(chosen.text)

    def shape(self, *path: str, without: Sequence[str] = ()) -> str:
        """A sentence shape of sentences.toml, for example shape("depth", "shapes"), that holds none
        of `without`."""
        table: Any = sentence_shapes()
        for key in path:
            table = table[key]
        return self.choose(
            "/".join(path), table, lambda shape: not any(part in shape for part in without)
        )

    @staticmethod
    def _seen(place: str, layers: Mapping[str, Layer]) -> str:
        return " ".join((place, *(f"{x.np} {x.ref}" for x in layers.values())))


def camera_phrase(writer: Writer, table: str, command: Sequence[str]) -> str:
    """The sentence (`lead`) or introduction (`turn`) that names the motion phrases in order."""
    if command == ("fixed",):
        return writer.shape(table, "fixed")
    count = ("one", "two", "three")[len(command) - 1]
    names = {"motion": command[0], **dict(zip("abc", command, strict=False))}
    return writer.shape(table, count).format(**names)


def discovery(writer: Writer, scene: Scene, command: Sequence[str]) -> str:
    """What the camera finds along its way, as one clause per motion phrase, without a full stop."""
    parts = [_found(writer, scene, command[0])]
    if len(command) > 1:
        parts.append(_found(writer, scene, command[1], _out_of_view(command[0])))
    if len(parts) == 1:
        return parts[0]
    text = f"{parts[0]}; {writer.shape('discovery', 'second')}{parts[1]}"
    if len(command) > 2:
        # The last of three motions closes the clause without a find of its own.
        shape = "third_back" if command[2] == "pull out" else "third_turn"
        text += fill(_sided(writer.shape("discovery", shape), command[2]), scene, {})
    return text


def _sided(shape: str, phrase: str) -> str:
    """A shape with <side> and <other> put in, as the motion phrase has them."""
    side = phrase.rpartition(" ")[2]
    other = {"left": "right", "right": "left"}.get(side, "")
    return shape.replace("<side>", side).replace("<other>", other)


def _out_of_view(phrase: str) -> tuple[str, ...]:
    """Layers that a motion leaves behind: what follows it may not speak of them."""
    if phrase == "push in":
        return ("{near",)
    return ("{near", "{mid", "{far") if phrase.startswith("pan") else ()


def _found(writer: Writer, scene: Scene, phrase: str, gone: Sequence[str] = ()) -> str:
    verb, _, side = phrase.partition(" ")
    key = phrase if side not in ("left", "right") else f"{verb} left"
    if phrase in COMPOSITES:
        text = writer.shape("discovery", "pull left")
        finds = {f: writer.clause(scene, f) for f in ("outward", "aside")}
    else:
        text = writer.shape("discovery", key, without=gone)
        find = _FIND_OF[phrase if phrase in _FIND_OF else verb]
        finds = {find: writer.clause(scene, find)}
    return fill(_sided(text, phrase), scene, finds)


def fill(shape: str, scene: Scene, values: Mapping[str, str]) -> str:
    """A shape with references, agreeing verbs and clauses put in."""

    def agree(match: re.Match[str]) -> str:
        ref = scene.layers[match.group(1)].ref
        return f"{ref} {match.group(3 if is_plural(ref) else 2)}"

    refs = {name: layer.ref for name, layer in scene.layers.items()}
    return _AGREEING.sub(agree, shape).format(**{**refs, **values})


def depth(writer: Writer, scene: Scene) -> str:
    """One or two sentences that place the three layers from near to far."""
    words: dict[str, str] = {}
    for name, layer in scene.layers.items():
        where = writer.shape("depth", scene.type.scale, name)
        words |= {f"c_{name}": where, f"C_{name}": _upper(where)}
        clause = predicated(layer.np, layer.vp)
        words |= {name: clause, name.capitalize(): _upper(clause)}
    return writer.shape("depth", "shapes").format(**words)


def predicated(np: str, vp: str) -> str:
    """Subject and predicate; a comma ends an apposition inside the subject."""
    return f"{np}, {vp}" if "," in np else f"{np} {vp}"


def sentence(clause: str) -> str:
    """A clause with its capital and its full stop."""
    return _upper(clause) + "."


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def finish(text: str) -> str:
    """The written prompt: a or an as the next word sounds, one space between words."""

    def article(match: re.Match[str]) -> str:
        a, word = match.group(1), match.group(2)
        n = "n" if _VOWEL_SOUND.match(word) else ""
        return f"{a[0]}{n} {word}"

    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"\b([Aa])n? (\w[\w-]*)", article, text)


def _content(text: str) -> set[str]:
    """Words that carry the picture, plural endings taken off."""
    small = word_list("repeatable")
    return {w.rstrip("s") for w in re.findall(r"[a-z]+", text.lower()) if w not in small}
