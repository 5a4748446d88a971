"""The repository's own rules: linters, types, layers, sizes, who imports Ray, no secrets."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("prompts", "actors", "rewards", "learner", "cluster", "toyworld")
RAY_FILES = {
    "cluster/handles.py",
    "cluster/placement.py",
    "cluster/ray_pool.py",
    "cluster/ray_ranks.py",
    "cluster/broadcast.py",
    "cluster/metrics.py",
    "cluster/submit.py",
}
TOP_LEVEL = {
    *("actors", "learner", "rewards", "cluster", "prompts", "toyworld", "tests", "benchmarks"),
    *("docs", "pyproject.toml", "ray_job.yaml", "README.md", "Makefile", "LICENSE", "mkdocs.yml"),
    *(".ci", ".gitignore", ".dockerignore"),
}
LAZY_ONLY = {"gsplat", "vllm", "depth_anything_3", "hpsv3", "lpips"}


def sources() -> list[Path]:
    return sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        pytest.param(["mypy"], marks=pytest.mark.slow),
        ["lint-imports"],
    ],
    ids=["ruff", "format", "mypy", "layers"],
)
def test_tool_has_no_complaint(command: list[str]) -> None:
    tool = Path(sys.executable).parent / command[0]
    result = subprocess.run(
        [str(tool), *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


def test_top_level_is_the_documented_one() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert {path.split("/")[0] for path in listed if path} == TOP_LEVEL


def test_ray_is_imported_in_the_listed_files_alone() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in sources()
        if "ray" in imported(ast.parse(path.read_text()))
    }
    assert found <= RAY_FILES
    assert "cluster/handles.py" in found


def test_backend_packages_are_imported_inside_functions_alone() -> None:
    for path in sources():
        tree = ast.parse(path.read_text())
        top_level = {
            name
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in imported(node)
        }
        assert not top_level & LAZY_ONLY, path


@pytest.mark.parametrize("package", PACKAGES)
def test_package_lies_in_this_repository(package: str) -> None:
    file = importlib.import_module(package).__file__
    assert file is not None
    assert Path(file).is_relative_to(ROOT)
    assert (ROOT / package / "__init__.py").read_text() == ""


def test_sizes() -> None:
    texts = [path.read_text() for path in sources()]
    lengths = sorted(len(text.splitlines()) for text in texts if text)
    assert lengths[-1] <= 500
    assert lengths[len(lengths) // 2] <= 160


def test_configuration_imports_neither_torch_nor_ray() -> None:
    program = (
        "import sys; import cluster.cli, cluster.config; cluster.config.load('toy');"
        "print(sorted({'torch', 'ray', 'diffusers', 'cv2'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_nothing_is_unpickled_and_no_remote_code_is_trusted() -> None:
    for path in sources():
        text = path.read_text()
        assert "trust_remote_code=True" not in text, path
        assert "pickle" not in imported(ast.parse(text)), path
