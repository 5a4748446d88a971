"""Each gate refuses what it is for, and lets the shipped files pass."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from prompts.generator import DOMAINS
from prompts.motions import detect_motions
from prompts.prompt_files import Problem, PromptFile, read_prompt_file
from prompts.quality import check_quality, proper_names, text_dataset
from prompts.schema import Prompt
from prompts.statistics import statistics_lines
from prompts.taxonomy import taxonomy_of


def prompt(id: str, text: str, **fields: str | bool) -> Prompt:
    taxonomy = taxonomy_of(detect_motions(text))
    return Prompt.from_text(id, text, **{"domain": DOMAINS[0], "taxonomy": taxonomy, **fields})


def file_of(prompts: Sequence[Prompt], name: str = "train.jsonl") -> PromptFile:
    return PromptFile(name, tuple(prompts), tuple(range(1, len(prompts) + 1)), ())


def problems(*prompts: Prompt, name: str = "train.jsonl") -> list[Problem]:
    return check_quality([file_of(prompts, name)])


def test_the_gates_are_for_the_five_domains() -> None:
    toy = file_of([Prompt.from_text(f"t{i}", "Camera push in. A box.") for i in range(3)])
    assert text_dataset([toy]) == []
    assert check_quality([toy]) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A box.", "has 2 words; allowed: 4-45 or 60-120"),
        ("Camera push in. " + "Red box. " * 25, "has 53 words"),
        ("Camera push in. " + "Red box. " * 60, "has 123 words"),
        ("Camera push in. A statue like Rodin made it.", "names 'Rodin'"),
        ("Camera push in. A tower of lego bricks.", "names 'lego'"),
        ("Camera push in. Incomprehensibilities characterise institutionalisation.", "readability"),
    ],
)
def test_a_single_prompt_is_refused_with_its_line(text: str, message: str) -> None:
    found = problems(prompt("a", "Camera push in. A box on a green floor."), prompt("b", text))
    assert [(p.file, p.line) for p in found] == [("train.jsonl", 2)]
    assert message in found[0].message


def test_the_taxonomy_is_that_of_the_motions() -> None:
    found = problems(prompt("a", "Camera push in. A box here.", taxonomy="static"))
    assert "taxonomy is 'static'; its motions make it 'intra-scene'" in found[0].message


def test_capitals_count_inside_sentences_only() -> None:
    assert proper_names("Camera push in. Moss lies here: Ferns, too. I see a Kodak.") == ["Kodak"]
    assert proper_names("A volkswagen van.") == ["volkswagen"]
    assert proper_names("An Alp.") == ["Alp"]


def test_the_same_text_twice_is_named_and_near_duplicates_have_a_share() -> None:
    text = "Camera push in. A red hut stands on the hill above the sea by the road."
    found = problems(prompt("a", text), prompt("b", text))
    assert found[0].message == "b: has the text of a"
    assert "50.0% of the prompts nearly repeat another" in found[1].message
    assert "such as a and b: 1.00" in found[1].message


def test_eight_words_may_be_in_eight_prompts_but_not_in_nine() -> None:
    def repeated(count: int) -> list[Problem]:
        eight = "red huts stand above the sea by roads"
        return problems(
            *(prompt(f"p{i}", f"Camera push in. Item{i} kind{i}: {eight}.") for i in range(count))
        )

    assert not [p for p in repeated(8) if "is in" in p.message]
    assert "'red huts stand above the sea by roads' is in 9 prompts; allowed: 8" in [
        p.message for p in repeated(9)
    ]


def test_a_large_set_must_be_balanced_diverse_and_not_harp_on_one_word() -> None:
    found = problems(
        *(prompt(f"p{i}", f"Camera push in. A zebra by hut{i} or so.") for i in range(100))
    )
    messages = [p.message for p in found]
    assert "'zebra' is in 100% of prompts; allowed: 20%" in messages
    assert f"100% of its prompts are {DOMAINS[0]}; allowed: 15-25%" in messages
    assert f"has no static prompt of {DOMAINS[1]}" in messages
    assert f"has no static prompt of {DOMAINS[0]}" in messages
    repeated = problems(*(prompt(f"p{i}", "Camera push in. A zebra by day.") for i in range(100)))
    assert any(p.message.startswith(f"distinct-2 of {DOMAINS[0]} is 0.0") for p in repeated)


def test_held_out_prompts_share_neither_scene_nor_eight_words_with_trained_ones() -> None:
    line = "the red huts stand above the cold sea"
    train = file_of([prompt("a", f"Camera push in. Near {line}.", source="grammar/hut")])
    test = file_of(
        [
            prompt("b", f"Camera pan left. Here {line}.", source="grammar/sea"),
            prompt("c", "Camera pan left. A quite different text.", source="grammar/hut"),
        ],
        "test.jsonl",
    )
    messages = [p.message for p in check_quality([train, test])]
    assert messages == [
        f"b: shares '{line}' with a prompt that is trained on",
        "c: is of grammar/hut, which is trained on",
    ]


def test_statistics_count_what_is_there() -> None:
    lines = list(
        statistics_lines(
            [
                file_of(
                    [
                        prompt("a", "Camera push in. A hut by the sea."),
                        prompt("b", "Camera pan left, then push in. A dune.", is_dynamic=True),
                    ]
                )
            ]
        )
    )
    assert lines[0] == "train.jsonl: 2 prompts, 1 dynamic"
    assert lines[2] == "short: 2 prompts of 8 to 8 words, 8.0 on average"
    assert "motions: push in 2, pan left 1" in lines
    assert "near duplicates: 0 of 2 prompts (Jaccard 0.8 on word 5-grams)" in lines


@pytest.mark.slow
def test_the_shipped_files_pass_every_gate() -> None:
    from prompts.dataset import _BUILT_IN

    files = [read_prompt_file(str(path)) for path in sorted(_BUILT_IN.glob("*.jsonl"))]
    assert len(files) == 8
    assert [p for file in files for p in file.problems] == []
    assert check_quality(files) == []
    assert len(text_dataset(files)) == 3770
