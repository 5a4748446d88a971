"""Wrong starts by the thousand: one sentence, exit 2, no traceback, nothing written, never begun.

CI runs a sample; `pytest -m hand tests/cluster/test_fuzz_inputs.py` runs 2,000 cases. Not covered:
wrong models (a proof of the start refuses those), and values that are only unwise.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, given, seed, settings

from cluster.cli import main
from cluster.config import RunConfig
from tests.cluster.bad_inputs import (
    FINGERPRINTED,
    bad_overrides,
    bad_prompt_files,
    bad_prompt_names,
    bad_runs,
    bad_toml,
    damages,
    leaves,
    numeric_bounds,
    saved_run,
)

SHARES = {
    "overrides": 0.5,
    "toml": 0.05,
    "prompts": 0.2,
    "names": 0.05,
    "runs": 0.05,
    "damage": 0.15,
}
"""Share of the cases that each kind of input gets."""
IN_CI, BY_HAND = 100, 2000


class Accepted(Exception):
    """A wrong input got as far as the workers."""


def tripwire(config: RunConfig) -> NoReturn:
    raise Accepted(config.run)


def refused(*arguments: str) -> str:
    """Start a run in this process; the one sentence with which it was refused."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["train", "toy", *arguments, "--local"])
    lines = err.getvalue().splitlines()
    assert code == 2, (code, arguments, lines)
    assert len(lines) == 1, (arguments, lines)
    assert lines[0].startswith("worldr1: ")
    assert len(lines[0]) > 20
    assert "Traceback" not in lines[0]
    return lines[0]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder; whatever gets to the workers is a failure, not a run."""
    monkeypatch.setattr("cluster.runs.in_this_process", tripwire)
    folder = Path(tempfile.mkdtemp(prefix="wr1-fuzz-"))
    yield folder
    shutil.rmtree(folder)


def check_overrides(place: Path, case: Any) -> None:
    key = case.partition("=")[0].partition(".inner")[0]
    sentence = refused(case, *([] if key == "run" else ["--run", str(place / "run")]))
    assert any(part in sentence for part in key.split(".")), (case, sentence)
    assert not files(place)


def check_toml(place: Path, case: Any) -> None:
    file = place.parent / f"{place.name}.toml"
    file.write_bytes(case)
    try:
        refused("--config", str(file), "--run", str(place / "run"))
    finally:
        file.unlink()
    assert not files(place)


def check_prompts(place: Path, case: Any) -> None:
    ending, content = case
    file = place.parent / f"{place.name}{ending}"
    file.write_bytes(content)
    try:
        sentence = refused(f"prompts.train={file}", "--run", str(place / "run"))
    finally:
        file.unlink()
    assert "prompts.train" in sentence
    assert not files(place)


def check_names(place: Path, case: Any) -> None:
    assert "prompts.test" in refused(f"prompts.test={case}", "--run", str(place / "run"))
    assert not files(place)


def check_runs(place: Path, case: Any) -> None:
    before = files(place)
    assert "run" in refused("--run", case)
    assert files(place) == before


def check_damage(place: Path, case: Any) -> None:
    what, damage = case
    run = place / "run"
    store = saved_run(run, (2,))
    damage(run / "checkpoints/step_000002")
    before = files(run)
    sentence = refused("--run", str(run))
    assert "step 2" in sentence, (what, sentence)
    assert files(run) == before
    shutil.rmtree(run)
    assert store.steps() == ()


CHECKS: dict[str, Callable[[Path, Any], None]] = {
    "overrides": check_overrides,
    "toml": check_toml,
    "prompts": check_prompts,
    "names": check_names,
    "runs": check_runs,
    "damage": check_damage,
}


def fuzz(kind: str, place: Path, cases: int) -> Counter[str]:
    """Run `cases` cases of a kind; how many were refused as they must."""
    strategy = {
        "overrides": bad_overrides,
        "toml": bad_toml,
        "prompts": bad_prompt_files,
        "names": bad_prompt_names,
        "runs": lambda: bad_runs(place),
        "damage": damages,
    }[kind]()
    counts: Counter[str] = Counter()

    @seed(0)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def run(case: Any) -> None:
        counts["cases"] += 1
        CHECKS[kind](place, case)
        counts["refused"] += 1

    run()
    return counts


@pytest.mark.parametrize("kind", list(CHECKS))
def test_wrong_input_is_refused_in_one_sentence(kind: str, place: Path) -> None:
    counts = fuzz(kind, place, max(4, round(IN_CI * SHARES[kind])))
    assert counts["refused"] == counts["cases"] > 0


@pytest.mark.hand
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", list(CHECKS))
def test_two_thousand_wrong_inputs(kind: str, place: Path) -> None:
    counts = fuzz(kind, place, round(BY_HAND * SHARES[kind]))
    print(f"{kind}: {counts['cases']} cases, {counts['refused']} refused, 0 tracebacks, 0 accepted")
    assert counts["refused"] == counts["cases"]


@pytest.mark.parametrize("change", FINGERPRINTED)
def test_checkpoint_of_another_configuration_is_refused(change: str, place: Path) -> None:
    saved_run(place / "run", (2,))
    before = files(place)
    assert change.partition("=")[0] in refused(change, "--run", str(place / "run"))
    assert files(place) == before


def test_newer_damaged_checkpoint_falls_back_to_the_older_one(place: Path) -> None:
    saved_run(place / "run")
    (place / "run/checkpoints/step_000004/state.json").unlink()
    with pytest.raises(Accepted):
        main(["train", "toy", "--local", "--run", str(place / "run")])


def test_every_number_has_bounds() -> None:
    for key, field in leaves().items():
        for choice in field.get("anyOf", [field]):
            if choice.get("type") in ("integer", "number"):
                low, high = numeric_bounds(choice)
                assert low < high, key
