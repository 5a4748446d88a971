"""The detector finds whole motion phrases, in order, and nothing inside longer words."""

from __future__ import annotations

import pytest

from prompts.motions import Motion, detect_motions

M = Motion


@pytest.mark.parametrize("motion", list(Motion))
def test_every_primitive_is_found_whatever_its_case(motion: Motion) -> None:
    assert detect_motions(f"Camera {motion.value}. A box.") == (motion,)
    assert detect_motions(f"CAMERA {motion.value.upper()}!") == (motion,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Camera pull left.", (M.MOVE_LEFT, M.PULL_OUT, M.PAN_LEFT)),
        ("Camera pull right.", (M.MOVE_RIGHT, M.PULL_OUT, M.PAN_RIGHT)),
        (
            "Camera move left, pull out, then pan left.",
            (M.MOVE_LEFT, M.PULL_OUT, M.PAN_LEFT),
        ),
        ("Pan right, push in, pan right again.", (M.PAN_RIGHT, M.PUSH_IN, M.PAN_RIGHT)),
        ("A slow push-in, later\npan\n left.", (M.PUSH_IN, M.PAN_LEFT)),
    ],
)
def test_motions_come_in_order_of_appearance_with_composites_expanded(
    text: str, expected: tuple[Motion, ...]
) -> None:
    assert detect_motions(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "They push inside the hall.",
        "Panorama left of the river.",
        "A Japan left behind.",
        "An unfixed fixedness.",
        "Remove left shoe.",
        "pull outside, orbit leftwards, pan rightly",
        "A push-in-law.",
        "push, in",
        "A ball slides to the left.",
        "",
    ],
)
def test_words_that_only_contain_a_phrase_name_no_motion(text: str) -> None:
    assert detect_motions(text) == ()
