"""Builds the pure text dataset: which scene, command and length each prompt gets, and its text.

Coverage-driven: every set is laid out over (domain, taxonomy, motion, length) and filled with the
least used scene type, so that every prefix of a file is balanced as the whole is. A pure function
of the seed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prompts.generator_text import (
    NoChoice,
    Scene,
    Writer,
    camera_phrase,
    depth,
    discovery,
    finish,
    predicated,
    sentence,
)
from prompts.generator_words import DOMAIN_FILES, SceneType, Split, scene_types
from prompts.motions import detect_motions
from prompts.schema import Prompt
from prompts.taxonomy import COMMANDS, TAXONOMIES, taxonomy_of
from prompts.text_measures import readability, word_ngrams, wording, words

DOMAINS = tuple(DOMAIN_FILES)
SHORT_WORDS = (4, 45)
ENHANCED_WORDS = (60, 120)
"""Fewest and most words of a short and of an enhanced prompt."""
MAX_READABILITY = 14.0
"""Automated readability index of one prompt: 14 is a student's text."""

_SHARES = {"intra-scene": 7, "inter-scene": 7, "composite": 4, "static": 2}
"""Prompts of each taxonomy among 20 of a domain."""
_RIGID = ("animal", "machine", "crowd")
_NON_RIGID = ("water", "fluid", "fire", "weather", "transform")


@dataclass(frozen=True, slots=True)
class SetPlan:
    """What one file holds."""

    name: str
    size: int
    split: Split
    is_dynamic: bool = False
    short_every: int = 4
    """One prompt of so many is short; 0: none."""
    taxonomies: tuple[str, ...] = TAXONOMIES
    commands: tuple[tuple[str, ...], ...] = ()
    """Commands in place of those of the taxonomies."""
    kinds: tuple[str, ...] = ()
    """Kinds of moving things in dynamic prompts; empty: all."""
    movers: int = 0
    """Moving things per prompt; 0: one or two."""
    file: str = ""
    """File that the prompts go to; empty: `name`."""


_LONG = tuple(c for c in COMMANDS["composite"] if len(c) == 3)
PLANS = (
    SetPlan("eval-static", 30, "eval", short_every=0),
    SetPlan("eval-one-object", 30, "eval", True, 0, kinds=("animal", "machine"), movers=1),
    SetPlan("eval-several", 30, "eval", True, 0, kinds=_RIGID, movers=2),
    SetPlan("eval-non-rigid", 30, "eval", True, 0, kinds=_NON_RIGID),
    SetPlan("eval-long-horizon", 30, "eval", False, 0, ("composite",), _LONG),
    SetPlan("test", 120, "test"),
    SetPlan("train", 3000, "train"),
    SetPlan("dynamic", 500, "train", True),
)
"""The shipped files in the order in which they are written; the held-out ones come first."""


@dataclass(slots=True)
class _Ledger:
    """What the sets hold so far; refuses a prompt that repeats them too much."""

    scenes: set[tuple[str, ...]] = field(default_factory=set)
    eights: Counter[tuple[str, ...]] = field(default_factory=Counter)
    held_out: set[tuple[str, ...]] = field(default_factory=set)

    def accepts(self, text: str, scene: Scene, split: Split) -> bool:
        eights = word_ngrams(wording(text), 8)
        if self._key(scene) in self.scenes or any(self.eights[e] >= 15 for e in eights):
            return False
        return split != "train" or not eights & self.held_out

    def add(self, text: str, scene: Scene, split: Split) -> None:
        eights = word_ngrams(wording(text), 8)
        self.scenes.add(self._key(scene))
        self.eights.update(eights)
        if split != "train":
            self.held_out |= eights

    @staticmethod
    def _key(scene: Scene) -> tuple[str, ...]:
        return (scene.place, *(layer.np for layer in scene.layers.values()))


def build_sets(seed: int = 0) -> dict[str, tuple[Prompt, ...]]:
    """The shipped sets by file name (train, dynamic, test, eval); a pure function of the seed."""
    rng = random.Random(seed)
    ledger = _Ledger()
    sets: dict[str, list[Prompt]] = {}
    for plan in PLANS:
        prompts = _build(plan, Writer(rng), ledger, seed)
        file = plan.name.partition("-")[0]
        sets.setdefault(file, []).extend(prompts)
    return {name: tuple(sets[name]) for name in ("train", "dynamic", "test", "eval")}


