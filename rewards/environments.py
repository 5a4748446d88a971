"""Python environments of the reward families whose packages cannot live beside core's.

Each is a virtual environment made from pinned requirement files in `rewards/envs/`. A worker that
is started in it has to run the Python minor and the Ray of core: for an interpreter that cannot
import it, Ray waits for ever and says nothing. So every environment is checked before it is used.

Imports neither torch nor ray.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel

from rewards.config import RewardConfig

Family = Literal["judge", "reconstruction", "aesthetic"]
FAMILIES: tuple[Family, ...] = get_args(Family)

FOLDER = Path(__file__).parent / "envs"
STAMP = "worldr1.json"
"""Written last into a built environment: what it was built from."""
ROOT_VARIABLE = "WORLDR1_ENVS"
PROBE_TIMEOUT_S = 60.0
IMPORT_TIMEOUT_S = 600.0

PROBE = """
import importlib.metadata as m, json, sys
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
names = json.loads(sys.argv[1])
print(json.dumps({"python": sys.version.split()[0], "packages": {n: version(n) for n in names}}))
"""


class EnvironmentProblem(ValueError):
    """An environment that cannot be used or built; its text is one sentence for the user."""


@dataclass(frozen=True)
class Recipe:
    """How an environment is made."""

    requirements: tuple[str, ...]
    """Requirement files installed together, with what they depend on."""
    alone: tuple[str, ...] = ()
    """Requirement files installed after them without dependencies, because what their packages
    declare does not fit together and is not what they import."""
    constraints: tuple[str, ...] = ()
    """Files that pin what the requirements depend on."""
    remove: tuple[str, ...] = ()
    """Packages that come along and break the others at import."""
    hooks: tuple[str, ...] = ()
    """Modules of `rewards/envs/` that every interpreter of the environment imports first."""
    modules: tuple[str, ...] = ()
    """What has to be importable."""


WORKERS = "workers.txt"
CPU_HOOK = ("torchvision_without_cuda.py",)
"""A CUDA build of torchvision under a CPU build of torch."""

RECIPES: Mapping[tuple[Family, bool], Recipe] = {
    ("judge", False): Recipe((WORKERS, "judge.txt"), modules=("vllm",)),
    ("judge", True): Recipe(
        (WORKERS, "judge-cpu.txt"),
        constraints=("judge-cpu.constraints",),
        remove=("torchaudio", "torchcodec", "triton"),
        hooks=CPU_HOOK,
        modules=("vllm",),
    ),
    ("aesthetic", False): Recipe(
        (WORKERS, "aesthetic.txt"), alone=("aesthetic-alone.txt",), modules=("hpsv3",)
    ),
    ("aesthetic", True): Recipe(
        (WORKERS, "aesthetic.txt"),
        alone=("aesthetic-alone.txt",),
        remove=("triton",),
        hooks=CPU_HOOK,
        modules=("hpsv3",),
    ),
    ("reconstruction", False): Recipe(
        (WORKERS, "reconstruction.txt", "reconstruction-gpu.txt"),
        alone=("reconstruction-alone.txt",),
        modules=("depth_anything_3.cfg", "gsplat", "lpips"),
    ),
    ("reconstruction", True): Recipe(
        (WORKERS, "reconstruction.txt"),
        alone=("reconstruction-alone.txt",),
        remove=("triton",),
        hooks=CPU_HOOK,
        modules=("depth_anything_3.cfg", "lpips"),
    ),
}
"""By family, and whether it is the build for machines without a GPU."""


def environments_root() -> Path:
    """Folder of the environments that are named and not given by path."""
    given = os.environ.get(ROOT_VARIABLE)
    return Path(given) if given else Path.home() / ".cache" / "worldr1" / "envs"


def locate(environment: str) -> Path:
    """Folder of an environment given by path (with a slash in it) or by name."""
    if "/" in environment or environment in (".", ".."):
        return Path(environment).expanduser().absolute()
    return environments_root() / environment


def python_of(environment: str) -> str:
    """Interpreter of an environment; that of this process where none is named."""
    return str(locate(environment) / "bin" / "python") if environment else sys.executable


def located(rewards: RewardConfig) -> RewardConfig:
    """The same configuration with every environment and every model that is a file or folder by
    absolute path: workers have other working directories."""
    families: dict[str, BaseModel] = {}
    for family in FAMILIES:
        config = rewards.pools[family]
        changed = {"env": str(locate(config.env))} if config.env else {}
        for name in sorted({"model", "base"} & type(config).model_fields.keys()):
            path = getattr(config, name)
            if path and Path(path).exists():
                changed[name] = str(Path(path).absolute())
        families[family] = config.model_copy(update=changed)
    trunk = rewards.perceptual.weights
    if trunk and Path(trunk).exists():
        absolute = {"weights": str(Path(trunk).absolute())}
        families["perceptual"] = rewards.perceptual.model_copy(update=absolute)
    return rewards.model_copy(update=families)


def environments_of(rewards: RewardConfig) -> dict[Family, str]:
    """Family -> environment, where one is named."""
    named = {family: rewards.pools[family].env for family in FAMILIES}
    return {family: str(locate(name)) for family, name in named.items() if name}


def first_problem(environments: Mapping[Family, str]) -> str:
    """What is wrong with the environments on this machine, in one sentence; "" if nothing is."""
    for family, environment in environments.items():
        try:
            check(family, Path(environment))
        except EnvironmentProblem as problem:
            return f"rewards.{family}.env cannot be used: {problem}"
    return ""


def require_backends(rewards: RewardConfig) -> None:
    """Raise EnvironmentProblem for a package that a backend needs, in core where no environment is
    named, or for an environment that is not fit."""
    packages = {("judge", "vllm"): "vllm", ("aesthetic", "hpsv3"): "hpsv3"}
    for family in FAMILIES:
        config = getattr(rewards, family)
        package = packages.get((family, config.backend))
        if package and not config.env and importlib.util.find_spec(package) is None:
            raise EnvironmentProblem(
                f"rewards.{family}.backend = {config.backend!r} needs the package {package}, which "
                f"is not installed here; run `worldr1 envs build {family}` and set "
                f"rewards.{family}.env = {family!r}"
            )
    problem = first_problem(environments_of(rewards))
    if problem:
        raise EnvironmentProblem(problem)


def pins(recipe: Recipe) -> dict[str, str]:
    """Package -> exact version of everything that a recipe pins."""
    found = {}
    for file in (*recipe.requirements, *recipe.alone):
        for line in (FOLDER / file).read_text().splitlines():
            requirement = line.partition("#")[0].strip()
            if requirement:
                name, version = re.fullmatch(
                    r"([\w.-]+)(?:\[[\w,]+\])?==(\S+)", requirement
                ).groups()  # type: ignore[union-attr]
                found[name] = version
    return found


def fingerprint(recipe: Recipe) -> str:
    """Hash of everything that an environment is built from."""
    digest = hashlib.sha256(repr(recipe).encode())
    digest.update(f"python {sys.version_info.major}.{sys.version_info.minor}".encode())
    files = (*recipe.requirements, *recipe.alone, *recipe.constraints, *recipe.hooks)
    for file in files:
        digest.update((FOLDER / file).read_bytes())
    return digest.hexdigest()


def build(family: Family, cpu: bool, folder: Path, say: Callable[[str], None]) -> None:
    """Make an environment, or leave one as it is that is whole and of these requirements.

    Raises EnvironmentProblem where the folder is something else or an installation fails.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock")):
        try:
            check(family, folder)
            if _stamp(folder)["cpu"] == cpu:
                say(f"{folder}: {family} is there, from these requirements")
                return
        except EnvironmentProblem:
            pass
        if folder.exists() and any(folder.iterdir()):
            if not (folder / "pyvenv.cfg").exists():
                raise EnvironmentProblem(
                    f"{str(folder)!r} is no virtual environment; name an empty or new folder"
                )
            shutil.rmtree(folder)
        _install(RECIPES[family, cpu], folder, say)
        stamp = {"family": family, "cpu": cpu, "fingerprint": fingerprint(RECIPES[family, cpu])}
        (folder / STAMP).write_text(json.dumps(stamp))
        check(family, folder)
        say(f"{folder}: {family} is built")


