"""Shipped prompt files, one-sentence errors, and the cursor's walk."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from prompts.dataset import load_prompts, prompt_at
from prompts.motions import PRIMITIVES, Motion
from prompts.schema import CameraPath, Prompt


def scenes(name: str) -> set[str]:
    return {prompt.text.split(". ", 1)[1] for prompt in load_prompts(name)}


def test_shipped_sets_cover_every_motion_and_the_test_scenes_are_held_out() -> None:
    names = ("toy_train", "toy_dynamic", "toy_test", "toy_eval")
    train, dynamic, test, evaluation = map(load_prompts, names)
    assert (len(train), len(dynamic), len(test), len(evaluation)) == (64, 16, 22, 264)
    for prompts in (train, test, evaluation):
        assert {motion for prompt in prompts for motion in prompt.motions} == set(PRIMITIVES)
        assert not any(prompt.is_dynamic for prompt in prompts)
        assert {prompt.taxonomy for prompt in prompts} == {"single", "composite"}
    assert all(prompt.is_dynamic and prompt.motions for prompt in dynamic)
    for one, other in itertools.combinations(names, 2):
        assert not scenes(one) & scenes(other)
    # Every command is measured equally often.
    commands = Counter(prompt.text.split(". ", 1)[0] for prompt in evaluation)
    assert set(commands.values()) == {22}


def test_a_prompt_refuses_motions_that_its_text_does_not_name() -> None:
    prompt = Prompt.from_text("a", "Camera push in. A box.")
    assert prompt.motions == (Motion.PUSH_IN,)
    with pytest.raises(ValidationError, match=r"\['pan left'\], but its text names \['push in'\]"):
        Prompt(id="a", text="Camera push in.", motions=(Motion.PAN_LEFT,))
    again = Prompt.model_validate_json(prompt.model_dump_json(by_alias=True))
    assert again == prompt


def test_a_camera_path_refuses_other_shapes_and_nan() -> None:
    with pytest.raises(ValueError, match="c2w has shape"):
        CameraPath([[1.0]])
    with pytest.raises(ValueError, match="NaN"):
        CameraPath([[[float("nan")] * 4] * 4])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2: line: Invalid JSON"),
        ('{"id": "b", "prompt": "Camera push in.", "motions": []}', "line 2: line: .*motions"),
        ('{"id": "b", "prompt": "A box.", "motions": [], "colour": 1}', "line 2: colour: Extra"),
        ('{"id": "a", "prompt": "A box.", "motions": []}', "line 2: id 'a' is that of line 1"),
    ],
)
def test_a_bad_line_is_one_sentence_with_file_and_line(
    tmp_path: Path, line: str, message: str
) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text(json.dumps({"id": "a", "prompt": "A box.", "motions": []}) + "\n" + line)
    with pytest.raises(ValueError, match=f"set.jsonl, {message}"):
        load_prompts(str(file))


def test_missing_and_unknown_and_empty_sets_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        load_prompts(tmp_path / "nothing.jsonl")
    with pytest.raises(
        ValueError, match=r"'toy_tran' is unknown; allowed: .*toy_dynamic, toy_eval, toy_test"
    ):
        load_prompts("toy_tran")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        load_prompts(tmp_path / "empty.jsonl")


def test_every_epoch_visits_every_prompt_once_in_an_order_of_its_own() -> None:
    prompts = load_prompts("toy_test")
    count = len(prompts)
    first, second = (
        [prompt_at(3, position, prompts) for position in range(start, start + count)]
        for start in (0, count)
    )
    assert {p.id for p in first} == {p.id for p in second} == {p.id for p in prompts}
    assert first != second
    assert [prompt_at(4, position, prompts) for position in range(count)] != first
    assert prompt_at(3, 7, prompts) == first[7]


def test_a_walk_needs_prompts_and_a_position_from_zero() -> None:
    with pytest.raises(ValueError, match="position is -1"):
        prompt_at(0, -1, load_prompts("toy_train"))
    with pytest.raises(ValueError, match="prompts is empty"):
        prompt_at(0, 0, ())