def write_sets(folder: Path, seed: int = 0) -> dict[str, int]:
    """Write each set as `folder`/NAME.jsonl; the number of prompts by name."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = build_sets(seed)
    for name, prompts in sets.items():
        text = "".join(prompt.model_dump_json(by_alias=True) + "\n" for prompt in prompts)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {name: len(prompts) for name, prompts in sets.items()}


@dataclass(frozen=True, slots=True)
class _Cell:
    """What is asked of one prompt."""

    type: SceneType
    command: tuple[str, ...]
    short: bool


def _build(plan: SetPlan, writer: Writer, ledger: _Ledger, seed: int) -> list[Prompt]:
    prompts: list[Prompt] = []
    for cell in _cells(plan, writer.rng):
        text, scene = _write(plan, cell, writer, ledger)
        ledger.add(text, scene, plan.split)
        prompts.append(
            Prompt.from_text(
                f"{plan.name}-{len(prompts) + 1:04d}",
                text,
                taxonomy=taxonomy_of(detect_motions(text)),
                domain=cell.type.domain,
                is_dynamic=plan.is_dynamic,
                source=f"grammar/{cell.type.name}",
                seed=seed,
            )
        )
    return prompts


def _cells(plan: SetPlan, rng: random.Random) -> Iterator[_Cell]:
    """The layout of a set: domains in turn; within one, decks of taxonomies and lengths."""
    uses: Counter[tuple[str, ...]] = Counter()
    decks: dict[tuple[str, str], list[str]] = {}

    def deal(domain: str, name: str, deck: Sequence[str]) -> str:
        rest = decks.setdefault((domain, name), [])
        if not rest:
            rest.extend(rng.sample(deck, len(deck)))
        return rest.pop()

    def least(key: tuple[str, ...], options: Sequence[str]) -> str:
        fewest = min(uses[*key, option] for option in options)
        chosen = rng.choice([option for option in options if uses[*key, option] == fewest])
        uses[*key, chosen] += 1
        return chosen

    taxonomies = [t for t in plan.taxonomies for _ in range(_SHARES[t])]
    lengths = (
        ["short"] + ["enhanced"] * (plan.short_every - 1) if plan.short_every else ["enhanced"]
    )
    for index in range(plan.size):
        domain = DOMAINS[index % len(DOMAINS)]
        types = {t.name: t for t in scene_types() if t.domain == domain and t.split == plan.split}
        taxonomy = deal(domain, "taxonomy", taxonomies)
        commands = {" / ".join(c): c for c in plan.commands or COMMANDS[taxonomy]}
        length = deal(domain, "length", lengths)
        yield _Cell(
            type=types[least((domain, length), list(types))],
            command=commands[least((domain, taxonomy), list(commands))],
            short=length == "short",
        )


def _write(
    plan: SetPlan, cell: _Cell, writer: Writer, ledger: _Ledger, attempts: int = 400
) -> tuple[str, Scene]:
    """A text for the cell that nothing refuses, and the scene that it shows."""
    fewest, most = SHORT_WORDS if cell.short else ENHANCED_WORDS
    for _ in range(attempts):
        writer.begin()
        try:
            orbits = any(phrase.startswith("orbit") for phrase in cell.command)
            scene = writer.scene(cell.type, singular_mid=orbits)
            compose = _short if cell.short else _enhanced
            text = finish(compose(plan, cell, scene, writer))
        except NoChoice:
            continue
        expected = detect_motions(", ".join(cell.command))
        if (
            fewest <= len(words(text)) <= most
            and readability(text) <= MAX_READABILITY
            and detect_motions(text) == expected
            and ledger.accepts(text, scene, plan.split)
        ):
            writer.keep()
            return text, scene
    raise RuntimeError(
        f"set {plan.name!r}: {attempts} attempts at scene type {cell.type.name!r} with "
        f"{' / '.join(cell.command)} were all refused; its vocabulary is too small for this size"
    )


def _short(plan: SetPlan, cell: _Cell, scene: Scene, writer: Writer) -> str:
    move = writer.clause(scene, "moving", plan.kinds) if plan.is_dynamic else ""
    shape = writer.shape("short", "moving" if plan.is_dynamic else "still")
    layers = scene.layers
    body = shape.format(
        Place=sentence(scene.place)[:-1],
        brief=_brief(scene, writer) if "{brief}" in shape else "",
        near_np=layers["near"].np,
        mid_np=layers["mid"].np,
        far_np=layers["far"].np,
        mid_clause=predicated(layers["mid"].np, layers["mid"].vp),
        Light=sentence(writer.clause(scene, "light"))[:-1] if "{Light}" in shape else "",
        move=move,
        Move=sentence(move)[:-1],
    )
    return f"{camera_phrase(writer, 'lead', cell.command)} {body}"


def _brief(scene: Scene, writer: Writer) -> str:
    """When or how, set off by a comma where the place already has the same preposition."""
    brief = writer.choose(f"{scene.type.name}.brief", scene.type.plain["brief"])
    return f", {brief}" if brief.split()[0] in scene.place.split() else f" {brief}"


def _enhanced(plan: SetPlan, cell: _Cell, scene: Scene, writer: Writer) -> str:
    still_and_moving = plan.is_dynamic and cell.command == ("fixed",)
    leads = still_and_moving or writer.rng.random() < 0.7
    parts = []
    for step in writer.shape("plan", "moving" if plan.is_dynamic else "still").split():
        if step == "depth":
            parts.append(depth(writer, scene))
        elif step == "move":
            parts.extend(_moves(plan, scene, writer, long=still_and_moving))
        elif step == "find":
            # A scene in motion under a fixed camera has no stillness to report.
            if not still_and_moving:
                camera = "" if leads else camera_phrase(writer, "turn", cell.command) + " "
                parts.append(sentence(camera + discovery(writer, scene, cell.command)))
        else:
            parts.append(
                sentence("; ".join(_plain(scene, part, writer) for part in step.split("+")))
            )
    if leads:
        parts.insert(0, camera_phrase(writer, "lead", cell.command))
    return " ".join(parts)


def _plain(scene: Scene, step: str, writer: Writer) -> str:
    if step == "open":
        opening = writer.choose(f"{scene.type.name}.open", scene.type.plain["open"])
        return predicated(scene.place, writer.spell(opening))
    return writer.clause(scene, step)


def _moves(plan: SetPlan, scene: Scene, writer: Writer, long: bool) -> list[str]:
    """One sentence, or two, on what moves."""
    count = plan.movers or (2 if long or writer.rng.random() < 0.4 else 1)
    clauses: list[str] = []
    while len(clauses) < count:
        clause = writer.clause(scene, "moving", plan.kinds)
        if clause not in clauses:
            clauses.append(clause)
    join = ("Meanwhile", "At the same time", "All the while")
    return [sentence(clauses[0])] + [
        f"{writer.choose('meanwhile', join)}, {clause}." for clause in clauses[1:]
    ]
