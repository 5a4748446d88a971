"""The report in a real browser: no error, every plot has data, videos play, in step and at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from cluster.config import RunConfig
from cluster.report.page import write_report
from tests.cluster.browser import open_browser, open_page
from tests.cluster.made_run import PROMPT, make_run

pytestmark = pytest.mark.slow

FIRST_PAINT_S = 1.0

POINTS = """name => {
    const element = document.querySelector(`[data-plot="${name}"]`);
    element.closest("[hidden]")?.removeAttribute("hidden");
    element.scrollIntoView();
    return new Promise((done) => (function look() {
        const traces = element.data;
        if (!traces || !element.querySelector(".main-svg")) return setTimeout(look, 50);
        done(traces.map((trace) => trace._length ?? trace.x.length ?? trace.x._inputArray?.length));
    })());
}"""
"""Number of points of each trace of a plot, once it is drawn."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


def ready(page: Page) -> None:
    page.wait_for_function("window.Plotly && window.worldr1Figures")


def require_plots(page: Page) -> set[str]:
    """Bring every plot into sight; all are drawn, and every trace has points."""
    ready(page)
    names = page.eval_on_selector_all(".plot", "all => all.map(plot => plot.dataset.plot)")
    for name in names:
        counts = page.evaluate(POINTS, name)
        assert counts, name
        assert min(counts) > 0, (name, counts)
    return set(names)


def require_playing(page: Page) -> list[float]:
    """The clips of the first group play, no two further apart than a frame of 4 a second."""
    page.evaluate("document.querySelector('.group').scrollIntoView()")
    page.wait_for_function(
        "[...document.querySelectorAll('.group')[0].querySelectorAll('video')]"
        ".every(video => video.readyState === 4 && video.currentTime > 0.3)"
    )
    times: list[float] = page.evaluate(
        "[...document.querySelectorAll('.group')[0].querySelectorAll('video')]"
        ".map(video => video.currentTime)"
    )
    assert max(times) - min(times) < 0.25 + 1e-9
    return times


def test_copied_report_shows_every_plot_and_plays_its_videos_in_step(
    browser: Browser, smallest: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = smallest("steps=8", "rollout.group_size=3", "schedule.main_steps=3")
    make_run(config, steps=8, groups=2, evals=(0, 4, 8))
    written = Path(write_report(config.run))
    copied = tmp_path / "taken away"
    shutil.copytree(written.parent, copied)
    shutil.rmtree(config.run)
    faults: list[str] = []
    page = open_page(browser, (copied / "index.html").as_uri(), faults)
    names = require_plots(page)
    assert {"reward", "part-traj", "guard-motion", "kl", "shares", "camera-0"} <= names
    times = require_playing(page)
    assert len(times) == 6
    prompt = page.text_content(".group .prompt") or ""
    assert prompt.strip() == f"“{PROMPT}”"
    require_closer_look(page, copied)
    assert faults == []
    page.close()


def require_closer_look(page: Page, report: Path) -> None:
    """A member's dialog plays cameras and depth, shows the judge's digits and has its Gaussians."""
    page.evaluate("document.querySelector('.more').click()")
    page.wait_for_function(
        "[...document.querySelectorAll('dialog[open] video')].length === 2 &&"
        "[...document.querySelectorAll('dialog[open] video')].every(v => v.currentTime > 0.1)"
    )
    assert page.locator("dialog[open] .digits span").count() == 10
    assert (report / (page.get_attribute("dialog[open] a", "href") or "")).read_bytes() == b"ply"
    page.click("dialog[open] form button")
    assert page.locator("dialog[open]").count() == 0


@pytest.mark.hand
def test_report_of_given_runs(browser: Browser) -> None:
    """REPORT_RUNS="RUN ..." pytest -m hand: the pages of real runs, written and opened."""
    for run in os.environ["REPORT_RUNS"].split():
        faults: list[str] = []
        page = open_page(browser, Path(write_report(run)).as_uri(), faults)
        names = require_plots(page)
        times = require_playing(page)
        print(f"{run}: {len(names)} plots, {len(times)} clips of a group in step, {faults}")
        assert faults == []
        page.close()


def test_first_paint_with_500_videos(browser: Browser, smallest: Callable[..., RunConfig]) -> None:
    """Best of three, since the machine that tests is shared; the page holds no video before."""
    config = smallest("steps=8", "rollout.group_size=8")
    make_run(config, steps=8, groups=31, evals=(0, 8))
    url = Path(write_report(config.run)).as_uri()
    paints, faults = [], list[str]()
    for _ in range(3):
        page = open_page(browser, url, faults)
        assert page.locator("video").count() >= 500
        page.wait_for_function("performance.getEntriesByType('paint').length > 0")
        entry = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
        paints.append(page.evaluate(entry))
        loaded = page.eval_on_selector_all("video", "all => all.filter(v => v.src).length")
        assert loaded < 60
        page.close()
    print(f"first contentful paint: {[round(paint, 3) for paint in paints]} s")
    assert min(paints) <= FIRST_PAINT_S
    assert faults == []


def test_run_without_a_step_has_a_page(
    browser: Browser, smallest: Callable[..., RunConfig]
) -> None:
    config = smallest()
    make_run(config, steps=0, groups=0, evals=())
    faults: list[str] = []
    page = open_page(browser, Path(write_report(config.run)).as_uri(), faults)
    ready(page)
    assert "nothing was evaluated" in (page.text_content(".empty") or "")
    assert faults == []
    page.close()
