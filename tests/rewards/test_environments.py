"""Environments: what is wrong with one is named in a sentence, before anything is started in it.

Not covered here: building (CI builds the judge's and runs in it: test_judge_served.py).
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from rewards import environments
from rewards.config import AestheticConfig, JudgeConfig, PerceptualConfig, RewardConfig
from rewards.environments import (
    FOLDER,
    RECIPES,
    STAMP,
    EnvironmentProblem,
    Recipe,
    build,
    check,
    fingerprint,
    first_problem,
    locate,
    located,
    pins,
    python_of,
    require_backends,
)
from rewards.human_preference import weights_path
from rewards.weights import WeightsMissing

ROOT = Path(environments.__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment without any package, stamped as the judge's."""
    folder = tmp_path_factory.mktemp("envs") / "judge"
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    stamp(folder)
    return folder


def stamp(folder: Path, **changes: object) -> None:
    content = {"family": "judge", "cpu": True, "fingerprint": fingerprint(RECIPES["judge", True])}
    (folder / STAMP).write_text(json.dumps(content | changes))


def problem(folder: Path) -> str:
    with pytest.raises(EnvironmentProblem) as found:
        check("judge", folder)
    text = str(found.value)
    assert "\n" not in text
    assert str(folder) in text
    return text


def test_what_is_wrong_is_named(empty: Path, tmp_path: Path) -> None:
    assert "does not exist; build it with `worldr1 envs build judge`" in problem(tmp_path / "no")
    assert "holds ray (none), needed is 2.60.0" in problem(empty)
    stamp(empty, fingerprint="older")
    assert "was built from other requirements" in problem(empty)
    stamp(empty, family="aesthetic")
    assert "was built for 'aesthetic', not for 'judge'" in problem(empty)
    (empty / STAMP).write_text("{")
    assert "is not whole" in problem(empty)
    (empty / STAMP).unlink()
    assert "is not whole" in problem(empty)
    stamp(empty)


def test_another_python_and_no_python_are_named(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "broken"
    (folder / "bin").mkdir(parents=True)
    stamp(folder)
    python = folder / "bin" / "python"
    python.write_text("#!/bin/sh\necho this is no python >&2\nexit 1\n")
    python.chmod(0o755)
    assert "is no working Python: this is no python" in problem(folder)
    python.write_text('#!/bin/sh\necho \'{"python": "3.9.2", "packages": {}}\'\n')
    assert "runs Python 3.9.2, core runs 3.11" in problem(folder)


def test_a_run_is_refused_before_it_starts(empty: Path) -> None:
    judge = JudgeConfig(backend="vllm", env=str(empty))
    with pytest.raises(EnvironmentProblem, match=r"rewards\.judge\.env cannot be used: .*ray"):
        require_backends(RewardConfig(judge=judge))
    assert first_problem({}) == ""
    with pytest.raises(EnvironmentProblem, match="needs the package vllm, which is not installed"):
        require_backends(RewardConfig(judge=JudgeConfig(backend="vllm")))
    with pytest.raises(EnvironmentProblem, match=r"set rewards\.aesthetic\.env = 'aesthetic'"):
        require_backends(RewardConfig(aesthetic=AestheticConfig(backend="hpsv3")))
    require_backends(RewardConfig())


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLDR1_ENVS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert locate("judge") == tmp_path / "judge"
    assert locate("./judge") == tmp_path / "judge"
    assert locate("/envs/judge") == Path("/envs/judge")
    assert python_of("judge") == str(tmp_path / "judge/bin/python")
    assert python_of("") == sys.executable
    (tmp_path / "model").mkdir()
    config = RewardConfig(judge=JudgeConfig(backend="vllm", env="judge", model="model"))
    assert located(config).judge.env == str(tmp_path / "judge")
    assert located(config).judge.model == str(tmp_path / "model")
    assert located(RewardConfig()) == RewardConfig()
    (tmp_path / "alexnet.safetensors").touch()
    lpips = PerceptualConfig(backend="lpips", weights="alexnet.safetensors")
    found = located(RewardConfig(perceptual=lpips)).perceptual.weights
    assert found == str(tmp_path / "alexnet.safetensors")


def test_a_folder_that_is_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(EnvironmentProblem, match="is no virtual environment"):
        build("judge", True, tmp_path, lambda line: None)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_every_requirement_is_pinned_and_shared_ones_are_cores() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = dict(
        re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?==(\S+)", line).groups()  # type: ignore[union-attr]
        for line in project["dependencies"]
    )
    used = {file for recipe in RECIPES.values() for file in (*recipe.requirements, *recipe.alone)}
    assert used == {path.name for path in FOLDER.glob("*.txt")}
    for recipe in RECIPES.values():
        assert pins(recipe), "every line is a pin, or this raises"
        assert "ray" in pins(recipe)
    for name, version in pins(Recipe(("workers.txt",))).items():
        assert core[name] == version, name
    for extra in ("judge", "aesthetic"):
        (declared,) = project["optional-dependencies"][extra]
        name, _, version = declared.partition("==")
        assert pins(RECIPES[extra, False])[name] == version  # type: ignore[index]


def test_weights_that_are_missing_or_pickled_are_named(tmp_path: Path) -> None:
    pickled = tmp_path / "HPSv3.pth"
    pickled.write_bytes(b"x")
    with pytest.raises(WeightsMissing, match=r"is no \.safetensors file"):
        weights_path(str(pickled))
    with pytest.raises(WeightsMissing, match=r"rewards\.aesthetic\.model = .*HPSv3\.safetensors"):
        weights_path(str(tmp_path))
    whole = tmp_path / "HPSv3.safetensors"
    whole.write_bytes(b"x")
    assert weights_path(str(whole)) == weights_path(str(tmp_path)) == str(whole)
