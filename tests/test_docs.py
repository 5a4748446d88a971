"""The pages describe what is: the reference is that of the models, links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from cluster.config import flatten, load

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return script("reference")


def test_configuration_page_is_what_the_models_say(reference: ModuleType) -> None:
    assert reference.PAGE.read_text() == reference.page(), "run: python docs/reference.py"


def test_the_guides_table_is_what_the_planner_says() -> None:
    plan_table = script("plan_table")
    text = plan_table.PAGE.read_text()
    assert plan_table.HEAD in text
    assert plan_table.page(text) == text, "run: python docs/plan_table.py"


def test_every_key_has_a_row_and_a_meaning(reference: ModuleType) -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| `.*?` \| (.*) \|$", reference.page(), re.M)
    assert {key for key, _, _ in rows} == set(flatten(load("toy")))
    for key, allowed, meaning in rows:
        assert len(meaning) > 8, key
        assert allowed, key


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_and_pictures_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_site_shows_every_page_and_pictures_are_small() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        assert f": {page.name}\n" in navigation, page.name
    for picture in (ROOT / "docs/figures").iterdir():
        assert picture.stat().st_size <= 300_000, picture.name
