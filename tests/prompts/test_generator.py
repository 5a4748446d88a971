"""Sentences agree, choices are even, sets follow their plans, and the shipped files come back."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from prompts import generator
from prompts.dataset import load_prompts
from prompts.generator import DOMAINS, SetPlan, build_sets, write_sets
from prompts.generator_text import (
    NoChoice,
    Scene,
    Writer,
    camera_phrase,
    discovery,
    fill,
    finish,
    predicated,
)
from prompts.generator_words import LAYERS, Layer, is_plural, scene_types
from prompts.motions import PRIMITIVES, detect_motions
from prompts.taxonomy import COMMANDS, TAXONOMIES, taxonomy_of
from prompts.text_measures import word_ngrams, wording, words

DATA = Path(generator.__file__).parent / "data"


@pytest.fixture(scope="module")
def scene() -> Scene:
    layers = {
        "near": Layer("a row of pebbles", "lies there", "the pebbles"),
        "mid": Layer("an arch", "spans the gap", "the arch"),
        "far": Layer("a ridge", "closes the view", "the ridge"),
    }
    return Scene(scene_types()[0], "a canyon", layers)


def test_verbs_agree_with_the_reference_they_follow(scene: Scene) -> None:
    shape = "{near:slips/slip} by, {mid:grows/grow}, and {inward}"
    assert fill(shape, scene, {"inward": "a seam shows"}) == (
        "the pebbles slip by, the arch grows, and a seam shows"
    )


@pytest.mark.parametrize(
    ("ref", "plural"),
    [
        ("the cliffs", True),
        ("the geese", True),
        ("the moss", False),
        ("the nautilus", False),
        ("the ash lens", False),
        ("the wall of points", False),
        ("the hall", False),
    ],
)
def test_number_of_a_reference(ref: str, plural: bool) -> None:
    assert is_plural(ref) is plural


def test_finish_sets_articles_by_sound() -> None:
    text = "A old oak, an hut, a hour, an uniform, a one-eyed  owl, an ewer and a arch."
    assert finish(text) == (
        "An old oak, a hut, an hour, a uniform, a one-eyed owl, a ewer and an arch."
    )


def test_an_apposition_is_closed_by_a_comma() -> None:
    assert predicated("a chain, each link long,"[:-1], "sags") == "a chain, each link long, sags"
    assert predicated("a chain", "sags") == "a chain sags"


def test_choices_use_every_entry_before_any_is_used_three_times() -> None:
    writer = Writer(random.Random(0))
    entries = ["a", "b", "c", "d"]
    counts: Counter[str] = Counter()
    for _ in range(40):
        counts[writer.choose("list", entries)] += 1
        assert max(counts.values()) - min(counts[e] for e in entries) <= 2
    with pytest.raises(NoChoice):
        writer.choose("list", entries, lambda _: False)


def test_an_abandoned_prompt_gives_its_entries_back() -> None:
    writer = Writer(random.Random(0))
    writer.choose("list", ["a"])
    writer.begin()
    assert writer.used["list/0"] == 0
    writer.choose("list", ["a"])
    writer.keep()
    writer.begin()
    assert writer.used["list/0"] == 1


@pytest.mark.parametrize("table", ["lead", "turn"])
def test_every_camera_phrase_names_exactly_its_command(table: str) -> None:
    writer = Writer(random.Random(0))
    for taxonomy, commands in COMMANDS.items():
        for command in commands:
            expected = detect_motions(", ".join(command))
            assert taxonomy_of(expected) == taxonomy
            for _ in range(20):
                assert detect_motions(camera_phrase(writer, table, command)) == expected


def test_no_entry_of_the_vocabulary_names_a_motion() -> None:
    texts = [
        text
        for kind in scene_types()
        for group in (
            *kind.plain.values(),
            *([f"{x.np} {x.vp} {x.ref}" for x in kind.layers[name]] for name in LAYERS),
            *([clause.text for clause in clauses] for clauses in kind.clauses.values()),
        )
        for text in group
    ]
    assert len(texts) > 4000
    assert [text for text in texts if detect_motions(text)] == []


def test_what_a_clause_needs_can_be_there() -> None:
    """A constraint that no scene of its type can meet would silently lose its clause."""
    for kind in scene_types():
        every = " ".join(
            [*kind.plain["places"], *(f"{x.np} {x.ref}" for ls in kind.layers.values() for x in ls)]
        )
        for clauses in kind.clauses.values():
            for clause in clauses:
                assert any(word in every for word in clause.needs.split("|")), (kind.name, clause)
        assert len([c for c in kind.clauses["around"] if not c.needs]) >= 1, kind.name


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    write_sets(folder, 0)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "dynamic", "test", "eval"])
def test_seed_0_reproduces_the_shipped_file_byte_for_byte(rebuilt: Path, name: str) -> None:
    assert (rebuilt / f"{name}.jsonl").read_bytes() == (DATA / f"{name}.jsonl").read_bytes()


def test_another_seed_writes_other_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "PLANS", (SetPlan("test", 40, "test"),))
    monkeypatch.setattr(generator, "build_sets", build_sets)
    zero, one = (_texts(seed) for seed in (0, 1))
    assert zero == _texts(0)
    assert len(set(zero) & set(one)) == 0


def _texts(seed: int) -> list[str]:
    writer, ledger = Writer(random.Random(seed)), generator._Ledger()
    return [p.text for p in generator._build(generator.PLANS[0], writer, ledger, seed)]


def test_sizes_and_kinds_of_the_shipped_sets() -> None:
    train, dynamic, test, evaluation = map(load_prompts, ("train", "dynamic", "test", "eval"))
    assert [len(s) for s in (train, dynamic, test, evaluation)] == [3000, 500, 120, 150]
    assert not any(p.is_dynamic for p in (*train, *test))
    assert all(p.is_dynamic for p in dynamic)
    kinds = Counter(p.id.removeprefix("eval-").rpartition("-")[0] for p in evaluation)
    assert kinds == dict.fromkeys(
        ("static", "one-object", "several", "non-rigid", "long-horizon"), 30
    )
    for prompt in evaluation:
        if prompt.id.startswith("eval-long-horizon"):
            assert len(prompt.motions) >= 3


@pytest.mark.parametrize("size", [1000, 2000, 3000])
def test_nested_subsets_are_balanced_over_every_cell(size: int) -> None:
    subset = load_prompts(f"train[:{size}]")
    assert tuple(subset) == tuple(load_prompts("train"))[:size]
    assert Counter(p.domain for p in subset) == dict.fromkeys(DOMAINS, size // 5)
    shares = dict(zip(TAXONOMIES, (0.35, 0.35, 0.20, 0.10), strict=True))
    cells = Counter((p.domain, p.taxonomy) for p in subset)
    for domain in DOMAINS:
        for taxonomy, share in shares.items():
            assert cells[domain, taxonomy] == pytest.approx(share * size / 5, abs=1)
    singles = {(p.domain, p.motions[0]) for p in subset if len(p.motions) == 1}
    assert singles == {(domain, motion) for domain in DOMAINS for motion in PRIMITIVES}
    composites = {(p.domain, p.motions) for p in subset if len(p.motions) > 1}
    expected = {detect_motions(", ".join(c)) for c in COMMANDS["composite"]}
    # "pull left" and its spelled-out form are the same three primitives.
    assert composites == {(domain, motions) for domain in DOMAINS for motions in expected}


def test_held_out_sets_share_neither_scene_nor_wording_with_the_trained_ones() -> None:
    trained = [*load_prompts("train"), *load_prompts("dynamic")]
    held_out = [*load_prompts("test"), *load_prompts("eval")]
    assert not {p.source for p in trained} & {p.source for p in held_out}
    assert not {p.source for p in load_prompts("test")} & {p.source for p in load_prompts("eval")}
    eights = set().union(*(word_ngrams(wording(p.text), 8) for p in trained))
    assert not any(word_ngrams(wording(p.text), 8) & eights for p in held_out)


def test_a_quarter_of_the_training_prompts_is_short() -> None:
    counts = [len(words(p.text)) for p in load_prompts("train")]
    assert sum(n < 60 for n in counts) == 750
    assert all(n <= 45 or 60 <= n <= 120 for n in counts)


def test_what_a_pan_left_behind_is_not_spoken_of_again(scene: Scene) -> None:
    writer = Writer(random.Random(0))
    for _ in range(40):
        text = discovery(writer, scene, ("pan left", "push in"))
        second = text.rpartition("; ")[2]
        assert not any(layer.ref in second for layer in scene.layers.values())
        text = discovery(writer, scene, ("push in", "orbit left"))
        assert scene.layers["near"].ref not in text.rpartition("; ")[2]