def _install(recipe: Recipe, folder: Path, say: Callable[[str], None]) -> None:
    say(f"{folder}: a virtual environment of Python {sys.version.split()[0]}")
    venv.EnvBuilder(with_pip=True, symlinks=True).create(folder)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    files = [part for file in recipe.requirements for part in ("-r", str(FOLDER / file))]
    files += [part for file in recipe.constraints for part in ("-c", str(FOLDER / file))]
    _run([*pip, "install", "--quiet", "--progress-bar", "off", *files], say)
    for file in recipe.alone:
        _run([*pip, "install", "--quiet", "--no-deps", "-r", str(FOLDER / file)], say)
    if recipe.remove:
        _run([*pip, "uninstall", "--quiet", "--yes", *recipe.remove], say)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    for hook in recipe.hooks:
        shutil.copy(FOLDER / hook, packages / hook)
        (packages / f"worldr1_{Path(hook).stem}.pth").write_text(f"import {Path(hook).stem}\n")


def _run(command: list[str], say: Callable[[str], None]) -> None:
    say("$ " + " ".join(Path(part).name if "/" in part else part for part in command))
    # An environment's pip must not see the packages of the process that calls it.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        reason = _last_line(done.stderr) or _last_line(done.stdout)
        raise EnvironmentProblem(f"the environment cannot be built: {reason}")


