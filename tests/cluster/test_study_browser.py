"""The study's page in a real browser: answers stored, sides drawn anew, the tally right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from cluster.study import StudyKey, write_study
from cluster.tally import tally
from prompts.schema import Prompt
from tests.cluster.browser import open_browser, watch
from tests.cluster.test_study import PROMPTS, make_folder

MANY = tuple(Prompt.from_text(f"q{i}", f"Camera push in. {i} boxes.") for i in range(9))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyKey]:
    """A is dark, B is bright, so that what plays can be told from outside."""
    folder = tmp_path_factory.mktemp("study")
    a = make_folder(folder / "a", 60, PROMPTS + MANY)
    b = make_folder(folder / "b", 200, PROMPTS + MANY)
    return folder / "study", write_study(a, b, folder / "study", pairs=30, seed=0)


LEVELS = """() => {
    const levels = {};
    for (const id of ["left", "right"]) {
        const video = document.getElementById(id), canvas = document.createElement("canvas");
        if (video.readyState !== 4 || !(video.currentTime > 0)) return null;
        const context = canvas.getContext("2d");
        context.drawImage(video, 0, 0, 1, 1);
        const [red, , , alpha] = context.getImageData(0, 0, 1, 1).data;
        if (alpha !== 255) return null;
        levels[id] = red;
    }
    return levels;
}"""
"""Of both playing videos; null while one has no frame to draw, as at the seam of its loop."""


def bright_side(page: Page) -> str:
    """Where B's video plays, by its pixels."""
    levels = page.wait_for_function(LEVELS).json_value()
    assert abs(levels["left"] - levels["right"]) > 80, levels
    return str(max(levels, key=lambda side: levels[side]))


def answer(page: Page, name: str, side: str) -> None:
    page.locator(f'fieldset input[name="{name}"][value="{side}"]').check(force=True)


def take_part(browser: Browser, folder: Path, to: Path) -> list[str]:
    """Prefer B's geometry, A's camera, and neither overall; where B was, pair by pair."""
    context = browser.new_context(viewport={"width": 1240, "height": 900}, accept_downloads=True)
    page, faults, sides = context.new_page(), list[str](), list[str]()
    watch(page, faults)
    page.goto((folder / "study.html").as_uri())
    page.click("#start")
    for number in range(len(PROMPTS + MANY)):
        assert f"{number + 1} of 12" in page.inner_text("#count")
        side = bright_side(page)
        sides.append(side)
        assert page.is_disabled("#next")
        answer(page, "geometry", side)
        if page.locator('input[name="camera"]').count():
            answer(page, "camera", "left" if side == "right" else "right")
        answer(page, "overall", "same")
        if number == 4:
            page.reload()
            assert f"{number + 1} of 12" in page.inner_text("#count")
            assert bright_side(page) == side
            assert page.is_checked(f'input[name="geometry"][value="{side}"]')
        page.click("#next")
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(to)
    page.click("#another")  # the next person at the same computer is not this one
    page.wait_for_selector("#welcome:not([hidden])")
    assert page.evaluate("Object.keys(localStorage).length") == 0
    assert faults == []
    context.close()
    return sides


def test_two_participants_see_other_sides_and_the_tally_is_what_they_chose(
    browser: Browser, study: tuple[Path, StudyKey], tmp_path: Path
) -> None:
    folder, key = study
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    sides = [take_part(browser, folder, file) for file in files]
    given = [json.loads(file.read_text()) for file in files]
    assert given[0]["participant"] != given[1]["participant"]
    orders = [[entry["pair"] for entry in one["answers"]] for one in given]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(pair.id for pair in key.pairs)
    assert {"left", "right"} == set(sides[0]) == set(sides[1])
    b = {pair.id: pair.b for pair in key.pairs}
    for one, seen in zip(given, sides, strict=True):
        for entry, side in zip(one["answers"], seen, strict=True):
            assert entry[side] == b[entry["pair"]]
            assert entry["seconds"] > 0
    _, (geometry, camera, overall) = tally(folder / "key.json", files)
    assert (geometry.rate, geometry.wins) == (1.0, 24)
    assert (camera.rate, camera.losses) == (0.0, 22)
    assert (overall.rate, overall.ties) == (0.5, 24)


def test_keys_answer_and_go_on(browser: Browser, study: tuple[Path, StudyKey]) -> None:
    context = browser.new_context(viewport={"width": 1240, "height": 900})
    page = context.new_page()
    page.goto((study[0] / "study.html").as_uri())
    page.click("#start")
    bright_side(page)
    for key in ("1", "2", "3"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    assert "2 of 12" in page.inner_text("#count")
    page.click("#back")
    assert page.is_checked('input[name="geometry"][value="left"]')
    context.close()
