"""The blind study: what the page gives away, and what becomes of answers, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.cli import main
from cluster.clips import Clip, write_index
from cluster.config import ConfigError
from cluster.storage import RunFolder
from cluster.study import QUESTIONS, StudyKey, write_study
from cluster.tally import Answer, Answers, tally, tally_table
from cluster.video import encode_mp4
from prompts.schema import Prompt

PROMPTS = (
    Prompt.from_text("p0", "Camera push in. A red <box> on a green & white floor."),
    Prompt.from_text("p1", "Camera pan left. A blue ball."),
    Prompt.from_text("p2", "A quiet room without a </script> word about cameras."),
)


def make_folder(url: Path, grey: int, prompts: tuple[Prompt, ...] = PROMPTS) -> str:
    """A folder of one-colour clips."""
    folder = RunFolder(str(url))
    clips = [Clip.of(prompt, 0, None) for prompt in prompts]
    data = encode_mp4(np.full((9, 64, 96, 3), grey, np.uint8))
    for clip in clips:
        folder.write_bytes(clip.file, data)
    write_index(folder, clips)
    return str(url)


@pytest.fixture
def study(tmp_path: Path) -> StudyKey:
    a, b = make_folder(tmp_path / "alpha", 60), make_folder(tmp_path / "beta", 200)
    return write_study(a, b, tmp_path / "study", pairs=30, seed=0)


def answers(key: StudyKey, participant: str, **choose: str) -> Answers:
    """Everywhere the same preference: "a", "b" or "same" by question."""
    given = [
        Answer(
            pair=pair.id,
            left=pair.a,
            right=pair.b,
            choices={
                name: {"a": pair.a, "b": pair.b, "same": "same"}[choose[name]]
                for name in pair.questions
            },
            seconds=4.0,
        )
        for pair in key.pairs
    ]
    return Answers(study=key.study, participant=participant, answers=tuple(given))


def save(file: Path, given: Answers) -> Path:
    file.write_text(given.model_dump_json())
    return file


def test_page_holds_no_sign_of_whose_video_is_whose(study: StudyKey, tmp_path: Path) -> None:
    page = (tmp_path / "study/study.html").read_text()
    for word in ("alpha", "beta", str(tmp_path), '"a":', '"b":'):
        assert word not in page
    key = StudyKey.model_validate_json((tmp_path / "study/key.json").read_text())
    assert key == study
    assert all(token in page for pair in key.pairs for token in (pair.a, pair.b))
    assert page.count("</script>") == 2
    asked = {pair.prompt: pair.questions for pair in key.pairs}
    assert asked[PROMPTS[0].text] == tuple(QUESTIONS)
    assert asked[PROMPTS[2].text] == ("geometry", "overall")
    order = [min(pair.a, pair.b) == pair.a for pair in _many(tmp_path).pairs]
    assert 8 < sum(order) < 22


def _many(tmp_path: Path) -> StudyKey:
    prompts = tuple(Prompt.from_text(f"q{i}", f"Camera push in. {i} boxes.") for i in range(40))
    a, b = make_folder(tmp_path / "c", 60, prompts), make_folder(tmp_path / "d", 200, prompts)
    return write_study(a, b, tmp_path / "many", pairs=30, seed=1)


def test_tally_by_hand(study: StudyKey, tmp_path: Path) -> None:
    """Three people: B, B, A on geometry is 2/3; the camera question is asked about two pairs."""
    files = [
        save(tmp_path / "1", answers(study, "1", geometry="b", camera="same", overall="b")),
        save(tmp_path / "2", answers(study, "2", geometry="b", camera="same", overall="b")),
        save(tmp_path / "3", answers(study, "3", geometry="a", camera="b", overall="b")),
    ]
    key, rates = tally(tmp_path / "study/key.json", files)
    geometry, camera, overall = rates
    assert (geometry.wins, geometry.ties, geometry.losses) == (6, 0, 3)
    assert geometry.rate == pytest.approx(2 / 3)
    # Whole people are drawn again: 0, 1, 2 or 3 of the three may be the one who prefers A.
    assert (geometry.lower, geometry.upper) == (0.0, 1.0)
    assert (camera.wins, camera.ties, camera.losses) == (2, 4, 0)
    assert camera.rate == pytest.approx(2 / 3)
    assert (camera.lower, camera.upper) == (0.5, 1.0)
    # All of three people about three pairs: Wilson's 1 / (1 + 1.96² / 3).
    assert (overall.rate, overall.upper) == (1.0, pytest.approx(1.0))
    assert overall.lower == pytest.approx(0.4385, abs=1e-4)
    assert (geometry.left, overall.left) == (pytest.approx(1 / 3), 0.0)
    table = tally_table(key, rates, 3).splitlines()
    assert table[3].split()[:3] == ["geometry", "66.7%", "0.0%"]
    assert table[-1].startswith("3 participants")
    assert "not about other people" in tally_table(key, rates, 1)


def test_interval_narrows_with_people_and_covers_a_coin(study: StudyKey, tmp_path: Path) -> None:
    """40 people of whom 30 prefer B: 75 %, an interval of about ± 2 x sqrt(.75 x .25 / 40)."""
    files = [
        save(
            tmp_path / str(i),
            answers(study, str(i), geometry="b" if i % 4 else "a", camera="a", overall="same"),
        )
        for i in range(40)
    ]
    _, rates = tally(tmp_path / "study/key.json", files)
    assert rates[0].rate == 0.75
    assert rates[0].lower == pytest.approx(0.75 - 0.134, abs=0.02)
    assert rates[0].upper == pytest.approx(0.75 + 0.134, abs=0.02)
    # All say "same": Wilson's (1 + z² / 2n) / (1 + z² / n) ... of 3 answers, as many as pairs.
    assert rates[2].rate == 0.5
    assert rates[2].lower == pytest.approx(0.5 - 0.3747, abs=1e-4)
    assert rates[2].upper == pytest.approx(0.5 + 0.3747, abs=1e-4)


def test_wrong_input_is_one_sentence(
    study: StudyKey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "study/key.json"
    good = answers(study, "1", geometry="b", camera="b", overall="b")
    first = good.answers[0]
    other = first.model_copy(update={"left": "x"})
    unasked = first.model_copy(update={"choices": {"geometry": "same"}})
    for changes, words in (
        ({"study": "another"}, "belongs to another study"),
        ({"answers": (other,)}, "is not in the study"),
        ({"answers": (first, first)}, "answers a pair twice"),
        ({"answers": (unasked,)}, "does not answer what was asked"),
    ):
        save(tmp_path / "bad.json", good.model_copy(update=changes))
        with pytest.raises(ConfigError, match=words):
            tally(key, [tmp_path / "bad.json"])
    files = [save(tmp_path / name, good) for name in ("one.json", "two.json")]
    with pytest.raises(ConfigError, match="are of one participant"):
        tally(key, files)
    elsewhere = make_folder(tmp_path / "else", 9, (Prompt.from_text("zz", "A box."),))
    changed = make_folder(tmp_path / "text", 9, (Prompt.from_text("p0", "A box."),))
    for arguments, words in (
        ([str(tmp_path / "alpha")], "compares two folders; 1 were given"),
        ([str(tmp_path / "alpha"), elsewhere], "share no prompt and seed"),
        ([str(tmp_path / "alpha"), changed], "is another text"),
        ([str(tmp_path / "alpha"), str(tmp_path / "none")], "has no videos.jsonl"),
        ([study.a, study.b, "--pairs", "0"], "--pairs 0"),
        (["--tally", str(key)], "at least one file of answers"),
        (["--tally", str(key), str(key)], "is no Answers file"),
        (["--tally", str(tmp_path / "none"), str(key)], "cannot be read"),
    ):
        assert main(["study", *arguments, "--to", str(tmp_path / "new")]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_folder_of_an_evaluation_is_compared_too(tmp_path: Path) -> None:
    rows = [{"prompt_id": p.id, "prompt": p.text, "seed": 0} for p in PROMPTS]
    for name in ("step_000000", "step_000096"):
        folder = Path(make_folder(tmp_path / name, 60))
        (folder / "videos.jsonl").unlink()
        (folder / "scores.json").write_text(json.dumps(rows))
    arguments = [str(tmp_path / name) for name in ("step_000000", "step_000096")]
    assert main(["study", *arguments, "--to", str(tmp_path / "study")]) == 0


def test_a_path_that_was_given_by_hand_is_in_no_words(tmp_path: Path) -> None:
    path = tuple(tuple(map(tuple, pose)) for pose in np.tile(np.eye(4), (9, 1, 1)).tolist())
    prompts = (PROMPTS[0], PROMPTS[1].model_copy(update={"c2w": path}))
    a, b = (make_folder(tmp_path / name, 60, prompts) for name in "ab")
    key = write_study(a, b, tmp_path / "study", pairs=2, seed=0)
    asked = {pair.prompt: "camera" in pair.questions for pair in key.pairs}
    assert asked == {PROMPTS[0].text: True, PROMPTS[1].text: False}
