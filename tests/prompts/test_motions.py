"""The detector finds whole motion phrases, in order, and nothing inside longer words."""

from __future__ import annotations

import pytest

from prompts.motions import (
    PRIMITIVES,
    VOCABULARY,
    Motion,
    Segment,
    detect_motions,
    detect_segments,
)

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


def test_a_long_prompt_keeps_the_order_of_its_motions() -> None:
    """20,000 words around every phrase, the phrases in turn and in reverse: all, in order."""
    filler = "a remote pushing panorama of unfixed craneflies, tilting up and rolling leftwards; "
    phrases = [*VOCABULARY, *reversed(VOCABULARY)]
    text = "".join(filler * 60 + phrase + ". " for phrase in phrases)
    assert len(text.split()) > 20_000
    expected = [motion for phrase in phrases for motion in VOCABULARY[phrase]]
    assert list(detect_motions(text)) == expected


def test_primitives_are_the_papers_nine() -> None:
    assert len(PRIMITIVES) == 9
    assert PRIMITIVES[0] is M.PUSH_IN
    assert PRIMITIVES[-1] is M.FIXED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Camera pan left by 30 degrees.", [(M.PAN_LEFT, 30.0)]),
        ("tilt up by 12.5°, then roll right by 5 deg", [(M.TILT_UP, 12.5), (M.ROLL_RIGHT, 5.0)]),
        ("push in by 0.4 scene depths; crane down", [(M.PUSH_IN, 0.4), (M.CRANE_DOWN, None)]),
        ("Orbit left\nby 40 degrees around it", [(M.ORBIT_LEFT, 40.0)]),
        # A number without a unit of the camera's is about something else.
        (
            "move left by 3 people, pan right by 2 metres",
            [(M.MOVE_LEFT, None), (M.PAN_RIGHT, None)],
        ),
        ("pan left by 30 degreesque", [(M.PAN_LEFT, None)]),
        ("push in by .4 scene-depths", [(M.PUSH_IN, 0.4)]),
        ("Pan left by about 30-degree steps", [(M.PAN_LEFT, 30.0)]),
        ("orbit right by 40 º", [(M.ORBIT_RIGHT, 40.0)]),
        ("pan left 30 degrees, push in .4 depths", [(M.PAN_LEFT, 30.0), (M.PUSH_IN, 0.4)]),
        ("pan left slowly by 30 degrees", [(M.PAN_LEFT, 30.0)]),
        ("pan left, by 30 degrees", [(M.PAN_LEFT, 30.0)]),
        ("push in, 20 degrees of frost. Crane up. 3°", [(M.PUSH_IN, None), (M.CRANE_UP, None)]),
    ],
)
def test_amounts_follow_their_motion(text: str, expected: list[tuple[Motion, float]]) -> None:
    assert detect_segments(text) == tuple(Segment(*pair) for pair in expected)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("push in by 30 degrees", "'push in' is asked for by 30 degrees; allowed: an amount in de"),
        ("pan left by 1 depth", "allowed: an amount in degrees"),
        ("fixed by 1 degree", "no amount, since it does not move"),
        ("pull left by 9 degrees", r"an amount for each of its parts \('move left', 'pull out'"),
        ("pan left by 181 degrees", "allowed: above 0, up to 180 degrees"),
        ("pull out by 0 depths", "allowed: above 0, up to 3 depths"),
        ("pull out by -0.4 depths", "allowed: above 0, up to 3 depths"),
        ("push in by 0,4 depths", "'push in' is asked for by 0,4; allowed: a plain number"),
        ("pan left by 30 to 40 degrees", "by 30 to 40; allowed: a plain number"),
        ("pan left 30-40 degrees", "by 30-40; allowed: a plain number"),
        ("pan left by 1,000 degrees", "by 1,000; allowed: a plain number such as 30 or 0.4"),
    ],
)
def test_amounts_that_do_not_fit_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        detect_segments(text)
