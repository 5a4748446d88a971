"""Ages by tables: replayed versions are neither stale nor mistaken for those of a left branch."""

from __future__ import annotations

import pytest

from actors.trajectory import WeightsVersion
from cluster.versions import KEPT_LINEAGES, Lineages


def lineages(*starts: tuple[str, int]) -> Lineages:
    return Lineages(starts=starts)


@pytest.mark.parametrize(
    ("history", "version", "step", "age"),
    [
        (lineages(("a", 0)), (7, "a"), 7, 0),
        (lineages(("a", 0)), (5, "a"), 7, 2),
        (lineages(("a", 0), ("b", 120)), (118, "a"), 121, 3),
        (lineages(("a", 0), ("b", 120)), (120, "a"), 121, 1),
        # 121 of the lineage that was left at 120: its number is the current one, its weights gone.
        (lineages(("a", 0), ("b", 120)), (121, "a"), 121, None),
        (lineages(("a", 0), ("b", 120)), (121, "b"), 121, 0),
        # A fall-back to an older checkpoint cuts every branch that went beyond it.
        (lineages(("a", 0), ("b", 120), ("c", 110)), (115, "a"), 121, None),
        (lineages(("a", 0), ("b", 120), ("c", 110)), (120, "b"), 121, None),
        (lineages(("a", 0), ("b", 120), ("c", 110)), (110, "a"), 111, 1),
        (lineages(("a", 0)), (3, "stranger"), 7, None),
        (lineages(("a", 0)), (8, "a"), 7, None),
    ],
)
def test_age(history: Lineages, version: tuple[int, str], step: int, age: int | None) -> None:
    assert history.age(WeightsVersion(version[0], version[1], "c"), step) == age


def test_branches_are_appended_and_bounded() -> None:
    history = Lineages()
    assert history.current == ""
    for restart in range(KEPT_LINEAGES + 5):
        history = history.branch(f"l{restart}", restart)
    assert len(history.starts) == KEPT_LINEAGES
    assert history.current == f"l{KEPT_LINEAGES + 4}"