def check(family: Family, folder: Path) -> dict[str, str]:
    """Compare an environment with what this code needs; package -> version of its pins.

    Looks at versions and imports nothing, which takes a fraction of a second. Raises
    EnvironmentProblem with the first thing that is wrong.
    """
    build_it = f"build it with `worldr1 envs build {family}`"
    python = folder / "bin" / "python"
    if not python.exists():
        raise EnvironmentProblem(f"the environment {str(folder)!r} does not exist; {build_it}")
    stamp = _stamp(folder)
    if stamp.get("family") != family:
        raise EnvironmentProblem(
            f"the environment {str(folder)!r} was built for {stamp.get('family')!r}, "
            f"not for {family!r}; {build_it}"
        )
    recipe = RECIPES[family, bool(stamp.get("cpu"))]
    if stamp.get("fingerprint") != fingerprint(recipe):
        raise EnvironmentProblem(
            f"the environment {str(folder)!r} was built from other requirements than those of "
            f"this version; {build_it} again"
        )
    wanted = pins(recipe)
    found = _probe(python, [*wanted])
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    if found["python"].rpartition(".")[0] != ours:
        raise EnvironmentProblem(
            f"the environment {str(folder)!r} runs Python {found['python']}, core runs {ours}; "
            f"{build_it} again"
        )
    for name, version in wanted.items():
        held = found["packages"].get(name)
        if (held or "").partition("+")[0] != version:
            raise EnvironmentProblem(
                f"the environment {str(folder)!r} holds {name} {held or '(none)'}, needed is "
                f"{version}; {build_it} again"
            )
    return {name: str(found["packages"][name]) for name in wanted}


def check_imports(family: Family, folder: Path) -> None:
    """Import what an environment is for. Raises EnvironmentProblem with the import's error."""
    modules = RECIPES[family, bool(_stamp(folder).get("cpu"))].modules
    program = "import " + ", ".join(("ray", "cv2", "numpy", "pydantic", *modules))
    command = [str(folder / "bin" / "python"), "-I", "-c", program]
    done = _output(command, IMPORT_TIMEOUT_S)
    if done.returncode:
        raise EnvironmentProblem(
            f"the environment {str(folder)!r} cannot import {', '.join(modules)}: "
            f"{_last_line(done.stderr)}"
        )


def _stamp(folder: Path) -> dict[str, object]:
    try:
        stamp = json.loads((folder / STAMP).read_text())
        return stamp if isinstance(stamp, dict) else {}
    except (OSError, ValueError):
        raise EnvironmentProblem(
            f"the environment {str(folder)!r} is not whole: {STAMP}, which `worldr1 envs build` "
            "writes last, is missing or broken; build it again"
        ) from None


def _probe(python: Path, names: list[str]) -> dict:
    done = _output([str(python), "-I", "-c", PROBE, json.dumps(names)], PROBE_TIMEOUT_S)
    try:
        return json.loads(_last_line(done.stdout))
    except ValueError:
        raise EnvironmentProblem(
            f"{str(python)!r} is no working Python: {_last_line(done.stderr)}"
        ) from None


def _output(command: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One builder at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
